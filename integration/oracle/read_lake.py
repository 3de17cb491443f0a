"""Reads published days with pyarrow alone and prints their rows as texts.

    read_lake.py            stdin: lines of {"folder": …, "columns": [[name, kind], …], "others": may it have more}
                            stdout: a line of rows for each, as JSON; nulls are nulls
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SHOW = {
    "int": str,
    "text": str,
    "wide": lambda v: hashlib.sha256(v.encode()).hexdigest(),
    "decimal": lambda v: format(v, "f"),
    "real": lambda v: struct.pack(">f", v).hex(),
    "double": lambda v: struct.pack(">d", v).hex(),
    "time": str,
    "local": lambda v: INFINITIES.get(v) or str(v),
    "instant": lambda v: INFINITIES.get(v) or str(v),
    "date": lambda v: {2**31 - 1: "infinity", -(2**31) + 1: "-infinity"}.get(v) or str(v),
    "bytes": bytes.hex,
    "bool": lambda v: "true" if v else "false",
}
INFINITIES = {2**63 - 1: "infinity", -(2**63) + 1: "-infinity"}
TYPES = {
    "int": pa.types.is_integer,
    "text": pa.types.is_string,
    "wide": pa.types.is_string,
    "decimal": pa.types.is_decimal,
    "real": pa.types.is_float32,
    "double": pa.types.is_float64,
    "time": lambda t: pa.types.is_time64(t) and t.unit == "us",
    "local": lambda t: pa.types.is_timestamp(t) and t.unit == "us" and t.tz is None,
    "instant": lambda t: pa.types.is_timestamp(t) and t.unit == "us" and t.tz == "UTC",
    "date": pa.types.is_date32,
    "list": pa.types.is_list,
    "bytes": pa.types.is_binary,
    "bool": pa.types.is_boolean,
}


def texts(column, kind):
    kind, _, of = kind.partition(" ")
    # A decimal of more digits than files have is text.
    if kind == "decimal" and pa.types.is_string(column.type):
        kind = "text"
    elif not TYPES[kind](column.type) or kind == "decimal" and column.type.scale != int(of):
        raise SystemExit(f"a column of kind {kind} {of} is {column.type}")
    if kind == "list":
        column = column.combine_chunks()
        elements, ends = texts(column.values, of), column.offsets.to_pylist()
        lists = [elements[start:end] for start, end in zip(ends, ends[1:])]
        shown = [json.dumps(v, separators=(",", ":"), ensure_ascii=False) for v in lists]
        return [text if valid else None for text, valid in zip(shown, column.is_valid().to_pylist(), strict=True)]
    if kind in ("instant", "local", "time"):
        column = column.cast(pa.int64())
    if kind == "date":
        column = column.cast(pa.int32())
    return [None if v is None else SHOW[kind](v) for v in column.to_pylist()]


def main():
    for line in sys.stdin:
        asked = json.loads(line)
        names = [name for name, _ in asked["columns"]]
        rows = []
        # What readers of the day would see: names that begin with _ or . are skipped.
        for file in sorted(Path(asked["folder"]).iterdir()):
            if file.name.startswith(("_", ".")):
                continue
            # Not read_table: it would take the folder's name for a column.
            table = pq.ParquetFile(file).read()
            if not set(names) <= set(table.column_names) if asked["others"] else table.column_names != names:
                raise SystemExit(f"{file} has the columns {table.column_names}, not {names}")
            columns = [texts(table[name], kind) for name, kind in asked["columns"]]
            rows.extend(zip(*columns, strict=True))
        json.dump(rows, sys.stdout)
        print(flush=True)


main()
