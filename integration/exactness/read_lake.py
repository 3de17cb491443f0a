"""Reads published days with pyarrow alone and prints their rows as texts.

    read_lake.py            stdin: lines of {"folder": …, "columns": [[name, kind], …]}
                            stdout: a line of rows for each, as JSON; nulls are nulls
"""

import hashlib
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SHOW = {
    "int": str,
    "text": str,
    "wide": lambda v: hashlib.sha256(v.encode()).hexdigest(),
    "money": lambda v: format(v, "f"),
    "numeric": str,
    "instant": lambda v: {2**63 - 1: "infinity", -(2**63) + 1: "-infinity"}.get(v) or str(v),
    "date": str,
    "ints": lambda v: json.dumps(v, separators=(",", ":")),
    "bytes": bytes.hex,
    "bool": lambda v: "true" if v else "false",
}
TYPES = {
    "int": pa.types.is_integer,
    "text": pa.types.is_string,
    "wide": pa.types.is_string,
    "money": lambda t: pa.types.is_decimal(t) and t.scale == 2,
    "numeric": pa.types.is_string,
    "instant": lambda t: pa.types.is_timestamp(t) and t.unit == "us" and t.tz == "UTC",
    "date": pa.types.is_date32,
    "ints": pa.types.is_list,
    "bytes": pa.types.is_binary,
    "bool": pa.types.is_boolean,
}


def texts(column, kind):
    if not TYPES[kind](column.type):
        raise SystemExit(f"a column of kind {kind} is {column.type}")
    if kind == "instant":
        column = column.cast(pa.int64())
    if kind == "date":
        column = column.cast(pa.int32())
    return [None if v is None else SHOW[kind](v) for v in column.to_pylist()]


def main():
    for line in sys.stdin:
        asked = json.loads(line)
        rows = []
        # What readers of the day would see: names that begin with _ or . are skipped.
        for file in sorted(Path(asked["folder"]).iterdir()):
            if file.name.startswith(("_", ".")):
                continue
            # Not read_table: it would take the folder's name for a column.
            table = pq.ParquetFile(file).read()
            if table.column_names != [name for name, _ in asked["columns"]]:
                raise SystemExit(f"{file} has the columns {table.column_names}")
            columns = [texts(table[name], kind) for name, kind in asked["columns"]]
            rows.extend(zip(*columns, strict=True))
        json.dump(rows, sys.stdout)
        print(flush=True)


main()
