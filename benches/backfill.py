"""A first copy of a table, beside the ceiling that Postgres sets: as many COPY ... TO STDOUT of a range of pages each, at
once, to /dev/null. Into the embedded log, and into a Kafka broker of this machine, which shares its cores.

Where the cores are what is short, no more of the ceiling can be reached than the CPU time allows that the server takes
besides our own: the last line of each report. So the embedded log is measured a second time with the server on one half
of the machine's cores and its clients, psql or tidemark, on the other, as they are where each has a machine of its own.
"""

import contextlib
import json
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import kafka
from harness import LIMIT_S, cpu_s, drop_slot, fail, free_port, median, peak_mb, server_cpu_s, start, verdict

CONNECTIONS = int(os.environ.get("CONNECTIONS", "4"))


@contextlib.contextmanager
def apart(pg):
    """The server and its new sessions on the first half of the cores, this process and what it starts on the other."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    postmaster = int((pg.data / "postmaster.pid").read_text().split()[0])
    os.sched_setaffinity(postmaster, cores[:half])
    os.sched_setaffinity(0, cores[half:])
    try:
        yield
    finally:
        os.sched_setaffinity(postmaster, cores)
        os.sched_setaffinity(0, cores)


def ceiling(pg, name):
    pages = int(pg.ask(f"select pg_relation_size('{name}') / current_setting('block_size')::int")) + 1
    ends = [pages * n // CONNECTIONS for n in range(CONNECTIONS + 1)]
    started, server = time.time(), server_cpu_s(pg)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    copies = [subprocess.Popen([str(pg.bin / "psql"), "-h", "127.0.0.1", "-p", str(pg.port), "-U", "postgres", "-d", "bench",
                                "-XAtq", "-c", f"copy (select * from {name} where ctid >= '({begin},0)' and ctid < '({end},0)') to stdout"],
                               stdout=subprocess.DEVNULL) for begin, end in zip(ends, ends[1:])]
    if any(copy.wait() for copy in copies):
        sys.exit("a COPY of the ceiling failed")
    seconds, after = time.time() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return dict(seconds=seconds, server=server_cpu_s(pg) - server,
                cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def config(folder, pg, name, number, broker):
    log = "" if broker is None else f"""
[log]
kind = "kafka"
{os.environ.get("LOG", "")}
[log.kafka]
brokers = ["127.0.0.1:{broker.port}"]
topic_config = {{ "retention.ms" = -1 }}
[log.kafka.properties]
{os.environ.get("PROPERTIES", "")}
"""
    (folder / "connector.toml").write_text(f"""
[source]
url = "{pg.url()}"
name = "bench_copy{number}"
slot = "tidemark_{name}"
publication = "pub_{name}"
backfill = "initial"
{log}
[backfill]
connections = {CONNECTIONS}
[state]
dir = "{folder}/state"
[ops]
listen = "127.0.0.1:{free_port()}"
log_level = "info"
""")


def ours(pg, name, number, broker):
    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp)
        config(folder, pg, name, number, broker)
        server, of_broker = server_cpu_s(pg), broker and cpu_s(broker.process.pid)
        process = start(folder)
        deadline = time.time() + LIMIT_S
        while "backfill done" not in (folder / "tidemark.log").read_text():
            if process.poll() is not None or time.time() > deadline:
                fail(folder, process, "tidemark did not end its backfill")
            time.sleep(0.05)
        line = next(l for l in (folder / "tidemark.log").read_text().splitlines() if "backfill done" in l)
        fields = json.loads(line)
        fields = fields.get("fields", fields)
        result = dict(seconds=float(fields["seconds"]), cpu=cpu_s(process.pid), rss=peak_mb(process.pid),
                      server=server_cpu_s(pg) - server, broker=cpu_s(broker.process.pid) - of_broker if broker else 0.0)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        drop_slot(pg, f"tidemark_{name}")
        return result


def report(into, rows, ceilings, results, shared=True):
    million = 1e6 / rows
    ratio = statistics.median(c["seconds"] / o["seconds"] for c, o in zip(ceilings, results))
    of_ceiling = (median(ceilings, "server") + median(ceilings, "cpu")) * million
    own, server, broker = (median(results, key) * million for key in ("cpu", "server", "broker"))
    print(f"\nbackfill into {into}: {rows:,} rows by {CONNECTIONS} connections, medians of {len(results)} pairs")
    print(f"  {'COPY to /dev/null, rows/s':34}{rows / median(ceilings, 'seconds'):>12,.0f}{of_ceiling:>15.2f}  CPU s/million (server {median(ceilings, 'server') * million:.2f})")
    print(f"  {'tidemark, rows/s':34}{rows / median(results, 'seconds'):>12,.0f}{own + server + broker:>15.2f}  CPU s/million "
          f"(own {own:.2f}, server {server:.2f}{f', broker {broker:.2f}' if broker else ''})")
    print(f"  {'ratio of rows/s':34}{ratio:>12.0%}   target >= 75%: {verdict(ratio, 0.75, True)}")
    if shared:
        print(f"  {'ratio that CPU time allows':34}{of_ceiling / (own + server + broker):>12.0%}   where the cores are what is short")
    rss = median(results, "rss")
    print(f"  {'peak RSS, MB':34}{rss:>12.0f}   target <= 200: {verdict(rss, 200, False)}", flush=True)


def run(pg, folder, only, rows, rounds):
    for name, into in (("backfill", "the embedded log"), ("backfill_kafka", "Kafka")):
        if name not in only:
            continue
        broker = kafka.Broker(folder) if name == "backfill_kafka" else None
        try:
            pairs = [(ceiling(pg, "wide"), ours(pg, "wide", number, broker)) for number in range(rounds)]
            report(into, rows, [c for c, _ in pairs], [o for _, o in pairs])
            if broker is None and len(os.sched_getaffinity(0)) > 1:
                with apart(pg):
                    pairs = [(ceiling(pg, "wide"), ours(pg, "wide", rounds + number, None)) for number in range(rounds)]
                report(f"{into}, server and clients on cores of their own", rows, [c for c, _ in pairs],
                       [o for _, o in pairs], shared=False)
        finally:
            if broker:
                broker.stop()
