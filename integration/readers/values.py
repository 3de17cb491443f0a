"""Prints what another reader sees in a file, as JSON.

    values.py parquet-pyarrow FILE            columns: type, Parquet type, values as bits and numbers
    values.py parquet-duckdb  FILE            columns: type, values as text
    values.py csv-duckdb      FILE COLUMNS    the same; COLUMNS is {name: type} as JSON
    values.py csv-pandas      FILE COLUMNS    columns: values as text; COLUMNS names those with instants
    values.py orc-pyarrow FILE PARQUET        rows, and what is other than in the Parquet file of the same rows
    values.py metadata        FILE            footer and statistics
    values.py pyarrow-bytes   FILE ROWS LEVEL KEY…  size of the file that pyarrow writes of the same rows
    values.py sql             FILE QUERY      the rows of a query by DuckDB over the table `t`
"""

import itertools
import json
import struct
import sys

import duckdb
import pandas
import pyarrow as pa
import pyarrow.orc as po
import pyarrow.parquet as pq


def bits(array):
    """Values of an Arrow array, none of them passed through a lossy Python type."""
    kind = array.type
    if pa.types.is_list(kind):
        return [None if not item.is_valid else bits(item.values) for item in array]
    if pa.types.is_date32(kind):
        return array.view(pa.int32()).to_pylist()
    if pa.types.is_timestamp(kind) or pa.types.is_time64(kind):
        return array.view(pa.int64()).to_pylist()
    shown = {
        pa.types.is_floating: lambda v: "nan" if v != v else struct.pack(">d", v).hex(),
        pa.types.is_decimal: str,
        pa.types.is_binary: bytes.hex,
    }
    show = next((show for test, show in shown.items() if test(kind)), lambda v: v)
    return [None if v is None else show(v) for v in array.to_pylist()]


def parquet_pyarrow(path):
    file = pq.ParquetFile(path)
    table = file.read()
    leaves = [file.schema.column(i) for i in range(len(file.schema))]
    return [
        {
            "name": name,
            "type": str(column.type),
            "parquet": f"{leaf.path} {leaf.physical_type} {leaf.logical_type}",
            "values": bits(column.combine_chunks()),
        }
        for name, column, leaf in zip(table.column_names, table.columns, leaves)
    ]


