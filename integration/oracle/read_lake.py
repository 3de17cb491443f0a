"""Reads published days, Parquet, ORC or CSV, with pyarrow alone and prints their rows as texts.

    read_lake.py            stdin: lines of {"folder": …, "columns": [[name, kind], …], "others": may it have more}
                            stdout: a line of rows for each, as JSON; nulls are nulls
"""

import datetime
import hashlib
import json
import re
import struct
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.orc as po
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
        shown = [dumped(v) for v in lists]
        return [text if valid else None for text, valid in zip(shown, column.is_valid().to_pylist(), strict=True)]
    if kind in ("instant", "local", "time"):
        column = column.cast(pa.int64())
    if kind == "date":
        column = column.cast(pa.int32())
    return [None if v is None else SHOW[kind](v) for v in column.to_pylist()]


def written(value, kind):
    """A value as it stands in CSV or, as JSON, in a list of it or in __exact."""
    if value is None or kind in ("int", "text", "bool") or value in ("infinity", "-infinity"):
        return str(value).lower() if isinstance(value, bool) else value
    kind, _, of = kind.partition(" ")
    if kind == "list":
        value = plain(value) if isinstance(value, str) else value
        if isinstance(value, str):
            return value
        lengths, elements = [], []
        flatten(value, 0, lengths, elements)
        dimensions = "".join(f"[1:{length}]" for length in lengths) if len(lengths) > 1 else ""
        return dimensions + dumped([written(v, of) for v in elements])
    if kind in ("real", "double"):
        return SHOW[kind](float(value))
    if kind in ("date", "time", "local", "instant"):
        return str(since_1970(value))
    return {"wide": SHOW["wide"], "bytes": lambda v: v.removeprefix("\\x"), "decimal": str}[kind](value)


def plain(text):
    """JSON whose numbers are texts; a text that is no JSON as it is (an array that does not begin at 1)."""
    try:
        return json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError:
        return text


def dumped(values):
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


def flatten(values, depth, lengths, elements):
    if len(lengths) == depth:
        lengths.append(len(values))
    assert lengths[depth] == len(values), values
    for value in values:
        if isinstance(value, list):
            flatten(value, depth + 1, lengths, elements)
        else:
            elements.append(value)


def since_1970(text):
    """Days of a date, microseconds of a time or timestamp; any year."""
    time = lambda t: sum(int(p) * f for p, f in zip(re.split("[:.]", t), (3_600_000_000, 60_000_000, 1_000_000, 1)))
    if text[2] == ":":
        return time(text)
    date, _, clock = text.removesuffix("+00").partition(" ")
    year, month, day = date.rsplit("-", 2)
    # Python ends with the year 9999; the calendar repeats itself every 400 years.
    cycles, year = divmod(int(year), 400)
    days = datetime.date(year + 400, int(month), int(day)).toordinal() - 146_097 - 719_163 + cycles * 146_097
    return days * 86_400_000_000 + time(clock) if clock else days


def orc_table(file):
    """What pyarrow reads of a file in ORC. It refuses timestamps which are not within 64 bits of nanoseconds: of columns
    with such, every value is "?"."""
    file = po.ORCFile(file)
    columns, fields = [], []
    for field in file.schema:
        try:
            columns.append(file.read(columns=[field.name]).column(0))
            fields.append(field)
        except pa.ArrowInvalid as error:
            if "out of range for nanosecond resolution" not in str(error):
                raise
            columns.append(pa.chunked_array([["?"] * file.nrows], pa.string()))
            fields.append(pa.field(field.name, pa.string()))
    return pa.table(columns, schema=pa.schema(fields))


def orc_texts(table, name, kind):
    """As texts() of a column of Parquet."""
    column, field = table[name], table.schema.field(name)
    whole, _, of = kind.partition(" ")
    element = of if whole == "list" else whole
    field = field.type.value_field if pa.types.is_list(field.type) else field
    if element in ("local", "instant") and pa.types.is_timestamp(field.type):
        # An instant is the local time of UTC there, and an attribute says so.
        is_instant = (field.metadata or {}).get(b"tidemark.type") == b"instant"
        assert is_instant == (element == "instant") and field.type.tz is None, f"{field} of kind {kind}"
        micros = pa.timestamp("us", "UTC" if is_instant else None)
        return texts(column.cast(pa.list_(micros) if whole == "list" else micros), kind)
    if element in ("local", "instant") and pa.types.is_string(column.type):
        return column.to_pylist()
    if kind == "time":
        # It has no type for them.
        assert pa.types.is_string(column.type), column.type
        return [written(v, kind) for v in column.to_pylist()]
    return texts(column, kind)


def columns_of(file, kinds):
    """Names of a file's columns, and texts of those asked for."""
    if file.name.endswith(".orc"):
        table = orc_table(file)
        return table, [orc_texts(table, name, kind) for name, kind in kinds if name in table.column_names]
    if not file.name.endswith(".csv.gz"):
        # Not read_table: it would take the folder's name for a column.
        table = pq.ParquetFile(file).read()
        return table, [texts(table[name], kind) for name, kind in kinds if name in table.column_names]
    with pa.input_stream(file, compression="gzip") as stream:
        header = pc.open_csv(stream, read_options=pc.ReadOptions(block_size=1 << 24), parse_options=PARSE).schema.names
    table = pc.read_csv(
        file,
        read_options=pc.ReadOptions(block_size=1 << 26),
        parse_options=PARSE,
        convert_options=pc.ConvertOptions(
            column_types={name: pa.string() for name in header},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    return table, [[written(v, kind) for v in table[name].to_pylist()] for name, kind in kinds if name in header]


PARSE = pc.ParseOptions(newlines_in_values=True, ignore_empty_lines=False)


def main():
    for line in sys.stdin:
        asked = json.loads(line)
        names = [name for name, _ in asked["columns"]]
        rows = []
        # What readers of the day would see: names that begin with _ or . are skipped.
        for file in sorted(Path(asked["folder"]).iterdir()):
            if file.name.startswith(("_", ".")):
                continue
            table, columns = columns_of(file, asked["columns"])
            if not set(names) <= set(table.column_names) if asked["others"] else table.column_names != names:
                raise SystemExit(f"{file} has the columns {table.column_names}, not {names}")
            if asked["others"] and "__exact" in table.column_names:
                kinds = dict(asked["columns"])
                for row, exact in enumerate(table["__exact"].to_pylist()):
                    for name, value in plain(exact or "{}").items():
                        if name in kinds and columns[names.index(name)][row] != "?":
                            assert columns[names.index(name)][row] is None, f"{name} is there, and in __exact"
                            columns[names.index(name)][row] = written(value, kinds[name])
            rows.extend(zip(*columns, strict=True))
        json.dump(rows, sys.stdout)
        print(flush=True)


main()
