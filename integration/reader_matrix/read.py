"""What a reader sees in the folder of a day, as JSON: for each column its values as texts which all readers print alike, or
the error that it ends with.

    read.py python|pyarrow|duckdb FORMAT           stdin: {"folder": …, "columns": [[name, kind], …]}
    read.py trino FORMAT URL CATALOG        the same, with the table that the folder is the location of: {"table": …}
    read.py texts                           stdin: {"columns": …, "texts": {name: [text of CSV, …]}}

With "filters": [SQL, …] it prints the ids that each finds instead, in order.

Kinds: bool, int, real, double (as bits), decimal, text, bytes (hexadecimal), date (days since 1970), time, local, instant
(microseconds), and lists of them ("list int"). Of CSV it prints the texts as they are; "texts" makes values of them.
"""

import csv
import datetime
import gzip
import json
import re
import struct
import sys
import time
import urllib.error
import urllib.request
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pac
import pyarrow.csv as pc
import pyarrow.dataset as ds
import pyarrow.orc as po
import pyarrow.parquet as pq


def since_1970(text):
    """Days of a date, microseconds of a time or timestamp; any year."""
    if text in ("infinity", "-infinity"):
        return None
    if text[2] == ":":
        clock = text.split(".")
        parts = [int(part) for part in clock[0].split(":")]
        fraction = int((clock[1] if len(clock) > 1 else "0").ljust(6, "0"))
        return ((parts[0] * 60 + parts[1]) * 60 + parts[2]) * 1_000_000 + fraction
    date, _, clock = text.removesuffix("+00").partition(" ")
    year, month, day = date.rsplit("-", 2)
    # Python ends with the year 9999; the calendar repeats itself every 400 years.
    cycles, year = divmod(int(year), 400)
    days = datetime.date(year + 400, int(month), int(day)).toordinal() - 146_097 - 719_163 + cycles * 146_097
    return days * 86_400_000_000 + since_1970(clock) if clock else days


def from_text(text, kind):
    """A value of its text in CSV."""
    kind, _, element = kind.partition(" ")
    if text is None or kind in ("text", "int", "bool", "decimal"):
        return text
    if kind == "list":
        items = json.loads(text, parse_int=str, parse_float=str)
        return [("true" if i else "false") if isinstance(i, bool) else from_text(i, element) for i in items]
    if kind in ("real", "double"):
        return bits(float(text), kind)
    if kind == "bytes":
        return text.removeprefix("\\x")
    last = 2**31 - 1 if kind == "date" else 2**63 - 1
    return str({"infinity": last, "-infinity": -last}.get(text) or since_1970(text))


def bits(number, kind):
    return "nan" if number != number else struct.pack(">f" if kind == "real" else ">d", number).hex()


def shown(array, kind, form):
    """Values of an array of Arrow."""
    kind, _, element = kind.partition(" ")
    if kind == "list":
        items, ends = shown(array.values, element, form), array.offsets.to_pylist()
        lists = [items[start:end] for start, end in zip(ends, ends[1:])]
        return [one if valid else None for one, valid in zip(lists, array.is_valid().to_pylist(), strict=True)]
    if kind == "time" and pa.types.is_string(array.type):
        return [from_text(v, kind) for v in array.to_pylist()]
    if kind in ("local", "instant"):
        array = array.cast(pa.timestamp("us", array.type.tz))
        if form == "parquet":
            assert (array.type.tz is not None) == (kind == "instant"), array.type
    if kind in ("local", "instant", "time", "date"):
        array = array.cast(pa.int32() if kind == "date" else pa.int64())
    show = {
        "bool": lambda v: "true" if v else "false",
        "real": lambda v: bits(v, kind),
        "double": lambda v: bits(v, kind),
        "decimal": lambda v: v if isinstance(v, str) else format(v, "f"),
        "bytes": bytes.hex,
    }.get(kind, str)
    return [None if v is None else show(v) for v in array.to_pylist()]


def each(columns, read):
    """What `read` of some columns gives for each; where it fails, each half is tried."""
    if not columns:
        return {}
    try:
        return read(columns)
    except Exception as error:  # whatever a reader ends with is what it sees
        if len(columns) == 1:
            return {columns[0][0]: {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}}
    middle = len(columns) // 2
    return each(columns[:middle], read) | each(columns[middle:], read)


def files(folder):
    return [file for file in sorted(Path(folder).iterdir()) if not file.name.startswith(("_", "."))]


