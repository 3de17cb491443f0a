"""Reads all topics of a connector as anybody would, with a consumer that is not ours: confluent-kafka, committed only.

    read_topics.py BROKERS PREFIX FOLDER SECONDS

Every partition is read from its first offset to its last stable one. While that stands before the high watermark, a
transaction is open: it is waited for until SECONDS are over. Each topic becomes a file FOLDER/<topic>:

    record: partition i32 | offset i64 | timestamp i64 | key | value | headers i32 | (name, value)*
    key, value, name: length i32 (-1: null), bytes          all numbers little-endian

Prints JSON: {"<topic>/<partition>": {"low": …, "stable": …, "high": …, "records": …}}
"""

import json
import struct
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

brokers, prefix, folder, seconds = sys.argv[1:]
PATIENCE = 30


def consumer(isolation):
    return Consumer({
        "bootstrap.servers": brokers,
        "group.id": "oracle",
        "isolation.level": isolation,
        "auto.offset.reset": "error",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "check.crcs": True,
    })


def field(value):
    if value is None:
        return struct.pack("<i", -1)
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<i", len(value)) + value


def places(committed, everything):
    """First offset, last stable offset and high watermark of each partition."""
    found = {}
    for topic, metadata in committed.list_topics(timeout=PATIENCE).topics.items():
        if topic.startswith(prefix):
            for number in metadata.partitions:
                partition = TopicPartition(topic, number)
                low, stable = committed.get_watermark_offsets(partition, timeout=PATIENCE)
                high = everything.get_watermark_offsets(partition, timeout=PATIENCE)[1]
                found[(topic, number)] = {"low": low, "stable": stable, "high": high, "records": 0}
    return found


committed, everything = consumer("read_committed"), consumer("read_uncommitted")
deadline = time.monotonic() + float(seconds)
found = places(committed, everything)
while any(p["stable"] < p["high"] for p in found.values()) and time.monotonic() < deadline:
    time.sleep(0.2)
    found = places(committed, everything)

files = {topic: open(f"{folder}/{topic}", "wb") for topic, _ in found}
committed.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for topic, number in found])
reading = set(found)
while reading:
    messages = committed.consume(10_000, timeout=PATIENCE)
    if not messages:
        sys.exit(f"no record and no end of {sorted(reading)} within {PATIENCE} s")
    for message in messages:
        place = (message.topic(), message.partition())
        if message.error():
            if message.error().code() == KafkaError._PARTITION_EOF:
                reading.discard(place)
                continue
            if message.error().retriable() or message.error().code() == KafkaError._TRANSPORT:
                continue
            sys.exit(f"{place}: {message.error()}")
        found[place]["records"] += 1
        headers = message.headers() or []
        frame = [struct.pack("<iqq", place[1], message.offset(), message.timestamp()[1])]
        frame += [field(message.key()), field(message.value()), struct.pack("<i", len(headers))]
        frame += [field(part) for header in headers for part in header]
        files[place[0]].write(b"".join(frame))
for file in files.values():
    file.close()
committed.close()
print(json.dumps({f"{topic}/{number}": place for (topic, number), place in found.items()}))
