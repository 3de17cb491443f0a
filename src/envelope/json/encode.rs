//! JSON as the form of a table's records.

use super::Options;
use super::row::RowWriter;
use super::source::Stamp;
use super::typed::Schemas;
use crate::change::{TableSchema, Value};
use crate::envelope::encode::{ChangeEncoder, EncodeError, Envelope, Form, Held, OldRow, RowChange};
use crate::envelope::source::SourceInfo;
use crate::log::RecordWriter;

/// Encodes the changes of one version of one table.
pub type TableEncoder = ChangeEncoder<JsonForm>;

/// Records in JSON.
#[derive(Clone, Debug)]
pub struct JsonForm {
    stamp: Stamp,
    rows: RowWriter,
    /// What precedes keys and values, with `schemas.enable=true`.
    schemas: Option<Schemas>,
}

impl TableEncoder {
    /// An encoder for a table. `layout` gives, for each column of `schema`, its index in the rows of the
    /// wire; none for one that is not on the wire (dropped at the source), which is written as null.
    pub fn new(
        source: &SourceInfo,
        schema: &TableSchema,
        layout: &[Option<usize>],
        options: Options,
    ) -> Self {
        let (stamp, rows) = (Stamp::new(source, schema), RowWriter::new(schema, layout, options));
        Self::with_form(JsonForm { stamp, rows, schemas: None })
    }

    /// The same, with Connect's schema in each key and value: Debezium's `schemas.enable=true`.
    pub fn with_schemas(
        source: &SourceInfo,
        schema: &TableSchema,
        layout: &[Option<usize>],
        options: Options,
    ) -> Self {
        let (stamp, rows) = (Stamp::new(source, schema), RowWriter::new(schema, layout, options));
        let schemas = Some(Schemas::new(source, schema, options.decimal_handling));
        Self::with_form(JsonForm { stamp, rows, schemas })
    }
}

impl Form for JsonForm {
    fn prepare(&mut self, change: &RowChange<'_>) {
        self.stamp.prepare(change);
    }

    fn keyed(&self) -> bool {
        self.rows.keyed()
    }

    fn key_moved(&self, old: OldRow<'_>, new: &[Value<'_>]) -> Result<bool, EncodeError> {
        self.rows.key_moved(old, new)
    }

    fn write_key(
        &mut self,
        values: &[Value<'_>],
        held: Held<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        if let Some(schemas) = &self.schemas {
            out.extend_from_slice(&schemas.key);
        }
        self.rows.write_key(values, held, out)?;
        out.extend_from_slice(if self.schemas.is_some() { b"}" } else { b"" });
        Ok(())
    }

    fn write_header_key(
        &mut self,
        values: &[Value<'_>],
        held: Held<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        self.rows.write_key(values, held, out)
    }

    fn write_value(&mut self, envelope: &Envelope<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if let Some(schemas) = &self.schemas {
            out.extend_from_slice(&schemas.value);
        }
        out.extend_from_slice(b"{\"before\":");
        match envelope.before {
            Some(values) => self.rows.write_before(values, out)?,
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"after\":");
        match envelope.after {
            Some(values) => self.rows.write_after(values, envelope.held, out)?,
            None => out.extend_from_slice(b"null"),
        }
        self.stamp.write_end(envelope, out);
        out.extend_from_slice(if self.schemas.is_some() { b"}" } else { b"" });
        Ok(())
    }

    fn write_headers(&self, ordinal: u64, _of_value: bool, record: &mut RecordWriter<'_>) {
        self.stamp.write_headers(ordinal, record);
    }
}
