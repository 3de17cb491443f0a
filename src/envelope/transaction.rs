//! Debezium's transaction metadata: the records of `<name>.transaction`, in each format.
//!
//! ```text
//!   key    {"id":"750:24023128"}
//!   value  {"status":"BEGIN","id":"750:24023128","event_count":null,"data_collections":null,"ts_ms":…}
//!          {"status":"END","id":"750:24025352","event_count":3,"data_collections":[{"data_collection":"public.orders",…}],…}
//! ```
//!
//! As with Debezium, an id is the transaction's and the LSN of the message that it stands with, so that only its first
//! part is common to a transaction: BEGIN has the LSN of the first change on the wire, each record its own, END that
//! just past the commit.

use std::fmt;

use serde::Serialize;

use super::avro::{AvroSchemas, SchemaIds, transaction as avro};
use super::connect;
use super::format::{Format, Options};
use super::headers;
use crate::change::{Lsn, Position};
use crate::log::TopicRecords;

/// The id of a transaction, as Debezium writes it beside a message of that LSN.
pub(super) const fn id(xid: u32, lsn: Lsn) -> impl fmt::Display {
    Id { xid, lsn }
}

struct Id {
    xid: u32,
    lsn: Lsn,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.xid, self.lsn.0)
    }
}

/// Beginning or end of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary<'a> {
    /// BEGIN.
    Begin,
    /// END.
    End {
        /// Records with a value in all tables' topics.
        event_count: u64,
        /// By table; none where the list would be too long for its topic.
        data_collections: Option<&'a [DataCollection]>,
    },
}

impl<'a> Boundary<'a> {
    /// `status`, `event_count` and `data_collections`.
    pub(super) const fn fields(&self) -> (&'static str, Option<u64>, Option<&'a [DataCollection]>) {
        match *self {
            Self::Begin => ("BEGIN", None, None),
            Self::End { event_count, data_collections } => ("END", Some(event_count), data_collections),
        }
    }
}

/// Records of one table within a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataCollection {
    /// `schema.table`.
    #[serde(rename = "data_collection")]
    pub name: String,
    /// Records with a value.
    pub event_count: u64,
}

/// A record of `<name>.transaction`.
#[derive(Clone, Copy, Debug)]
pub struct TransactionRecord<'a> {
    /// The transaction.
    pub xid: u32,
    /// LSN of the message that begins or ends it.
    pub lsn: Lsn,
    /// Ordinal 0 for BEGIN, that of the last change on the wire for END.
    pub position: Position,
    /// Commit time, microseconds since 1970.
    pub commit_us: i64,
    /// Which of the two.
    pub boundary: Boundary<'a>,
}

/// Encodes the records of `<name>.transaction`.
#[derive(Debug)]
pub struct TransactionEncoder(Form);

#[derive(Debug)]
enum Form {
    Json,
    /// What precedes keys and values; a closing brace follows them.
    JsonWithSchemas {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Avro(SchemaIds),
}

#[derive(Serialize)]
struct Key<'a> {
    id: &'a str,
}

/// In Debezium's order.
#[derive(Serialize)]
struct Value<'a> {
    status: &'a str,
    id: &'a str,
    event_count: Option<u64>,
    data_collections: Option<&'a [DataCollection]>,
    ts_ms: i64,
}

impl Options {
    /// The schemas that have to be in a registry before transactions are encoded; none where no registry is used.
    pub fn transaction_to_register(self) -> Option<AvroSchemas> {
        (self.format == Format::Avro)
            .then(|| AvroSchemas::of(&connect::transaction_key(), &connect::transaction_value()))
    }
}

impl TransactionEncoder {
    /// An encoder; `ids` are those of [`Options::transaction_to_register`], used with Avro alone.
    pub fn new(options: Options, ids: SchemaIds) -> Self {
        Self(match options.format {
            Format::Json => Form::Json,
            Format::JsonWithSchemas => Form::JsonWithSchemas {
                key: connect::transaction_key().before_payload(),
                value: connect::transaction_value().before_payload(),
            },
            Format::Avro => Form::Avro(ids),
        })
    }

