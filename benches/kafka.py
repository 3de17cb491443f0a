"""Tidemark on Kafka, beside the same ceiling: a prepared slot drained into a broker, and commit to consumer.

    kafka     the slot of `wide`, into one topic of one partition on one broker of this machine, which shares its cores
    latency   RATE single-row transactions a second; a consumer of what is committed (librdkafka, isolation.level=
              read_committed) subtracts the time in each row, taken in its INSERT, from its own clock
    debezium  both again with Debezium on Kafka Connect, if ONLY names it (and .debezium is there: make debezium)

What is drained is read back after the clock: each row must be there once.

Environment: RATE (1000), WARM_S (5), LATENCY_S (20), PROPERTIES (further lines of [log.kafka.properties]).
"""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from harness import (LIMIT_S, ROOT, ceiling_drain, copy_slot, cpu_s, drop_slot, fail, free_port, median, peak_mb, start,
                     verdict, walsender)

RATE = int(os.environ.get("RATE", "1000"))
WARM_S = int(os.environ.get("WARM_S", "5"))
LATENCY_S = int(os.environ.get("LATENCY_S", "20"))

# By [log] linger_ms: librdkafka's own linger goes with it.
PRODUCER = {0: '"linger.ms" = 0'}

BROKER = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=16777216
"""


def clients():
    """librdkafka's Python binding, which only this benchmark needs."""
    try:
        import confluent_kafka
    except ImportError:
        sys.exit("confluent_kafka is missing: run this by `make bench`, or with .venv/bin/python after `make venv`")
    return confluent_kafka


class Broker:
    def __init__(self, folder):
        self.folder, self.port = folder / "kafka", free_port()
        self.folder.mkdir()
        libs = ROOT / ".kafka/libs"
        if not libs.exists():
            sys.exit(f"{libs} is missing: run scripts/fetch-kafka")
        settings = self.folder / "server.properties"
        # A free port is free until somebody listens.
        settings.write_text(BROKER.format(port=self.port, controller=self.port + 1, folder=self.folder))
        java = ["java", "-Xms512m", "-Xmx512m", "-cp", f"{libs}/*"]
        self.log = self.folder / "log"
        with open(self.log, "w") as log:
            done = subprocess.run([*java, "kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", settings],
                                  stdout=log, stderr=log)
            if done.returncode:
                sys.exit("formatting the broker's folder failed:\n" + self.log.read_text()[-2000:])
            self.process = subprocess.Popen([*java, "kafka.Kafka", settings], stdout=log, stderr=log)
        admin = clients().Consumer({**self.consumer(), "log_level": 0})
        deadline = time.time() + 90
        while True:
            try:
                admin.list_topics(timeout=1)
                break
            except clients().KafkaException:
                if self.process.poll() is not None or time.time() > deadline:
                    sys.exit("the broker did not start:\n" + self.log.read_text()[-2000:])
        admin.close()

    def consumer(self):
        return {"bootstrap.servers": f"127.0.0.1:{self.port}", "group.id": "bench", "enable.auto.commit": False,
                "isolation.level": "read_committed", "auto.offset.reset": "earliest", "socket.nagle.disable": True}

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def config(folder, pg, broker, name, table, linger_ms):
    (folder / "connector.toml").write_text(f"""
[source]
url = "{pg.url()}"
name = "{name}"
slot = "tidemark_{table}"
publication = "pub_{table}"
backfill = "none"
[log]
kind = "kafka"
linger_ms = {linger_ms}
{os.environ.get("LOG", "")}
[log.kafka]
brokers = ["127.0.0.1:{broker.port}"]
topic_config = {{ "retention.ms" = -1 }}
[log.kafka.properties]
{PRODUCER.get(linger_ms, "")}
{os.environ.get("PROPERTIES", "")}
[state]
dir = "{folder}/state"
[ops]
listen = "127.0.0.1:0"
""")


