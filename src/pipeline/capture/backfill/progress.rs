//! How far the copy of a table has come: what stands in the log's state with every append of its rows.

use serde::{Deserialize, Serialize};

use super::super::publication::Standing;
use super::point::Storage;
use super::range::{Key, Range};
use crate::change::{LogEnd, Lsn, Position, SchemaVersion};

/// So many rows that moved are remembered: beyond, a copy that needs them begins anew.
const MOVED_MAX: usize = 1000;

/// A copy that is not whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Ends of the log partitions before its first row, and before its first point was taken.
    pub from: Vec<LogEnd>,
    /// Where it began; none before its first rows may be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<Began>,
    /// Just below the rows of the last round, if that was not the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Position>,
    /// How often a piece was not read before its snapshot was too old.
    #[serde(default)]
    pub late: u32,
    /// What was not read yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<Range>,
    /// Rows that may have gone past the copy.
    #[serde(default)]
    pub moved: Moved,
    /// Rows read; also the ordinal of the last one.
    #[serde(default)]
    pub read: u64,
    /// Their bytes, as they were read.
    #[serde(default)]
    pub bytes: u64,
    /// Records that became of them.
    #[serde(default)]
    pub rows: u64,
    /// Records with a value of the table's own topic since `from`.
    #[serde(default)]
    pub changes: u64,
    /// Rows, and changes since `from`, that could not be encoded.
    #[serde(default)]
    pub dead_letters: u64,
}

/// What a table was at the first point of its copy: later rounds go on only while it still is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Began {
    /// Just below the rows of the first round.
    pub position: Position,
    /// The table's shape when that was read.
    pub schema_version: SchemaVersion,
    /// What it stood for in the publication.
    pub standing: Standing,
    /// The files with its rows.
    pub storage: Storage,
    /// Which of its rows are wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Names of the key's columns; none: rows are told apart by nothing.
    pub key: Vec<String>,
}

/// Keys that rows came to while they left values alone which the server did not send: see the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<(Lsn, Key)>,
    /// Commit of the last one that was not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<Lsn>,
}

impl Moved {
    /// Notes one.
    pub fn note(&mut self, commit_lsn: Lsn, key: Key) {
        if self.keys.len() < MOVED_MAX {
            self.keys.push((commit_lsn, key));
        } else {
            self.lose(commit_lsn);
        }
    }

    /// There is one that cannot be kept.
    pub fn lose(&mut self, commit_lsn: Lsn) {
        self.lost = self.lost.max(Some(commit_lsn));
    }

    /// Takes in those that were noted since.
    pub fn add(&mut self, since: Self) {
        since.keys.into_iter().for_each(|(lsn, key)| self.note(lsn, key));
        self.lost = self.lost.max(since.lost);
    }

    /// Whether some were not kept.
    pub const fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Forgets those below a point: the copy begins there.
    pub fn begin_at(&mut self, point: Lsn) {
        self.keys.retain(|(lsn, _)| *lsn >= point);
        self.lost = self.lost.filter(|lsn| *lsn >= point);
    }

    /// Takes those below a point, to be read there; a later one may have moved again what this round does not read.
    /// None: some were not kept.
    pub fn take(&mut self, point: Lsn) -> Option<Vec<Key>> {
        if self.lost.is_some_and(|lost| lost < point) {
            return None;
        }
        let below = self.keys.extract_if(.., |(lsn, _)| *lsn < point);
        let mut keys: Vec<Key> = below.map(|(_, key)| key).collect();
        keys.sort();
        keys.dedup();
        Some(keys)
    }
}

impl CopyProgress {
    /// Nothing was read yet, and the log ends there.
    pub fn new(from: Vec<LogEnd>) -> Self {
        Self { from, ..Self::default() }
    }

    /// The first consistent point, once it is taken.
    pub fn point(&self) -> Option<Lsn> {
        self.began.as_ref().map(|began| Lsn(began.position.commit_lsn.0 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_moved_are_kept_up_to_a_bound_and_forgotten_below_a_new_beginning() {
        let mut moved = Moved::default();
        for n in 0..=MOVED_MAX as u64 {
            moved.note(Lsn(n), vec![(n % 10).to_string()]);
        }
        assert!(moved.is_lost());
        let mut anew = moved.clone();
        anew.begin_at(Lsn(MOVED_MAX as u64));
        assert!(anew.is_lost(), "what was lost counts from its commit on");
        assert_eq!(anew.take(Lsn(MOVED_MAX as u64)), Some(vec![]));
        assert_eq!(anew.take(Lsn(MOVED_MAX as u64 + 1)), None);
        anew.begin_at(Lsn(MOVED_MAX as u64 + 1));
        assert_eq!(anew, Moved::default());
        let mut few = Moved::default();
        (0..100).for_each(|n| few.note(Lsn(n), vec![(n % 10).to_string()]));
        assert_eq!(few.take(Lsn(50)).map(|keys| keys.len()), Some(10), "each key once");
        assert_eq!(few.take(Lsn(50)), Some(vec![]));
        assert_eq!(few.take(Lsn(55)).map(|keys| keys.len()), Some(5), "those beyond stayed");
    }
}
