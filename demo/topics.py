"""Reads topics of committed records with confluent-kafka.

  topics.py avro BROKERS REGISTRY TOPIC COUNT          prints that many of the last records, decoded by the registry
  topics.py compare BROKERS REGISTRY TOPIC… < JSON     folds each topic of orders to its rows, and compares with the
                                                       sums that Postgres gave; leaves with 1 where they differ

A value that begins with a zero byte is Avro, any other is JSON.
"""

import base64
import collections
import datetime
import decimal
import json
import sys
import time

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

# How long a topic may take to reach what Postgres had when it was asked.
PATIENCE_S = 60


def connect(brokers):
    return Consumer({
        "bootstrap.servers": brokers,
        "group.id": "tidemark-demo",
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
    })


def ends(consumer, topic):
    partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    return {number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=20) for number in partitions}


def read(consumer, topic, places):
    """Records from the places on, up to the ends of now."""
    until = {number: high for number, (_, high) in ends(consumer, topic).items()}
    consumer.assign([TopicPartition(topic, number, places.get(number, 0)) for number in until])
    deadline = time.monotonic() + PATIENCE_S
    # Markers of transactions have offsets, too: the position passes them once the records before are read.
    while any(place.offset < until[place.partition] for place in consumer.position(consumer.assignment())):
        message = consumer.poll(0.2)
        if message is not None and not message.error():
            yield message
        elif time.monotonic() > deadline:
            raise SystemExit(f"{topic} was not read to its end within {PATIENCE_S} s")
    places.update({place.partition: place.offset for place in consumer.position(consumer.assignment())})


def decoder(registry):
    avro = AvroDeserializer(SchemaRegistryClient({"url": registry}))

    def decode(message, data, field):
        if data is None:
            return None
        if data[:1] == b"\0":
            return avro(data, SerializationContext(message.topic(), field))
        return json.loads(data)

    return decode


def plain(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (decimal.Decimal, datetime.date, datetime.time, datetime.datetime)):
        return str(value)
    raise TypeError(type(value))


def show(brokers, registry, topic, count):
    consumer, decode = connect(brokers), decoder(registry)
    last = collections.deque(maxlen=count)
    for message in read(consumer, topic, {}):
        if message.value() is not None:
            last.append(message)
    for message in last:
        for name, data, field in [("key", message.key(), MessageField.KEY), ("value", message.value(), MessageField.VALUE)]:
            print(f"{name} {json.dumps(decode(message, data, field), default=plain, ensure_ascii=False)}")


def total(value):
    """Debezium's decimal in JSON is the unscaled value in base64; here of scale 2."""
    if isinstance(value, decimal.Decimal):
        return value
    return decimal.Decimal(int.from_bytes(base64.b64decode(value), "big", signed=True)).scaleb(-2)


def compare(brokers, registry, topics):
    expected = json.load(sys.stdin)
    expected["total"] = decimal.Decimal(expected["total"])
    decode, equal = decoder(registry), True
    for topic in topics:
        consumer, rows, seen, doubled, places = connect(brokers), {}, set(), 0, {}
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for message in read(consumer, topic, places):
                key = decode(message, message.key(), MessageField.KEY)["id"]
                value = decode(message, message.value(), MessageField.VALUE)
                if value is None:
                    continue  # a tombstone, behind a delete
                position = (dict(message.headers())["tidemark.position"], key, value["op"])
                doubled += position in seen
                seen.add(position)
                if value["after"] is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value["after"]
            found = {
                "rows": len(rows),
                "total": sum(total(row["total"]) for row in rows.values()),
                "statuses": dict(collections.Counter(row["status"] for row in rows.values())),
            }
            if found == expected or time.monotonic() > deadline:
                break
        verdict = "equal" if found == expected and not doubled else "DIFFERENT"
        equal &= verdict == "equal"
        print(f"{topic}: {len(seen)} changes, {doubled} doubled; rows {found['rows']} (Postgres {expected['rows']}), "
              f"total {found['total']} (Postgres {expected['total']}): {verdict}")
        consumer.close()
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["avro", brokers, registry, topic, count]:
            show(brokers, registry, topic, int(count))
        case ["compare", brokers, registry, *topics]:
            compare(brokers, registry, topics)
        case _:
            raise SystemExit(__doc__)