    /// Appends a record, with the commit time as its timestamp.
    pub fn encode(&self, record: &TransactionRecord<'_>, out: &mut TopicRecords) {
        let id = id(record.xid, record.lsn).to_string();
        let ts_ms = record.commit_us.div_euclid(1_000);
        let (status, event_count, data_collections) = record.boundary.fields();
        let value = Value { status, id: &id, event_count, data_collections, ts_ms };
        let mut writer = out.begin(ts_ms);
        match &self.0 {
            Form::Json => {
                writer.field(|out| write_json(&Key { id: &id }, out));
                writer.field(|out| write_json(&value, out));
            }
            Form::JsonWithSchemas { key, value: schema } => {
                writer.field(|out| write_payload(key, &Key { id: &id }, out));
                writer.field(|out| write_payload(schema, &value, out));
            }
            Form::Avro(ids) => {
                writer.field(|out| avro::write_key(ids.key, &id, out));
                writer.field(|out| avro::write_value(ids.value, &id, &record.boundary, ts_ms, out));
            }
        }
        writer.header(headers::POSITION, |out| {
            out.extend_from_slice(record.position.to_string().as_bytes());
        });
        writer.finish();
    }
}

fn write_json(value: &impl Serialize, out: &mut Vec<u8>) {
    // Numbers and strings, into memory: neither can fail.
    let _ = serde_json::to_writer(out, value);
}

