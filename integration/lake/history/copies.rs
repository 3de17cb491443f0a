//! Copies of the table that are read at several points while it changes, as capture makes them.
//!
//! A copy with a key is read range by range, each at one of its points, some of them in pieces; a row that moved with
//! values left behind is read once more by its new key. Rows without a key are read at one point. Copies are given up now
//! and then, and days are cut meanwhile. The first copy puts what it reads at its first point into the table's own topic,
//! and days lack the table until it is whole.

use std::collections::BTreeSet;

use tidemark::change::{BACKFILL_PARTITION, CutBackfill};

use super::{
    Change, Datum, IteratorRandom, LogEnd, Logged, Lsn, Maker, Op, Position, Rng, Row, SchemaVersion,
};

type Key = (i64, String);

/// A copy on its way.
pub(super) struct Copying {
    /// Where it began in the log, and the changes before.
    from: Vec<LogEnd>,
    changes_before: u64,
    first: Option<(Position, SchemaVersion)>,
    last: Position,
    ordinal: u64,
    rows: u64,
    /// Ranges of keys that were not read yet, each above one key and up to another.
    left: Vec<(Option<Key>, Option<Key>)>,
    /// Keys that rows moved to with values left behind.
    moved: BTreeSet<Key>,
}

/// What a maker knows of copies.
#[derive(Default)]
pub(super) struct Copies {
    copying: Option<Copying>,
    /// Whole, with the changes before it.
    done: Option<(CutBackfill, u64)>,
    /// Records of their topic.
    pub(super) log: Vec<Logged>,
    next: u64,
    /// All changes so far.
    pub(super) changes: u64,
    /// The first copy is not whole.
    lacking: bool,
}

impl Maker {
    /// Rows from before the stream, the part of them that the first copy read at its first point, and the rest of that copy.
    pub(super) fn first_copy(&mut self) {
        for _ in 0..self.random.random_range(0..150) {
            let key = if self.shape.keyed { self.free_key() } else { (self.unique as i64, "row".to_owned()) };
            self.unique += 1;
            let row = self.new_row(self.shape.keyed.then_some(&key));
            self.rows.insert(key, row);
        }
        let mut copy = self.new_copy();
        copy.from.clear();
        self.copies.lacking = true;
        self.read(&mut copy, true);
        self.copies.copying = Some(copy);
    }

    /// Whether days lack the table.
    pub(super) fn lacking(&self) -> Option<String> {
        self.copies.lacking.then(|| "its first copy is not whole".to_owned())
    }

    /// Between two transactions.
    pub(super) fn copy(&mut self) {
        let Some(mut copy) = self.copies.copying.take() else {
            let eager = self.copies.lacking && self.copies.done.is_none();
            if self.copies.done.is_none() && (eager || (!self.calm && self.random.random_ratio(1, 40))) {
                self.copies.copying = Some(self.new_copy());
            }
            return;
        };
        match self.random.random_range(0..100) {
            0 => return,
            1..8 => self.read(&mut copy, false),
            _ => {}
        }
        if copy.first.is_some() && copy.left.is_empty() && copy.moved.is_empty() {
            self.copies.done = Some(self.whole(copy));
        } else {
            self.copies.copying = Some(copy);
        }
    }

    /// A row came to that key, without some of its values.
    pub(super) fn came_in_part(&mut self, key: &Key) {
        if let Some(copy) = &mut self.copies.copying {
            copy.moved.insert(key.clone());
        }
    }

    /// The table is empty now: a copy of it goes on, or is given up.
    pub(super) fn truncated(&mut self) {
        if self.random.random() {
            self.copies.copying = None;
        }
    }

    /// The copy that a cut tells.
    pub(super) fn told(&mut self) -> Option<CutBackfill> {
        let (copy, changes_before) = self.copies.done.take()?;
        self.copies.lacking = false;
        Some(CutBackfill { changes: self.copies.changes - changes_before, ..copy })
    }

