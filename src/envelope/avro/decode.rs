//! A record back to a row of datums, by the schema it was written with: that of the table's version.

use std::collections::HashMap;

use super::read::Reader;
use super::{MAGIC, value};
use crate::change::{Column, ColumnType, Datum, Op, SchemaVersion, TableSchema};
use crate::envelope::decode::{DecodeError, Decoded, Headers};
use crate::envelope::json::scan::Scanner;
use crate::envelope::json::{self, Options};
use crate::envelope::text::Malformed;
use crate::log::RecordRef;

/// Decodes the records of one version of one table.
#[derive(Debug)]
pub struct TableDecoder {
    columns: Vec<Column>,
    by_name: HashMap<String, usize>,
    keyed: bool,
    version: SchemaVersion,
    options: Options,
}

/// What an envelope holds, apart from its `after`.
struct Envelope<'a> {
    op: Op,
    commit_us: i64,
    /// Where the row of `before` begins.
    before: Option<Reader<'a>>,
    after: bool,
}

impl TableDecoder {
    /// A decoder for one version of a table. `options` are the encoder's.
    pub fn new(schema: &TableSchema, options: Options) -> Self {
        let by_name = schema.columns.iter().enumerate().map(|(index, c)| (c.name.clone(), index));
        Self {
            columns: schema.columns.clone(),
            by_name: by_name.collect(),
            keyed: !schema.key.is_empty(),
            version: schema.version,
            options,
        }
    }

    /// Decodes a record, as [`json::TableDecoder::decode`] does.
    pub fn decode<'a>(
        &self,
        record: &RecordRef<'a>,
        row: &mut Vec<Datum<'a>>,
    ) -> Result<Decoded<'a>, DecodeError> {
        row.clear();
        let headers = Headers::read(record)?;
        let mut decoded = headers.decoded(record, self.version)?;
        let Some(value) = record.value else { return Ok(decoded) };
        let mut reader = Reader::new(value);
        let envelope = self.read_envelope(&mut reader, row)?;
        decoded.op = Some(envelope.op);
        decoded.commit_us = envelope.commit_us;
        match envelope.op {
            Op::Create | Op::Read | Op::Update if !envelope.after => {
                return Err(DecodeError::Envelope("after is missing"));
            }
            Op::Create | Op::Read | Op::Update => {
                self.mark_unchanged(headers.unchanged, row)?;
                self.fill_exact(headers.exact, row)?;
                if let (Op::Update, false, Some(mut before)) = (envelope.op, self.keyed, envelope.before) {
                    let mut replaced = Vec::new();
                    self.read_row(&mut before, &mut replaced)?;
                    self.fill_exact(headers.exact_before, &mut replaced)?;
                    decoded.before = Some(replaced);
                }
            }
            Op::Delete => {
                let mut before = envelope.before.ok_or(DecodeError::Envelope("before is missing"))?;
                self.read_row(&mut before, row)?;
                self.fill_exact(headers.exact_before, row)?;
            }
            Op::Truncate => row.clear(),
        }
        Ok(decoded)
    }

    fn read_envelope<'a>(
        &self,
        reader: &mut Reader<'a>,
        row: &mut Vec<Datum<'a>>,
    ) -> Result<Envelope<'a>, DecodeError> {
        let [magic, _id @ ..] = reader.array::<5>().map_err(|error| at(reader, error))?;
        if magic != MAGIC {
            return Err(at(reader, Malformed("does not begin with a schema's id")));
        }
        let has_before = !reader.is_null().map_err(|error| at(reader, error))?;
        let before = has_before.then(|| reader.clone());
        if has_before {
            self.read_row(reader, row)?;
        }
        let after = !reader.is_null().map_err(|error| at(reader, error))?;
        if after {
            self.read_row(reader, row)?;
        }
        let (op, commit_us) = read_end(reader).map_err(|error| at(reader, error))?;
        Ok(Envelope { op, commit_us, before, after })
    }

    fn read_row<'a>(&self, reader: &mut Reader<'a>, row: &mut Vec<Datum<'a>>) -> Result<(), DecodeError> {
        row.clear();
        for column in &self.columns {
            let datum = if column.nullable {
                reader.is_null().and_then(|null| {
                    if null {
                        Ok(Datum::Null)
                    } else {
                        value::read(&column.column_type, self.options, reader)
                    }
                })
            } else {
                value::read(&column.column_type, self.options, reader)
            };
            row.push(datum.map_err(|error| column_error(&column.name, reader.at(), error))?);
        }
        Ok(())
    }

    /// Columns whose value was not sent.
    fn mark_unchanged(&self, header: Option<&[u8]>, row: &mut [Datum<'_>]) -> Result<(), DecodeError> {
        let Some(header) = header else { return Ok(()) };
        let mut scan = Scanner::new(text(header)?);
        let mut names = Vec::new();
        let read = scan.elements(|scan| scan.string().map(|name| names.push(name))).and_then(|()| scan.end());
        read.map_err(|Malformed(reason)| DecodeError::Json { at: scan.at(), reason })?;
        for name in names {
            *self.null_named(&name, row)?.1 = Datum::Unchanged;
        }
        Ok(())
    }

    /// Values that their fields cannot hold.
    fn fill_exact<'a>(&self, header: Option<&'a [u8]>, row: &mut [Datum<'a>]) -> Result<(), DecodeError> {
        let Some(header) = header else { return Ok(()) };
        let mut scan = Scanner::new(text(header)?);
        let json = |scan: &Scanner<'_>, Malformed(reason)| DecodeError::Json { at: scan.at(), reason };
        let mut more = scan.open_object().map_err(|error| json(&scan, error))?;
        while more {
            let name = scan.name().map_err(|error| json(&scan, error))?;
            let (column_type, datum) = self.null_named(&name, row)?;
            *datum = json::value::read(column_type, self.options, &mut scan)
                .map_err(|error| column_error(&name, scan.at(), error))?;
            more = scan.more(b'}').map_err(|error| json(&scan, error))?;
        }
        scan.end().map_err(|error| json(&scan, error))
    }

    /// The column that a header names, whose field has to be null.
    fn null_named<'r, 'a>(
        &self,
        name: &str,
        row: &'r mut [Datum<'a>],
    ) -> Result<(&ColumnType, &'r mut Datum<'a>), DecodeError> {
        let index = self.by_name.get(name).copied().unwrap_or(usize::MAX);
        let found = self.columns.get(index).zip(row.get_mut(index));
        match found {
            Some((column, datum)) if *datum == Datum::Null => Ok((&column.column_type, datum)),
            Some(_) => Err(column_error(name, 0, Malformed("named in a header, and not null in the record"))),
            None => Err(column_error(name, 0, Malformed("the table has no such column in this version"))),
        }
    }
}

