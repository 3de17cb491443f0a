//! Tables without a key: rows are a multiset, sorted by all their columns. A creation adds one of its kind,
//! a deletion takes one away; of rows that are equal, it does not matter which.

use crate::change::{Op, Position};
use crate::runtime::Result;

use super::super::sort::Sorted;
use super::base::BaseCursor;
use super::changes::{SKIP, op_and_unchanged};
use super::dead::Letters;
use super::gather::{Gather, RowRef, Sink};
use super::order::Seq;

/// Everything the merge reads and writes.
pub(super) struct MultisetMerge<S> {
    pub(super) changes: Sorted,
    /// Rows of one kind are equal in every column (not when a column was dropped: it no longer tells them apart).
    pub(super) all_equal: bool,
    /// Changes below this position are gone.
    pub(super) truncated: Option<Position>,
    /// Some rows were left out of the table's copy: what deletes one has nothing to do.
    pub(super) in_part: bool,
    pub(super) out: Gather<S>,
    pub(super) dead: Letters,
}

impl<S: Sink> MultisetMerge<S> {
    /// Merges all changes with the base.
    pub(super) fn run(&mut self, mut base: BaseCursor) -> Result<()> {
        let mut key = Vec::new();
        while let Some(cursor) = self.changes.peek() {
            key.clear();
            key.extend_from_slice(Seq::split(cursor.sort()).0);
            base.copy_below(Some(&key), &mut self.out)?;
            self.kind(&mut base, &key)?;
        }
        base.copy_below(None, &mut self.out)
    }

    /// Merges rows of one kind.
    ///
    /// A deletion takes the newest creation first, and a row of the base only when there is none: then the
    /// base gives its rows in order, however many they are, and one creation stands for all its equals.
    fn kind(&mut self, base: &mut BaseCursor, key: &[u8]) -> Result<()> {
        let mut added: Vec<(RowRef, u64)> = Vec::new();
        while let Some(cursor) = self.changes.peek() {
            let (change_key, seq) = Seq::split(cursor.sort());
            if change_key != key {
                break;
            }
            if self.truncated.is_none_or(|truncated| seq.position >= truncated) {
                match op_and_unchanged(cursor.batch(), cursor.row()).0 {
                    Some(Op::Delete) | None => self.delete(base, (key, seq), &mut added)?,
                    Some(_) => match added.last_mut() {
                        Some((_, count)) if self.all_equal => *count += 1,
                        _ => {
                            let batch = cursor.batch().clone();
                            added.push((RowRef { batch, skip: SKIP, row: cursor.row() }, 1));
                        }
                    },
                }
            }
            self.changes.advance()?;
        }
        while let Some(row) = base.take(key)? {
            self.out.slice(&row.batch, row.skip, row.row, 1)?;
        }
        for (row, count) in added {
            for _ in 0..count {
                self.out.slice(&row.batch, row.skip, row.row, 1)?;
            }
        }
        Ok(())
    }

    fn delete(
        &mut self,
        base: &mut BaseCursor,
        (key, seq): (&[u8], Seq),
        added: &mut Vec<(RowRef, u64)>,
    ) -> Result<()> {
        if let Some((_, count)) = added.last_mut() {
            *count -= 1;
            if *count == 0 {
                added.pop();
            }
            return Ok(());
        }
        if base.take(key)?.is_none() && !self.in_part {
            self.dead.push(seq, None, "the deleted row is not in the table held".to_owned())?;
        }
        Ok(())
    }
}
