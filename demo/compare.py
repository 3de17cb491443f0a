"""Counts, sums and checksums of the shop, by Postgres and by DuckDB from the lake, side by side.

    compare.py postgres               what Postgres holds now, as JSON on stdout; psql finds the server by PG* variables
    compare.py lake FOLDER DS FILE    what the published day holds, beside the JSON of FILE; exit code 1 if they differ

FOLDER is .../snapshots/<name>. Each engine computes its numbers by itself, and only those are compared. The checksum
covers every column of every row: a value becomes a text which both engines can make, the md5 of a row's texts a number,
and the numbers are added up, so that the order of the rows does not matter.
"""

import json
import subprocess
import sys

SUMS = {"customers": "credit", "order_lines": "unit_price", "orders": "total", "products": "price"}


def postgres_text(column, kind):
    """SQL of Postgres which makes a value of the type `kind` a text."""
    if kind.endswith("[]"):
        return f"array_to_json({column})::text"
    if kind.startswith("time"):
        return f"(extract(epoch FROM {column}) * 1000000)::bigint::text"
    if kind == "double precision":
        return f"({column} * 1000)::bigint::text"
    return f"{column}::text"


def duckdb_text(column, kind):
    """SQL of DuckDB which makes the same text."""
    if kind.endswith("[]"):
        return f"to_json({column})::VARCHAR"
    if kind.startswith("time"):
        return f"epoch_us({column})::VARCHAR"
    if kind == "double precision":
        return f"({column} * 1000)::BIGINT::VARCHAR"
    return f"{column}::VARCHAR"


def question(table, columns, source, text, number):
    """SQL for one table's numbers: rows, sum, checksum. Nulls differ from every text by having no '=' before them."""
    parts = " || chr(31) || ".join(f"coalesce('=' || {text(name, kind)}, '')" for name, kind in columns)
    return (
        f"SELECT count(*), sum({SUMS[table]}), sum({number}) "
        f"FROM (SELECT *, left(md5({parts}), 8) AS hash FROM {source}) AS hashed"
    )


def psql(sql):
    """The answer's rows, each a list of texts."""
    command = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "--command", sql]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [line.split("|") for line in answer.splitlines()]


def ask_postgres():
    """Columns and numbers of each table."""
    tables = {}
    for table in SUMS:
        columns = psql(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            f"WHERE attrelid = 'public.{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        )
        sql = question(table, columns, f"public.{table}", postgres_text, "('x' || hash)::bit(32)::bigint")
        tables[table] = {"columns": columns, "numbers": psql(sql)[0]}
    return tables


def ask_lake(folder, ds, tables):
    """Numbers of each table, from its published files alone."""
    import duckdb

    connection = duckdb.connect()
    numbers = {}
    for table, known in tables.items():
        source = f"read_parquet('{folder}/public.{table}/ds={ds}/*.parquet', hive_partitioning = false)"
        sql = question(table, known["columns"], source, duckdb_text, "('0x' || hash)::BIGINT")
        numbers[table] = [str(number) for number in connection.execute(sql).fetchone()]
    return numbers


def print_side_by_side(tables, numbers):
    """A line for each number; returns whether all are equal."""
    layout = "  {:<12} {:<24} {:>22} {:>22}  {}"
    print(layout.format("table", "", "Postgres", "lake (DuckDB)", ""))
    all_equal = True
    for table, known in tables.items():
        names = ["rows", f"sum of {SUMS[table]}", f"checksum of {len(known['columns'])} columns"]
        for name, ours, theirs in zip(names, known["numbers"], numbers[table], strict=True):
            all_equal &= ours == theirs
            verdict = "equal" if ours == theirs else "DIFFERENT"
            print(layout.format(table if name == "rows" else "", name, ours, theirs, verdict))
    return all_equal


def main(arguments):
    match arguments:
        case ["postgres"]:
            json.dump(ask_postgres(), sys.stdout)
        case ["lake", folder, ds, file]:
            with open(file, encoding="utf-8") as saved:
                tables = json.load(saved)
            if not print_side_by_side(tables, ask_lake(folder, ds, tables)):
                sys.exit(1)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
