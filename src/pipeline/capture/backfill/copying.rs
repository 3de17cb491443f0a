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
    position: Position,
    /// The server's time at the point, microseconds since 1970: rows have it as theirs.
    pub commit_us: i64,
    /// The table's shape.
    pub schema: TableSchema,
    columns: usize,
    encoder: TableEncoder,
    /// Where they go.
    topic: Arc<str>,
    text: CopyText,
    values: Vec<Value<'static>>,
    /// Whether rows were written since their state was last put into an append.
    pub touched: bool,
}

impl Copying {
    /// No rows yet; they come with so many columns, for the encoder.
    pub fn new(
        position: Position,
        commit_us: i64,
        schema: TableSchema,
        columns: usize,
        encoder: TableEncoder,
        topic: Arc<str>,
    ) -> Self {
        let (text, values) = (CopyText::default(), Vec::new());
        Self { position, commit_us, schema, columns, encoder, topic, text, values, touched: false }
    }

    /// Where the row of that number stands.
    pub const fn at(&self, ordinal: u64) -> Position {
        Position { ordinal, ..self.position }
    }

    /// Writes the row of that number; gives how many records became of it, or none when it went to the dead letters.
    pub fn write(
        &mut self,
        row: &[u8],
        ordinal: u64,
        appender: &mut Appender,
        dead_letters: &Arc<str>,
    ) -> Result<Option<u32>> {
        self.text.split(row, self.columns).map_err(|error| {
            Error::operator(format!("row {ordinal} of COPY {} cannot be read: {error}", self.schema.name))
        })?;
        let mut new = recycle(std::mem::take(&mut self.values));
        new.extend(self.text.values(row));
        let change = RowChange {
            op: Op::Read,
            position: self.at(ordinal),
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
        let records = write(&mut self.encoder, &self.schema, &self.topic, &change, appender, dead_letters);
        self.values = recycle(new);
        Ok(records)
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
