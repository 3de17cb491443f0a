//! JSON or Avro: the one place where they are told apart. Capture and deliver know only what stands here.
//!
//! A table's encoder is of the configured format. Its decoder looks at the record: a value in Avro begins with a zero
//! byte, which no JSON does. So a log may hold both, and the format may be changed between two starts.

use std::sync::Arc;

use super::avro::{self, AvroSchemas, MAGIC, SchemaIds};
use super::decode::{DecodeError, Decoded};
use super::encode::{EncodeError, RowChange};
use super::json::{self, DecimalHandling};
use super::source::SourceInfo;
use crate::change::{ColumnType, Datum, TableSchema};
use crate::log::{RecordRef, TopicRecords};

/// Choices of representation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What records are written in.
    pub format: Format,
    /// How `numeric` is written. Both sides of a log must agree on it.
    pub decimal_handling: DecimalHandling,
}

/// What records are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    #[default]
    Json,
    /// JSON, with its schema in each key and value.
    JsonWithSchemas,
    /// Avro, with its schema in a registry.
    Avro,
}

impl Options {
    const fn json(self) -> json::Options {
        json::Options { decimal_handling: self.decimal_handling }
    }

    /// A value given as Postgres's text, as it comes back from a record that was encoded with these options: for one that
    /// is in no record, such as the default that older rows have in a new column. The error is why the text is not of
    /// the type, and does not quote it.
    pub fn datum(self, column_type: &ColumnType, text: &str) -> Result<Datum<'static>, String> {
        json::datum(column_type, self.json(), text).map_err(|error| error.to_string())
    }

    /// The schemas that have to be in a registry before a table's changes are encoded; none where no registry is used.
    pub fn to_register(self, source_name: &str, schema: &TableSchema) -> Option<AvroSchemas> {
        (self.format == Format::Avro).then(|| AvroSchemas::new(source_name, schema, self.decimal_handling))
    }
}

/// Encodes the changes of one version of one table.
#[derive(Clone, Debug)]
pub enum TableEncoder {
    /// In JSON.
    Json(Box<json::TableEncoder>),
    /// In Avro.
    Avro(Box<avro::TableEncoder>),
    /// Not at all: the table is isolated, for this reason.
    Refused(Arc<str>),
}

impl TableEncoder {
    /// An encoder for a table. `layout` gives, for each column of `schema`, its index in the rows of the wire; none
    /// for one that is not on the wire (dropped at the source), which is written as null. `ids` are those of
    /// [`Options::to_register`]; without them a table that needs them is refused.
    pub fn new(
        source: &SourceInfo,
        schema: &TableSchema,
        layout: &[Option<usize>],
        options: Options,
        ids: Option<SchemaIds>,
    ) -> Self {
        let json = options.json();
        match (options.format, ids) {
            (Format::Json, _) => Self::Json(Box::new(json::TableEncoder::new(source, schema, layout, json))),
            (Format::JsonWithSchemas, _) => {
                Self::Json(Box::new(json::TableEncoder::with_schemas(source, schema, layout, json)))
            }
            (Format::Avro, Some(ids)) => {
                Self::Avro(Box::new(avro::TableEncoder::new(source, schema, layout, json, ids)))
            }
            (Format::Avro, None) => Self::Refused("the schemas of the table are not registered".into()),
        }
    }

    /// Whether no change of the table is encoded at all.
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// Appends the records of a change, with the commit time as their timestamp, and gives the number of
    /// those with a value (tombstones are not counted). On an error `out` is as it was.
    pub fn encode(&mut self, change: &RowChange<'_>, out: &mut TopicRecords) -> Result<u32, EncodeError> {
        match self {
            Self::Json(encoder) => encoder.encode(change, out),
            Self::Avro(encoder) => encoder.encode(change, out),
            Self::Refused(reason) => Err(EncodeError::Refused(Arc::clone(reason))),
        }
    }
}

/// Decodes the records of one version of one table, in any format.
#[derive(Debug)]
pub struct TableDecoder {
    json: json::TableDecoder,
    avro: avro::TableDecoder,
}

impl TableDecoder {
    /// A decoder for one version of a table. `options` are the encoder's.
    pub fn new(schema: &TableSchema, options: Options) -> Self {
        let json = options.json();
        Self { json: json::TableDecoder::new(schema, json), avro: avro::TableDecoder::new(schema, json) }
    }

    /// Decodes a record. `row` becomes one datum a column of the schema:
    ///
    /// * create, read, update: the row after; [`Datum::Unchanged`] for a value that was not sent;
    /// * delete: the row before, as far as it was sent, and null elsewhere;
    /// * truncate, tombstone: empty.
    ///
    /// On an error `row` holds nothing of use.
    pub fn decode<'a>(
        &self,
        record: &RecordRef<'a>,
        row: &mut Vec<Datum<'a>>,
    ) -> Result<Decoded<'a>, DecodeError> {
        match record.value {
            Some([MAGIC, ..]) => self.avro.decode(record, row),
            _ => self.json.decode(record, row),
        }
    }
}
