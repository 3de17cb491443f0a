"""Records of a topic as Confluent's own client reads them: read.py BROKERS REGISTRY CA USER:PASSWORD TOPIC > lines.

Committed records of all partitions, each a line {"partition", "key", "value", "latest", "key_id", "value_id",
"headers"}: key and value decoded by the schema that each was written with; "latest" is the value read with the newest
schema of its subject, as a consumer does who has that one.
"""

import datetime
import decimal
import json
import sys

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

brokers, registry, ca, login, topic = sys.argv[1:]
client = SchemaRegistryClient({"url": registry, "ssl.ca.location": ca, "basic.auth.user.info": login})
as_written = AvroDeserializer(client)
newest = AvroDeserializer(client, client.get_latest_version(f"{topic}-value").schema.schema_str)
consumer = Consumer({
    "bootstrap.servers": brokers,
    "group.id": "kafka-avro-test",
    "isolation.level": "read_committed",
    "enable.auto.commit": False,
    "auto.offset.reset": "error",
})
ends = {}
for number in consumer.list_topics(topic, timeout=20).topics[topic].partitions:
    partition = TopicPartition(topic, number, 0)
    _, ends[number] = consumer.get_watermark_offsets(partition, timeout=20)
consumer.assign([TopicPartition(topic, number, 0) for number in ends])


def plain(value):
    if isinstance(value, (decimal.Decimal, datetime.date, datetime.time, datetime.datetime)):
        return str(value)
    raise TypeError(type(value))


def number(data):
    return None if data is None else int.from_bytes(data[1:5], "big")


silent = 0
while any(place.offset < ends[place.partition] for place in consumer.position(consumer.assignment())):
    message = consumer.poll(1)
    silent = silent + 1 if message is None else 0
    assert silent < 30, "the topic is not read to its end"
    if message is None:
        continue
    assert not message.error(), message.error()
    key, value = message.key(), message.value()
    context = SerializationContext(topic, MessageField.VALUE)
    line = {
        "partition": message.partition(),
        "key": as_written(key, SerializationContext(topic, MessageField.KEY)),
        "value": as_written(value, context),
        "latest": newest(value, context),
        "key_id": number(key),
        "value_id": number(value),
        "headers": {name: text.decode() for name, text in message.headers() or []},
    }
    print(json.dumps(line, default=plain))