fn write_payload(schema: &[u8], value: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(schema);
    write_json(value, out);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value as Json, json};

    use super::*;

    const POSITION: Position = Position { timeline: 1, commit_lsn: Lsn(0x16_B374_D848), ordinal: 4 };

    fn options(format: Format) -> Options {
        Options { format, ..Options::default() }
    }

    /// BEGIN and END of a transaction.
    fn both(format: Format) -> TopicRecords {
        let counts = [("public.lines", 2), ("public.orders", 1)];
        let counts = counts.map(|(name, event_count)| DataCollection { name: name.to_owned(), event_count });
        let record = |lsn, position, boundary| TransactionRecord {
            xid: 750,
            lsn,
            position,
            commit_us: 1_500,
            boundary,
        };
        let encoder = TransactionEncoder::new(options(format), SchemaIds { key: 7, value: 8 });
        let mut out = TopicRecords::new(Arc::from("shop.transaction"));
        let begin = record(Lsn(100), Position { ordinal: 0, ..POSITION }, Boundary::Begin);
        let end = Boundary::End { event_count: 3, data_collections: Some(&counts) };
        for record in [begin, record(Lsn(200), POSITION, end)] {
            encoder.encode(&record, &mut out);
        }
        out
    }

    #[test]
    fn json_is_debeziums_to_the_letter() {
        let out = both(Format::Json);
        let records: Vec<_> = out.iter().collect();
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        assert_eq!(text(records[0].key), r#"{"id":"750:100"}"#);
        assert_eq!(
            text(records[0].value),
            r#"{"status":"BEGIN","id":"750:100","event_count":null,"data_collections":null,"ts_ms":1}"#
        );
        assert_eq!(text(records[1].key), r#"{"id":"750:200"}"#);
        assert_eq!(
            text(records[1].value),
            concat!(
                r#"{"status":"END","id":"750:200","event_count":3,"data_collections":["#,
                r#"{"data_collection":"public.lines","event_count":2},"#,
                r#"{"data_collection":"public.orders","event_count":1}],"ts_ms":1}"#
            )
        );
        let positions = records.iter().map(|record| record.header(headers::POSITION).unwrap());
        assert!(positions.eq([&b"1/16/B374D848/0"[..], b"1/16/B374D848/4"]));
        assert!(records.iter().all(|record| record.timestamp_ms == 1));
    }

    #[test]
    fn payloads_with_schemas_are_those_without_and_their_fields_those_of_the_schema() {
        let (plain, typed) = (both(Format::Json), both(Format::JsonWithSchemas));
        let parsed = |bytes: Option<&[u8]>| serde_json::from_slice::<Json>(bytes.unwrap()).unwrap();
        for (plain, typed) in plain.iter().zip(typed.iter()) {
            for (plain, typed) in [(plain.key, typed.key), (plain.value, typed.value)] {
                let (payload, typed) = (parsed(plain), parsed(typed));
                assert_eq!(payload, typed["payload"]);
                let fields = typed["schema"]["fields"].as_array().unwrap().iter();
                let fields: Vec<_> = fields.map(|field| field["field"].as_str().unwrap()).collect();
                assert_eq!(fields, payload.as_object().unwrap().keys().collect::<Vec<_>>());
            }
        }
        let schema = parsed(typed.iter().next().unwrap().value)["schema"].take();
        assert_eq!(
            schema["fields"][3].to_string(),
            concat!(
                r#"{"type":"array","items":{"type":"struct","fields":["#,
                r#"{"type":"string","optional":false,"field":"data_collection"},"#,
                r#"{"type":"int64","optional":false,"field":"event_count"}],"#,
                r#""optional":true,"name":"event.collection","version":1},"optional":true,"field":"data_collections"}"#
            )
        );
    }

    #[test]
    fn avro_reads_back_by_the_schemas_that_are_registered() {
        use apache_avro::Schema;
        use apache_avro::reader::datum::GenericDatumReader;
        let schemas = options(Format::Avro).transaction_to_register().unwrap();
        let read = |schema: &str, id: u8, bytes: Option<&[u8]>| -> Json {
            let Some([0, 0, 0, 0, found, body @ ..]) = bytes else { panic!("no id in {bytes:?}") };
            assert_eq!(*found, id);
            let mut rest = body;
            let schema = Schema::parse_str(schema).unwrap();
            let value = GenericDatumReader::builder(&schema).build().unwrap().read_value(&mut rest).unwrap();
            assert!(rest.is_empty(), "{} bytes are left over", rest.len());
            value.try_into().unwrap()
        };
        let (plain, avro) = (both(Format::Json), both(Format::Avro));
        assert_eq!(avro.count(), 2);
        for (plain, avro) in plain.iter().zip(avro.iter()) {
            let json = |bytes: Option<&[u8]>| serde_json::from_slice::<Json>(bytes.unwrap()).unwrap();
            assert_eq!(read(&schemas.key.as_ref().unwrap().schema, 7, avro.key), json(plain.key));
            assert_eq!(read(&schemas.value.schema, 8, avro.value), json(plain.value));
            assert!(plain.headers().eq(avro.headers()));
        }
        assert_eq!(schemas.value.name, "io.debezium.connector.common.TransactionMetadataValue");
    }

    #[test]
    fn an_end_without_a_list_and_one_of_nothing_are_told_apart() {
        for format in [Format::Json, Format::JsonWithSchemas, Format::Avro] {
            let values = [None, Some(&[][..])].map(|data_collections| {
                let boundary = Boundary::End { event_count: 0, data_collections };
                let record =
                    TransactionRecord { xid: 1, lsn: Lsn(8), position: POSITION, commit_us: 0, boundary };
                let mut out = TopicRecords::new(Arc::from("t"));
                TransactionEncoder::new(options(format), SchemaIds::default()).encode(&record, &mut out);
                out.iter().next().unwrap().value.unwrap().to_vec()
            });
            assert_ne!(values[0], values[1], "{format:?}");
            if format == Format::Json {
                let lists = values
                    .map(|value| serde_json::from_slice::<Json>(&value).unwrap()["data_collections"].take());
                assert_eq!(lists, [Json::Null, json!([])]);
            }
        }
    }
}
