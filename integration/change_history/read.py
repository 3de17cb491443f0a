"""Change files as pyarrow reads them.

    read.py FOLDER      FOLDER is a table's, with an integer column id as its key

Prints what an hour of a log partition has more than one file, which files are not in the order of key and position, and
the rows that the changes come to, by id.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet

hours, unsorted, changes, versions = Counter(), [], [], []
for file in sorted(Path(sys.argv[1]).glob("ds=*/hour=*/*.parquet")):
    rows = pyarrow.parquet.ParquetFile(file).read().to_pylist()
    hours["/".join(file.parts[-3:-1]) + "/" + file.name.split("-")[0]] += 1
    position = lambda row: (row["__timeline"], row["__commit_lsn"], row["__ordinal"])
    order = [(row["id"], position(row)) for row in rows]
    if order != sorted(order):
        unsorted.append(file.name)
    versions.append(sorted({row["__schema"] for row in rows}))
    changes += [(position(row), row) for row in rows]

table = {}
for _, row in sorted(changes, key=lambda change: change[0]):
    held = table.pop(row["id"], {})
    if row["__op"] != "d":
        unchanged = row["__unchanged"] or []
        table[row["id"]] = {
            name: held[name] if name in unchanged else value
            for name, value in row.items()
            if not name.startswith("__")
        }
several = {hour: count for hour, count in hours.items() if count > 1}
rows = [table[key] for key in sorted(table)]
json.dump({"several": several, "unsorted": unsorted, "versions": versions, "rows": rows}, sys.stdout)
