#!/usr/bin/env python3
"""Makes cases.jsonl: values as a real Postgres prints them, with the JSON expected for them.

The expectations come from Postgres's own arithmetic (dates, times, base64, arrays, strings) and from Python's
decimal (numerics), never from Tidemark. Needs psql and any server: PGHOST, PGPORT, PGUSER as usual.

    python3 generate.py > cases.jsonl
"""
import base64
import json
import subprocess
from decimal import Decimal, getcontext

getcontext().prec = 2100
SETTINGS = (
    "set datestyle='ISO'; set intervalstyle='iso_8601'; set bytea_output='hex';"
    "set extra_float_digits=3; set timezone='UTC'; select setseed(0.42);"
)
ROUNDS = 60


def rows(query):
    """Rows of a query whose every column is text, as lists of strings."""
    sql = SETTINGS + f"select to_json(q) from ({query}) q"
    out = subprocess.run(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql], check=True, capture_output=True)
    lines = [line for line in out.stdout.decode().split("\n") if line]
    return [json.loads(line, object_pairs_hook=lambda fields: [value for _, value in fields]) for line in lines]


def emit(kind, text, expected, micros=None):
    case = {"type": kind, "text": text, "json": expected}
    if micros is not None:
        case["micros"] = str(micros)
    print(json.dumps(case, ensure_ascii=False, separators=(",", ":")))


def values(literals, sql_type):
    return "(values " + ",".join(f"('{v}'::{sql_type})" for v in literals) + ") t(v)"


def micros_of(column):
    return (
        f"trim_scale(({column}::date - date '1970-01-01')::numeric * 86400000000"
        f" + (extract(hour from {column}) * 3600 + extract(minute from {column}) * 60) * 1000000"
        f" + extract(microseconds from {column}))::text"
    )


def dates():
    named = values(["1970-01-01", "2000-02-29", "1600-02-29", "1582-10-10", "0001-01-01", "0001-01-01 BC",
                    "0001-12-31 BC", "4714-11-24 BC", "5874897-12-31", "9999-12-31", "10000-01-01"], "date")
    many = f"(select date '4714-11-24 BC' + (random() * 2147480000)::int v from generate_series(1, {ROUNDS})) t"
    near = f"(select date '0500-01-01 BC' + (random() * 1500000)::int v from generate_series(1, {ROUNDS})) t"
    for table in (named, many, near):
        for text, days in rows(f"select v::text, v - date '1970-01-01' from {table}"):
            emit({"kind": "date"}, text, int(days))


