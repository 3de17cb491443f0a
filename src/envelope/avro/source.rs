//! What is the same for every record of a transaction: the `source` record and the times, as finished pieces.

use super::value::{write_long, write_string};
use crate::change::TableSchema;
use crate::envelope::encode::{Envelope, RowChange, Stamped};
use crate::envelope::headers::HeaderStamp;
use crate::envelope::source::SourceInfo;
use crate::envelope::transaction;
use crate::log::RecordWriter;

/// Branch of a union, null first: null.
pub(super) const NULL: u8 = 0;
/// Branch of a union, null first: the value that follows.
pub(super) const SOME: u8 = 2;

/// Writes a record's constant parts.
#[derive(Clone, Debug)]
pub(super) struct Stamp {
    /// `version`, `connector`, `name`.
    source_start: Vec<u8>,
    /// `db`.
    database: Vec<u8>,
    /// `schema`, `table`.
    table: Vec<u8>,
    stamped: Option<Stamped>,
    /// `source` up to its `sequence`.
    head: Vec<u8>,
    /// The text of `sequence` up to the change's LSN.
    sequence: Vec<u8>,
    /// From there up to the change's LSN in `lsn`.
    middle: Vec<u8>,
    /// From `ts_ms` at the envelope's level to its end.
    tail: Vec<u8>,
    headers: HeaderStamp,
}

impl Stamp {
    pub(super) fn new(source: &SourceInfo, schema: &TableSchema) -> Self {
        let strings = |texts: &[&str]| {
            let mut out = Vec::new();
            for text in texts {
                write_string(text.as_bytes(), &mut out);
            }
            out
        };
        Self {
            source_start: strings(&[&source.version, "postgresql", &source.name]),
            database: strings(&[&source.database]),
            table: strings(&[&schema.name.schema, &schema.name.table]),
            stamped: None,
            head: Vec::new(),
            sequence: Vec::new(),
            middle: Vec::new(),
            tail: Vec::new(),
            headers: HeaderStamp::new(schema.version),
        }
    }

    /// Makes the pieces fit a change. To be called before the records of the change are written.
    pub(super) fn prepare(&mut self, change: &RowChange<'_>) {
        let stamped = Stamped::from(change);
        if self.stamped != Some(stamped) {
            self.stamped = Some(stamped);
            self.remake(stamped);
        }
    }

    fn remake(&mut self, stamped: Stamped) {
        let Self { head, sequence, middle, tail, .. } = self;
        head.clear();
        head.extend_from_slice(&self.source_start);
        write_long(stamped.commit_us.div_euclid(1_000), head);
        // A union with the string first, since that is its default.
        head.push(0);
        write_string(if stamped.snapshot { b"true" } else { b"false" }, head);
        head.extend_from_slice(&self.database);
        head.push(SOME);

        let last = stamped.last_end_lsn.map_or_else(|| "null".to_owned(), |lsn| format!("\"{}\"", lsn.0));
        sequence.clear();
        sequence.extend_from_slice(format!("[{last},\"").as_bytes());

        middle.clear();
        write_optional(Some(stamped.commit_us), middle);
        write_optional(stamped.commit_us.checked_mul(1_000), middle);
        middle.extend_from_slice(&self.table);
        write_optional(stamped.xid.map(i64::from), middle);
        middle.push(SOME);

        tail.clear();
        write_optional(Some(stamped.now_ms), tail);
        write_optional(stamped.now_ms.checked_mul(1_000), tail);
        write_optional(stamped.now_ms.checked_mul(1_000_000), tail);
        self.headers.prepare(stamped.timeline, stamped.commit_lsn);
    }

    /// Writes an envelope's fields from `source` on.
    pub(super) fn write_end(&self, envelope: &Envelope<'_>, out: &mut Vec<u8>) {
        let lsn = envelope.lsn;
        let mut buffer = itoa::Buffer::new();
        let digits = buffer.format(lsn.0).as_bytes();
        out.extend_from_slice(&self.head);
        write_long((self.sequence.len() + digits.len() + 2) as i64, out);
        out.extend_from_slice(&self.sequence);
        out.extend_from_slice(digits);
        out.extend_from_slice(b"\"]");
        out.extend_from_slice(&self.middle);
        write_long(lsn.0 as i64, out);
        // xmin, origin, origin_lsn.
        out.extend_from_slice(&[NULL, NULL, NULL]);
        match envelope.transaction.zip(self.stamped.and_then(|stamped| stamped.xid)) {
            None => out.push(NULL),
            Some((order, xid)) => {
                out.push(SOME);
                write_string(transaction::id(xid, lsn).to_string().as_bytes(), out);
                write_long(order.total as i64, out);
                write_long(order.data_collection as i64, out);
            }
        }
        // A string of one letter.
        out.extend_from_slice(&[2, envelope.op.letter() as u8]);
        out.extend_from_slice(&self.tail);
    }

    /// Writes the headers which every record has.
    pub(super) fn write_headers(&self, ordinal: u64, record: &mut RecordWriter<'_>) {
        self.headers.write(ordinal, record);
    }
}

pub(super) fn write_optional(value: Option<i64>, out: &mut Vec<u8>) {
    match value {
        Some(value) => {
            out.push(SOME);
            write_long(value, out);
        }
        None => out.push(NULL),
    }
}
