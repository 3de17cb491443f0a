#!/usr/bin/env python3
"""Measures what Tidemark holds for one large value: peak RSS of each process, in MB and as a multiple of the value.

    stream     INSERT of the row while capture runs            unchanged  UPDATE of another column of it, and its cut
    deliver    the day with the row, made by a process of its own; then the next day, from the one before
    copy       the first copy of a table with the row

Environment: TIDEMARK (binary), PG_BIN, SIZES (megabytes: 100 300 500), FORMATS (json avro; avro starts the registry in
.registry), KIND (text, or bytea: sent with twice its size).
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from harness import LIMIT_S, TIDEMARK, Postgres, fail, free_port, peak_mb

SIZES = [int(size) for size in os.environ.get("SIZES", "100 300 500").split()]
FORMATS = os.environ.get("FORMATS", "json avro").split()
KIND = os.environ.get("KIND", "text")
ZONES = ("Etc/GMT+12", "Etc/GMT-12")


def start(folder, command, pg, form, zone, registry):
    port = free_port()
    envelope = f'format = "{form}"' + (f'\n[envelope.registry]\nurl = "{registry}"' if form == "avro" else "")
    (folder / "connector.toml").write_text(f"""
[source]
url = "{pg.url()}"
name = "bench"
tables = ["public.v"]
[state]
dir = "{folder}/state"
[log.embedded]
bytes_max = 20_000_000_000
[lake]
url = "file://{folder}/lake"
[envelope]
{envelope}
[cut]
time_zone = "{zone}"
[ops]
listen = "127.0.0.1:{port}"
""")
    log = open(folder / "tidemark.log", "a")
    process = subprocess.Popen([TIDEMARK, command, "--config", folder / "connector.toml"], stderr=log, stdout=log)
    wait(folder, process, "start", lambda: answers(port))
    return process


def answers(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2).status == 200
    except OSError:
        return False


def wait(folder, process, what, done):
    deadline = time.time() + 4 * LIMIT_S
    while not done():
        if process.poll() is not None or time.time() > deadline:
            fail(folder, process, f"tidemark did not {what}")
        time.sleep(0.1)


def passed(pg):
    at = pg.sql("select pg_current_wal_lsn()")
    return lambda: pg.ask(f"select confirmed_flush_lsn >= '{at}' from pg_replication_slots where slot_name = 'tidemark_bench'") == "true"


def stop(process):
    peak = peak_mb(process.pid)
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    return peak


def day(pg, zone):
    return pg.sql(f"select (now() at time zone '{zone}')::date")


def cut(folder, ds):
    subprocess.run([TIDEMARK, "cut", "--ds", ds, "--config", folder / "connector.toml"], check=True, stdout=subprocess.DEVNULL)


def measure(pg, size, form, registry):
    value = f"(select string_agg(md5(i::text), '') from generate_series(1, {size * 32768}) i)"
    if KIND == "bytea":
        value = f"convert_to({value}, 'UTF8')"
    pg.sql(f"drop table if exists v; create table v (id int primary key, note text, large {KIND}); alter table v alter large set storage external")
    peaks = {}
    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp)
        for number, zone in enumerate(ZONES):
            capture = start(folder, "capture", pg, form, zone, registry)
            pg.sql(f"insert into v values (1, 'first', {value})" if number == 0 else "update v set note = 'second'")
            wait(folder, capture, "take the change", passed(pg))
            ds = day(pg, zone)
            cut(folder, ds)
            peaks["stream" if number == 0 else "unchanged"] = stop(capture)
            deliver = start(folder, "deliver", pg, form, zone, registry)
            wait(folder, deliver, "publish", (folder / f"lake/cuts/bench/ds={ds}.json").exists)
            peaks["deliver" if number == 0 else "next day"] = stop(deliver)
            letters = list((folder / "lake/dead_letters").rglob("*.*")) if (folder / "lake/dead_letters").exists() else []
            if letters:
                sys.exit(f"a dead letter of {size} MB: {letters[0].read_text()[:500]}")
        shutil.rmtree(folder / "state")
        pg.sql("select pg_drop_replication_slot('tidemark_bench'); drop publication tidemark_bench")
        copy = start(folder, "capture", pg, form, zone, registry)
        peaks["copy"] = stop(copy)
        pg.sql("select pg_drop_replication_slot('tidemark_bench'); drop publication tidemark_bench")
    return peaks


def main():
    if not os.access(TIDEMARK, os.X_OK):
        sys.exit(f"{TIDEMARK} is missing: cargo build --locked --profile fast")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    pg, java, registry = Postgres(folder), None, None
    try:
        if "avro" in FORMATS:
            port = free_port()
            jar = next(pathlib.Path(".registry").resolve().glob("apicurio*.jar"))
            env = dict(os.environ, QUARKUS_HTTP_HOST="127.0.0.1", QUARKUS_HTTP_PORT=str(port))
            java = subprocess.Popen(["java", "-Xmx192m", "-jar", jar], cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            registry = f"http://127.0.0.1:{port}/apis/ccompat/v7"
            deadline = time.time() + LIMIT_S
            while True:
                try:
                    urllib.request.urlopen(f"{registry}/subjects", timeout=2)
                    break
                except OSError:
                    if time.time() > deadline:
                        sys.exit("the registry does not answer")
                    time.sleep(0.2)
        for form in FORMATS:
            for size in SIZES:
                peaks = measure(pg, size, form, registry)
                # A bytea is sent as hexadecimal digits.
                sent = size * (2 if KIND == "bytea" else 1)
                cells = "  ".join(f"{name} {peak:.0f} MB ({peak / sent:.1f})" for name, peak in peaks.items())
                print(f"{KIND} of {size} MB, {form}: {cells}", flush=True)
    finally:
        if java:
            java.kill()
            java.wait()
        pg.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