/// An envelope from `source` on: operation and commit time.
fn read_end(reader: &mut Reader<'_>) -> Result<(Op, i64), Malformed> {
    for _ in ["version", "connector", "name"] {
        reader.string()?;
    }
    reader.long()?;
    // `snapshot` has its string first.
    if !reader.is_null()? {
        return Err(Malformed("snapshot is null"));
    }
    for _ in ["snapshot", "db"] {
        reader.string()?;
    }
    reader.skip_optional(Reader::string)?;
    if reader.is_null()? {
        return Err(Malformed("source.ts_us is missing"));
    }
    let commit_us = reader.long()?;
    reader.skip_optional(Reader::long)?;
    for _ in ["schema", "table"] {
        reader.string()?;
    }
    for _ in ["txId", "lsn", "xmin"] {
        reader.skip_optional(Reader::long)?;
    }
    reader.skip_optional(Reader::string)?;
    reader.skip_optional(Reader::long)?;
    reader.skip_optional(|transaction| {
        transaction.string()?;
        transaction.long()?;
        transaction.long()
    })?;
    let op = match reader.bytes()? {
        [letter] => Op::from_letter(*letter),
        _ => None,
    };
    for _ in ["ts_ms", "ts_us", "ts_ns"] {
        reader.skip_optional(Reader::long)?;
    }
    reader.end()?;
    Ok((op.ok_or(Malformed("an unknown operation"))?, commit_us))
}

fn column_error(column: &str, at: usize, Malformed(reason): Malformed) -> DecodeError {
    DecodeError::Column { column: column.to_owned(), at, reason }
}

fn at(reader: &Reader<'_>, Malformed(reason): Malformed) -> DecodeError {
    DecodeError::Avro { at: reader.at(), reason }
}

fn text(header: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(header)
        .map_err(|error| DecodeError::Json { at: error.valid_up_to(), reason: "not valid UTF-8" })
}