def at_rest(column):
    """A column in the types that both formats have: times as text, timestamps in microseconds."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(column.offsets, at_rest(column.values), mask=column.is_null())
    if pa.types.is_time64(kind):
        return pa.array([time_text(v) for v in column.view(pa.int64()).to_pylist()], pa.string())
    return column.cast(pa.timestamp("us", kind.tz)) if pa.types.is_timestamp(kind) else column


def time_text(v):
    if v is None:
        return None
    return f"{v // 3_600_000_000:02}:{v // 60_000_000 % 60:02}:{v // 1_000_000 % 60:02}.{v % 1_000_000:06}"


def orc_pyarrow(path, parquet):
    orc, expected = po.ORCFile(path), pq.read_table(parquet)
    found = orc.read()
    differences = []
    if found.column_names != expected.column_names:
        differences.append(f"columns {found.column_names}")
    for name in expected.column_names:
        ours, theirs = bits(at_rest(found[name])), bits(at_rest(expected[name]))
        if len(ours) != len(theirs):
            differences.append(f"{name}: {len(ours)} rows, not {len(theirs)}")
        rows = (i for i, (one, other) in enumerate(zip(ours, theirs)) if one != other)
        for row in itertools.islice(rows, 1):
            kind = found[name].type
            differences.append(f"{name} {kind}, row {row}: {ours[row]!r}, not {theirs[row]!r}")
    return {"rows": orc.nrows, "differences": differences}


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def text_of(column, kind):
    if kind == "TIMESTAMP WITH TIME ZONE":
        # Its text comes by way of a double of milliseconds, which is off by some near the end of time.
        instant = f"CAST(make_timestamp(epoch_us({column})) AS VARCHAR) || '+00'"
        return f"CASE WHEN isfinite({column}) THEN {instant} ELSE CAST({column} AS VARCHAR) END"
    return f"CAST({column} AS VARCHAR)"


def duckdb_columns(relation, texts):
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    described = connection.execute(f"DESCRIBE SELECT {texts} FROM {relation}").fetchall()
    names = [(name, kind) for name, kind, *_ in described]
    shown = ", ".join(text_of(quoted(name), kind) for name, kind in names)
    rows = connection.execute(f"SELECT {shown} FROM (SELECT {texts} FROM {relation})").fetchall()
    return [
        {"name": name, "type": kind, "values": [row[i] for row in rows]} for i, (name, kind) in enumerate(names)
    ]


def csv_duckdb(path, columns):
    # DuckDB's own CSV casts do not know JSON lists or hexadecimal bytes: those columns are read as text first.
    texts, read = [], {}
    for plain, kind in columns.items():
        name = quoted(plain)
        read[plain] = "VARCHAR" if kind.endswith("[]") or kind == "BLOB" else kind
        if kind == "BLOB":
            texts.append(f"unhex(substr({name}, 3)) AS {name}")
        elif kind.endswith("[]"):
            # By way of text: JSON numbers would be doubles on the way.
            texts.append(f"{name}::JSON::VARCHAR[]::{kind} AS {name}")
        else:
            texts.append(name)
    relation = f"""read_csv('{path}', header = true, delim = ',', quote = '"', escape = '"', nullstr = '',
        allow_quoted_nulls = false, auto_detect = false, columns = {read}, compression = 'gzip')"""
    return duckdb_columns(relation, ", ".join(texts))


def csv_pandas(path, instants):
    frame = pandas.read_csv(path, dtype=str, keep_default_na=False, na_values=[])
    out = []
    for name in frame.columns:
        column = frame[name]
        if name in instants:
            column = pandas.to_datetime(column).map(str)
        out.append({"name": name, "values": column.tolist()})
    return out


def metadata(path):
    file = pq.ParquetFile(path)
    footer = file.metadata
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    columns = [[group.column(i) for i in range(group.num_columns)] for group in groups]
    return {
        "created_by": footer.created_by,
        "format": footer.format_version,
        "key_values": footer.metadata,
        "rows": [group.num_rows for group in groups],
        "sorting": [[(s.column_index, s.descending, s.nulls_first) for s in g.sorting_columns] for g in groups],
        "compression": sorted({c.compression for group in columns for c in group}),
        "nulls": [[c.statistics.null_count for c in group] for group in columns],
        "bounds": [[group[0].statistics.min, group[0].statistics.max] for group in columns],
        "indexes": all(c.has_column_index and c.has_offset_index for group in columns for c in group),
    }


def pyarrow_bytes(path, rows, level, *keys):
    table = pq.read_table(path)
    out = pa.BufferOutputStream()
    names = table.column_names
    pq.write_table(
        table,
        out,
        version="1.0",
        row_group_size=int(rows),
        compression="zstd",
        compression_level=int(level),
        store_schema=False,
        store_decimal_as_integer=True,
        write_page_index=True,
        sorting_columns=[pq.SortingColumn(names.index(key)) for key in keys],
        bloom_filter_options={key: {"ndv": min(int(rows), table.num_rows), "fpp": 0.05} for key in keys},
    )
    return out.getvalue().size


def sql(path, query):
    connection = duckdb.connect()
    connection.execute(f"CREATE VIEW t AS SELECT * FROM '{path}'")
    return [list(map(str, row)) for row in connection.execute(query).fetchall()]


def main(what, path, *rest):
    if what == "parquet-pyarrow":
        return parquet_pyarrow(path)
    if what == "parquet-duckdb":
        return duckdb_columns(f"'{path}'", "*")
    if what == "csv-duckdb":
        return csv_duckdb(path, json.loads(rest[0]))
    if what == "csv-pandas":
        return csv_pandas(path, json.loads(rest[0]))
    if what == "orc-pyarrow":
        return orc_pyarrow(path, rest[0])
    if what == "pyarrow-bytes":
        return pyarrow_bytes(path, *rest)
    if what == "metadata":
        return metadata(path)
    return sql(path, rest[0])


json.dump(main(*sys.argv[1:]), sys.stdout)
