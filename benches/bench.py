#!/usr/bin/env python3
"""Measures tidemark against the ceiling that Postgres itself sets, in one run on one machine.

    wide      1,000,000 rows of 16 columns in transactions of 1,000: a prepared slot is drained
    big       2,000,000 such rows in one transaction
    backfill  1,000,000 such rows by CONNECTIONS connections; backfill_kafka, only if ONLY names it: into a broker
              (see backfill.py)
    kafka     wide, drained into a Kafka broker; latency, from commit to consumer, through it (see kafka.py)
    debezium  the same two by Debezium; only if ONLY names it

The ceiling of a drain is pg_recvlogical (pgoutput) on a copy of the same slot, to /dev/null. Each pair runs in turn ROUNDS times, and medians are compared:
these are whole-process figures, and other load on the machine moves both sides.

Environment: TIDEMARK (binary), PG_BIN, ROUNDS (3), ROWS (1000000), BIG_ROWS (2000000), CONNECTIONS (4), ONLY (names).
"""

import os
import pathlib
import shutil
import signal
import statistics
import sys
import tempfile
import time

import backfill
import kafka
from harness import (LIMIT_S, TIDEMARK, Postgres, ceiling_drain, copy_slot, cpu_s, drop_slot, fail, free_port, load, median,
                     peak_mb, start, verdict, walsender)

ROUNDS = int(os.environ.get("ROUNDS", "3"))
ROWS = int(os.environ.get("ROWS", "1000000"))
BIG_ROWS = int(os.environ.get("BIG_ROWS", "2000000"))
ONLY = os.environ.get("ONLY", "wide big backfill kafka latency").split()


def config(folder, pg, name, port):
    (folder / "connector.toml").write_text(f"""
[source]
url = "{pg.url()}"
name = "bench"
slot = "tidemark_{name}"
publication = "pub_{name}"
backfill = "none"
[state]
dir = "{folder}/state"
[ops]
listen = "127.0.0.1:{port}"
log_level = "info"
""")


def ours_drain(pg, name, end):
    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp)
        slot = f"tidemark_{name}"
        copy_slot(pg, name, slot)
        config(folder, pg, name, free_port())
        process = start(folder)
        deadline = time.time() + LIMIT_S
        active = None
        while not active:
            if process.poll() is not None or time.time() > deadline:
                fail(folder, process, "tidemark did not start to stream")
            active = walsender(pg, slot)
        started, before = time.time(), cpu_s(process.pid)
        sender_before = cpu_s(active) or 0.0
        while pg.ask(f"select confirmed_flush_lsn >= '{end}' from pg_replication_slots where slot_name='{slot}'") != "true":
            if process.poll() is not None or time.time() > deadline:
                fail(folder, process, "tidemark did not drain the slot")
            time.sleep(0.05)
        seconds = time.time() - started
        result = dict(seconds=seconds, cpu=cpu_s(process.pid) - before, sender_cpu=(cpu_s(active) or 0.0) - sender_before,
                      rss=peak_mb(process.pid), log_mb=sum(f.stat().st_size for f in (folder / "state").glob("log.db*")) / 1e6)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        drop_slot(pg, slot)
        return result


def report_drain(name, rows, ceilings, ours):
    pair = statistics.median(c["seconds"] / o["seconds"] for c, o in zip(ceilings, ours))
    sender, cpu = median(ours, "sender_cpu") / rows * 1e6, median(ours, "cpu") / rows * 1e6
    print(f"\n{name}: {rows:,} rows, medians of {len(ours)} pairs")
    print(f"  {'':34}{'rows/s':>12}{'CPU s/million':>15}")
    print(f"  {'pg_recvlogical to /dev/null':34}{rows / median(ceilings, 'seconds'):>12,.0f}{median(ceilings, 'sender_cpu') / rows * 1e6:>15.2f}  (its walsender)")
    print(f"  {'tidemark into the embedded log':34}{rows / median(ours, 'seconds'):>12,.0f}{cpu:>15.2f}  (own; its walsender {sender:.2f})")
    print(f"  {'ratio of rows/s':34}{pair:>12.0%}   target >= 80%: {verdict(pair, 0.8, True)}")
    ceiling = median(ceilings, "sender_cpu") / rows * 1e6
    print(f"  {'own CPU / walsender of the ceiling':34}{cpu / ceiling:>12.0%}   target <= 50%: {verdict(cpu / ceiling, 0.5, False)}")
    # Read in larger portions, a walsender has less to do: this ratio punishes what helps the server.
    print(f"  {'own CPU / its own walsender':34}{cpu / sender:>12.0%}")
    rss = median(ours, "rss")
    print(f"  {'peak RSS, MB':34}{rss:>12.0f}   target <= 100: {verdict(rss, 100, False)}")
    print(f"  {'log on disk, bytes a row':34}{median(ours, 'log_mb') * 1e6 / rows:>12.0f}")


def main():
    if not os.access(TIDEMARK, os.X_OK):
        sys.exit(f"{TIDEMARK} is missing: run make bench, which builds it")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    pg = Postgres(folder)
    try:
        ends = {}
        for name, rows, per in (("wide", ROWS, 1000), ("big", BIG_ROWS, 0)):
            if name in ONLY or (name == "wide" and {"backfill", "backfill_kafka", "kafka", "debezium"} & set(ONLY)):
                print(f"loading {name}: {rows:,} rows", flush=True)
                ends[name] = load(pg, name, rows, per)
        for name, rows in (("wide", ROWS), ("big", BIG_ROWS)):
            if name in ONLY:
                pairs = [(ceiling_drain(pg, name, ends[name]), ours_drain(pg, name, ends[name])) for _ in range(ROUNDS)]
                report_drain(name, rows, [c for c, _ in pairs], [o for _, o in pairs])
        if {"backfill", "backfill_kafka"} & set(ONLY):
            backfill.run(pg, folder, ONLY, ROWS, ROUNDS)
        if {"kafka", "latency", "debezium"} & set(ONLY):
            kafka.run(pg, folder, ONLY, ROWS, ROUNDS, ends.get("wide"))
    finally:
        pg.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
