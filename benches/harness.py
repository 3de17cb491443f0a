"""What the benchmarks share: a throwaway Postgres, prepared slots, the ceiling of a drain, and processes watched."""

import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIDEMARK = os.environ.get("TIDEMARK", str(ROOT / "target/fast/tidemark"))
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

    def script(self, text):
        """The output of statements that are transactions of their own."""
        command = [str(self.bin / "psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", "bench", "-XAtq", "-v", "ON_ERROR_STOP=1"]
        return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout.strip()

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


def server_cpu_s(pg):
    """CPU of the server and its sessions, those that have ended too."""
    postmaster = (pg.data / "postmaster.pid").read_text().split()[0]
    fields = open(f"/proc/{postmaster}/stat").read().rsplit(")", 1)[1].split()
    sessions = open(f"/proc/{postmaster}/task/{postmaster}/children").read().split()
    return sum(map(int, fields[11:15])) / TICKS + sum(cpu_s(session) or 0.0 for session in sessions)


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


def ceiling_drain(pg, name, end, protocol=1, streaming=None):
    copy_slot(pg, name, "ceiling")
    started = time.time()
    command = [str(pg.bin / "pg_recvlogical"), "-h", "127.0.0.1", "-p", str(pg.port), "-U", "postgres", "-d", "bench",
               "-S", "ceiling", "--start", "-o", f"proto_version={protocol}", "-o", f"publication_names=pub_{name}", "-o", "messages=true",
               "--endpos", end, "-f", "/dev/null", "--no-loop", "-F", "0"]
    if streaming:
        command += ["-o", f"streaming={streaming}"]
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


def start(folder):
    log = open(folder / "tidemark.log", "w")
    return subprocess.Popen([TIDEMARK, "capture", "--config", str(folder / "connector.toml")], stderr=log, stdout=log)


def fail(folder, process, what):
    process.kill()
    sys.exit(f"{what}; the end of its log:\n" + "\n".join((folder / "tidemark.log").read_text().splitlines()[-20:]))


def median(results, key):
    return statistics.median(r[key] for r in results)


def verdict(value, target, at_least):
    met = value >= target if at_least else value <= target
    return "met" if met else f"missed by {abs(value - target) / target:.0%}"
