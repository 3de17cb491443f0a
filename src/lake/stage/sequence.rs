//! Who writes which offsets of a log partition: one sequence of ranges, whoever stages, however many at once.
//!
//! ```text
//!   changes/<name>/_sequence/<schema>.<table>/<log partition>-<first>.json    {"next": …, "ds": …, "hour": …}
//!        0 ──> 120 ──> 251 ── (lost) ──> 300 ──> …      each link is created once, before its change file is put
//! ```
//!
//! Where a change file ends follows from size and memory as well as from the records, so two processes that both believe
//! to own a table (one paused beyond its lease) would divide the same offsets differently, and a reader of the folder
//! would see rows twice. Hence the link, a conditional create under the range's first offset alone:
//!
//! - **One sequence.** Every writer starts at the same place (the end of a published cut, or the first offset), and goes on
//!   only where a link ends. Links are never changed. By induction all writers, in all their lives, write ranges of one and
//!   the same sequence: no offset is in two files.
//! - **One content.** A link says range, day and hour; the rest of a change file follows from its records. Whoever finds a
//!   link without its file makes that file and no other, so that the one who made the link, should it wake up and put the
//!   file, finds its own bytes.
//! - **The log** is let go of up to where a writer's own files and pieces reach. Files are of the one sequence. A piece
//!   ([`super::pieces`]) is of none yet, and may be all that there is of its records: so whoever finds the log to begin behind
//!   what it has looks for pieces first, all of which were there before the log let go, and claims nothing across a hole.
//! - **What is lost** (the log's retention was faster) is a link as well: where staging goes on behind it is decided once,
//!   and told to whoever takes over. A link to a file which can no longer be made is lost as a whole.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::layout::{ChangeRange, Layout};
use super::super::store::{Put, Store};
use crate::change::{Ds, TableName};
use crate::runtime::{Error, Result};

/// A range of the sequence: from its first offset, which names it, up to `next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// First offset after the range.
    pub next: u64,
    /// The folder of the change file; none for a range that is lost.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

/// Day and hour of a change file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The day.
    pub ds: Ds,
    /// The hour, UTC.
    pub hour: i8,
}

/// The sequence of a log partition.
#[derive(Clone, Debug)]
pub(in crate::lake) struct Sequence {
    store: Store,
    layout: Layout,
    table: TableName,
    partition: u32,
}

impl Sequence {
    pub(in crate::lake) const fn new(store: Store, layout: Layout, table: TableName, partition: u32) -> Self {
        Self { store, layout, table, partition }
    }

    /// The link at an offset; none while nobody has begun to write there. Cancel-safe.
    pub(in crate::lake) async fn link(&self, first: u64) -> Result<Option<Link>> {
        let path = self.layout.link(&self.table, self.partition, first);
        let Some(bytes) = self.store.get(&path).await? else { return Ok(None) };
        let link: Option<Link> = serde_json::from_slice(&bytes).ok().filter(|link: &Link| link.next > first);
        link.map(Some).ok_or_else(|| {
            Error::operator(format!("{} is no link of change files that this version reads", self.store.show(&path)))
                .mend("Was it written by a newer tidemark, or damaged? Bring it back; it says where a change file ends.")
        })
    }

    /// Makes the link at an offset. `false`: there is another one. Cancel-safe: it is made or not.
    pub(in crate::lake) async fn make(&self, first: u64, link: Link) -> Result<bool> {
        let path = self.layout.link(&self.table, self.partition, first);
        let mut bytes = serde_json::to_vec(&link).map_err(|error| {
            Error::operator("a link of change files cannot be written as JSON").cause(error)
        })?;
        bytes.push(b'\n');
        Ok(self.store.put_once(&path, Bytes::from(bytes)).await? != Put::Differs)
    }

    /// Makes the link of a change file, or fails as one who was overtaken.
    pub(super) async fn claim(&self, range: ChangeRange, place: Place) -> Result<()> {
        if self.make(range.first, Link { next: range.next(), place: Some(place) }).await? {
            return Ok(());
        }
        Err(Error::fenced(format!(
            "{} log partition {}: another process stages the changes from offset {} on",
            self.table, self.partition, range.first
        )))
    }
}
