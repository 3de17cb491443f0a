//! Topics as a plain consumer reads them, and what differs between two of them.

use std::fmt;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Map, Value as Json};

use crate::support::Kafka;

/// What the brokers have at most this long to answer. That a topic is not there is told after half a minute.
const PATIENCE: Duration = Duration::from_secs(120);

/// A topic of one connector.
pub struct Topic {
    /// Without the connector's name.
    pub name: &'static str,
    pub records: Vec<Record>,
}

/// A record with its JSON taken apart, and the connector's name replaced by `N`.
pub struct Record {
    /// `schema` and `payload` of JSON with schemas; a payload alone without.
    pub key: Parts,
    pub value: Parts,
    pub headers: Map<String, Json>,
}

/// A key or value; none of both for null.
#[derive(Default)]
pub struct Parts {
    pub schema: Option<Json>,
    pub payload: Option<Json>,
}

impl Topic {
    /// Reads all that is committed.
    pub fn read(kafka: &Kafka, connector: &str, name: &'static str) -> Self {
        let topic = format!("{connector}.{name}");
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka.address())
            .set("group.id", "differential")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut assigned = TopicPartitionList::new();
        assigned.add_partition_offset(&topic, 0, Offset::Offset(0)).unwrap();
        consumer.assign(&assigned).unwrap();
        let mut records = Vec::new();
        loop {
            match consumer.poll(PATIENCE).unwrap_or_else(|| panic!("no answer about {topic}")) {
                Ok(message) => {
                    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    let header = |header: rdkafka::message::Header<'_, &[u8]>| {
                        (header.key.to_owned(), Json::from(header.value.map(text)))
                    };
                    records.push(Record {
                        key: Parts::of(message.key(), connector),
                        value: Parts::of(message.payload(), connector),
                        headers: headers.map(header).collect(),
                    });
                }
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return Self { name, records },
                // A topic that is not there yet.
                Err(error) => {
                    let code = error.rdkafka_error_code();
                    let is_absent = code == Some(rdkafka::types::RDKafkaErrorCode::UnknownTopicOrPartition);
                    assert!(is_absent, "{topic}: {error}");
                    return Self { name, records };
                }
            }
        }
    }
}

/// Whether the transaction of the last statement has ended in `<connector>.transaction`.
pub fn last_ended(kafka: &Kafka, connector: &str) -> bool {
    let transactions = Topic::read(kafka, connector, "transaction");
    transactions.records.iter().filter_map(|record| record.value.payload.as_ref()).any(|value| {
        let tables = value["data_collections"].as_array();
        tables.is_some_and(|tables| tables.iter().any(|table| table["data_collection"] == "public.ended"))
    })
}

impl Parts {
    fn of(bytes: Option<&[u8]>, connector: &str) -> Self {
        let Some(bytes) = bytes else { return Self::default() };
        let text = std::str::from_utf8(bytes).unwrap();
        let text =
            text.replace(&format!("\"{connector}."), "\"N.").replace(&format!("\"{connector}\""), "\"N\"");
        let mut json: Json = serde_json::from_str(&text).unwrap();
        let typed = json.as_object().is_some_and(|object| object.keys().eq(["schema", "payload"]));
        if typed {
            Self { schema: Some(json["schema"].take()), payload: Some(json["payload"].take()) }
        } else {
            Self { schema: None, payload: Some(json) }
        }
    }

    const fn is_null(&self) -> bool {
        self.payload.is_none()
    }
}

/// One thing that the two connectors have otherwise.
#[derive(Debug)]
pub struct Difference {
    /// Without the connector's name.
    pub topic: &'static str,
    /// Which of Debezium's records.
    pub number: usize,
    /// `op` of the record; empty where it has none.
    pub op: String,
    /// Where: `value.after.note`, `value schema.before.note.optional`, `header.x`, `record`.
    pub path: String,
    /// What Debezium has; none where it has nothing.
    pub theirs: Option<Json>,
    /// What Tidemark has.
    pub ours: Option<Json>,
}

impl Difference {
    /// Whether it lies in that part of the record.
    pub fn is_in(&self, part: &str) -> bool {
        self.path.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The column that it is about, in a row or in its schema.
    pub fn column(&self) -> Option<&str> {
        let parts = ["value.schema.before.", "value.schema.after.", "value.before.", "value.after."];
        let rest = parts.iter().find_map(|part| self.path.strip_prefix(part))?;
        rest.split(['.', '[']).next()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, number, op, path, theirs, ours } = self;
        let shown = |json: &Option<Json>| {
            let text = json.as_ref().map_or_else(|| "nothing".to_owned(), Json::to_string);
            if text.chars().count() > 300 { text.chars().take(300).collect::<String>() + "…" } else { text }
        };
        write!(f, "{topic} #{number} {op} {path}\n  Debezium: {}\n  Tidemark: {}", shown(theirs), shown(ours))
    }
}

