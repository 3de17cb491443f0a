//! Rows of a copy become records of its topic.
//!
//! ```text
//!   reader 1: rows ─ numbers, place in the channel ─ encodes ──┐
//!   reader 2: rows ─ numbers, place in the channel ─ encodes ──┼──> writer: in the order of the numbers
//! ```
//!
//! Encoding, and what the log has to do with records before their order is known ([`Log::prepare`]), is most of the work of
//! a copy, and each reader does it for its own rows. Rows are numbered, and their place
//! among those of other readers is taken, in one step ([`Ordinals`]) before they are encoded: so positions ascend in the
//! log, whoever is done first.

use std::sync::{Arc, Mutex, PoisonError};

use crate::change::{Lsn, Op, Position, TableSchema, Value};
use crate::envelope::{RowChange, TableEncoder};
use crate::log::{Log, TopicRecords};
use crate::postgres::copy::CopyText;
use crate::runtime::{Error, Result};

use super::super::appender::Appender;
use super::super::dead_letter;
use super::super::engine::{encode, encode_fitting, recycle};
use super::super::tables::Table;
use super::event::Rows;

/// Bytes of records which rows that are told at once become, about: no more than one piece of the log.
const RECORDS_BYTES: usize = 896 << 10;
/// Bytes of such rows, whatever they become.
const ROWS_BYTES_MIN: usize = 4 << 10;
const ROWS_BYTES_MAX: usize = 256 << 10;

/// A copy whose rows are being written.
#[derive(Debug)]
pub struct Copying {
    /// Just below its rows.
    position: Position,
    /// The server's time at the point, microseconds since 1970: rows have it as theirs.
    pub commit_us: i64,
    /// The table's shape.
    pub schema: TableSchema,
    /// Whether rows were written since their state was last put into an append.
    pub touched: bool,
}

impl Copying {
    /// No rows yet.
    pub const fn new(position: Position, commit_us: i64, schema: TableSchema) -> Self {
        Self { position, commit_us, schema, touched: false }
    }

    /// Where the row of that number stands.
    pub const fn at(&self, ordinal: u64) -> Position {
        Position { ordinal, ..self.position }
    }

    /// What makes records of its rows, which come with so many columns, for that encoder.
    pub fn rows(
        &self,
        columns: usize,
        encoder: TableEncoder,
        topic: Arc<str>,
        dead_letters: Arc<str>,
        log: Arc<dyn Log>,
        ordinals: Ordinals,
    ) -> RowEncoder {
        RowEncoder {
            position: self.position,
            commit_us: self.commit_us,
            schema: self.schema.clone(),
            columns,
            encoder,
            records: TopicRecords::new(topic),
            dead_letters: TopicRecords::new(dead_letters),
            log,
            ordinals,
            text: CopyText::default(),
            values: Vec::new(),
            rows_bytes: ROWS_BYTES_MAX / 4,
        }
    }
}

/// Numbers rows, in the order in which they are told.
#[derive(Clone, Debug)]
pub struct Ordinals(Arc<Mutex<u64>>);

impl Ordinals {
    /// The first is the one after `last`.
    pub fn after(last: u64) -> Self {
        Self(Arc::new(Mutex::new(last)))
    }

    /// Takes so many and gives the first. They are told meanwhile, so that nobody takes and tells later ones before.
    pub fn take(&self, count: u64, tell: impl FnOnce()) -> u64 {
        // A number, which no panic leaves half written.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *last + 1;
        *last += count;
        tell();
        first
    }
}

/// Makes the rows of a copy records; each reader has its own.
#[derive(Clone, Debug)]
pub struct RowEncoder {
    position: Position,
    commit_us: i64,
    schema: TableSchema,
    columns: usize,
    encoder: TableEncoder,
    records: TopicRecords,
    dead_letters: TopicRecords,
    log: Arc<dyn Log>,
    /// Of the rows of all readers.
    pub ordinals: Ordinals,
    text: CopyText,
    values: Vec<Value<'static>>,
    rows_bytes: usize,
}

/// Rows as records.
#[derive(Debug)]
pub struct Encoded {
    /// The records.
    pub records: TopicRecords,
    /// Of the rows that cannot be carried.
    pub dead_letters: TopicRecords,
    /// How many rows they are.
    pub rows: u64,
    /// The number of the last one.
    pub last: u64,
    /// Bytes of the rows, as they were read.
    pub bytes: u64,
}

impl RowEncoder {
    /// How many bytes of rows are to be told at once.
    pub const fn rows_bytes(&self) -> usize {
        self.rows_bytes
    }

    /// Makes records of rows, the first of which has that number.
    ///
    /// # Errors
    /// `Operator`: a row cannot be read, with its number.
    pub fn encode(&mut self, rows: &Rows, first: u64) -> Result<Encoded> {
        let [bytes_max, dead_letters_max] =
            [&self.records, &self.dead_letters].map(|records| self.log.record_bytes_max(records.topic()));
        let mut ordinal = first;
        for row in rows.iter() {
            self.text.split(row, self.columns).map_err(|error| {
                Error::operator(format!("row {ordinal} of COPY {} cannot be read: {error}", self.schema.name))
            })?;
            let mut new = recycle(std::mem::take(&mut self.values));
            new.extend(self.text.values(row));
            let change = RowChange {
                op: Op::Read,
                position: Position { ordinal, ..self.position },
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
            if let Err(error) = encode_fitting(&mut self.encoder, &change, &mut self.records, bytes_max) {
                dead_letter::bury(&mut self.dead_letters, &self.schema, &change, &error, dead_letters_max);
            }
            self.values = recycle(new);
            ordinal += 1;
        }
        let records_bytes = self.records.bytes().max(1);
        self.rows_bytes =
            (rows.bytes() * RECORDS_BYTES / records_bytes).clamp(ROWS_BYTES_MIN, ROWS_BYTES_MAX);
        let records = self.log.prepare(&mut self.records);
        let dead_letters = self.log.prepare(&mut self.dead_letters);
        let (rows, bytes) = (rows.len() as u64, rows.bytes() as u64);
        Ok(Encoded { records, dead_letters, rows, last: ordinal - 1, bytes })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_in_the_order_of_their_numbers_whoever_takes_them() {
        let (ordinals, told) = (Ordinals::after(7), Mutex::new(Vec::new()));
        let mut taken: Vec<(u64, u64)> = std::thread::scope(|scope| {
            let taking = (0..4_u64).map(|reader| {
                let (ordinals, told) = (ordinals.clone(), &told);
                scope.spawn(move || {
                    let take = |turn: u64| {
                        let name = reader * 1000 + turn;
                        (ordinals.take(1 + turn % 3, || told.lock().unwrap().push(name)), name)
                    };
                    (0..1000).map(take).collect::<Vec<_>>()
                })
            });
            let taking: Vec<_> = taking.collect();
            taking.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
        });
        taken.sort_unstable();
        assert_eq!(taken[0].0, 8);
        let numbers_meet = taken.windows(2).all(|two| two[0].0 + 1 + two[0].1 % 1000 % 3 == two[1].0);
        assert!(numbers_meet, "no number is left out or given twice");
        assert_eq!(told.into_inner().unwrap(), taken.into_iter().map(|(_, name)| name).collect::<Vec<_>>());
    }
}
