//! Messages to positioned changes. Pure; holds no rows.
//!
//! ```text
//!   Begin ─ Insert ─ Update ─ … ─ Commit        protocol 1: a transaction comes whole, after it committed
//!     │       │1       │2            │
//!     │       └ Position(timeline, commit_lsn, ordinal)
//!     └ commit_lsn is known from the start, so every change can go out at once
//! ```
//!
//! A transaction of any size passes through in constant memory: `Begin` already carries the commit LSN, so
//! each change gets its final position when it arrives, and parts of a transaction may be appended before
//! its end. Why that is safe: the log's checkpoint is the position of the last change appended, mid-transaction
//! if need be, and the server is only told of ends of transactions. After a crash it sends the unfinished
//! transaction again, from its beginning and in the same order, and what lies at or below the checkpoint is
//! [`Event::Seen`]. Ordinals count every change on the wire, before any filter, so they come out the same.

use crate::change::{Lsn, Position, Timeline};

use super::pgoutput::{Message, OldTuple, Relation, Tuple};

/// The transaction being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// LSN of its commit record.
    pub commit_lsn: Lsn,
    /// Commit time in microseconds since 1970.
    pub commit_us: i64,
    /// Transaction id, 32 bits wide.
    pub xid: u32,
}

/// A change with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Positioned<'a> {
    /// Its place among all changes.
    pub position: Position,
    /// What happened.
    pub change: ChangeMessage<'a>,
}

/// The part of a message that is a change.
#[derive(Clone, Debug, PartialEq)]
pub enum ChangeMessage<'a> {
    /// A row was inserted.
    Insert {
        /// The table's OID.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// The table's OID.
        relation: u32,
        /// The old key or row, if sent.
        old: Option<OldTuple<'a>>,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// The table's OID.
        relation: u32,
        /// The old key or row.
        old: OldTuple<'a>,
    },
    /// Tables were truncated.
    Truncate {
        /// The tables' OIDs.
        relations: Vec<u32>,
    },
    /// A logical message of the transaction.
    Logical {
        /// Prefix.
        prefix: &'a str,
        /// Content.
        content: &'a [u8],
    },
}

/// What a message means.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// A transaction begins. `seen`: the log already holds some or all of it.
    Begin {
        /// The transaction.
        transaction: Transaction,
        /// Whether the checkpoint lies within or after it.
        seen: bool,
    },
    /// A change which the log does not hold yet.
    Change(Positioned<'a>),
    /// A change which the log holds already.
    Seen,
    /// The shape of a table.
    Relation(Relation),
    /// The transaction ended: everything up to `end_lsn` has been handed out.
    Commit {
        /// The transaction.
        transaction: Transaction,
        /// Just past its commit record.
        end_lsn: Lsn,
        /// Position of its last change; ordinal 0 when it had none.
        last: Position,
    },
    /// Nothing to do: a type, an origin, a message outside of any transaction.
    Nothing,
}

/// The stream contradicts itself: a protocol error, or a fault in this program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A change or commit outside of a transaction.
    #[error("{0} arrived outside of a transaction")]
    Outside(&'static str),
    /// A transaction within a transaction.
    #[error("transaction {inner} began before transaction {outer} had ended")]
    Nested {
        /// Commit LSN of the transaction that is open.
        outer: Lsn,
        /// Commit LSN of the one that began.
        inner: Lsn,
    },
    /// The commit is not that of the transaction which began.
    #[error("transaction {begun} ended with the commit of {ended}")]
    Mismatch {
        /// Commit LSN announced at its beginning.
        begun: Lsn,
        /// Commit LSN at its end.
        ended: Lsn,
    },
    /// Commit LSNs went back.
    #[error("transaction {next} came after transaction {last}: commit LSNs must only grow")]
    Backwards {
        /// Commit LSN of the transaction before.
        last: Lsn,
        /// Commit LSN of this one.
        next: Lsn,
    },
}

/// Gives changes their positions and tells the new from the seen.
#[derive(Debug)]
pub struct Assembler {
    timeline: Timeline,
    checkpoint: Position,
    open: Option<(Transaction, u64)>,
    last_commit: Lsn,
}

impl Assembler {
    /// Starts on a timeline; changes at or below `checkpoint` are seen.
    pub const fn new(timeline: Timeline, checkpoint: Position) -> Self {
        Self { timeline, checkpoint, open: None, last_commit: Lsn::ZERO }
    }

    /// Whether a transaction is open.
    pub const fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Where the next change of the open transaction will stand; none outside of one, or if it is known already.
    pub fn next_position(&self) -> Option<Position> {
        let (transaction, ordinal) = self.open.as_ref()?;
        let next =
            Position { timeline: self.timeline, commit_lsn: transaction.commit_lsn, ordinal: ordinal + 1 };
        (next > self.checkpoint).then_some(next)
    }

