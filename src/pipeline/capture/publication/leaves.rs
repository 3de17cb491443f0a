//! Leaves of partitioned tables of which rows came in the stream, or in a later round of a copy.
//!
//! A partition may come, get rows, and go between two sights, or while the process is away: no sight differs from the one
//! before, and yet the log holds rows which the table does not. The stream itself tells of such a leaf: of a table that is
//! published as the root of its partitions the server describes root and leaf, one right after the other, before the first
//! row of the leaf that a session sends, and again after the leaf was attached anew (`maybe_send_schema` and
//! `rel_sync_cache_relation_cb` in `src/backend/replication/pgoutput/pgoutput.c`).
//!
//! Why that is enough: a leaf that the [`Standing`](super::Standing) of its table has is looked after by that. Any other
//! is noted, in the append with its first row or an earlier one, with the commit of that row. It has gone with its rows if
//! a sight which saw everything below that commit does not have it; else it is in the next standing. A copy whose point
//! lies above the commit has no row of a leaf that was gone by then; one that came again was described again. A copy of
//! several rounds stands for what its first one saw, so leaves that a later one reads are noted with its point.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::change::Lsn;
use crate::postgres::assemble::ChangeMessage;
use crate::postgres::published::Published;

/// Leaves by OID, with the commit of a row.
pub type Commits = BTreeMap<u32, Lsn>;

/// A row came from this leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streamed {
    /// The root's OID.
    pub root: u32,
    /// Its own.
    pub leaf: u32,
    /// Commit of the transaction.
    pub commit_lsn: Lsn,
}

/// Reads leaves off the descriptions in the stream.
#[derive(Debug, Default)]
pub struct Descriptions {
    last: Option<u32>,
    pair: Option<(u32, u32)>,
    found: Vec<Streamed>,
}

impl Descriptions {
    /// A table was described.
    pub fn described(&mut self, oid: u32) {
        self.pair = self.last.replace(oid).map(|before| (before, oid));
    }

    /// A change came. One TRUNCATE of several tables is preceded by descriptions of all of them.
    pub fn changed(&mut self, change: &ChangeMessage<'_>, commit_lsn: Lsn) {
        if self.last.take().is_none() {
            return;
        }
        let Some((root, leaf)) = self.pair.take() else { return };
        let of_root = match change {
            ChangeMessage::Insert { relation, .. }
            | ChangeMessage::Update { relation, .. }
            | ChangeMessage::Delete { relation, .. } => *relation == root,
            ChangeMessage::Truncate { .. } | ChangeMessage::Logical { .. } => false,
        };
        if of_root {
            self.found.push(Streamed { root, leaf, commit_lsn });
        }
    }

    /// What was described was of a change that the log holds already, with its leaf.
    pub fn passed(&mut self) {
        (self.last, self.pair) = (None, None);
    }

    /// What was found since the last call.
    pub fn take(&mut self) -> Vec<Streamed> {
        std::mem::take(&mut self.found)
    }
}

/// Leaves that no standing has, by the topic of their root.
#[derive(Debug, Default)]
pub struct Leaves {
    noted: BTreeMap<Arc<str>, Commits>,
    /// The last commit that no sight was compared with.
    unseen: Option<Lsn>,
}

impl Leaves {
    /// Goes on from the state that a fence found.
    pub fn new(noted: BTreeMap<String, Commits>) -> Self {
        let noted: BTreeMap<Arc<str>, Commits> =
            noted.into_iter().map(|(topic, leaves)| (Arc::from(topic), leaves)).collect();
        let unseen = noted.values().flat_map(BTreeMap::values).max().copied();
        Self { noted, unseen }
    }

    /// Notes one; gives all of the table.
    pub fn note(&mut self, topic: &Arc<str>, leaf: u32, commit_lsn: Lsn) -> &Commits {
        self.unseen = self.unseen.max(Some(commit_lsn));
        let leaves = self.noted.entry(Arc::clone(topic)).or_default();
        leaves.insert(leaf, commit_lsn);
        leaves
    }

    /// Whether a sight that saw all below `complete_to` is to be compared although it is no news; asked once.
    pub fn are_due(&mut self, complete_to: Lsn) -> bool {
        self.unseen.take_if(|commit_lsn| *commit_lsn < complete_to).is_some()
    }

    /// One whose rows are in the log, and which the table does not have as it is in a sight of all below `complete_to`.
    pub fn gone(&self, topic: &str, now: &Published, complete_to: Lsn) -> Option<u32> {
        let mut leaves = self.noted.get(topic)?.iter().filter(|_| now.partitioned);
        let is_gone =
            |(leaf, commit_lsn): &(&u32, &Lsn)| **commit_lsn < complete_to && !now.parts.contains_key(leaf);
        leaves.find(is_gone).map(|(leaf, _)| *leaf)
    }

    /// Forgets those of which a row was below `before`: a standing has them, or a copy has what they left. Gives what is
    /// left, if that is news.
    pub fn forget(&mut self, topic: &str, before: Lsn) -> Option<Commits> {
        let leaves = self.noted.get_mut(topic)?;
        let count = leaves.len();
        leaves.retain(|_, commit_lsn| *commit_lsn >= before);
        let left = (leaves.len() < count).then(|| leaves.clone());
        self.noted.retain(|_, leaves| !leaves.is_empty());
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::pgoutput::{Message, decode};

    /// Of a row without columns.
    fn insert(relation: u32) -> ChangeMessage<'static> {
        let Ok(Message::Insert { new, .. }) = decode(b"I\0\0\0\x01N\0\0") else { panic!("an insert") };
        ChangeMessage::Insert { relation, new }
    }

    #[test]
    fn a_leaf_is_what_is_described_after_its_root_and_before_a_row_of_that() {
        let mut stream = Descriptions::default();
        stream.described(1);
        stream.changed(&insert(1), Lsn(10));
        assert_eq!(stream.take(), [], "a table of its own");
        stream.described(1);
        stream.described(11);
        stream.changed(&insert(1), Lsn(20));
        stream.changed(&insert(1), Lsn(20));
        assert_eq!(stream.take(), [Streamed { root: 1, leaf: 11, commit_lsn: Lsn(20) }]);
        stream.described(1);
        stream.described(2);
        stream.changed(&ChangeMessage::Truncate { relations: vec![1, 2] }, Lsn(30));
        stream.described(1);
        stream.described(12);
        stream.passed();
        stream.described(2);
        stream.changed(&insert(2), Lsn(40));
        assert_eq!(stream.take(), []);
    }
}
