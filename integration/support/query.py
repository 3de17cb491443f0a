"""Rows of published days as DuckDB reads them: query.py FOLDER DS SQL, where {t} in SQL stands for table public.t, and
{s.t} for the one whose folder is s.t.

Prints a JSON list of rows, every value as a text or null.
"""

import glob
import json
import re
import sys

import duckdb

folder, ds, sql = sys.argv[1:]


def source(match):
    name = match.group(1)
    day = f"{folder}/{name if '.' in name else 'public.' + name}/ds={ds}"
    if glob.glob(f"{day}/*.parquet"):
        return f"read_parquet('{day}/*.parquet', hive_partitioning = false)"
    return f"read_csv('{day}/*.csv.gz', header = true, hive_partitioning = false, all_varchar = true)"


rows = duckdb.connect().execute(re.sub(r"\{([^{}]+)\}", source, sql)).fetchall()
json.dump([[None if value is None else str(value) for value in row] for row in rows], sys.stdout)
