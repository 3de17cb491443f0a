//! Tables with a key: a merge join of yesterday's rows and the changes, both sorted by key.
//!
//! ```text
//!   base     k1 ──────── k4 k5 ─────── k9        slices between changes are copied as they are
//!   changes        k3(c)  k4(u,u,d)   k7(c,u)    each key's changes are applied in order to the row held
//! ```
//!
//! A copy of the table that was read at several points P1 < P2 < … has each row just below the point at which its key
//! was read. A change between P1 and that point comes ahead of the row, and may lack values that were not sent. It
//! is void if the key's row of a later point comes, which has what it did, or if the key is gone by the last point: its
//! dead letter is held back until the one or the other is seen, or neither. From the last point on all rows are there.

use std::sync::{Mutex, PoisonError};

use crate::change::{Op, Position, TableSchema};
use crate::runtime::Result;

use super::super::sort::Sorted;
use super::base::BaseCursor;
use super::changes::{SKIP, columns_in, op_and_unchanged};
use super::dead::Letters;
use super::gather::{Gather, Row, RowRef, Sink};
use super::key_json::key_json;
use super::moves::Completions;
use super::order::Seq;

/// Everything the join reads and writes.
pub(super) struct KeyedMerge<'a, S> {
    pub(super) schema: &'a TableSchema,
    pub(super) changes: Sorted,
    /// Values that a key change left in the old key's row.
    pub(super) completions: Option<&'a Mutex<Completions>>,
    /// Changes below this position are gone.
    pub(super) truncated: Option<Position>,
    /// The last point at which a new copy was read: changes below it may come ahead of their row.
    pub(super) settled: Option<Position>,
    /// Rows for which this does not hold were left out of the table's copy.
    pub(super) left_out: Option<&'a str>,
    pub(super) out: Gather<S>,
    pub(super) dead: Letters,
}

impl<S: Sink> KeyedMerge<'_, S> {
    /// Joins a stretch of the base with the changes that belong to it.
    pub(super) fn run(&mut self, mut base: BaseCursor) -> Result<()> {
        let mut key = Vec::new();
        while let Some(cursor) = self.changes.peek() {
            key.clear();
            key.extend_from_slice(Seq::split(cursor.sort()).0);
            base.copy_below(Some(&key), &mut self.out)?;
            let held = base.take(&key)?.map(|whole| Row { whole, patches: Vec::new() });
            if let Some(row) = self.apply(&key, held)? {
                self.out.row(&row)?;
            }
        }
        base.copy_below(None, &mut self.out)
    }

    /// Applies all changes of a key to the row held.
    fn apply(&mut self, key: &[u8], mut held: Option<Row>) -> Result<Option<Row>> {
        while let Some(cursor) = self.changes.peek() {
            let (change_key, seq) = Seq::split(cursor.sort());
            if change_key != key {
                break;
            }
            if self.truncated.is_none_or(|truncated| seq.position >= truncated) {
                let whole = RowRef { batch: cursor.batch().clone(), skip: SKIP, row: cursor.row() };
                let (op, moved, unchanged) = op_and_unchanged(cursor.batch(), cursor.row());
                let ahead = self.settled.is_some_and(|settled| seq.position < settled);
                if op == Some(Op::Read) || (ahead && op == Some(Op::Delete)) {
                    self.dead.revoke()?;
                }
                held = match (op, unchanged) {
                    (Some(Op::Delete) | None, _) => None,
                    (_, None) => Some(Row { whole, patches: Vec::new() }),
                    (_, Some(bits)) => {
                        let completed = match (self.completions, moved) {
                            (Some(completions), true) => {
                                let mut completions =
                                    completions.lock().unwrap_or_else(PoisonError::into_inner);
                                completions.complete(cursor.sort(), &whole, bits)?
                            }
                            (None, true) => None,
                            (_, false) => completed(&whole, bits, held.as_ref()),
                        };
                        if completed.is_none() {
                            let (key, reason) = (self.key_of(&whole), self.reason(bits));
                            if ahead {
                                self.dead.hold(seq, key, reason)?;
                            } else {
                                self.dead.push(seq, key, reason)?;
                            }
                        }
                        completed
                    }
                };
            }
            self.changes.advance()?;
        }
        self.dead.confirm()?;
        Ok(held)
    }

    fn key_of(&self, row: &RowRef) -> Option<String> {
        let table: Vec<_> = (row.skip..row.batch.num_columns()).collect();
        key_json(self.schema, &row.batch.project(&table).ok()?, row.row)
    }

    fn reason(&self, bits: &[u8]) -> String {
        let names: Vec<_> = columns_in(bits)
            .filter_map(|c| self.schema.columns.get(c))
            .map(|c| format!("{:?}", c.name))
            .collect();
        let mut reason = format!(
            "no row is held from which the values of {} could be taken, which the server did not send because the statement left them alone",
            names.join(", ")
        );
        if let Some(left_out) = self.left_out {
            reason += "; the row may be one that was left out of the table's copy, which took those with ";
            reason += left_out;
            reason += " ([[table]] backfill, backfill_where): with REPLICA IDENTITY FULL the server sends all values";
        }
        reason
    }
}

/// The row with its missing values from `source`; `None` when there is none.
fn completed(whole: &RowRef, bits: &[u8], source: Option<&Row>) -> Option<Row> {
    let source = source?;
    let patches = columns_in(bits).map(|column| (column, source.cell(column))).collect();
    Some(Row { whole: whole.clone(), patches })
}