def in_pyarrow(form, folder):
    def read(columns):
        names = [name for name, _ in columns]
        tables = []
        for file in files(folder):
            if form == "orc":
                tables.append(po.ORCFile(file).read(columns=names))
            elif form == "parquet":
                tables.append(pq.ParquetFile(file).read(columns=names))
            else:
                convert = pc.ConvertOptions(
                    include_columns=names,
                    column_types={name: pa.string() for name in names},
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                )
                parse = pc.ParseOptions(newlines_in_values=True, ignore_empty_lines=False)
                block = pc.ReadOptions(block_size=1 << 26)
                tables.append(pc.read_csv(file, block, parse, convert))
        table = pa.concat_tables(tables).combine_chunks()
        return {
            name: table[name].to_pylist() if form == "csv" else shown(table[name].combine_chunks(), kind, form)
            for name, kind in columns
        }

    return read


def in_python(folder):
    """By Python's own module."""

    def read(columns):
        csv.field_size_limit(1 << 30)
        rows = []
        for file in files(folder):
            with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
                rows.extend(csv.DictReader(stream, strict=True))
        return {name: [None if row[name] == "" and kind != "text" else row[name] for row in rows] for name, kind in columns}

    return read


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def duckdb_text(x, kind):
    kind, _, element = kind.partition(" ")
    if kind == "list":
        return f"list_transform({x}, lambda x: {duckdb_text('x', element)})"
    finite = f"CASE WHEN isfinite({x}) THEN CAST({{}} AS VARCHAR) WHEN {x} = 'infinity' THEN '{{}}' WHEN {x} IS NOT NULL THEN '-{{}}' END"
    return {
        "bytes": f"lower(hex({x}))",
        "date": finite.format(f"{x} - DATE '1970-01-01'", 2**31 - 1, 2**31 - 1),
        "local": finite.format(f"epoch_us({x})", 2**63 - 1, 2**63 - 1),
        "instant": finite.format(f"epoch_us({x})", 2**63 - 1, 2**63 - 1),
        "time": f"CAST(epoch_us({x}) AS VARCHAR)",
        "real": x,
        "double": x,
    }.get(kind, f"CAST({x} AS VARCHAR)")


def in_duckdb(form, folder):
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    if form == "csv":
        source = f"""read_csv('{folder}/*.csv.gz', header = true, all_varchar = true, delim = ',', quote = '"',
            escape = '"', nullstr = '', allow_quoted_nulls = false, hive_partitioning = false)"""
    else:
        source = f"read_{form}('{folder}/*.{form}', hive_partitioning = false)"

    def floats(values, kind):
        if values is None or kind not in ("real", "double"):
            return values
        return [floats(v, kind) for v in values] if isinstance(values, list) else bits(values, kind)

    def read(columns):
        texts = [quoted(name) if form == "csv" else duckdb_text(quoted(name), kind) for name, kind in columns]
        rows = connection.execute(f"SELECT {', '.join(texts)} FROM {source} ORDER BY CAST(id AS INTEGER)").fetchall()
        kinds = [kind.removeprefix("list ") if form != "csv" else "text" for _, kind in columns]
        return {name: [floats(row[i], kinds[i]) for row in rows] for i, (name, _) in enumerate(columns)}

    return read


def trino_type(kind, form):
    kind, _, element = kind.partition(" ")
    if form == "csv":
        return "varchar"
    if kind == "list":
        return f"array({trino_type(element, form)})"
    if kind == "decimal":
        return f"decimal({element.replace(' ', ', ')})"
    return {
        "bool": "boolean",
        "int": {"2": "smallint", "4": "integer"}.get(element, "bigint"),
        "text": "varchar",
        "bytes": "varbinary",
        # Hive's tables have no time of day.
        "time": "varchar" if form == "orc" else "bigint",
        "local": "timestamp(6)",
        "instant": "timestamp(6)",
    }.get(kind, kind)


def trino_text(x, kind):
    kind, _, element = kind.partition(" ")
    if kind == "list":
        return f"transform({x}, x -> {trino_text('x', element)})"
    return {
        "bytes": f"lower(to_hex({x}))",
        "date": f"CAST(date_diff('day', DATE '1970-01-01', {x}) AS varchar)",
        "real": f"IF(is_nan({x}), 'nan', lower(to_hex(to_ieee754_32({x}))))",
        "double": f"IF(is_nan({x}), 'nan', lower(to_hex(to_ieee754_64({x}))))",
    }.get(kind, f"CAST({x} AS varchar)")


