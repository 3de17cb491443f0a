//! A record back to a row of datums.
//!
//! One pass over the value: `after` is read straight into the row, `before` is only walked over and read
//! again when its row is wanted. The columns of our own envelopes come in order and with the names written
//! as the decoder expects them, which is tried first; any other valid JSON is read too.

use std::collections::HashMap;

use super::scan::Scanner;
use super::string::quoted;
use super::{Options, value};
use crate::change::{ColumnType, Datum, Op, SchemaVersion, TableSchema};
use crate::envelope::decode::{DecodeError, Decoded, Headers};
use crate::envelope::text::Malformed;
use crate::log::RecordRef;

/// Decodes the records of one version of one table.
#[derive(Debug)]
pub struct TableDecoder {
    columns: Vec<ColumnReader>,
    by_name: HashMap<String, usize>,
    key: Vec<usize>,
    version: SchemaVersion,
    options: Options,
}

#[derive(Debug)]
struct ColumnReader {
    /// `"name":` as the encoder writes it.
    field: Vec<u8>,
    name: String,
    column_type: ColumnType,
}

/// What an envelope holds, apart from its `after`.
#[derive(Default)]
struct Envelope {
    op: Option<Op>,
    commit_us: Option<i64>,
    /// Where the object of `before` begins.
    before: Option<usize>,
    after: bool,
}

impl TableDecoder {
    /// A decoder for one version of a table. `options` are the encoder's.
    pub fn new(schema: &TableSchema, options: Options) -> Self {
        let reader = |column: &crate::change::Column| ColumnReader {
            field: format!("{}:", quoted(&column.name)).into_bytes(),
            name: column.name.clone(),
            column_type: column.column_type.clone(),
        };
        let by_name = schema.columns.iter().enumerate().map(|(index, c)| (c.name.clone(), index));
        Self {
            columns: schema.columns.iter().map(reader).collect(),
            by_name: by_name.collect(),
            key: schema.key.clone(),
            version: schema.version,
            options,
        }
    }

    /// Decodes a record. `row` becomes one datum a column of the schema:
    ///
    /// * create, read, update: the row after; [`Datum::Unchanged`] for a field left out;
    /// * delete: the row before, as far as it was sent, and null elsewhere;
    /// * truncate, tombstone: empty.
    ///
    /// On an error `row` holds nothing of use.
    pub fn decode<'a>(
        &self,
        record: &RecordRef<'a>,
        row: &mut Vec<Datum<'a>>,
    ) -> Result<Decoded<'a>, DecodeError> {
        row.clear();
        let mut decoded = Headers::read(record)?.decoded(record, self.version)?;
        let Some(value) = record.value else { return Ok(decoded) };
        let text = utf8(value)?;
        let envelope = self.read_envelope(text, row)?;
        decoded.op = envelope.op;
        decoded.commit_us = envelope.commit_us.ok_or(DecodeError::Envelope("source.ts_us is missing"))?;
        match envelope.op.ok_or(DecodeError::Envelope("op is missing"))? {
            Op::Create | Op::Read | Op::Update if !envelope.after => {
                return Err(DecodeError::Envelope("after is missing"));
            }
            Op::Create | Op::Read => {}
            Op::Update => decoded.before = self.read_replaced(text, &envelope)?,
            Op::Delete => self.read_deleted(text, &envelope, row)?,
            Op::Truncate => row.clear(),
        }
        Ok(decoded)
    }

    /// Decodes a key: one datum a key column, in key order.
    pub fn decode_key<'a>(&self, json: &'a [u8]) -> Result<Vec<Datum<'a>>, DecodeError> {
        let mut scan = Scanner::new(utf8(json)?);
        let mut row = Vec::new();
        self.read_row(&mut scan, &mut row)?;
        scan.end().map_err(|error| at(&scan, error))?;
        let take = |index: &usize| std::mem::replace(&mut row[*index], Datum::Unchanged);
        let key: Vec<_> = self.key.iter().map(take).collect();
        let whole = !key.iter().any(|datum| matches!(datum, Datum::Unchanged | Datum::Null))
            && row.iter().all(|datum| matches!(datum, Datum::Unchanged));
        if whole {
            Ok(key)
        } else {
            Err(DecodeError::Envelope("the key does not hold just the key's columns"))
        }
    }

    fn read_envelope<'a>(&self, text: &'a str, row: &mut Vec<Datum<'a>>) -> Result<Envelope, DecodeError> {
        let mut scan = Scanner::new(text);
        let mut envelope = Envelope::default();
        self.read_fields(&mut scan, false, &mut envelope, row)?;
        scan.end().map_err(|error| at(&scan, error))?;
        Ok(envelope)
    }

    /// Reads the envelope's fields; they may be those of a `payload` beside a schema.
    fn read_fields<'a>(
        &self,
        scan: &mut Scanner<'a>,
        is_payload: bool,
        envelope: &mut Envelope,
        row: &mut Vec<Datum<'a>>,
    ) -> Result<(), DecodeError> {
        let mut more = scan.open_object().map_err(|error| at(scan, error))?;
        while more {
            let name = scan.name().map_err(|error| at(scan, error))?;
            match name.as_ref() {
                "after" if scan.peek() == Some(b'{') => {
                    self.read_row(scan, row)?;
                    envelope.after = true;
                }
                "before" if scan.peek() == Some(b'{') => {
                    envelope.before = Some(scan.at());
                    scan.skip().map_err(|error| at(scan, error))?;
                }
                "payload" if !is_payload && scan.peek() == Some(b'{') => {
                    self.read_fields(scan, true, envelope, row)?;
                }
                name => envelope.read_field(name, scan).map_err(|error| at(scan, error))?,
            }
            more = scan.more(b'}').map_err(|error| at(scan, error))?;
        }
        Ok(())
    }

    /// The row which an update replaces, for a table without a key.
    fn read_replaced<'a>(
        &self,
        text: &'a str,
        envelope: &Envelope,
    ) -> Result<Option<Vec<Datum<'a>>>, DecodeError> {
        let (Some(before), true) = (envelope.before, self.key.is_empty()) else { return Ok(None) };
        let mut row = Vec::new();
        self.read_row(&mut Scanner::resume(text, before), &mut row)?;
        nulls_for_missing(&mut row);
        Ok(Some(row))
    }

    fn read_deleted<'a>(
        &self,
        text: &'a str,
        envelope: &Envelope,
        row: &mut Vec<Datum<'a>>,
    ) -> Result<(), DecodeError> {
        let before = envelope.before.ok_or(DecodeError::Envelope("before is missing"))?;
        self.read_row(&mut Scanner::resume(text, before), row)?;
        nulls_for_missing(row);
        Ok(())
    }

    /// Reads an object of columns; a column without a field stays [`Datum::Unchanged`].
    fn read_row<'a>(&self, scan: &mut Scanner<'a>, row: &mut Vec<Datum<'a>>) -> Result<(), DecodeError> {
        row.clear();
        row.extend(std::iter::repeat_with(|| Datum::Unchanged).take(self.columns.len()));
        let mut more = scan.open_object().map_err(|error| at(scan, error))?;
        let mut next = 0;
        while more {
            let index = self.read_column_name(scan, next)?;
            let column = &self.columns[index];
            let datum = value::read(&column.column_type, self.options, scan)
                .map_err(|error| column.error(scan, error))?;
            if !matches!(row[index], Datum::Unchanged) {
                return Err(column.error(scan, Malformed("given twice")));
            }
            row[index] = datum;
            next = index + 1;
            more = scan.more(b'}').map_err(|error| column.error(scan, error))?;
        }
        Ok(())
    }

    /// The column of the next field; `next` is the one expected.
    fn read_column_name(&self, scan: &mut Scanner<'_>, next: usize) -> Result<usize, DecodeError> {
        if self.columns.get(next).is_some_and(|column| scan.take_verbatim(&column.field)) {
            return Ok(next);
        }
        let name = scan.name().map_err(|error| at(scan, error))?;
        self.by_name.get(name.as_ref()).copied().ok_or_else(|| DecodeError::Column {
            column: name.into_owned(),
            at: scan.at(),
            reason: "the table has no such column in this version",
        })
    }
}