def started(folder, pg, table):
    """Tidemark, streaming: its process and its walsender."""
    process = start(folder)
    deadline = time.time() + LIMIT_S
    while not (active := walsender(pg, f"tidemark_{table}")):
        if process.poll() is not None or time.time() > deadline:
            fail(folder, process, "tidemark did not start to stream")
        time.sleep(0.01)
    return process, active


CONNECT = """bootstrap.servers=127.0.0.1:{broker}
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
key.converter.schemas.enable=false
value.converter.schemas.enable=false
offset.storage.file.filename={folder}/offsets
listeners=http://127.0.0.1:{port}
plugin.path={root}/.debezium/plugins
plugin.discovery=service_load
producer.compression.type=lz4
producer.linger.ms={linger_ms}
producer.batch.size=262144
producer.buffer.memory=67108864
"""

DEBEZIUM = """name=bench
connector.class=io.debezium.connector.postgresql.PostgresConnector
tasks.max=1
database.hostname=127.0.0.1
database.port={pg}
database.user=postgres
database.password=none
database.dbname=bench
topic.prefix={name}
plugin.name=pgoutput
slot.name=tidemark_{table}
publication.name=pub_{table}
publication.autocreate.mode=disabled
table.include.list=public.{table}
snapshot.mode=no_data
message.prefix.exclude.list=end
statistics.metrics.enabled=false
poll.interval.ms=10
max.batch.size=8192
max.queue.size=32768
topic.creation.default.replication.factor=1
topic.creation.default.partitions=1
"""


def started_debezium(folder, pg, broker, name, table, linger_ms):
    """Debezium, streaming: its process and its walsender. The heap is what Kafka's own scripts give to Connect."""
    plugins = ROOT / ".debezium/plugins"
    if not plugins.exists():
        sys.exit(f"{plugins} is missing: make debezium")
    values = dict(broker=broker.port, folder=folder, port=free_port(), root=ROOT, linger_ms=linger_ms, pg=pg.port, name=name, table=table)
    (folder / "worker.properties").write_text(CONNECT.format(**values))
    (folder / "bench.properties").write_text(DEBEZIUM.format(**values))
    log = open(folder / "tidemark.log", "w")
    process = subprocess.Popen(["java", "-Xms256M", "-Xmx2G", "-XX:+UseG1GC", "-cp", f"{ROOT}/.debezium/libs/*",
                                "org.apache.kafka.connect.cli.ConnectStandalone", folder / "worker.properties", folder / "bench.properties"],
                               stdout=log, stderr=log)
    deadline = time.time() + LIMIT_S
    while not (active := walsender(pg, f"tidemark_{table}")):
        if process.poll() is not None or time.time() > deadline:
            fail(folder, process, "Debezium did not start to stream")
        time.sleep(0.01)
    return process, active


def stop(process, pg, table):
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    drop_slot(pg, f"tidemark_{table}")


def drain_debezium(pg, broker, rows, number):
    """Until its topic has as many records as there are rows: it tells the server of its progress only now and then."""
    name = f"debezium{number}"
    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp)
        copy_slot(pg, "wide", "tidemark_wide")
        process, active = started_debezium(folder, pg, broker, name, "wide", 5)
        began, before = time.time(), [cpu_s(p) or 0.0 for p in (process.pid, active, broker.process.pid)]
        consumer, end, deadline = clients().Consumer({**broker.consumer(), "log_level": 0}), 0, began + LIMIT_S
        partition = clients().TopicPartition(f"{name}.public.wide", 0)
        while end < rows:
            if process.poll() is not None or time.time() > deadline:
                fail(folder, process, "Debezium did not drain the slot")
            try:
                end = consumer.get_watermark_offsets(partition, timeout=5, cached=False)[1]
            except clients().KafkaException:
                pass
            time.sleep(0.05)
        seconds = time.time() - began
        spent = [(cpu_s(p) or 0.0) - b for p, b in zip((process.pid, active, broker.process.pid), before)]
        result = dict(seconds=seconds, cpu=spent[0], sender_cpu=spent[1], broker_cpu=spent[2], rss=peak_mb(process.pid))
        consumer.close()
        stop(process, pg, "wide")
    read_back(broker, f"{name}.public.wide", rows)
    return result


