"""Reads all topics of a connector as anybody would, with a consumer that is not ours: confluent-kafka, committed only.

    read_topics.py BROKERS PREFIX FOLDER SECONDS

Follows every partition from its first offset, whatever becomes of the brokers, until its standard input ends; then
reads on to the last stable offset. While that stands before the high watermark, a transaction is open: it is waited
for until SECONDS are over. Each topic becomes a file FOLDER/<topic>:

    record: partition i32 | offset i64 | timestamp i64 | key | value | headers i32 | (name, value)*
    key, value, name: length i32 (-1: null), bytes          all numbers little-endian

Prints JSON: {"<topic>/<partition>": {"low": …, "stable": …, "high": …, "records": …}}
"""

import json
import select
import struct
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

brokers, prefix, folder, seconds = sys.argv[1:]
PATIENCE = 30
LOOK_EVERY = 2


def consumer(isolation):
    return Consumer({
        "bootstrap.servers": brokers,
        "group.id": "oracle",
        "isolation.level": isolation,
        "auto.offset.reset": "error",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "check.crcs": True,
        # Questions for offsets wait behind a fetch that has nothing to give.
        "fetch.wait.max.ms": 20,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 2,
    })


def field(value):
    if value is None:
        return struct.pack("<i", -1)
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<i", len(value)) + value


class Reader:
    def __init__(self):
        self.committed, self.everything = consumer("read_committed"), consumer("read_uncommitted")
        # Records by place, and the offset at which a place was read to its end.
        self.records, self.ends, self.files = {}, {}, {}

    def places(self):
        """Partitions by topic and number."""
        topics = self.committed.list_topics(timeout=PATIENCE).topics
        names = [(topic, topics[topic].partitions) for topic in topics if topic.startswith(prefix)]
        return [(topic, number) for topic, numbers in names for number in numbers]

    def take_up_new(self):
        new = [place for place in self.places() if place not in self.records]
        for topic, number in new:
            self.records[(topic, number)] = 0
            if topic not in self.files:
                self.files[topic] = open(f"{folder}/{topic}", "wb")
        if new:
            self.committed.incremental_assign([TopicPartition(*place, OFFSET_BEGINNING) for place in new])

    def watermarks(self):
        """First offset, last stable offset and high watermark of each partition."""
        found = {}
        for place in self.places():
            low, stable = self.committed.get_watermark_offsets(TopicPartition(*place), timeout=PATIENCE)
            high = self.everything.get_watermark_offsets(TopicPartition(*place), timeout=PATIENCE)[1]
            found[place] = {"low": low, "stable": stable, "high": high}
        return found

    def read(self):
        # It returns when it has so many, or after so long: not as soon as it has any.
        for message in self.committed.consume(10_000, timeout=0.2):
            place, error = (message.topic(), message.partition()), message.error()
            if error is None:
                self.write(place, message)
            elif error.code() == KafkaError._PARTITION_EOF:
                self.ends[place] = message.offset()
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE) or error.fatal():
                sys.exit(f"{place}: {error}")
            # Others tell that brokers are away, and pass.

    def write(self, place, message):
        self.records[place] += 1
        headers = message.headers() or []
        frame = [struct.pack("<iqq", place[1], message.offset(), message.timestamp()[1])]
        frame += [field(message.key()), field(message.value()), struct.pack("<i", len(headers))]
        frame += [field(part) for header in headers for part in header]
        self.files[place[0]].write(b"".join(frame))

    def follow(self):
        looked = -LOOK_EVERY
        while not select.select([sys.stdin], [], [], 0)[0]:
            if time.monotonic() - looked >= LOOK_EVERY:
                try:
                    self.take_up_new()
                except KafkaException:
                    # The brokers are away.
                    pass
                looked = time.monotonic()
            self.read()

    def finish(self):
        deadline = time.monotonic() + float(seconds)
        self.take_up_new()
        found = self.watermarks()
        while any(p["stable"] < p["high"] for p in found.values()) and time.monotonic() < deadline:
            self.read()
            found = self.watermarks()
        deadline, before = time.monotonic() + PATIENCE, None
        while behind := [place for place in found if self.ends.get(place, 0) < found[place]["stable"]]:
            if time.monotonic() > deadline:
                sys.exit(f"{behind} not read to their ends, and nothing more for {PATIENCE} s: {self.ends}, {found}")
            self.read()
            if before != self.records:
                deadline, before = time.monotonic() + PATIENCE, dict(self.records)
        for file in self.files.values():
            file.close()
        return {f"{topic}/{n}": found[(topic, n)] | {"records": self.records[(topic, n)]} for topic, n in found}


reader = Reader()
reader.follow()
print(json.dumps(reader.finish()))
reader.committed.close()
