"""What readers of folders find that are told by nobody: rows, or the refusal.

    read.py ROOT...      for each lake, by day: the answers of pyarrow and of DuckDB
    read.py ENDPOINT KEY SECRET BUCKET/PREFIX      the same of a bucket, by pyarrow's S3 client alone
"""

import json
import sys
from pathlib import Path

import duckdb
import pyarrow.dataset
import pyarrow.fs

TABLE = "public.t"


def rows(read):
    try:
        return read()
    except Exception as error:  # Whatever it is, it is loud.
        return f"refused: {type(error).__name__}"


def local(root):
    found = {}
    for folder in sorted(Path(root).glob(f"snapshots/*/{TABLE}/ds=*")):
        files = sorted(str(file) for file in folder.iterdir() if not file.name.startswith((".", "_")))
        arrow = rows(lambda: pyarrow.dataset.dataset(files, format="parquet").count_rows()) if files else 0
        # Reads every row; counting alone would look at footers only.
        count = f"SELECT count(id) FROM read_parquet('{folder}/*.parquet')"
        # A connection that has met an error takes no more questions.
        duck = rows(lambda: duckdb.connect().sql(count).fetchone()[0]) if files else 0
        found[folder.name.removeprefix("ds=")] = [arrow, duck]
    return found


def bucket(endpoint, key, secret, root):
    store = pyarrow.fs.S3FileSystem(
        access_key=key, secret_key=secret, endpoint_override=endpoint, scheme="http", region="us-east-1"
    )
    files = store.get_file_info(pyarrow.fs.FileSelector(f"{root}/snapshots", recursive=True, allow_not_found=True))
    days = {}
    for info in files:
        if info.type == pyarrow.fs.FileType.File and "/ds=" in info.path:
            ds, name = info.path.split("/ds=")[1].split("/")
            days.setdefault(ds, [])
            if not name.startswith("_"):
                days[ds].append(info.path)
    read = lambda paths: pyarrow.dataset.dataset(paths, format="parquet", filesystem=store).to_table().num_rows
    return {ds: rows(lambda: read(sorted(paths))) if paths else 0 for ds, paths in days.items()}


if ":" in sys.argv[1]:
    json.dump(bucket(*sys.argv[1:]), sys.stdout)
else:
    json.dump([local(root) for root in sys.argv[1:]], sys.stdout)
