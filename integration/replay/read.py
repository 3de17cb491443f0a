"""The rows of change files below folders, as sorted texts, by day and hour.

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
        # Without partitions taken from the path.
        for row in pyarrow.parquet.ParquetFile(file).read().to_pylist():
            found.setdefault(bucket, []).append(json.dumps(row, default=str, sort_keys=True))
    return {bucket: sorted(lines) for bucket, lines in found.items()}


json.dump([rows(folder) for folder in sys.argv[1:]], sys.stdout)
