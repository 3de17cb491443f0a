//! What is the same for every record of a transaction: the `source` block, the times and the headers.
//!
//! A row change repeats some 400 bytes of them. They are kept as finished pieces, remade only when the
//! transaction changes, so that a row costs three copies and two numbers.

use std::io::Write as _;

use super::string::quoted;
use crate::change::TableSchema;
use crate::envelope::encode::{Envelope, RowChange, Stamped};
use crate::envelope::headers::HeaderStamp;
use crate::envelope::source::SourceInfo;
use crate::envelope::transaction;
use crate::log::RecordWriter;

/// Writes a record's constant parts.
#[derive(Clone, Debug)]
pub(super) struct Stamp {
    /// `{"version":…,"name":…,"ts_ms":`
    source_start: Vec<u8>,
    /// `,"db":…,"sequence":"[`
    database: Vec<u8>,
    /// `,"schema":…,"table":…,"txId":`
    table: Vec<u8>,
    stamped: Option<Stamped>,
    /// From `,"source":` up to the change's LSN in `sequence`.
    head: Vec<u8>,
    /// From there up to the change's LSN in `lsn`.
    middle: Vec<u8>,
    /// From `,"ts_ms":` at the envelope's level to its closing brace.
    tail: Vec<u8>,
    headers: HeaderStamp,
}

impl Stamp {
    pub(super) fn new(source: &SourceInfo, schema: &TableSchema) -> Self {
        let [version, name, database] =
            [&source.version, &source.name, &source.database].map(|text| quoted(text));
        let [namespace, table] = [&schema.name.schema, &schema.name.table].map(|text| quoted(text));
        let source_start = format!(
            ",\"source\":{{\"version\":{version},\"connector\":\"postgresql\",\"name\":{name},\"ts_ms\":"
        );
        Self {
            source_start: source_start.into_bytes(),
            database: format!(",\"db\":{database},\"sequence\":\"[").into_bytes(),
            table: format!(",\"schema\":{namespace},\"table\":{table},\"txId\":").into_bytes(),
            stamped: None,
            head: Vec::new(),
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
        let Self { head, middle, tail, .. } = self;
        let nanos = i128::from(stamped.commit_us) * 1_000;
        head.clear();
        head.extend_from_slice(&self.source_start);
        text(head, format_args!("{}", stamped.commit_us.div_euclid(1_000)));
        text(head, format_args!(",\"snapshot\":\"{}\"", stamped.snapshot));
        head.extend_from_slice(&self.database);
        match stamped.last_end_lsn {
            Some(lsn) => text(head, format_args!("\\\"{}\\\",\\\"", lsn.0)),
            None => text(head, format_args!("null,\\\"")),
        }

        middle.clear();
        text(middle, format_args!("\\\"]\",\"ts_us\":{},\"ts_ns\":{nanos}", stamped.commit_us));
        middle.extend_from_slice(&self.table);
        match stamped.xid {
            Some(xid) => text(middle, format_args!("{xid},\"lsn\":")),
            None => text(middle, format_args!("null,\"lsn\":")),
        }

        tail.clear();
        let [micros, nanos] = [1_000, 1_000_000].map(|unit| i128::from(stamped.now_ms) * unit);
        text(tail, format_args!("\",\"ts_ms\":{},\"ts_us\":{micros},\"ts_ns\":{nanos}}}", stamped.now_ms));
        self.headers.prepare(stamped.timeline, stamped.commit_lsn);
    }

    /// Writes an envelope's fields from `source` on, and its closing brace.
    pub(super) fn write_end(&self, envelope: &Envelope<'_>, out: &mut Vec<u8>) {
        let mut buffer = itoa::Buffer::new();
        let lsn = buffer.format(envelope.lsn.0).as_bytes();
        out.extend_from_slice(&self.head);
        out.extend_from_slice(lsn);
        out.extend_from_slice(&self.middle);
        out.extend_from_slice(lsn);
        out.extend_from_slice(b",\"xmin\":null,\"origin\":null,\"origin_lsn\":null},\"transaction\":");
        match envelope.transaction.zip(self.xid()) {
            None => out.extend_from_slice(b"null"),
            Some((order, xid)) => text(
                out,
                format_args!(
                    "{{\"id\":\"{}\",\"total_order\":{},\"data_collection_order\":{}}}",
                    transaction::id(xid, envelope.lsn),
                    order.total,
                    order.data_collection
                ),
            ),
        }
        out.extend_from_slice(b",\"op\":\"");
        out.push(envelope.op.letter() as u8);
        out.extend_from_slice(&self.tail);
    }

    fn xid(&self) -> Option<u32> {
        self.stamped.and_then(|stamped| stamped.xid)
    }

    /// Writes the headers which every record has.
    pub(super) fn write_headers(&self, ordinal: u64, record: &mut RecordWriter<'_>) {
        self.headers.write(ordinal, record);
    }
}

fn text(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    // Writing to a Vec has no way to fail.
    let _ = out.write_fmt(arguments);
}