    /// Takes the next message of the stream.
    pub fn accept<'a>(&mut self, message: Message<'a>) -> Result<Event<'a>, AssembleError> {
        match message {
            Message::Begin { commit_lsn, commit_us, xid } => {
                self.begin(Transaction { commit_lsn, commit_us, xid })
            }
            Message::Commit { commit_lsn, end_lsn, .. } => self.commit(commit_lsn, end_lsn),
            Message::Relation(relation) => Ok(Event::Relation(relation)),
            Message::Insert { relation, new } => {
                self.change("an insert", ChangeMessage::Insert { relation, new })
            }
            Message::Update { relation, old, new } => {
                self.change("an update", ChangeMessage::Update { relation, old, new })
            }
            Message::Delete { relation, old } => {
                self.change("a delete", ChangeMessage::Delete { relation, old })
            }
            Message::Truncate { relations, .. } => {
                self.change("a truncate", ChangeMessage::Truncate { relations })
            }
            Message::Logical { transactional: true, prefix, content, .. } => {
                self.change("a transactional message", ChangeMessage::Logical { prefix, content })
            }
            // Outside of transactions it has no place in their order; nothing of ours is sent so.
            Message::Logical { transactional: false, .. } | Message::Origin { .. } | Message::Type { .. } => {
                Ok(Event::Nothing)
            }
        }
    }

    fn begin(&mut self, transaction: Transaction) -> Result<Event<'static>, AssembleError> {
        if let Some((outer, _)) = &self.open {
            return Err(AssembleError::Nested { outer: outer.commit_lsn, inner: transaction.commit_lsn });
        }
        if transaction.commit_lsn <= self.last_commit {
            return Err(AssembleError::Backwards { last: self.last_commit, next: transaction.commit_lsn });
        }
        self.open = Some((transaction, 0));
        let first = Position { timeline: self.timeline, commit_lsn: transaction.commit_lsn, ordinal: 0 };
        Ok(Event::Begin { transaction, seen: first < self.checkpoint })
    }

    fn change<'a>(
        &mut self,
        what: &'static str,
        change: ChangeMessage<'a>,
    ) -> Result<Event<'a>, AssembleError> {
        let (transaction, ordinal) = self.open.as_mut().ok_or(AssembleError::Outside(what))?;
        *ordinal += 1;
        let position =
            Position { timeline: self.timeline, commit_lsn: transaction.commit_lsn, ordinal: *ordinal };
        if position <= self.checkpoint {
            return Ok(Event::Seen);
        }
        Ok(Event::Change(Positioned { position, change }))
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<Event<'static>, AssembleError> {
        let (transaction, ordinal) = self.open.take().ok_or(AssembleError::Outside("a commit"))?;
        if transaction.commit_lsn != commit_lsn {
            return Err(AssembleError::Mismatch { begun: transaction.commit_lsn, ended: commit_lsn });
        }
        self.last_commit = commit_lsn;
        let last = Position { timeline: self.timeline, commit_lsn, ordinal };
        Ok(Event::Commit { transaction, end_lsn, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(lsn: u64) -> Message<'static> {
        Message::Begin { commit_lsn: Lsn(lsn), commit_us: 0, xid: 1 }
    }

    fn commit(lsn: u64) -> Message<'static> {
        Message::Commit { commit_lsn: Lsn(lsn), end_lsn: Lsn(lsn + 8), commit_us: 0 }
    }

    fn change() -> Message<'static> {
        Message::Truncate { cascade: false, restart_identity: false, relations: vec![] }
    }

    fn at(lsn: u64, ordinal: u64) -> Position {
        Position { timeline: 1, commit_lsn: Lsn(lsn), ordinal }
    }

    #[test]
    fn a_transaction_sent_again_goes_on_after_the_checkpoint() {
        let mut assembler = Assembler::new(1, at(16, 2));
        assert!(matches!(assembler.accept(begin(16)), Ok(Event::Begin { seen: true, .. })));
        assert_eq!(assembler.accept(change()), Ok(Event::Seen));
        assert_eq!(assembler.accept(change()), Ok(Event::Seen));
        let Ok(Event::Change(third)) = assembler.accept(change()) else { panic!("the third change is new") };
        assert_eq!(third.position, at(16, 3));
        assert!(matches!(assembler.accept(commit(16)), Ok(Event::Commit { end_lsn: Lsn(24), .. })));
        assert!(matches!(assembler.accept(begin(32)), Ok(Event::Begin { seen: false, .. })));
    }

    #[test]
    fn interleaved_change_lsns_do_not_matter_only_commits_do() {
        let mut assembler = Assembler::new(1, at(16, 9));
        assert!(matches!(assembler.accept(begin(8)), Ok(Event::Begin { seen: true, .. })));
        assert_eq!(assembler.accept(change()), Ok(Event::Seen));
        assert!(assembler.accept(commit(8)).is_ok());
        assert!(matches!(assembler.accept(begin(24)), Ok(Event::Begin { seen: false, .. })));
        assert!(matches!(assembler.accept(change()), Ok(Event::Change(_))));
    }

    #[test]
    fn contradictions_are_refused() {
        let mut assembler = Assembler::new(1, Position::default());
        assert_eq!(assembler.accept(change()), Err(AssembleError::Outside("a truncate")));
        assert_eq!(assembler.accept(commit(8)), Err(AssembleError::Outside("a commit")));
        assert!(assembler.accept(begin(16)).is_ok());
        assert!(matches!(assembler.accept(begin(24)), Err(AssembleError::Nested { .. })));
        assert!(matches!(assembler.accept(commit(24)), Err(AssembleError::Mismatch { .. })));
        let mut assembler = Assembler::new(1, Position::default());
        assert!(assembler.accept(begin(16)).and(assembler.accept(commit(16))).is_ok());
        assert!(matches!(assembler.accept(begin(8)), Err(AssembleError::Backwards { .. })));
    }
}
