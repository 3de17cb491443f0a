//! What is the same for every record of a transaction: the `source` block, the times and the headers.
//!
//! A row change repeats some 400 bytes of them. They are kept as finished pieces, remade only when the
//! transaction changes, so that a row costs three copies and two numbers.

use std::io::Write as _;

use super::encode::RowChange;
use super::string::quoted;
use crate::change::{Lsn, Op, Position, TableSchema, Timeline};
use crate::envelope::headers;
use crate::log::RecordWriter;

/// What a `source` block says of the whole database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceInfo {
    /// The source's configured name, first part of its topics.
    pub name: String,
    /// The database.
    pub database: String,
    /// Tidemark's version.
    pub version: String,
}

/// What of a change goes into the pieces below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamped {
    timeline: Timeline,
    commit_lsn: Lsn,
    last_commit_lsn: Option<Lsn>,
    commit_us: i64,
    now_ms: i64,
    xid: Option<u32>,
    snapshot: bool,
}

/// Writes a record's constant parts.
#[derive(Debug)]
pub(super) struct Stamp {
    /// `{"version":…,"name":…,"ts_ms":`
    source_start: Vec<u8>,
    /// `,"db":…,"sequence":"[`
    database: Vec<u8>,
    /// `,"schema":…,"table":…,"txId":`
    table: Vec<u8>,
    schema_version: String,
    stamped: Option<Stamped>,
    /// From `,"source":` up to the change's LSN in `sequence`.
    head: Vec<u8>,
    /// From there up to the change's LSN in `lsn`.
    middle: Vec<u8>,
    /// From `,"ts_ms":` at the envelope's level to its closing brace.
    tail: Vec<u8>,
    /// The text of a position up to its ordinal.
    position: Vec<u8>,
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
            schema_version: schema.version.0.to_string(),
            stamped: None,
            head: Vec::new(),
            middle: Vec::new(),
            tail: Vec::new(),
            position: Vec::new(),
        }
    }

    /// Makes the pieces fit a change. To be called before the records of the change are written.
    pub(super) fn prepare(&mut self, change: &RowChange<'_>) {
        let stamped = Stamped {
            timeline: change.position.timeline,
            commit_lsn: change.position.commit_lsn,
            last_commit_lsn: change.last_commit_lsn,
            commit_us: change.commit_us,
            now_ms: change.now_ms,
            xid: change.xid,
            snapshot: change.snapshot,
        };
        if self.stamped != Some(stamped) {
            self.stamped = Some(stamped);
            self.remake(stamped);
        }
    }

    fn remake(&mut self, stamped: Stamped) {
        let Self { head, middle, tail, position, .. } = self;
        let nanos = i128::from(stamped.commit_us) * 1_000;
        head.clear();
        head.extend_from_slice(&self.source_start);
        text(head, format_args!("{}", stamped.commit_us.div_euclid(1_000)));
        text(head, format_args!(",\"snapshot\":\"{}\"", stamped.snapshot));
        head.extend_from_slice(&self.database);
        match stamped.last_commit_lsn {
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

        position.clear();
        let whole = Position { timeline: stamped.timeline, commit_lsn: stamped.commit_lsn, ordinal: 0 };
        text(position, format_args!("{whole}"));
        position.pop();
    }

    /// Writes an envelope's fields from `source` on, and its closing brace.
    pub(super) fn write_end(&self, lsn: Lsn, op: Op, out: &mut Vec<u8>) {
        let mut buffer = itoa::Buffer::new();
        let lsn = buffer.format(lsn.0).as_bytes();
        out.extend_from_slice(&self.head);
        out.extend_from_slice(lsn);
        out.extend_from_slice(&self.middle);
        out.extend_from_slice(lsn);
        out.extend_from_slice(
            b",\"xmin\":null,\"origin\":null,\"origin_lsn\":null},\"transaction\":null,\"op\":\"",
        );
        out.push(op.letter() as u8);
        out.extend_from_slice(&self.tail);
    }

    /// Writes the headers which every record has.
    pub(super) fn write_headers(&self, ordinal: u64, record: &mut RecordWriter<'_>) {
        record.header(headers::POSITION, |out| {
            out.extend_from_slice(&self.position);
            out.extend_from_slice(itoa::Buffer::new().format(ordinal).as_bytes());
        });
        record.header(headers::SCHEMA, |out| out.extend_from_slice(self.schema_version.as_bytes()));
    }
}

fn text(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    // Writing to a Vec has no way to fail.
    let _ = out.write_fmt(arguments);
}
