#!/usr/bin/env python3
"""Adds columns with defaults to a large table, and looks at what that costs the source and what the next day holds.

A table of ROWS (5000000) rows is copied and published as a first day. Then `ALTER TABLE ... ADD COLUMN ... DEFAULT`, some
updates, and the cut of a second day. Printed are the WAL that the ALTER wrote, beside the same without event triggers on
a table that is not captured, every statement that Tidemark ran at the source until the second day was published, how many
records the second day took from the log, and how many of its rows are not what Postgres says (DuckDB reads them).

Environment: TIDEMARK (binary), PG_BIN, ROWS, FORMAT (parquet).
"""

import datetime
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zoneinfo

import duckdb

from harness import LIMIT_S, TIDEMARK, Postgres, fail, free_port

ROWS = int(os.environ.get("ROWS", "5000000"))
UPDATED = 1000
# By these two time zones it is never the same day, so that two days can be cut at once.
ZONES = ("Etc/GMT+12", "Etc/GMT-12")
DAYS = tuple(str(datetime.datetime.now(zoneinfo.ZoneInfo(zone)).date()) for zone in ZONES)
ADDED = """add column discount numeric(12,2) not null default 12.50, add column state text not null default 'it''s new',
 add column seen timestamptz default '2026-11-20 10:15:30+00', add column tags text[] default '{a,NULL,"b,c"}'"""
# In DuckDB's words: the values of each row, whoever has written it.
RIGHT = f"""discount = CASE WHEN id <= {UPDATED} THEN 1 ELSE 12.50 END AND state = 'it''s new'
 AND seen = TIMESTAMPTZ '2026-11-20 10:15:30+00' AND tags IS NOT DISTINCT FROM ['a', NULL, 'b,c']"""


def lsn(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def wal_of(pg, sql):
    before = lsn(pg.sql("select pg_current_wal_insert_lsn()"))
    began = time.time()
    pg.sql(sql)
    seconds = time.time() - began
    return lsn(pg.sql("select pg_current_wal_insert_lsn()")) - before, seconds


def tidemark(folder, *arguments):
    done = subprocess.run([TIDEMARK, *arguments, "--config", str(folder / "connector.toml")], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"tidemark {' '.join(arguments)}: {done.stdout}{done.stderr}")


def publish(folder, process, ds):
    began = time.time()
    tidemark(folder, "cut", "--ds", ds)
    day = folder / f"lake/cuts/bench/ds={ds}.json"
    while not day.exists():
        if process.poll() is not None or time.time() - began > LIMIT_S:
            fail(folder, process, f"{ds} was not published")
        time.sleep(0.05)
    return time.time() - began


def manifest(folder, ds):
    return json.loads((folder / f"lake/snapshots/bench/public.orders/ds={ds}/_manifest.json").read_text())


def triggers(pg, verb):
    for name in pg.sql("select evtname from pg_event_trigger").split():
        pg.sql(f"alter event trigger {name} {verb}")


def statements(folder):
    """Statements that Tidemark's sessions ran, as the server has logged them."""
    lines = (folder / "pg/server.log").read_text(errors="replace").splitlines()
    found = [line for line in lines if line.startswith("tidemark") and (" statement: " in line or " execute " in line)]
    return [line.split(": ", 1)[1][:100] for line in found]


def main():
    if not os.access(TIDEMARK, os.X_OK):
        sys.exit(f"{TIDEMARK} is missing: cargo build --locked --profile fast")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    pg = Postgres(folder)
    try:
        run(folder, pg)
    finally:
        pg.stop()
        shutil.rmtree(folder, ignore_errors=True)


def run(folder, pg):
    fill = "select g, (g * 7919) % 100000, ((g * 31) % 1000000) / 100.0, 'note ' || g % 1000"
    columns = "(id bigint primary key, customer int not null, total numeric(12,2) not null, note text)"
    pg.sql(f"create table orders {columns}; insert into orders {fill} from generate_series(1, {ROWS}::bigint) g; "
           "create schema beside; create table beside.orders (like orders including all); "
           "create table beside.first (like orders including all); checkpoint")
    port = free_port()
    configure(folder, pg, port, ZONES[0])
    tidemark(folder, "setup")
    began = time.time()
    process = start(folder, port)
    try:
        print(f"{ROWS:,} rows: ready in {time.time() - began:.0f} s")
        seconds = publish(folder, process, DAYS[0])
        print(f"first day published {seconds:.1f} s after its cut: {manifest(folder, DAYS[0])['rows']:,} rows")
        leave(process)
        configure(folder, pg, port, ZONES[1])
        process = start(folder, port)
        measure(folder, pg, process)
    finally:
        leave(process)


def configure(folder, pg, port, zone):
    (folder / "connector.toml").write_text(f"""
[source]
url = "{pg.url()}"
name = "bench"
tables = ["public.*"]
[state]
dir = "{folder}/state"
[cut]
time_zone = "{zone}"
[lake]
url = "file://{folder}/lake"
[log.embedded]
retention_bytes = 67_108_864
[ops]
listen = "127.0.0.1:{port}"
""")


def start(folder, port):
    """Starts `run`, and waits until it is ready: the first time, until the table is copied."""
    log = open(folder / "tidemark.log", "a")
    process = subprocess.Popen([TIDEMARK, "run", "--config", str(folder / "connector.toml")], stdout=log, stderr=log)
    began = time.time()
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2):
                return process
        except OSError:
            if process.poll() is not None or time.time() - began > LIMIT_S:
                fail(folder, process, "tidemark did not get ready")
            time.sleep(0.2)


