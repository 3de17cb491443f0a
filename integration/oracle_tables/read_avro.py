"""Records in Avro as fastavro reads them, in the form of the JSON envelope: read_avro.py REGISTRY < records > envelopes.

A record is a line {"key": hex or null, "value": hex or null, "headers": {...}}; what comes out is a line {"key": object or
null, "value": object or null}. Columns have their own names; what headers hold of a row stands in it; unchanged values
are left out.
"""

import base64
import functools
import io
import json
import math
import sys
import urllib.request

import fastavro

registry = sys.argv[1]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def bare(schema):
    """A schema whose decimals are the bytes that they are made of."""
    if isinstance(schema, list):
        return [bare(item) for item in schema]
    if isinstance(schema, dict):
        return {name: bare(item) for name, item in schema.items() if name != "logicalType"}
    return schema


def names_of(record):
    """Columns' own names, by name of the field."""
    return {field["name"]: field.get("tidemark.column", field["name"]) for field in record["fields"]}


@functools.cache
def schema(number):
    with opener.open(f"{registry}/schemas/ids/{number}") as answer:
        text = json.loads(json.load(answer)["schema"])
    # Both rows of an envelope are of one type, which stands with the first of them.
    row = text if text["name"] == "Key" else next(part for part in text["fields"][0]["type"] if part != "null")
    return fastavro.parse_schema(bare(text)), names_of(row)


def plain(value):
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value


def read(text):
    if text is None:
        return None, {}
    data = io.BytesIO(bytes.fromhex(text))
    assert data.read(1) == b"\0", "no schema id"
    parsed, columns = schema(int.from_bytes(data.read(4), "big"))
    value = fastavro.schemaless_reader(data, parsed)
    assert not data.read(), "bytes are left over"
    return plain(value), columns


def row(fields, columns, exact, unchanged):
    if fields is None:
        return None
    named = {columns[name]: value for name, value in fields.items()}
    for name, value in exact.items():
        assert named[name] is None, f"{name} is there, and in a header"
        named[name] = value
    for name in unchanged:
        assert named.pop(name) is None, f"{name} is there, and unchanged"
    return named


for line in sys.stdin:
    record = json.loads(line)
    header = lambda name, none: json.loads(record["headers"].get(name, none))
    key, key_columns = read(record["key"])
    value, columns = read(record["value"])
    if value is not None:
        exact, before = header("tidemark.exact", "{}"), header("tidemark.exact.before", "{}")
        value["after"] = row(value["after"], columns, exact, header("tidemark.unchanged", "[]"))
        value["before"] = row(value["before"], columns, before, [])
    key = row(key, key_columns, {}, [])
    print(json.dumps({"key": key, "value": value}))
