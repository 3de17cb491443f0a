"""What is in a bucket, by pyarrow's own S3 client.

    read.py ENDPOINT KEY SECRET BUCKET/PREFIX published NAME           hashes of the objects of published days, by path
    read.py ENDPOINT KEY SECRET BUCKET/PREFIX rows NAME TABLE DS       rows of a table's day, every value as a text

With S3_BUCKET_HOSTS_AT the bucket stands in the host's name, and there is a proxy that knows these hosts.
"""

import hashlib
import json
import os
import sys
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet

endpoint, key, secret, root, what, name, *rest = sys.argv[1:]
proxy = os.environ.get("S3_BUCKET_HOSTS_AT")
store = pyarrow.fs.S3FileSystem(
    access_key=key,
    secret_key=secret,
    endpoint_override=endpoint,
    scheme="http",
    region="us-east-1",
    force_virtual_addressing=proxy is not None,
    proxy_options=proxy,
)


def objects(folder):
    found = store.get_file_info(pyarrow.fs.FileSelector(f"{root}/{folder}", recursive=True, allow_not_found=True))
    return [info.path for info in found if info.type == pyarrow.fs.FileType.File]


def published():
    days = [path for path in objects(f"cuts/{name}") if "/ds=" in path]
    snapshots = objects(f"snapshots/{name}")
    whole = {path.rsplit("/", 1)[0] for path in snapshots if path.endswith("/_manifest.json")}
    paths = days + [path for path in snapshots if path.rsplit("/", 1)[0] in whole]
    return {
        path.removeprefix(f"{root}/"): hashlib.sha256(store.open_input_stream(path).readall()).hexdigest()
        for path in paths
    }


def text(value):
    if value is None:
        return None
    return str(value)


def rows(table, ds):
    # What is no plain letter or digit is escaped in a folder's name.
    folder = next(folder for folder in tables() if unquote(folder) == table)
    paths = [path for path in objects(f"snapshots/{name}/{folder}/ds={ds}") if path.endswith(".parquet")]
    found = []
    for path in sorted(paths):
        table = pyarrow.parquet.read_table(path, filesystem=store)
        for at, field in enumerate(table.schema):
            if pa.types.is_timestamp(field.type):
                table = table.set_column(at, field.name, table.column(at).cast(pa.int64()))
        found += [[text(value) for value in row.values()] for row in table.to_pylist()]
    return found


def tables():
    found = store.get_file_info(pyarrow.fs.FileSelector(f"{root}/snapshots/{name}"))
    return [info.base_name for info in found if info.type == pyarrow.fs.FileType.Directory]


json.dump(published() if what == "published" else rows(*rest), sys.stdout)