def leave(process):
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def measure(folder, pg, process):
    # %a: only Tidemark's sessions name themselves so.
    for setting in ("log_line_prefix = '%a|'", "log_statement = 'all'"):
        pg.sql(f"alter system set {setting}")
    pg.sql("select pg_reload_conf()")
    time.sleep(1)
    before = len(statements(folder))
    # Pages of the catalog are written whole the first time after a checkpoint: not in what is compared.
    pg.sql(f"alter table beside.first {ADDED}")
    triggers(pg, "disable")
    alone, _ = wal_of(pg, f"alter table beside.orders {ADDED}")
    triggers(pg, "enable")
    wal, seconds = wal_of(pg, f"alter table orders {ADDED}")
    print(f"ALTER TABLE: {seconds * 1000:.0f} ms, {wal:,} bytes of WAL; without Tidemark: {alone:,} bytes")
    pg.sql(f"update orders set discount = 1 where id <= {UPDATED}")
    print(f"second day published {publish(folder, process, DAYS[1]):.1f} s after its cut")
    ran = statements(folder)[before:]
    print(f"statements that Tidemark ran at the source meanwhile: {len(ran)}")
    for statement in ran:
        print(f"    {statement}")
    second = manifest(folder, DAYS[1])
    print(f"records of the table since the first day: {second['changes']['in']:,} ({UPDATED:,} rows were updated)")
    files = f"{folder}/lake/snapshots/bench/public.orders/ds={DAYS[1]}/*.parquet"
    rows, wrong, ids, total = duckdb.sql(
        f"SELECT count(*), count(*) FILTER (NOT coalesce({RIGHT}, false)), sum(id), sum(total) FROM read_parquet('{files}')").fetchone()
    source = pg.sql("select count(*) || ' ' || sum(id) || ' ' || sum(total) from orders")
    print(f"rows of the second day: {rows:,}, of which wrong: {wrong:,}; count and sums as in Postgres: {source == f'{rows} {ids} {total}'}")
    if wrong or rows != ROWS or source != f"{rows} {ids} {total}":
        sys.exit(f"the day is not what Postgres holds: {source}, not {rows} {ids} {total}")


main()
