//! Avro as the form of a table's records.

use super::MAGIC;
use super::source::{NULL, SOME, Stamp};
use super::value::{self, Fit, Scratch};
use crate::change::{TableSchema, Value};
use crate::envelope::encode::{ChangeEncoder, EncodeError, Envelope, Form, Held, OldRow, RowChange};
use crate::envelope::headers;
use crate::envelope::json::Options;
use crate::envelope::json::row::{ColumnWriter, RowWriter};
use crate::envelope::source::SourceInfo;
use crate::envelope::text::Malformed;
use crate::log::RecordWriter;

/// Encodes the changes of one version of one table.
pub type TableEncoder = ChangeEncoder<AvroForm>;

/// The ids under which a registry has a table's schemas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchemaIds {
    /// The key's; not used for a table without a key.
    pub key: u32,
    /// The value's.
    pub value: u32,
}

/// Records in Avro.
#[derive(Clone, Debug)]
pub struct AvroForm {
    stamp: Stamp,
    rows: RowWriter,
    /// Whether a column takes null.
    nullable: Vec<bool>,
    ids: SchemaIds,
    options: Options,
    scratch: Scratch,
    asides: Asides,
}

/// What is left for the headers of a record, each a list of JSON whose items begin with a comma.
#[derive(Clone, Debug, Default)]
struct Asides {
    unchanged: Vec<u8>,
    exact: Vec<u8>,
    exact_before: Vec<u8>,
    json: Vec<u8>,
}

impl TableEncoder {
    /// An encoder for a table. `layout` gives, for each column of `schema`, its index in the rows of the
    /// wire; none for one that is not on the wire (dropped at the source), which is written as null.
    pub fn new(
        source: &SourceInfo,
        schema: &TableSchema,
        layout: &[Option<usize>],
        options: Options,
        ids: SchemaIds,
    ) -> Self {
        Self::with_form(AvroForm {
            stamp: Stamp::new(source, schema),
            rows: RowWriter::new(schema, layout, options),
            nullable: schema.columns.iter().map(|column| column.nullable).collect(),
            ids,
            options,
            scratch: Scratch::default(),
            asides: Asides::default(),
        })
    }
}

impl Form for AvroForm {
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
        write_id(self.ids.key, out);
        for column in self.rows.key.iter().filter_map(|index| self.rows.columns.get(*index)) {
            let value = column.completed(values, held)?;
            column.refuse_unchanged(value)?;
            let text = match value {
                Value::Text(text) => text,
                Value::LeftOut { bytes, .. } => return Err(column.left_out(bytes)),
                Value::Null | Value::Unchanged => return Err(column.error("a null in the key")),
            };
            let fit = value::write(&column.column_type, self.options, text, &mut self.scratch, out);
            whole(column, fit)?;
        }
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
        write_id(self.ids.value, out);
        self.asides.unchanged.clear();
        let exact = std::mem::take(&mut self.asides.exact_before);
        self.asides.exact_before = self.write_image(envelope.before, Image::Old, exact, out)?;
        let exact = std::mem::take(&mut self.asides.exact);
        self.asides.exact = self.write_image(envelope.after, Image::New(envelope.held), exact, out)?;
        self.stamp.write_end(envelope, out);
        Ok(())
    }

    fn write_headers(&self, ordinal: u64, of_value: bool, record: &mut RecordWriter<'_>) {
        self.stamp.write_headers(ordinal, record);
        if !of_value {
            return;
        }
        let Asides { unchanged, exact, exact_before, .. } = &self.asides;
        let lists = [
            (headers::UNCHANGED, unchanged, b"[]"),
            (headers::EXACT, exact, b"{}"),
            (headers::EXACT_BEFORE, exact_before, b"{}"),
        ];
        for (name, list, braces) in lists {
            if let [b',', items @ ..] = list.as_slice() {
                record.header(name, |out| {
                    out.push(braces[0]);
                    out.extend_from_slice(items);
                    out.push(braces[1]);
                });
            }
        }
    }
}

/// Which row it is.
#[derive(Clone, Copy)]
enum Image<'a> {
    /// The old one: the server sends its values in full, whatever their size.
    Old,
    /// The new one, with what unchanged values are completed from.
    New(Held<'a>),
}

impl AvroForm {
    /// Writes a row or none as the union that it is; `exact` becomes what its fields cannot hold.
    fn write_image(
        &mut self,
        values: Option<&[Value<'_>]>,
        image: Image<'_>,
        mut exact: Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Vec<u8>, EncodeError> {
        exact.clear();
        let Some(values) = values else {
            out.push(NULL);
            return Ok(exact);
        };
        out.push(SOME);
        for index in 0..self.nullable.len() {
            self.write_column(index, values, image, &mut exact, out)?;
        }
        Ok(exact)
    }

    fn write_column(
        &mut self,
        index: usize,
        values: &[Value<'_>],
        image: Image<'_>,
        exact: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let Self { rows, nullable, options, scratch, asides, .. } = self;
        let (column, nullable) = (&rows.columns[index], nullable[index]);
        let held = match image {
            Image::Old => None,
            Image::New(held) => held,
        };
        match column.completed(values, held)? {
            Value::Text(text) if nullable => {
                let branch = out.len();
                out.push(SOME);
                let fit = value::write(&column.column_type, *options, text, scratch, out);
                if fit.map_err(|Malformed(reason)| column.error(reason))? == Fit::Beyond {
                    out.truncate(branch);
                    out.push(NULL);
                    column.write_field(text, *options, &mut asides.json, exact)?;
                }
            }
            Value::Text(text) => {
                whole(column, value::write(&column.column_type, *options, text, scratch, out))?;
            }
            Value::Unchanged => {
                column.refuse_unchanged_key()?;
                if !nullable || matches!(image, Image::Old) {
                    column.refuse_unchanged(Value::Unchanged)?;
                }
                out.push(NULL);
                asides.unchanged.extend_from_slice(column.quoted_name());
            }
            Value::LeftOut { bytes, .. } => return Err(column.left_out(bytes)),
            Value::Null if nullable => out.push(NULL),
            Value::Null => return Err(column.error("a null in a column that takes none")),
        }
        Ok(())
    }
}

/// Refuses a value which its Avro type cannot hold, where null cannot stand in for it.
fn whole(column: &ColumnWriter, fit: Result<Fit, Malformed>) -> Result<(), EncodeError> {
    match fit {
        Ok(Fit::Whole) => Ok(()),
        Ok(Fit::Beyond) => {
            Err(column.error("a value that its Avro type cannot hold, in a column that takes no null"))
        }
        Err(Malformed(reason)) => Err(column.error(reason)),
    }
}

pub(super) fn write_id(id: u32, out: &mut Vec<u8>) {
    out.push(MAGIC);
    out.extend_from_slice(&id.to_be_bytes());
}