def timestamps():
    named = ["1970-01-01", "1969-12-31 23:59:59.999999", "2026-11-20 10:15:30.123456", "294276-12-31 23:59:59.999999",
             "294247-01-10 04:00:54.775807", "294247-01-10 04:00:54.775808", "4714-11-24 00:00:00 BC",
             "0001-12-31 23:59:59.5 BC", "0044-03-15 12:00 BC", "9999-12-31 23:59:59.999", "10000-01-01", "2024-02-29 00:00:00.1"]
    span = "((random() * 2)::numeric * 4e15 + random()::numeric * 1e11)::bigint"
    for sql_type in ("timestamp", "timestamptz"):
        base = f"{sql_type} '4714-11-24 00:00:00 BC'"
        random_far = f"(select {base} + ({span} / 1000)::text::interval + random() * interval '1 second' v from generate_series(1, {ROUNDS})) t"
        random_near = f"(select {sql_type} '1900-01-01' + random() * interval '200 years' v from generate_series(1, {ROUNDS})) t"
        for table in (values(named, sql_type), random_far, random_near):
            column = "v" if sql_type == "timestamp" else "(v at time zone 'UTC')"
            iso = "to_char(v, 'YYYY-MM-DD\"T\"HH24:MI:SS.US')"
            query = f"select v::text, {micros_of(column)}, {iso}, extract(year from v)::int from {table}"
            for text, micros, printed, year in rows(query):
                if sql_type == "timestamp":
                    emit({"kind": "timestamp", "precision": 6}, text, int(micros))
                elif 1 <= year <= 9999:
                    emit({"kind": "timestamp_tz"}, text, printed.rstrip("0").rstrip(".") + "Z", micros)
                else:
                    emit({"kind": "timestamp_tz"}, text, None, micros)
    table = f"(select (timestamp '1000-01-01' + random() * interval '2000 years')::timestamp(3) v from generate_series(1, {ROUNDS})) t"
    for text, micros in rows(f"select v::text, {micros_of('v')} from {table}"):
        assert int(micros) % 1000 == 0
        emit({"kind": "timestamp", "precision": 3}, text, int(micros) // 1000)


def times():
    for precision, unit in ((6, 1), (3, 1000)):
        named = values(["00:00", "24:00", "23:59:59.999", "12:34:56.1"], f"time({precision})")
        many = f"(select (time '00:00' + random() * interval '1 day')::time({precision}) v from generate_series(1, {ROUNDS})) t"
        for table in (named, many):
            query = f"select v::text, trim_scale(extract(epoch from v) * 1000000)::text from {table}"
            for text, micros in rows(query):
                emit({"kind": "time", "precision": precision}, text, int(micros) // unit)


def unscaled(text, scale):
    number = int(Decimal(text).scaleb(scale))
    return base64.b64encode(number.to_bytes(((number if number >= 0 else ~number).bit_length() // 8) + 1, "big", signed=True)).decode()


def numerics():
    for precision, scale in ((12, 2), (38, 10), (18, 18), (1000, 500), (5, -2)):
        expression = f"((random() - 0.5)::numeric * (2 * random())::numeric * 10::numeric ^ (floor(random() * {precision - scale}))::int)"
        table = f"(select {expression}::numeric({precision},{scale}) v from generate_series(1, {ROUNDS})) t"
        for (text,) in rows(f"select v::text from {table}"):
            emit({"kind": "decimal", "precision": precision, "scale": scale}, text, unscaled(text, scale))
    named = ["0", "-0.00", "1e100", "-1e-100", "0.000001", "123456789012345678901234567890.123456789", "-9223372036854775808",
             "9223372036854775807", "170141183460469231731687303715884105727", "-170141183460469231731687303715884105728", "1e1000"]
    for (text,) in rows(f"select v::text from {values(named, 'numeric')}"):
        scale = len(text.split(".")[1]) if "." in text else 0
        emit({"kind": "numeric"}, text, {"scale": scale, "value": unscaled(text, scale)})


def others():
    words = ["", "plain", "a\"b\\\\c", "tab\there", "Größe 日本 🦀", "back\\slash", "{\"a\": [1, \"x\"]}", "x" * 300]
    literals = ",".join("($q$" + w + "$q$)" for w in words)
    for text, quoted in rows(f"select v, to_json(v)::text from (values {literals}) t(v)"):
        emit({"kind": "text", "text": "plain"}, text, json.loads(quoted))
    for code in range(1, 129):
        for text, quoted in rows(f"select chr({code}) || 'x', to_json(chr({code}) || 'x')::text"):
            emit({"kind": "text", "text": "plain"}, text, json.loads(quoted))
        if code == 33:
            break
    table = f"(select decode(string_agg(lpad(to_hex((random() * 255)::int), 2, '0'), ''), 'hex') v from generate_series(1, {ROUNDS}) g, generate_series(1, 400) h where h <= g * 6 group by g) t"
    for text, encoded in rows(f"select v::text, translate(encode(v, 'base64'), E'\\n', '') from {table}"):
        emit({"kind": "bytes"}, text, encoded)
    for sql_type, kind in (("float8", "float64"), ("float4", "float32")):
        named = values(["0.1", "1e-30", "-1.5e30", "3.4e38", "1e-37", "123456.789"], sql_type)
        many = f"(select ((random() - 0.5) * 10 ^ (random() * 60 - 30))::{sql_type} v from generate_series(1, {ROUNDS})) t"
        for table in (named, many):
            for text, number in rows(f"select v::text, to_json(v)::text from {table}"):
                emit({"kind": kind}, text, json.loads(number))
    arrays = [("int4[]", {"kind": "int32"}, ["{}", "{1,2,NULL}", "{{1,2},{3,4}}", "{{{1}},{{2}}}"]),
              ("bool[]", {"kind": "bool"}, ["{t,f,NULL}"]),
              ("text[]", {"kind": "text", "text": "plain"},
               ["{}", '{a,"b c","",NULL,"NULL","q\\"x","back\\\\\\\\slash","{}",","}', '{{a,b},{"c d",NULL}}', '{"line\nbreak"}'])]
    for sql_type, element, literals in arrays:
        for text, expected in rows(f"select v::text, to_json(v)::text from {values(literals, sql_type)}"):
            emit({"kind": "array", "element": element}, text, json.loads(expected))


dates()
timestamps()
times()
numerics()
others()
