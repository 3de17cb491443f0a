#!/usr/bin/env python3
"""Measures tidemark against the ceiling that Postgres itself sets, in one run on one machine.

    wide      1,000,000 rows of 16 columns in transactions of 1,000: a prepared slot is drained
    big       2,000,000 such rows in one transaction
    backfill  1,000,000 such rows by COPY

The ceiling of a drain is pg_recvlogical (pgoutput) on a copy of the same slot, to /dev/null; that of a
backfill is COPY ... TO STDOUT, to /dev/null. Each pair runs in turn ROUNDS times, and medians are compared:
these are whole-process figures, and other load on the machine moves both sides.

Environment: TIDEMARK (binary), PG_BIN, ROUNDS (3), ROWS (1000000), BIG_ROWS (2000000), ONLY (names).
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIDEMARK = os.environ.get("TIDEMARK", str(ROOT / "target/fast/tidemark"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
ROWS = int(os.environ.get("ROWS", "1000000"))
BIG_ROWS = int(os.environ.get("BIG_ROWS", "2000000"))
ONLY = os.environ.get("ONLY", "wide big backfill").split()
TICKS = os.sysconf("SC_CLK_TCK")
LIMIT_S = 600

ROW = """g, (g::bigint*7919)%100000, g%17, g::bigint*1000003, case when g%10=0 then null else g-1 end,
 ((g::bigint*31)%1000000000)/100.0, (g%1000)/100.0, 'name-'||g, repeat(md5(g::text),2),
 case when g%4=0 then null else 'note '||(g%1000) end, now(), now()+g*interval '1 ms',
 jsonb_build_object('k',g%100,'tag','t'||(g%13),'on',g%2=0), g%3=0, md5(g::text)::uuid, g%5"""
TABLE = """(id bigint primary key, qty int not null, kind int not null, account bigint not null, parent bigint,
 amount numeric(12,2) not null, fee numeric(12,2), name text not null, descr text, note text,
 created timestamptz not null, updated timestamptz, attrs jsonb, active bool not null, ref uuid not null,
 status int)"""


def pg_bin():
    if "PG_BIN" in os.environ:
        return pathlib.Path(os.environ["PG_BIN"])
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    which = shutil.which("initdb")
    if which:
        return pathlib.Path(which).parent
    sys.exit("PostgreSQL's server programs are missing: apt-get install postgresql")


def free_port():
    for port in range(21000, 32000, 7):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    sys.exit("no free port below 32000")


class Postgres:
    def __init__(self, folder):
        self.bin, self.data, self.port = pg_bin(), folder / "pg", free_port()
        self.prefix, self.session = [], None
        if os.geteuid() == 0:
            self.prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/tmp", "LC_ALL=C.UTF-8"]
            os.chmod(folder, 0o777)
        self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        settings = dict(listen_addresses="127.0.0.1", unix_socket_directories=folder, wal_level="logical", fsync="off",
                        max_wal_senders=20, max_replication_slots=20, shared_buffers="512MB", max_wal_size="8GB",
                        autovacuum="off", port=self.port)
        options = " ".join(f"-c {key}={value}" for key, value in settings.items())
        self.run("pg_ctl", "-D", self.data, "-w", "-l", self.data / "server.log", "-o", options, "start")
        self.sql("create database bench", database="postgres")

    def run(self, tool, *args):
        subprocess.run([*self.prefix, str(self.bin / tool), *map(str, args)], check=True, stdout=subprocess.DEVNULL)

    def sql(self, text, database="bench"):
        command = [str(self.bin / "psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"psql failed on {text!r}: {done.stderr}")
        return done.stdout.strip()

    def ask(self, text):
        """The answer to a query, by a session that stays: to be asked often beside what is measured."""
        if self.session is None:
            command = [str(self.bin / "psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", "bench", "-XAtq"]
            self.session = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.session.stdin.write(f"select coalesce(({text})::text, '');\n")
        self.session.stdin.flush()
        return self.session.stdout.readline().strip()

    def url(self):
        return f"postgres://postgres@127.0.0.1:{self.port}/bench"

    def stop(self):
        self.run("pg_ctl", "-D", self.data, "-m", "immediate", "stop")


def cpu_s(pid):
    try:
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except (FileNotFoundError, ProcessLookupError):
        return None


def peak_mb(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0


def walsender(pg, slot):
    pid = pg.ask(f"select active_pid from pg_replication_slots where slot_name = '{slot}'")
    return int(pid) if pid else None


def load(pg, name, rows, per_transaction):
    pg.sql(f"create table {name} {TABLE}; create publication pub_{name} for table {name}")
    pg.sql(f"select pg_create_logical_replication_slot('master_{name}', 'pgoutput')")
    if per_transaction:
        pg.sql(f"do $$ begin for t in 0..({rows}/{per_transaction}-1) loop insert into {name} select {ROW} "
               f"from generate_series(t*{per_transaction}+1,(t+1)*{per_transaction}) g; commit; end loop; end $$")
    else:
        pg.sql(f"insert into {name} select {ROW} from generate_series(1,{rows}) g")
    end = pg.sql("select pg_current_wal_insert_lsn()")
    # A transaction past the end, so that both sides see at once that they have passed it.
    pg.sql("select pg_logical_emit_message(true, 'end', 'x')")
    pg.sql("checkpoint")
    return end


def copy_slot(pg, name, to):
    pg.sql(f"select pg_copy_logical_replication_slot('master_{name}', '{to}')")


def drop_slot(pg, slot):
    deadline = time.time() + 30
    while pg.sql(f"select count(*) from pg_replication_slots where slot_name='{slot}' and active") != "0" and time.time() < deadline:
        time.sleep(0.1)
    pg.sql(f"select pg_drop_replication_slot('{slot}')")


def ceiling_drain(pg, name, end):
    copy_slot(pg, name, "ceiling")
    started = time.time()
    command = [str(pg.bin / "pg_recvlogical"), "-h", "127.0.0.1", "-p", str(pg.port), "-U", "postgres", "-d", "bench",
               "-S", "ceiling", "--start", "-o", "proto_version=1", "-o", f"publication_names=pub_{name}", "-o", "messages=true",
               "--endpos", end, "-f", "/dev/null", "--no-loop", "-F", "0"]
    process = subprocess.Popen(command)
    sender, last = None, 0.0
    while process.poll() is None:
        sender = sender or walsender(pg, "ceiling")
        if sender:
            last = cpu_s(sender) or last
        time.sleep(0.05)
    seconds = time.time() - started
    drop_slot(pg, "ceiling")
    return dict(seconds=seconds, sender_cpu=last)


def config(folder, pg, name, port, backfill):
    (folder / "connector.toml").write_text(f"""