def drain(pg, broker, rows, end, number):
    name = f"drain{number}"
    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp)
        copy_slot(pg, "wide", "tidemark_wide")
        config(folder, pg, broker, name, "wide", 5)
        process, active = started(folder, pg, "wide")
        began, before = time.time(), [cpu_s(p) or 0.0 for p in (process.pid, active, broker.process.pid)]
        deadline = began + LIMIT_S
        while pg.ask(f"select confirmed_flush_lsn >= '{end}' from pg_replication_slots where slot_name='tidemark_wide'") != "true":
            if process.poll() is not None or time.time() > deadline:
                fail(folder, process, "tidemark did not drain the slot")
            time.sleep(0.05)
        seconds = time.time() - began
        spent = [(cpu_s(p) or 0.0) - b for p, b in zip((process.pid, active, broker.process.pid), before)]
        result = dict(seconds=seconds, cpu=spent[0], sender_cpu=spent[1], broker_cpu=spent[2], rss=peak_mb(process.pid))
        stop(process, pg, "wide")
    read_back(broker, f"{name}.public.wide", rows)
    return result


def read_back(broker, topic, rows):
    consumer = clients().Consumer({**broker.consumer(), "enable.partition.eof": True})
    consumer.assign([clients().TopicPartition(topic, 0, 0)])
    seen, doubled, deadline = set(), 0, time.time() + LIMIT_S
    while time.time() < deadline:
        ended = False
        for message in consumer.consume(20000, 1.0):
            if message.error():
                ended = message.error().code() == clients().KafkaError._PARTITION_EOF
                continue
            key = message.key()
            doubled += key in seen
            seen.add(key)
        if ended:
            break
    consumer.close()
    if len(seen) != rows or doubled:
        sys.exit(f"{topic} holds {len(seen):,} of {rows:,} rows, and {doubled:,} of them more than once")


