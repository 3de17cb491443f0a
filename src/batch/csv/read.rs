//! Gzipped CSV to record batches of the schema wanted now.
//!
//! Streamed: what is held is one record and one batch. Columns are found by the header's names, and each
//! field is read as the type wanted, so a file of an older version of the table comes out widened.

use std::io::{BufReader, Read};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{Field, SchemaRef};
use bytes::Buf;
use flate2::read::MultiGzDecoder;

use super::parse;
use super::records::{Field as Text, Records};
use crate::batch::columns::ColumnBuilder;
use crate::batch::format::{ReaderOptions, Source};
use crate::change::Datum;
use crate::runtime::{Error, Result};

/// Bytes read from the file, and decompressed, at once.
const BLOCK_BYTES: usize = 64 << 10;

/// Batches of a CSV file.
pub(in crate::batch) struct CsvReader {
    records: Records<BufReader<MultiGzDecoder<Box<dyn Read + Send>>>>,
    schema: SchemaRef,
    columns: Vec<ColumnBuilder>,
    /// For each field of a record, the column it fills; none if it was not asked for.
    places: Vec<Option<usize>>,
    /// Columns which the file lacks.
    lacking: Vec<usize>,
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
        let schema = options.wanted(schema)?;
        let header: Vec<String> =
            records.fields().map(|field| String::from_utf8_lossy(field.text).into_owned()).collect();
        let places = places(&header, &all, &schema)?;
        let lacking: Vec<usize> =
            (0..schema.fields().len()).filter(|column| !places.contains(&Some(*column))).collect();
        if let Some(column) = lacking.iter().find(|column| !schema.field(**column).is_nullable()) {
            let field = schema.field(*column);
            return Err(Error::operator(format!(
                "the file lacks column {:?} ({}), which may not be null",
                field.name(),
                field.data_type()
            )));
        }
        let columns = schema.fields().iter().map(|field| column(field)).collect::<Result<_>>()?;
        let (batch_rows, batch_bytes) = (options.batch_rows.max(1), options.batch_bytes.max(1));
        Ok(Self { records, schema, columns, places, lacking, batch_rows, batch_bytes })
    }

    pub(in crate::batch) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(in crate::batch) fn next(&mut self) -> Option<Result<RecordBatch>> {
        self.batch().transpose()
    }

    fn batch(&mut self) -> Result<Option<RecordBatch>> {
        let (mut rows, mut bytes) = (0, 0);
        while rows < self.batch_rows && bytes < self.batch_bytes && self.records.advance()? {
            bytes += self.push()?;
            rows += 1;
        }
        if rows == 0 {
            return Ok(None);
        }
        let arrays: Vec<ArrayRef> = self.columns.iter_mut().map(ColumnBuilder::finish).collect();
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
        for (text, place) in fields.zip(&self.places) {
            let Some(place) = *place else { continue };
            let field = self.schema.field(place);
            bytes += append(&mut self.columns[place], field, text).map_err(|reason| {
                Error::operator(format!("line {line}, column {:?}: {reason}", field.name()))
            })?;
        }
        for place in &self.lacking {
            bytes += self.columns[*place].append(&Datum::Null).map_err(Error::operator)?;
        }
        Ok(bytes)
    }
}

fn append(column: &mut ColumnBuilder, field: &Field, text: Text<'_>) -> Result<usize, String> {
    if text.text.is_empty() && !text.quoted {
        if !field.is_nullable() {
            return Err("null, but the column is not nullable".to_owned());
        }
        return column.append(&Datum::Null);
    }
    let datum = parse::value(field.data_type(), text.text).map_err(|it| format!("{it} is expected"))?;
    column.append(&datum)
}

fn column(field: &Field) -> Result<ColumnBuilder> {
    ColumnBuilder::at_rest(field.data_type()).ok_or_else(|| {
        Error::operator(format!("a CSV file cannot hold column {:?} ({})", field.name(), field.data_type()))
    })
}

/// The wanted column of each name in the header.
fn places(header: &[String], all: &SchemaRef, wanted: &SchemaRef) -> Result<Vec<Option<usize>>> {
    let mut places = Vec::with_capacity(header.len());
    for (index, name) in header.iter().enumerate() {
        if all.index_of(name).is_err() {
            let message = format!("the file has a column {name:?}, which the table's schema does not know");
            return Err(Error::operator(message));
        }
        if header[..index].contains(name) {
            return Err(Error::operator(format!("the file has two columns {name:?}")));
        }
        places.push(wanted.index_of(name).ok());
    }
    Ok(places)
}