[source]
url = "{pg.url()}"
name = "bench"
slot = "tidemark_{name}"
publication = "pub_{name}"
backfill = "{backfill}"
[state]
dir = "{folder}/state"
[ops]
listen = "127.0.0.1:{port}"
log_level = "info"
""")


def start(folder):
    log = open(folder / "tidemark.log", "w")
    return subprocess.Popen([TIDEMARK, "capture", "--config", str(folder / "connector.toml")], stderr=log, stdout=log)


def fail(folder, process, what):
    process.kill()
    sys.exit(f"{what}; the end of its log:\n" + "\n".join((folder / "tidemark.log").read_text().splitlines()[-20:]))


def ours_drain(pg, name, end):
    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp)
        slot = f"tidemark_{name}"
        copy_slot(pg, name, slot)
        config(folder, pg, name, free_port(), "none")
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


def ceiling_copy(pg, name):
    started = time.time()
    subprocess.run([str(pg.bin / "psql"), "-h", "127.0.0.1", "-p", str(pg.port), "-U", "postgres", "-d", "bench", "-XAtq",
                    "-c", f"copy {name} to stdout"], stdout=subprocess.DEVNULL, check=True)
    return dict(seconds=time.time() - started)


def ours_backfill(pg, name, rows):
    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp)
        port = free_port()
        config(folder, pg, name, port, "initial")
        process = start(folder)
        deadline = time.time() + LIMIT_S
        while "backfill done" not in (folder / "tidemark.log").read_text():
            if process.poll() is not None or time.time() > deadline:
                fail(folder, process, "tidemark did not end its backfill")
            time.sleep(0.05)
        line = next(l for l in (folder / "tidemark.log").read_text().splitlines() if "backfill done" in l)
        fields = json.loads(line)
        fields = fields.get("fields", fields)
        result = dict(seconds=float(fields["seconds"]), cpu=cpu_s(process.pid), rss=peak_mb(process.pid))
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        drop_slot(pg, f"tidemark_{name}")
        return result


def median(results, key):
    return statistics.median(r[key] for r in results)


def verdict(value, target, at_least):
    met = value >= target if at_least else value <= target
    return "met" if met else f"missed by {abs(value - target) / target:.0%}"


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
            if name in ONLY or (name == "wide" and "backfill" in ONLY):
                print(f"loading {name}: {rows:,} rows", flush=True)
                ends[name] = load(pg, name, rows, per)
        for name, rows in (("wide", ROWS), ("big", BIG_ROWS)):
            if name in ONLY:
                pairs = [(ceiling_drain(pg, name, ends[name]), ours_drain(pg, name, ends[name])) for _ in range(ROUNDS)]
                report_drain(name, rows, [c for c, _ in pairs], [o for _, o in pairs])
        if "backfill" in ONLY:
            pairs = [(ceiling_copy(pg, "wide"), ours_backfill(pg, "wide", ROWS)) for _ in range(ROUNDS)]
            ratio = statistics.median(c["seconds"] / o["seconds"] for c, o in pairs)
            ours = [o for _, o in pairs]
            print(f"\nbackfill: {ROWS:,} rows, medians of {ROUNDS} pairs")
            print(f"  {'COPY to /dev/null, rows/s':34}{ROWS / median([c for c, _ in pairs], 'seconds'):>12,.0f}")
            print(f"  {'tidemark into the embedded log':34}{ROWS / median(ours, 'seconds'):>12,.0f}{median(ours, 'cpu') / ROWS * 1e6:>15.2f}  CPU s/million (own)")
            print(f"  {'ratio':34}{ratio:>12.0%}   target >= 70%: {verdict(ratio, 0.7, True)}")
            print(f"  {'peak RSS, MB':34}{median(ours, 'rss'):>12.0f}")
    finally:
        pg.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
