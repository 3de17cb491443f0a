"""What SNS and SQS of an emulator (moto) have, by AWS's own client, and what that client's signatures are.

    sns.py make ENDPOINT                 a topic and a FIFO topic, a queue of each: {"topic", "queue", "fifo", "fifo_queue"}
    sns.py read ENDPOINT QUEUE           all messages of a queue, in order, which are deleted: [{"Message", "MessageAttributes"…}]
    sns.py signature SECRET              stdin: {"url", "headers", "body"} of a request; its signature by botocore
"""

import json
import sys

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


def client(service, endpoint):
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    return boto3.client(service, region_name="us-east-1", endpoint_url=endpoint, **keys)


def make(endpoint):
    sns, sqs = client("sns", endpoint), client("sqs", endpoint)
    made = {}
    for topic, queue, name, attributes in [
        ("topic", "queue", "lake-notices", {}),
        ("fifo", "fifo_queue", "lake-notices.fifo", {"FifoQueue": "true"}),
    ]:
        of_topic = {"FifoTopic": "true"} if attributes else {}
        made[topic] = sns.create_topic(Name=name, Attributes=of_topic)["TopicArn"]
        made[queue] = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=made[queue], AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        sns.subscribe(TopicArn=made[topic], Protocol="sqs", Endpoint=arn)
    return made


def read(endpoint, queue):
    sqs, found = client("sqs", endpoint), []
    while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        for message in messages:
            found.append(json.loads(message["Body"]))
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    return found


def signature(secret):
    asked = json.load(sys.stdin)
    fields = dict(part.strip().split("=", 1) for part in asked["headers"]["authorization"].split(" ", 1)[1].split(","))
    key, _, region, service, _ = fields["Credential"].split("/")
    signed = {name: asked["headers"][name] for name in fields["SignedHeaders"].split(";")}
    request = AWSRequest("POST", asked["url"], data=asked["body"].encode(), headers=signed)
    request.context["timestamp"] = asked["headers"]["x-amz-date"]
    auth = SigV4Auth(Credentials(key, secret), service, region)
    text = auth.string_to_sign(request, auth.canonical_request(request))
    return {"ours": fields["Signature"], "botocore": auth.signature(text, request), "service": service, "signed": list(signed)}


json.dump({"make": make, "read": read, "signature": signature}[sys.argv[1]](*sys.argv[2:]), sys.stdout)