    /// Where the copies' topic ends.
    pub(super) fn copies_end(&self) -> LogEnd {
        LogEnd { partition: BACKFILL_PARTITION, end: self.copies.next }
    }

    fn new_copy(&mut self) -> Copying {
        let pieces = if self.shape.keyed { self.random.random_range(0..6) } else { 0 };
        let mut ends: Vec<Option<Key>> = self
            .rows
            .keys()
            .cloned()
            .choose_multiple(&mut self.random, pieces)
            .into_iter()
            .map(Some)
            .collect();
        ends.sort();
        ends.push(None);
        let starts = std::iter::once(None).chain(ends.clone());
        let own = self.next.iter().enumerate().map(|(p, end)| LogEnd { partition: p as u32, end: *end });
        Copying {
            from: own.chain([self.copies_end()]).collect(),
            changes_before: self.copies.changes,
            first: None,
            last: self.position,
            ordinal: 0,
            rows: 0,
            left: starts.zip(ends).collect(),
            moved: BTreeSet::new(),
        }
    }

    /// One round: reads some ranges, or pieces of them, at a point between the transaction before and the next.
    fn read(&mut self, copy: &mut Copying, own: bool) {
        let point = Position { commit_lsn: Lsn(self.position.commit_lsn.0 + 7), ordinal: 0, ..self.position };
        copy.first.get_or_insert((point, self.schema.version));
        copy.last = point;
        for (above, up_to) in std::mem::take(&mut copy.left) {
            if self.shape.keyed && self.random.random() {
                copy.left.push((above, up_to));
                continue;
            }
            let within = |key: &&Key| {
                above.as_ref().is_none_or(|above| *key > above)
                    && up_to.as_ref().is_none_or(|end| *key <= end)
            };
            let mut keys: Vec<Key> = self.rows.keys().filter(within).cloned().collect();
            if self.shape.keyed && !keys.is_empty() && self.random.random_ratio(1, 3) {
                keys.truncate(self.random.random_range(1..=keys.len()));
                copy.left.push((keys.last().cloned(), up_to));
            }
            self.write(copy, point, keys, own);
        }
        if copy.left.is_empty() || self.random.random_ratio(1, 3) {
            let keys = std::mem::take(&mut copy.moved);
            let keys = keys.into_iter().filter(|key| self.rows.contains_key(key)).collect();
            self.write(copy, point, keys, own);
        }
    }

    fn write(&mut self, copy: &mut Copying, point: Position, keys: Vec<Key>, own: bool) {
        for key in keys {
            copy.ordinal += 1;
            let row = self.rows[&key].clone();
            let change = self.copied(Position { ordinal: copy.ordinal, ..point }, row);
            if own {
                self.count();
                let partition = if self.shape.keyed { self.partition_of(&key) } else { 0 };
                self.record(partition, Some(change));
            } else {
                copy.rows += 1;
                let offset = self.copies.next;
                self.copies.log.push(Logged { offset, change: Some(change) });
                self.copies.next += 1 + u64::from(self.random.random_ratio(1, 50));
            }
        }
    }

    fn copied(&self, position: Position, mut row: Row) -> Change {
        for (datum, column) in row.iter_mut().zip(&self.schema.columns) {
            if column.dropped {
                *datum = Datum::Null;
            }
        }
        let (op, commit_us, schema) = (Op::Read, self.commit_us, self.schema.clone());
        Change { position, op, commit_us, schema, old_key: None, before: None, row }
    }

    fn whole(&self, copy: Copying) -> (CutBackfill, u64) {
        let (position, schema_version) = copy.first.unwrap();
        let done = CutBackfill {
            position,
            last: (copy.last != position).then_some(copy.last),
            schema_version,
            from: copy.from,
            end: self.copies.next,
            rows: copy.rows,
            changes: 0,
            dead_letters: 0,
        };
        (done, copy.changes_before)
    }
}
