//! Gzipped CSV to record batches of the schema wanted now.
//!
//! Streamed: what is held is one record and one batch. Columns are found by the header's names. A file does not tell
//! types: each field is read as the type that it is said to have had, or else as the one wanted.

use std::io::{BufReader, Read};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{Field, SchemaRef};
use bytes::Buf;
use flate2::read::MultiGzDecoder;

use super::parse;
use super::records::{Field as Text, Records};
use crate::batch::columns::{ColumnBuilder, Refusal};
use crate::batch::format::{ReaderOptions, Source};
use crate::batch::schema::data_type;
use crate::batch::widen::{Origin, Same, Steps};
use crate::change::Datum;
use crate::runtime::{Error, Result};

/// Bytes read from the file, and decompressed, at once.
const BLOCK_BYTES: usize = 64 << 10;

/// Batches of a CSV file.
pub(in crate::batch) struct CsvReader {
    records: Records<BufReader<MultiGzDecoder<Box<dyn Read + Send>>>>,
    schema: SchemaRef,
    columns: Vec<Column>,
    /// For each field of a record, the columns it fills; none if it was not asked for.
    places: Vec<Vec<usize>>,
    batch_rows: usize,
    batch_bytes: usize,
}

impl CsvReader {
    pub(in crate::batch) fn open(
        schema: &SchemaRef,
        source: Source,
        options: &ReaderOptions,
    ) -> Result<Self> {
        let input: Box<dyn Read + Send> = match source {
            Source::Bytes(bytes) => Box::new(bytes.reader()),
            Source::File(file) => Box::new(BufReader::with_capacity(BLOCK_BYTES, file)),
        };
        let mut records = Records::new(BufReader::with_capacity(BLOCK_BYTES, MultiGzDecoder::new(input)));
        if !records.advance()? {
            return Err(Error::operator("the file is empty; a header line is expected"));
        }
        let all = Arc::clone(schema);
        let (schema, origins) = options.wanted(schema)?;
        let header: Vec<String> =
            records.fields().map(|field| String::from_utf8_lossy(field.text).into_owned()).collect();
        let places = places(&header, &all, &origins)?;
        let column = |(field, origin): (&Arc<Field>, _)| Column::new(field, origin, &header);
        let columns = schema.fields().iter().zip(&origins).map(column).collect::<Result<_>>()?;
        let (batch_rows, batch_bytes) = (options.batch_rows.max(1), options.batch_bytes.max(1));
        Ok(Self { records, schema, columns, places, batch_rows, batch_bytes })
    }

    pub(in crate::batch) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(in crate::batch) fn next(&mut self) -> Option<Result<RecordBatch>> {
        self.batch().transpose()
    }

    fn batch(&mut self) -> Result<Option<RecordBatch>> {
        let same_bytes: usize = self.columns.iter().map(Column::same_bytes).sum();
        let (mut rows, mut bytes) = (0, 0);
        while rows < self.batch_rows && bytes < self.batch_bytes && self.records.advance()? {
            bytes += self.push()? + same_bytes;
            rows += 1;
        }
        if rows == 0 {
            return Ok(None);
        }
        let arrays = self.columns.iter_mut().map(|column| column.finish(rows)).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            .map(Some)
            .map_err(|error| Error::operator("cannot read CSV").cause(error))
    }

    /// Appends the current record to the columns; returns the memory it takes, roughly.
    fn push(&mut self) -> Result<usize> {
        let line = self.records.line();
        let fields = self.records.fields();
        if fields.len() != self.places.len() {
            return Err(Error::operator(format!(
                "line {line}: {} fields, but the header has {}",
                fields.len(),
                self.places.len()
            )));
        }
        let mut bytes = 0;
        for (text, places) in fields.zip(&self.places) {
            for place in places {
                let Column::Read { column, own, .. } = &mut self.columns[*place] else { continue };
                bytes += append(column, own, text).map_err(|reason| {
                    Error::operator(format!("line {line}, column {:?}: {reason}", own.name()))
                })?;
            }
        }
        Ok(bytes)
    }
}

/// A column being filled.
#[expect(clippy::large_enum_variant, reason = "there are as many as a file has columns")]
enum Column {
    /// From a field of each record, which has a type of its own.
    Read { column: ColumnBuilder, own: Field, steps: Steps },
    /// From no field: all rows are the same.
    Same(Same),
}

impl Column {
    fn new(field: &Field, origin: &Origin, header: &[String]) -> Result<Self> {
        match (Same::of(origin, field)?, origin) {
            (Some(same), _) => Ok(Self::Same(same)),
            (None, Origin::Column { name, types }) if header.contains(name) => {
                let own = types.first().map_or_else(|| field.data_type().clone(), data_type);
                let steps = Steps::plan(&own, types, field)?;
                let own = Field::new(field.name(), own, field.is_nullable());
                let column = ColumnBuilder::at_rest(own.data_type()).ok_or_else(|| {
                    Error::operator(format!(
                        "a CSV file cannot hold column {:?} ({})",
                        own.name(),
                        own.data_type()
                    ))
                })?;
                Ok(Self::Read { column, own, steps })
            }
            (None, _) => Same::null(field).map(Self::Same),
        }
    }

    /// Memory of a row that stands in no field.
    fn same_bytes(&self) -> usize {
        match self {
            Self::Read { .. } => 0,
            Self::Same(same) => same.row_bytes(),
        }
    }

    fn finish(&mut self, rows: usize) -> Result<ArrayRef> {
        match self {
            Self::Read { column, steps, .. } => Ok(steps.apply(&column.finish())),
            Self::Same(same) => same.rows(rows),
        }
    }
}

fn append(column: &mut ColumnBuilder, field: &Field, text: Text<'_>) -> Result<usize, Refusal> {
    if text.text.is_empty() && !text.quoted {
        if !field.is_nullable() {
            return Err("null, but the column is not nullable".to_owned().into());
        }
        return column.append(&Datum::Null);
    }
    let datum = parse::value(field.data_type(), text.text).map_err(|it| format!("{it} is expected"))?;
    column.append(&datum)
}

/// The wanted columns of each name in the header.
fn places(header: &[String], all: &SchemaRef, origins: &[Origin]) -> Result<Vec<Vec<usize>>> {
    let mut places = Vec::with_capacity(header.len());
    for (index, name) in header.iter().enumerate() {
        if all.index_of(name).is_err() {
            let message = format!("the file has a column {name:?}, which the table's schema does not know");
            return Err(Error::operator(message));
        }
        if header[..index].contains(name) {
            return Err(Error::operator(format!("the file has two columns {name:?}")));
        }
        let from_it =
            |index: &usize| matches!(&origins[*index], Origin::Column { name: from, .. } if from == name);
        places.push((0..origins.len()).filter(from_it).collect());
    }
    Ok(places)
}