class Trino:
    def __init__(self, url, catalog):
        self.url, self.headers = url, {"X-Trino-User": "t", "X-Trino-Catalog": catalog, "X-Trino-Schema": "s"}

    def rows(self, sql):
        request = urllib.request.Request(f"{self.url}/v1/statement", sql.encode(), self.headers)
        rows = []
        while True:
            try:
                with urllib.request.urlopen(request) as answer:
                    page = json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code not in (502, 503, 504):
                    raise
                time.sleep(0.1)
                continue
            if "error" in page:
                raise RuntimeError(page["error"]["message"])
            rows.extend(page.get("data", []))
            if "nextUri" not in page:
                return rows
            request = urllib.request.Request(page["nextUri"], headers=self.headers)


def in_trino(form, trino, table):
    def value(v, kind):
        if form == "csv":
            # It takes nulls for empty texts; nothing else is ever empty.
            return None if v == "" and kind != "text" else v
        kind, _, element = kind.partition(" ")
        if v is None:
            return None
        if kind == "list":
            return [value(item, element) for item in v]
        if kind in ("local", "instant") or kind == "time" and form == "orc":
            return str(since_1970(v))
        return v

    def read(columns):
        texts = [quoted(name) if form == "csv" else trino_text(quoted(name), kind) for name, kind in columns]
        rows = trino.rows(f"SELECT {', '.join(texts)} FROM {table} ORDER BY CAST(id AS integer)")
        return {name: [value(row[i], kind) for row in rows] for i, (name, kind) in enumerate(columns)}

    return read


def pyarrow_filter(form, folder, sql):
    """The ids by a filter of Arrow's own datasets, for what can be said in it."""
    match = re.fullmatch(r"(\w+) (=|<|>|<=|>=) (\S+|'[^']*')", sql)
    if not match:
        return None
    name, operator, value = match.groups()
    dataset = ds.dataset([str(file) for file in files(folder)], format=form)
    kind = dataset.schema.field(name).type
    scalar = pa.scalar(Decimal(value) if pa.types.is_decimal(kind) else json.loads(value.replace("'", '"'))).cast(kind)
    call = {"=": pac.equal, "<": pac.less, ">": pac.greater, "<=": pac.less_equal, ">=": pac.greater_equal}[operator]
    found = dataset.to_table(columns=["id"], filter=call(pac.field(name), scalar))
    return sorted(found["id"].to_pylist())


def filtered(what, form, asked, trino):
    if what == "pyarrow":
        return {sql: pyarrow_filter(form, asked["folder"], sql) for sql in asked["filters"]}
    if what == "duckdb":
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        source = f"read_{form}('{asked['folder']}/*.{form}', hive_partitioning = false)"
        rows = lambda sql: connection.execute(sql).fetchall()
    else:
        source, rows = asked["table"], trino.rows
    return {
        sql: [row[0] for row in rows(f"SELECT id FROM {source} WHERE {sql} ORDER BY id")] for sql in asked["filters"]
    }


def main(what, form=None, *rest):
    asked = json.load(sys.stdin)
    columns = asked["columns"]
    if "filters" in asked and what != "trino":
        return filtered(what, form, asked, None)
    if what == "texts":
        return {
            name: texts if isinstance(texts := asked["texts"][name], dict) else [from_text(t, kind) for t in texts]
            for name, kind in columns
        }
    if what == "trino":
        trino = Trino(*rest)
        if "sql" in asked:
            return trino.rows(asked["sql"])
        fields = ", ".join(f"{quoted(name)} {trino_type(kind, form)}" for name, kind in columns)
        more = ""
        if form == "csv":
            more = ", skip_header_line_count = 1, csv_separator = ',', csv_quote = '\"', csv_escape = U&'\\0001'"
        trino.rows(
            f"CREATE TABLE {asked['table']} ({fields}, ds varchar) WITH (format = '{form.upper()}', "
            f"external_location = '{asked['folder']}', partitioned_by = ARRAY['ds']{more})"
        )
        trino.rows(f"CALL system.sync_partition_metadata('s', '{asked['table']}', 'FULL')")
        if "filters" in asked:
            return filtered(what, form, asked, trino)
        return each(columns, in_trino(form, trino, asked["table"]))
    if what == "python":
        return each(columns, in_python(asked["folder"]))
    return each(columns, {"pyarrow": in_pyarrow, "duckdb": in_duckdb}[what](form, asked["folder"]))


json.dump(main(*sys.argv[1:]), sys.stdout)
