"""The rows of change files below folders, as sorted texts with the log partition, by day and hour.

    read.py FOLDER...
"""

import json
import sys
from pathlib import Path

import pyarrow.parquet


def rows(folder):
    found = {}
    for file in sorted(Path(folder).glob("ds=*/hour=*/*.parquet")):
        bucket = "/".join(file.parts[-3:-1])
        partition = int(file.name.split("-")[0])
        # Without partitions taken from the path.
        for row in pyarrow.parquet.ParquetFile(file).read().to_pylist():
            row["__partition"] = partition
            found.setdefault(bucket, []).append(json.dumps(row, default=str, sort_keys=True))
    return {bucket: sorted(lines) for bucket, lines in found.items()}


json.dump([rows(folder) for folder in sys.argv[1:]], sys.stdout)
