"""Records as fastavro reads them, by the schemas that a registry holds: read.py REGISTRY < records > rows.

A record is a line {"key": hex or null, "value": hex or null, "headers": {...}}; so is what comes out, with key and value
taken apart. Decimals become texts, bytes hex.
"""

import decimal
import functools
import io
import json
import sys
import urllib.request

import fastavro

registry = sys.argv[1]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@functools.cache
def schema(number):
    with opener.open(f"{registry}/schemas/ids/{number}") as answer:
        return fastavro.parse_schema(json.loads(json.load(answer)["schema"]))


def plain(value):
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        if set(value) == {"scale", "value"}:
            unscaled = int.from_bytes(value["value"], "big", signed=True)
            with decimal.localcontext(decimal.Context(prec=200)):
                return format(decimal.Decimal(unscaled).scaleb(-value["scale"]), "f")
        return {name: plain(item) for name, item in value.items()}
    return value


def read(text):
    if text is None:
        return None, None
    data = io.BytesIO(bytes.fromhex(text))
    assert data.read(1) == b"\0", "no schema id"
    number = int.from_bytes(data.read(4), "big")
    value = fastavro.schemaless_reader(data, schema(number))
    assert not data.read(), "bytes are left over"
    return plain(value), number


for line in sys.stdin:
    record = json.loads(line)
    key, key_id = read(record["key"])
    value, value_id = read(record["value"])
    print(json.dumps({"key": key, "key_id": key_id, "value": value, "value_id": value_id, "headers": record["headers"]}))