impl Envelope {
    /// A field of the envelope other than a row.
    fn read_field(&mut self, name: &str, scan: &mut Scanner<'_>) -> Result<(), Malformed> {
        match name {
            "op" => {
                let letter = scan.string()?;
                let op = match letter.as_bytes() {
                    [letter] => Op::from_letter(*letter),
                    _ => None,
                };
                self.op = Some(op.ok_or(Malformed("an unknown operation"))?);
            }
            "source" => self.read_source(scan)?,
            "after" | "before" if scan.peek() != Some(b'n') => {
                return Err(Malformed("expected a row or null"));
            }
            _ => scan.skip()?,
        }
        Ok(())
    }
}

impl Envelope {
    /// The `source` block, of which only the commit time is wanted.
    fn read_source(&mut self, scan: &mut Scanner<'_>) -> Result<(), Malformed> {
        let start = scan.clone();
        if let Some(commit_us) = own_source(scan) {
            self.commit_us = Some(commit_us);
            return Ok(());
        }
        *scan = start;
        scan.fields(|scan, name| {
            if name == "ts_us" {
                let micros = scan.number()?.parse().map_err(|_| Malformed("not a commit time"))?;
                self.commit_us = Some(micros);
                return Ok(());
            }
            scan.skip()
        })
    }
}

/// A `source` block spelt as [`super::source`] writes it: its commit time. None for any other.
fn own_source(scan: &mut Scanner<'_>) -> Option<i64> {
    const BEFORE_TIME: [&str; 6] = [
        "{\"version\":",
        ",\"connector\":\"postgresql\",\"name\":",
        ",\"ts_ms\":",
        ",\"snapshot\":",
        ",\"db\":",
        ",\"sequence\":",
    ];
    const AFTER_TIME: [&str; 5] = [",\"ts_ns\":", ",\"schema\":", ",\"table\":", ",\"txId\":", ",\"lsn\":"];
    const END: &str = ",\"xmin\":null,\"origin\":null,\"origin_lsn\":null}";
    let skip = |scan: &mut Scanner<'_>, field: &str| {
        (scan.take_verbatim(field.as_bytes()) && scan.skip().is_ok()).then_some(())
    };
    for field in BEFORE_TIME {
        skip(scan, field)?;
    }
    let commit_us = scan.take_verbatim(b",\"ts_us\":").then(|| scan.number().ok()?.parse().ok())??;
    for field in AFTER_TIME {
        skip(scan, field)?;
    }
    scan.take_verbatim(END.as_bytes()).then_some(commit_us)
}

impl ColumnReader {
    fn error(&self, scan: &Scanner<'_>, Malformed(reason): Malformed) -> DecodeError {
        DecodeError::Column { column: self.name.clone(), at: scan.at(), reason }
    }
}

fn nulls_for_missing(row: &mut [Datum<'_>]) {
    for datum in row {
        if matches!(datum, Datum::Unchanged) {
            *datum = Datum::Null;
        }
    }
}

fn at(scan: &Scanner<'_>, Malformed(reason): Malformed) -> DecodeError {
    DecodeError::Json { at: scan.at(), reason }
}

fn utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(bytes)
        .map_err(|error| DecodeError::Json { at: error.valid_up_to(), reason: "not valid UTF-8" })
}