def latency(pg, broker, with_debezium):
    pg.sql("drop table if exists lat; drop publication if exists pub_lat")
    pg.sql("create table lat (id bigserial primary key, ts_us bigint not null, note text not null)")
    pg.sql("create publication pub_lat for table lat")
    pg.sql("select pg_create_logical_replication_slot('tidemark_lat', 'pgoutput')")
    name = "latency_debezium" if with_debezium else "latency"
    topic, got, done = f"{name}.public.lat", [], threading.Event()
    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp)
        if with_debezium:
            process, _ = started_debezium(folder, pg, broker, name, "lat", 0)
        else:
            config(folder, pg, broker, name, "lat", 0)
            process, _ = started(folder, pg, "lat")
        pg.sql("insert into lat (ts_us, note) values (0, 'makes the topic')")
        reader = threading.Thread(target=consume, args=(broker, topic, got, done), daemon=True)
        reader.start()
        script = folder / "insert.sql"
        script.write_text("insert into lat (ts_us, note) values ((extract(epoch from clock_timestamp()) * 1000000)::bigint, "
                          "'a note of some length');\n")
        before = cpu_s(process.pid)
        subprocess.run([str(pg.bin / "pgbench"), "-n", "-h", "127.0.0.1", "-p", str(pg.port), "-U", "postgres", "-M", "prepared",
                        "-c", "4", "-j", "1", "-R", str(RATE), "-T", str(WARM_S + LATENCY_S), "-f", str(script), "bench"],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        spent = cpu_s(process.pid) - before
        sent = int(pg.sql("select count(*) - 1 from lat"))
        deadline = time.time() + 30
        while len(got) < sent and time.time() < deadline:
            time.sleep(0.1)
        done.set()
        reader.join()
        rss = peak_mb(process.pid)
        stop(process, pg, "lat")
    if len(got) != sent:
        sys.exit(f"{len(got):,} of {sent:,} rows arrived")
    first = min(at for at, _ in got) + WARM_S * 1_000_000
    return sorted((seen - at) / 1000 for at, seen in got if at >= first), sent, spent, rss


def consume(broker, topic, got, done):
    consumer = clients().Consumer({**broker.consumer(), "fetch.wait.max.ms": 5})
    consumer.assign([clients().TopicPartition(topic, 0, 0)])
    while not done.is_set():
        message = consumer.poll(0.1)
        if message is None or message.error():
            continue
        now = time.time_ns() // 1000
        at = json.loads(message.value())["after"]["ts_us"]
        if at:
            got.append((at, now))
    consumer.close()


def report_debezium(rows, theirs):
    per_million = lambda key: median(theirs, key) / rows * 1e6
    print(f"\ndebezium: {rows:,} rows, medians of {len(theirs)}")
    print(f"  {'Debezium into Kafka':34}{rows / median(theirs, 'seconds'):>12,.0f}{per_million('cpu'):>15.2f}  (own; its walsender "
          f"{per_million('sender_cpu'):.2f}, the broker {per_million('broker_cpu'):.2f})")
    print(f"  {'peak RSS, MB':34}{median(theirs, 'rss'):>12.0f}")


def report_drain(rows, ceilings, ours):
    pair = statistics.median(c["seconds"] / o["seconds"] for c, o in zip(ceilings, ours))
    per_million = lambda results, key: median(results, key) / rows * 1e6
    ceiling, cpu = per_million(ceilings, "sender_cpu"), per_million(ours, "cpu")
    print(f"\nkafka: {rows:,} rows, medians of {len(ours)} pairs; the broker shares the cores")
    print(f"  {'':34}{'rows/s':>12}{'CPU s/million':>15}")
    print(f"  {'pg_recvlogical to /dev/null':34}{rows / median(ceilings, 'seconds'):>12,.0f}{ceiling:>15.2f}  (its walsender)")
    print(f"  {'tidemark into Kafka':34}{rows / median(ours, 'seconds'):>12,.0f}{cpu:>15.2f}  (own; its walsender "
          f"{per_million(ours, 'sender_cpu'):.2f}, the broker {per_million(ours, 'broker_cpu'):.2f})")
    print(f"  {'ratio of rows/s':34}{pair:>12.0%}   target >= 80%: {verdict(pair, 0.8, True)}")
    print(f"  {'own CPU / walsender of the ceiling':34}{cpu / ceiling:>12.0%}   target <= 50%: {verdict(cpu / ceiling, 0.5, False)}")
    rss = median(ours, "rss")
    print(f"  {'peak RSS, MB':34}{rss:>12.0f}   target <= 150: {verdict(rss, 150, False)}")


def report_latency(found, of):
    times, sent, spent, rss = found
    at = lambda share: times[min(len(times) - 1, int(len(times) * share))]
    print(f"\nlatency of {of}: {RATE:,} transactions a second for {LATENCY_S} s, commit to consumer, {len(times):,} measured; "
          f"linger_ms = 0")
    print(f"  {'p50, ms':34}{at(.5):>12.1f}   target <= 6: {verdict(at(.5), 6, False)}")
    print(f"  {'p99, ms':34}{at(.99):>12.1f}   target <= 16: {verdict(at(.99), 16, False)}")
    print(f"  {'p99.9, ms':34}{at(.999):>12.1f}")
    print(f"  {'own CPU s/million transactions':34}{spent / sent * 1e6:>12.1f}")
    print(f"  {'peak RSS, MB':34}{rss:>12.0f}")


def run(pg, folder, only, rows, rounds, end):
    broker = Broker(folder)
    try:
        if "kafka" in only:
            pairs = [(ceiling_drain(pg, "wide", end), drain(pg, broker, rows, end, number)) for number in range(rounds)]
            report_drain(rows, [c for c, _ in pairs], [o for _, o in pairs])
        if "latency" in only:
            report_latency(latency(pg, broker, False), "tidemark")
        if "debezium" in only:
            report_debezium(rows, [drain_debezium(pg, broker, rows, number) for number in range(rounds)])
            report_latency(latency(pg, broker, True), "Debezium")
    finally:
        broker.stop()