/// What differs between a topic of Debezium's and Tidemark's, record by record. Names are alike already; versions and
/// times are left out, and of copied rows also their place, since each connector makes its copy at one of its own.
pub fn differences(theirs: &Topic, ours: &Topic) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut ours_left = ours.records.iter().peekable();
    for (number, record) in theirs.records.iter().enumerate() {
        let op = record.value.payload.as_ref().and_then(|value| value["op"].as_str()).unwrap_or_default();
        let mut walk = Walk { topic: theirs.name, number, op, found: &mut found };
        if record.is_empty() && !ours_left.peek().is_some_and(|ours| ours.is_empty()) {
            walk.note("record", Some(&Json::from("neither key nor value")), None);
            continue;
        }
        match ours_left.next() {
            Some(ours) => walk.record(record, ours),
            None => walk.note("record", record.value.payload.as_ref(), None),
        }
    }
    for record in ours_left {
        let mut walk = Walk { topic: theirs.name, number: theirs.records.len(), op: "", found: &mut found };
        walk.note("record", None, record.value.payload.as_ref());
    }
    found
}

/// Two records side by side.
struct Walk<'a> {
    topic: &'static str,
    number: usize,
    op: &'a str,
    found: &'a mut Vec<Difference>,
}

impl Walk<'_> {
    fn record(&mut self, theirs: &Record, ours: &Record) {
        for (part, theirs, ours) in [("key", &theirs.key, &ours.key), ("value", &theirs.value, &ours.value)] {
            self.optional(&format!("{part}.schema"), theirs.schema.as_ref(), ours.schema.as_ref());
            self.optional(part, theirs.payload.as_ref(), ours.payload.as_ref());
        }
        let ours: Map<String, Json> =
            ours.headers.iter().filter(|(name, _)| !name.starts_with("tidemark.")).map(owned).collect();
        self.object("header", &theirs.headers, &ours);
    }

    fn optional(&mut self, path: &str, theirs: Option<&Json>, ours: Option<&Json>) {
        match (theirs, ours) {
            (Some(theirs), Some(ours)) => self.json(path, theirs, ours),
            (None, None) => {}
            _ => self.note(path, theirs, ours),
        }
    }

    fn json(&mut self, path: &str, theirs: &Json, ours: &Json) {
        match (theirs, ours) {
            (Json::Object(theirs), Json::Object(ours)) => self.object(path, theirs, ours),
            (Json::Array(theirs), Json::Array(ours)) => match (by_field(theirs), by_field(ours)) {
                (Some(theirs), Some(ours)) => self.object(path.trim_end_matches(".fields"), &theirs, &ours),
                _ if theirs.len() == ours.len() => {
                    for (index, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
                        self.json(&format!("{path}[{index}]"), theirs, ours);
                    }
                }
                _ => self.note(path, Some(&theirs.clone().into()), Some(&ours.clone().into())),
            },
            (Json::Number(one), Json::Number(other)) => {
                // Exactly the same number, however it is spelt: `1`, `1.0`, `3.4e38`. A zero has its sign.
                let bits = |number: &serde_json::Number| number.as_f64().map(f64::to_bits);
                let is_float = one.is_f64() || other.is_f64();
                if one != other && !(is_float && bits(one) == bits(other)) {
                    self.note(path, Some(theirs), Some(ours));
                }
            }
            _ if theirs == ours => {}
            _ => self.note(path, Some(theirs), Some(ours)),
        }
    }

    fn object(&mut self, path: &str, theirs: &Map<String, Json>, ours: &Map<String, Json>) {
        for (name, value) in theirs {
            self.optional(&format!("{path}.{name}"), Some(value), ours.get(name));
        }
        for (name, value) in ours.iter().filter(|(name, _)| !theirs.contains_key(*name)) {
            self.note(&format!("{path}.{name}"), None, Some(value));
        }
        let common = |one: &Map<String, Json>, other: &Map<String, Json>| -> Vec<Json> {
            one.keys()
                .filter(|name| other.contains_key(*name))
                .map(|name| Json::from(name.as_str()))
                .collect()
        };
        let (theirs, ours) = (common(theirs, ours), common(ours, theirs));
        if theirs != ours {
            self.note(&format!("{path} (order)"), Some(&theirs.into()), Some(&ours.into()));
        }
    }

    fn note(&mut self, path: &str, theirs: Option<&Json>, ours: Option<&Json>) {
        const VERSIONS_AND_TIMES: [&str; 4] =
            ["value.source.version", "value.ts_ms", "value.ts_us", "value.ts_ns"];
        const COPY: [&str; 5] = [
            "value.source.ts_ms",
            "value.source.ts_us",
            "value.source.ts_ns",
            "value.source.lsn",
            "value.source.sequence",
        ];
        if VERSIONS_AND_TIMES.contains(&path) || (self.op == "r" && COPY.contains(&path)) {
            return;
        }
        self.found.push(Difference {
            topic: self.topic,
            number: self.number,
            op: self.op.to_owned(),
            path: path.to_owned(),
            theirs: theirs.cloned(),
            ours: ours.cloned(),
        });
    }
}

impl Record {
    const fn is_empty(&self) -> bool {
        self.key.is_null() && self.value.is_null()
    }
}

fn owned((name, value): (&String, &Json)) -> (String, Json) {
    (name.clone(), value.clone())
}

/// The fields of a struct's schema by their name.
fn by_field(fields: &[Json]) -> Option<Map<String, Json>> {
    let named = fields.iter().map(|field| Some((field.get("field")?.as_str()?.to_owned(), field.clone())));
    named.collect::<Option<Map<String, Json>>>().filter(|fields| !fields.is_empty())
}
