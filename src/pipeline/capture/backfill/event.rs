//! What the readers of a round tell those who write.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::super::publication::Standing;
use super::copying::{Encoded, RowEncoder};
use super::point::Storage;
use super::range::{Key, Range};
use crate::change::{Lsn, TableName, TableSchema, Timeline};
use crate::runtime::Error;

/// A table that a round is to read.
#[derive(Clone, Debug)]
pub struct ToCopy {
    /// Its topic.
    pub topic: Arc<str>,
    /// The table.
    pub name: TableName,
    /// Where an earlier round has left off; none: from the beginning.
    pub resume: Option<super::progress::CopyProgress>,
}

/// What a round tells, of each table in this order: `Ready`, any number of `Coming` and `Read`; `Gone` or `Failed` at any
/// time ends it for the round.
#[derive(Debug)]
pub enum CopyEvent {
    /// The consistent point is taken once the stream has passed this place, and this was answered; before everything else.
    Near {
        /// The place.
        pass: Lsn,
        /// The answer.
        go: oneshot::Sender<()>,
    },
    /// The consistent point is taken; before everything else but that.
    Point {
        /// Transactions whose commit record begins here or later are not in the round's rows.
        lsn: Lsn,
        /// Its timeline.
        timeline: Timeline,
    },
    /// A table is locked, and its rows follow once it is answered.
    Ready(Box<Ready>),
    /// Some rows of a table come next.
    Coming(Arc<str>, oneshot::Receiver<Box<Encoded>>),
    /// They have come.
    Rows(Arc<str>, Box<Encoded>),
    /// All rows of a piece were told, and this is left of the table.
    Read(Arc<str>, Vec<Range>),
    /// A piece was not read before its snapshot was too old.
    Late(Arc<str>),
    /// There is no such table in the publication any more.
    Gone(Arc<str>),
    /// The table goes on in a later round.
    Failed(Arc<str>, Error),
    /// The round is over; an error ended it.
    End(Option<Error>),
}

/// A table about to be read. It keeps this shape until the last row of the round was read.
#[derive(Debug)]
pub struct Ready {
    /// Its topic.
    pub topic: Arc<str>,
    /// The consistent point.
    pub lsn: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
    /// The server's time at the point, microseconds since 1970.
    pub commit_us: i64,
    /// The table's shape; rows come in the order of its columns.
    pub schema: TableSchema,
    /// What the table is.
    pub standing: Standing,
    /// The files with its rows.
    pub storage: Storage,
    /// Which rows are wanted.
    pub condition: Option<String>,
    /// Names of the columns by which rows are told apart.
    pub key: Vec<String>,
    /// Whether the copy begins with this round: nothing that was read before counts.
    pub begins: bool,
    /// What is to be read.
    pub left: Vec<Range>,
    /// Once the stream has passed it, everything that was described by it is older than the lock.
    pub pass: Lsn,
    /// How many rows the server expects in the table; zero when it does not know.
    pub rows_estimated: u64,
    /// Lets the rows come; dropped, the table is left to a later round.
    pub go: oneshot::Sender<Go>,
}

/// How rows are to come.
#[derive(Debug)]
pub struct Go {
    /// Those with these keys first.
    pub keys: Vec<Key>,
    /// By it.
    pub encoder: RowEncoder,
}

/// Rows of a COPY, one after the other.
#[derive(Debug, Default)]
pub struct Rows {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Rows {
    /// Adds one.
    pub fn push(&mut self, row: &[u8]) {
        self.bytes.extend_from_slice(row);
        self.ends.push(self.bytes.len());
    }

    /// Forgets them, and keeps up to `keep_bytes` of their buffer.
    pub fn clear(&mut self, keep_bytes: usize) {
        if self.bytes.capacity() > keep_bytes {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.ends.clear();
    }

    /// Bytes of all.
    pub const fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// How many.
    pub const fn len(&self) -> usize {
        self.ends.len()
    }

    /// Each row.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }
}
