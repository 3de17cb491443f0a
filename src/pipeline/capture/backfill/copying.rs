//! Rows of a later copy become records of its topic.

use std::sync::Arc;

use crate::change::{Lsn, Op, Position, TableSchema, Value};
use crate::envelope::{RowChange, TableEncoder};
use crate::postgres::copy::CopyText;
use crate::runtime::{Error, Result};

use super::super::appender::Appender;
use super::super::engine::{encode, recycle, write};
use super::super::tables::Table;

/// A copy whose rows are being written.
#[derive(Debug)]
pub struct Copying {
    /// Just below its rows.
    pub position: Position,
    commit_us: i64,
    /// The table's shape.
    pub schema: TableSchema,
    columns: usize,
    encoder: TableEncoder,
    text: CopyText,
    values: Vec<Value<'static>>,
    /// Rows read; also the ordinal of the last one.
    read: u64,
    /// Records that became of them.
    pub rows: u64,
    /// Rows that could not be encoded.
    pub dead_letters: u64,
}

impl Copying {
    /// No rows yet; they come with so many columns, for the encoder.
    pub fn new(
        position: Position,
        commit_us: i64,
        schema: TableSchema,
        columns: usize,
        encoder: TableEncoder,
    ) -> Self {
        let (text, values) = (CopyText::default(), Vec::new());
        let (read, rows, dead_letters) = (0, 0, 0);
        Self { position, commit_us, schema, columns, encoder, text, values, read, rows, dead_letters }
    }

    /// Writes a row to the copies' topic.
    pub fn write(
        &mut self,
        row: &[u8],
        topic: &Arc<str>,
        appender: &mut Appender,
        dead_letters: &Arc<str>,
    ) -> Result<()> {
        self.read += 1;
        self.text.split(row, self.columns).map_err(|error| {
            Error::operator(format!("row {} of COPY {} cannot be read: {error}", self.read, self.schema.name))
        })?;
        let mut new = recycle(std::mem::take(&mut self.values));
        new.extend(self.text.values(row));
        let change = RowChange {
            op: Op::Read,
            position: Position { ordinal: self.read, ..self.position },
            lsn: Lsn(self.position.commit_lsn.0 + 1),
            commit_us: self.commit_us,
            now_ms: self.commit_us / 1000,
            xid: None,
            snapshot: true,
            last_end_lsn: None,
            transaction: None,
            old: None,
            new: Some(&new),
        };
        match write(&mut self.encoder, &self.schema, topic, &change, appender, dead_letters) {
            Some(records) => self.rows += u64::from(records),
            None => self.dead_letters += 1,
        }
        self.values = recycle(new);
        Ok(())
    }
}

/// A table that was dropped and made again under its name holds nothing of the former one: its topic says so.
pub fn begin_anew(
    table: &mut Table,
    position: Position,
    commit_us: i64,
    appender: &mut Appender,
    dead: &Arc<str>,
) {
    tracing::warn!(table = %table.schema.name, "the table was dropped and made again: what it held before is gone");
    let row = RowChange {
        op: Op::Truncate,
        position,
        lsn: Lsn(position.commit_lsn.0 + 1),
        commit_us,
        now_ms: commit_us / 1000,
        xid: None,
        snapshot: false,
        last_end_lsn: None,
        transaction: None,
        old: None,
        new: None,
    };
    encode(table, &row, appender, dead);
}
