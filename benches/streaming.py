#!/usr/bin/env python3
"""Measures one large transaction by protocol 1 and in parts (streaming = "on"), beside pg_recvlogical.

    drain     the transaction has committed: a prepared slot is drained, by pg_recvlogical with each protocol to
              /dev/null, and by tidemark into its embedded log
    live      the transaction is written while tidemark runs; small ones commit beside it, ten a second, and are timed
              from the return of their COMMIT until the walsender has sent it (sent_lsn in pg_stat_replication), and
              until /health shows their position as durable (both asked each 2 ms); those that commit behind the
              large one, until that is durable, are told apart

Environment: TIDEMARK (binary), PG_BIN, BIG_ROWS (2000000), ONLY (drain live).
"""

import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from harness import (LIMIT_S, ROW, TABLE, TIDEMARK, Postgres, ceiling_drain, copy_slot, cpu_s, drop_slot, fail, free_port, load,
                     peak_mb, start, walsender)

ROWS = int(os.environ.get("BIG_ROWS", "2000000"))
ONLY = os.environ.get("ONLY", "drain live").split()


def config(folder, pg, slot, publication, port, streaming):
    (folder / "connector.toml").write_text(f"""
[source]
url = "{pg.url()}"
name = "bench"
slot = "{slot}"
publication = "{publication}"
backfill = "none"
streaming = "{streaming}"
[state]
dir = "{folder}/state"
[ops]
listen = "127.0.0.1:{port}"
log_level = "info"
""")


def lsn(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def durable(port):
    """The position that is durable in the log; zero before it is known."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return lsn(json.load(answer)["source"]["flush_lsn"])
    except (OSError, KeyError, TypeError, ValueError):
        return 0


def connect(folder, pg, slot, publication, streaming):
    port = free_port()
    config(folder, pg, slot, publication, port, streaming)
    process = start(folder)
    deadline = time.time() + LIMIT_S
    while not (sender := walsender(pg, slot)):
        if process.poll() is not None or time.time() > deadline:
            fail(folder, process, "tidemark did not start to stream")
    return process, sender, port


def leave(pg, process, slot):
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    drop_slot(pg, slot)


def drain(pg, streaming, end):
    with tempfile.TemporaryDirectory() as tmp:
        folder, slot = pathlib.Path(tmp), "tidemark_big"
        copy_slot(pg, "big", slot)
        process, sender, _ = connect(folder, pg, slot, "pub_big", streaming)
        started, before, sender_before = time.time(), cpu_s(process.pid), cpu_s(sender) or 0.0
        while pg.ask(f"select confirmed_flush_lsn >= '{end}' from pg_replication_slots where slot_name='{slot}'") != "true":
            if process.poll() is not None or time.time() - started > LIMIT_S:
                fail(folder, process, "tidemark did not drain the slot")
            time.sleep(0.05)
        result = dict(seconds=time.time() - started, cpu=cpu_s(process.pid) - before,
                      sender_cpu=(cpu_s(sender) or 0.0) - sender_before, rss=peak_mb(process.pid))
        leave(pg, process, slot)
        return result


def live(pg, streaming):
    with tempfile.TemporaryDirectory() as tmp:
        folder, slot = pathlib.Path(tmp), f"tidemark_live_{streaming}"
        large, small = f"large_{streaming}", f"small_{streaming}"
        pg.sql(f"create table {large} {TABLE}; create table {small} (id bigint generated always as identity primary key, note text)")
        pg.sql(f"create publication pub_{streaming} for table {large}, {small}")
        pg.sql(f"select pg_create_logical_replication_slot('{slot}', 'pgoutput')")
        process, _, port = connect(folder, pg, slot, f"pub_{streaming}", streaming)
        committed, end, times = [0.0], [0], []

        def write():
            end[0] = lsn(pg.script(f"insert into {large} select {ROW} from generate_series(1,{ROWS}) g;\nselect pg_current_wal_lsn();"))
            committed[0] = time.time()

        writer = threading.Thread(target=write)
        writer.start()
        while not committed[0] or durable(port) < end[0]:
            if process.poll() is not None or (committed[0] and time.time() - committed[0] > LIMIT_S):
                fail(folder, process, "tidemark did not get to the end")
            pg.ask(f"insert_small('{small}')")
            at, began, sent = lsn(pg.ask("pg_current_wal_lsn()")), time.time(), None
            while durable(port) < at and process.poll() is None and time.time() - began < LIMIT_S:
                if sent is None and lsn(pg.ask("(select sent_lsn from pg_stat_replication limit 1)") or "0/0") >= at:
                    sent = time.time() - began
                time.sleep(0.002)
            took = time.time() - began
            times.append((at, took, took if sent is None else sent))
            time.sleep(max(0.0, 0.1 - took))
        writer.join()
        before = [(took, sent) for at, took, sent in times if at < end[0]]
        behind = [(took, sent) for at, took, sent in times if at > end[0]]
        result = dict(after=time.time() - committed[0], before=before, behind=behind, rss=peak_mb(process.pid))
        leave(pg, process, slot)
        return result


def report(name, seconds, cpu, sender_cpu, rss=None):
    own = "" if cpu is None else f"{cpu / ROWS * 1e6:>16.2f}"
    memory = "" if rss is None else f"{rss:>12.0f}"
    print(f"  {name:44}{ROWS / seconds:>10,.0f}{sender_cpu / ROWS * 1e6:>16.2f}{own}{memory}", flush=True)


def main():
    if not os.access(TIDEMARK, os.X_OK):
        sys.exit(f"{TIDEMARK} is missing: cargo build --locked --profile fast")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    pg = Postgres(folder)
    try:
        if "drain" in ONLY:
            end = load(pg, "big", ROWS, 0)
            print(f"one transaction of {ROWS:,} rows, drained after its commit")
            print(f"  {'':44}{'rows/s':>10}{'walsender s/M':>16}{'own CPU s/M':>16}{'RSS, MB':>12}")
            for protocol, streaming in ((1, None), (2, "on")):
                ceiling = ceiling_drain(pg, "big", end, protocol, streaming)
                report(f"pg_recvlogical, protocol {protocol}", ceiling["seconds"], None, ceiling["sender_cpu"])
            for streaming in ("off", "on"):
                ours = drain(pg, streaming, end)
                report(f"tidemark, streaming = {streaming!r}", ours["seconds"], ours["cpu"], ours["sender_cpu"], ours["rss"])
        if "live" in ONLY:
            pg.sql("""create function insert_small(name text) returns int language plpgsql as
                      $$ begin execute format('insert into %I (note) values (''x'')', name); return 1; end $$""")
            print(f"one transaction of {ROWS:,} rows, written while small ones commit")
            for streaming in ("off", "on"):
                ours = live(pg, streaming)
                print(f"  tidemark, streaming = {streaming!r:6} everything {ours['after']:.1f} s after the large COMMIT; "
                      f"RSS {ours['rss']:.0f} MB", flush=True)
                for name in ("before", "behind"):
                    small = sorted(ours[name])
                    if small:
                        took, sent = small[-1]
                        print(f"      {len(small)} small transactions {name} it: durable after {small[len(small) // 2][0] * 1e3:.0f} ms (median), "
                              f"{took * 1e3:.0f} ms (longest, which the walsender had sent after {sent * 1e3:.0f} ms)", flush=True)
    finally:
        pg.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
