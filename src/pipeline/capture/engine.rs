//! From messages to records, without waiting for anything: the hot path.
//!
//! ```text
//!   pgoutput bytes ─decode─> Message ─assemble─> position + change ─encode─> frames in the appender's batch
//!        borrowed              borrowed              borrowed                  copied once
//!      │                 ^
//!      └─ of a transaction in progress: the spool ─ its commit ─> replayed in the same way
//! ```
//!
//! Whatever has to wait (the catalog, a cut, the spool's disk) is handed back as a [`Step`], and the session does it between two
//! messages.

use std::collections::HashMap;
use std::sync::Arc;

use crate::change::{Lsn, Op, Position, SchemaChange, TableSchema, Value};
use crate::envelope::{EncodeError, OldKind, OldRow, RowChange, TableEncoder};
use crate::log::TopicRecords;
use crate::postgres::assemble::{Assembler, ChangeMessage, Event, Positioned, Transaction};
use crate::postgres::ddl;
use crate::postgres::pgoutput::{self, Message, OldTuple, Relation};
use crate::postgres::spool::{Replay, Replayed, Spool, Taken};
use crate::runtime::{Error, Result};

use super::appender::{Appender, Progress};
use super::cutter::{Cutter, Due, MARKER_PREFIX, Marker};
use super::dead_letter;
use super::gap::Expected;
use super::publication::{Descriptions, Streamed};
use super::state::Witness;
use super::tables::{Table, Tables};
use super::transactions::Transactions;

/// What has to be done before the next message.
#[derive(Debug)]
pub enum Step {
    /// Nothing.
    Next,
    /// Look the table up in the catalog, have it adopted, and [`Engine::resume`]: a change of it waits.
    Describe(Relation),
    /// Apply what the event trigger has told.
    Ddl {
        /// The message's content.
        content: Vec<u8>,
        /// Where it stands: to be passed once it is applied, and not before.
        position: Position,
    },
    /// Cut here: all transactions with a commit record below `lsn` are in. Ask again afterwards.
    Cut {
        /// The day and its instant.
        due: Due,
        /// The place.
        lsn: Lsn,
        /// `midnight` or `request`.
        reason: &'static str,
    },
    /// [`Engine::flush`].
    Flush,
    /// The transaction that is replayed has to be read on: [`Engine::fill`].
    Fill,
    /// Take the stream up again without transactions in progress, for this reason.
    StreamWhole(String),
    /// The source does not have a transaction of the log.
    SetBack(Expected),
}

/// Turns the stream into records.
#[derive(Debug)]
pub struct Engine {
    /// Tables.
    pub tables: Tables,
    /// Where records go.
    pub appender: Appender,
    /// When to cut.
    pub cutter: Cutter,
    /// Numbers records within transactions, if that is wanted.
    pub transactions: Option<Transactions>,
    assembler: Assembler,
    spool: Spool,
    /// The transaction of the spool that has committed, while it is read.
    replay: Option<Box<Replay>>,
    /// A slot with `two_phase` sends again what it has not confirmed, from before a transaction that is prepared: up to
    /// here nobody knows whether there is one, and nothing can be told to the server.
    held_until: Option<Lsn>,
    slot: String,
    dead_letters: Arc<str>,
    /// Tables that the server has described and that no change was of. Of a partition that is published as its root the
    /// server describes both, and only the root is ever changed.
    announced: HashMap<u32, Relation>,
    /// Leaves among them.
    leaves: Descriptions,
    /// The first change of a table which has to be described before it.
    waiting: Option<(Vec<u8>, Lsn)>,
    /// No day is cut below it: there are tables which are not whole yet.
    whole_from: Lsn,
    progress: Progress,
    transaction: Option<Transaction>,
    /// The end of the last transaction that came to its end, where known.
    pub last_end_lsn: Option<Lsn>,
    /// The transaction that the position lies in.
    pub witness: Option<Witness>,
    /// What the server has to send first. Until it has, nothing may be confirmed to it.
    pub expected: Option<Expected>,
    marker: Option<Marker>,
    /// The transaction with the marker of the cut that is being made.
    passing: Option<Ended>,
    /// The table that was described or changed last.
    last_table: Option<u32>,
    now_ms: i64,
    old: Vec<Value<'static>>,
    new: Vec<Value<'static>>,
}

/// A transaction that ended.
#[derive(Clone, Copy, Debug)]
struct Ended {
    transaction: Transaction,
    /// LSN of the message.
    lsn: Lsn,
    /// Just past the commit record.
    end_lsn: Lsn,
    /// Position of the last change on the wire.
    last: Position,
}

impl Engine {
    /// Goes on after what the appender holds as durable.
    pub fn new(
        tables: Tables,
        appender: Appender,
        cutter: Cutter,
        assembler: Assembler,
        spool: Spool,
        slot: String,
        dead_letters: Arc<str>,
    ) -> Self {
        let progress = appender.durable();
        let whole_from = tables.whole_from(progress.position.timeline);
        Self {
            tables,
            appender,
            cutter,
            transactions: None,
            assembler,
            spool,
            replay: None,
            held_until: progress.held.then_some(progress.flush_lsn),
            slot,
            dead_letters,
            announced: HashMap::new(),
            leaves: Descriptions::default(),
            waiting: None,
            whole_from,
            progress,
            transaction: None,
            last_end_lsn: None,
            witness: None,
            expected: None,
            marker: None,
            passing: None,
            last_table: None,
            now_ms: 0,
            old: Vec::new(),
            new: Vec::new(),
        }
    }

    /// What will be true once everything handed to the appender is durable.
    pub fn progress(&self) -> Progress {
        let replays = self.replay.as_ref().is_some_and(|replay| replay.prepared);
        let held = self.held_until.is_some() || replays || self.spool.holds_prepared();
        Progress { held, ..self.progress }
    }

    /// Where the open transaction commits; outside of one, what was passed.
    pub fn open_commit_lsn(&self) -> Lsn {
        self.transaction.map_or(self.progress.flush_lsn, |transaction| transaction.commit_lsn)
    }

    /// Whether neither a transaction is open nor a record on its way.
    pub fn is_idle(&self) -> bool {
        !self.in_transaction() && self.appender.is_idle()
    }

    fn in_transaction(&self) -> bool {
        self.assembler.in_transaction() || self.is_replaying()
    }

    fn release_at(&mut self, lsn: Lsn) {
        self.held_until.take_if(|until| lsn >= *until);
    }

    /// Sets the time which envelopes carry as theirs, milliseconds since 1970. Once per read is often enough.
    pub const fn set_now(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
    }

    /// Between two transactions everything below `wal_end` has been handed to the appender, or is of a transaction that
    /// commits beyond it, and is durable before this progress is: an idle database keeps no WAL, also while rows of a
    /// copy are always on their way.
    pub fn keepalive(&mut self, wal_end: Lsn) -> Step {
        if self.in_transaction() {
            return Step::Next;
        }
        if let Some(expected) = self.expected.filter(|expected| wal_end > expected.witness.commit_lsn) {
            return Step::SetBack(expected);
        }
        self.release_at(wal_end);
        if wal_end > self.progress.flush_lsn {
            self.progress.flush_lsn = wal_end;
        }
        Step::Next
    }

    /// Whether a transaction that begins shows that the source was set back.
    fn contradicts(&mut self, transaction: Transaction) -> Option<Expected> {
        let passed = |expected: &mut Expected| transaction.commit_lsn >= expected.witness.commit_lsn;
        self.expected.take_if(passed).filter(|expected| expected.witness != transaction.into())
    }

    /// Takes one pgoutput message; `lsn` is its own.
    pub fn accept(&mut self, bytes: &[u8], lsn: Lsn) -> Result<Step> {
        match self.spool.take(bytes, lsn).map_err(|error| protocol_error(lsn, error))? {
            Taken::Now => self.bytes(bytes, lsn),
            Taken::Kept => Ok(Step::Next),
            Taken::Flush => Ok(Step::Flush),
            Taken::Committed(replay) => {
                self.replay = Some(replay);
                Ok(Step::Next)
            }
            Taken::Refused(reason) => Ok(Step::StreamWhole(reason)),
        }
    }

    /// Whether a transaction of the spool is being read: [`Engine::replay`] has to come before the next message.
    pub const fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// Takes the next message of the transaction that is replayed.
    pub fn replay(&mut self) -> Result<Step> {
        let Some(mut replay) = self.replay.take() else { return Ok(Step::Next) };
        let step = match replay.next(&mut self.spool) {
            Replayed::Fill => Step::Fill,
            Replayed::Boundary(message, lsn) => self.message(message, lsn)?,
            Replayed::Message(bytes, lsn) => self.bytes(bytes, lsn)?,
            Replayed::Done => return Ok(Step::Next),
        };
        self.replay = Some(replay);
        Ok(step)
    }

    /// Writes what the spool holds in memory. Not cancel-safe. Fails with a reason to stream whole transactions.
    pub async fn flush(&mut self) -> std::result::Result<(), String> {
        self.spool.flush().await
    }

    /// Reads on in the transaction that is replayed. Not cancel-safe. Fails in the same way.
    pub async fn fill(&mut self) -> std::result::Result<(), String> {
        match &mut self.replay {
            Some(replay) => replay.fill().await,
            None => Ok(()),
        }
    }

    /// Bytes of transactions in progress that are kept.
    pub fn spooled_bytes(&self) -> u64 {
        self.spool.bytes()
    }

    /// Takes the change that waited for its table to be described.
    pub fn resume(&mut self) -> Result<Step> {
        match self.waiting.take() {
            Some((bytes, lsn)) => self.bytes(&bytes, lsn),
            None => Ok(Step::Next),
        }
    }

    fn bytes(&mut self, bytes: &[u8], lsn: Lsn) -> Result<Step> {
        let message = pgoutput::decode(bytes).map_err(|error| protocol_error(lsn, error))?;
        // What the log has already may be of a shape that the table has no more.
        if !self.announced.is_empty()
            && self.assembler.next_position().is_some()
            && let Some(relation) = message.relations().iter().find_map(|oid| self.announced.remove(oid))
        {
            self.waiting = Some((bytes.to_vec(), lsn));
            return Ok(Step::Describe(relation));
        }
        self.message(message, lsn)
    }

    fn message(&mut self, message: Message<'_>, lsn: Lsn) -> Result<Step> {
        match self.assembler.accept(message).map_err(|error| protocol_error(lsn, error))? {
            Event::Change(Positioned { position, change: ChangeMessage::Logical { prefix, content } })
                if prefix == ddl::PREFIX =>
            {
                return Ok(Step::Ddl { content: content.to_vec(), position });
            }
            Event::Change(change) => {
                self.leaves.changed(&change.change, change.position.commit_lsn);
                self.change(&change, lsn)?;
            }
            Event::Begin { transaction, seen } => {
                if let Some(expected) = self.contradicts(transaction) {
                    return Ok(Step::SetBack(expected));
                }
                self.transaction = Some(transaction);
                if let Some(transactions) = &mut self.transactions {
                    transactions.begin(transaction, lsn, seen, &self.tables);
                }
                if !seen {
                    return Ok(self.cut_before());
                }
            }
            Event::Commit { transaction, end_lsn, last } => {
                return Ok(self.commit(Ended { transaction, lsn, end_lsn, last }));
            }
            Event::Relation(relation) => {
                self.last_table = Some(relation.oid);
                self.leaves.described(relation.oid);
                if self.tables.knows(&relation) {
                    self.announced.remove(&relation.oid);
                } else {
                    self.announced.insert(relation.oid, relation);
                }
            }
            Event::Seen => self.leaves.passed(),
            Event::Nothing => {}
        }
        Ok(Step::Next)
    }

    /// Leaves of which rows are in the batch, or come next.
    pub fn streamed(&mut self) -> Vec<Streamed> {
        self.leaves.take()
    }

    /// What stands there is in the batch: with the next append it need not come again.
    pub fn applied(&mut self, position: Position) {
        self.progress.position = position;
        if let Some(transaction) = self.transaction {
            self.witness = Some(transaction.into());
        }
    }

    /// The open transaction.
    pub const fn transaction(&self) -> Option<Transaction> {
        self.transaction
    }

    /// The name of the table that was described or changed last.
    pub fn last_table(&self) -> Option<String> {
        let oid = self.last_table?;
        if let Some(Relation { schema, table, .. }) = self.announced.get(&oid) {
            return Some(format!("{schema}.{table}"));
        }
        self.tables.name_of(oid)
    }

    /// The id of the open transaction.
    pub fn xid(&self) -> Option<u32> {
        self.transaction.map(|transaction| transaction.xid)
    }

    /// The cut that is due before the open transaction, if there is one.
    pub fn cut_before(&self) -> Step {
        let Some(transaction) = self.transaction.filter(|t| t.commit_lsn >= self.whole_from) else {
            return Step::Next;
        };
        match self.cutter.due_before(transaction.commit_us) {
            Some(due) => Step::Cut { due, lsn: transaction.commit_lsn, reason: "midnight" },
            None => Step::Next,
        }
    }

    fn commit(&mut self, ended: Ended) -> Step {
        let Ended { transaction, end_lsn, .. } = ended;
        self.transaction = None;
        self.last_end_lsn = Some(end_lsn);
        let marker = self.marker.take().filter(|_| transaction.commit_lsn >= self.whole_from);
        if let Some(due) = marker.and_then(|marker| self.cutter.due_after(&marker, transaction.commit_us)) {
            self.passing = Some(ended);
            return Step::Cut { due, lsn: end_lsn, reason: "request" };
        }
        self.pass(ended);
        Step::Next
    }

    /// Passes the transaction with the marker of the cut that is being made, if it is one.
    pub fn pass_marker(&mut self) {
        if let Some(ended) = self.passing.take() {
            self.pass(ended);
        }
    }

    fn pass(&mut self, Ended { transaction, lsn, end_lsn, last }: Ended) {
        // A server that crashed sends again what lies below; progress only goes forward.
        let is_new = end_lsn > self.progress.flush_lsn;
        self.release_at(end_lsn);
        if is_new {
            self.progress.flush_lsn = end_lsn;
            self.progress.commit_us = transaction.commit_us;
        }
        match &mut self.transactions {
            Some(transactions) if is_new => transactions.end(lsn, last, &self.tables, &mut self.appender),
            Some(transactions) => transactions.pass(),
            None => {}
        }
    }

    /// A table that was dropped and made again under its name holds nothing of the former one: its topic says so
    /// with a truncate, at the place of the change that comes next.
    pub fn begin_anew(&mut self, change: &SchemaChange) {
        let another = |before: &TableSchema| before.oid != change.after.oid || before.dropped;
        let recreated = !change.after.dropped && change.before.as_ref().is_some_and(another);
        let (Some(transaction), Some(position)) = (self.transaction, self.assembler.next_position()) else {
            return;
        };
        let Some(table) = self.tables.by_name(&change.after.name).filter(|_| recreated) else { return };
        tracing::warn!(table = %change.after.name, "the table was dropped and made again: what it held before is gone");
        let row = RowChange {
            op: Op::Truncate,
            position,
            lsn: position.commit_lsn,
            commit_us: transaction.commit_us,
            now_ms: self.now_ms,
            xid: Some(transaction.xid),
            snapshot: false,
            last_end_lsn: self.last_end_lsn,
            transaction: None,
            old: None,
            new: None,
        };
        encode(table, &row, &mut self.appender, &self.dead_letters);
    }

    fn change(&mut self, change: &Positioned<'_>, lsn: Lsn) -> Result<()> {
        let position = change.position;
        match &change.change {
            ChangeMessage::Insert { relation, new } => {
                self.row(*relation, Op::Create, position, lsn, None, Some(new))
            }
            ChangeMessage::Update { relation, old, new } => {
                self.row(*relation, Op::Update, position, lsn, old.as_ref(), Some(new))
            }
            ChangeMessage::Delete { relation, old } => {
                self.row(*relation, Op::Delete, position, lsn, Some(old), None)
            }
            ChangeMessage::Truncate { relations } => relations
                .iter()
                .try_for_each(|relation| self.row(*relation, Op::Truncate, position, lsn, None, None)),
            ChangeMessage::Logical { prefix, content } => {
                self.logical(prefix, content);
                Ok(())
            }
        }
    }

    fn row(
        &mut self,
        relation: u32,
        op: Op,
        position: Position,
        lsn: Lsn,
        old: Option<&OldTuple<'_>>,
        new: Option<&pgoutput::Tuple<'_>>,
    ) -> Result<()> {
        let transaction = self.transaction.unwrap_or(Transaction { commit_lsn: lsn, commit_us: 0, xid: 0 });
        self.last_table = Some(relation);
        let Some(table) = self.tables.by_oid(relation) else {
            return Err(protocol_error(
                lsn,
                format!("a change of relation {relation}, which was never described"),
            ));
        };
        let Some(table) = table.filter(|table| position > table.since) else { return Ok(()) };
        if op == Op::Truncate {
            table.truncated_by(transaction.xid);
        }
        let mut old_values = recycle(std::mem::take(&mut self.old));
        let mut new_values = recycle(std::mem::take(&mut self.new));
        let old_kind = old.map(|old| {
            let (kind, tuple) = match old {
                OldTuple::Key(tuple) => (OldKind::Key, tuple),
                OldTuple::Full(tuple) => (OldKind::Full, tuple),
            };
            old_values.extend(tuple.values());
            kind
        });
        if let Some(new) = new {
            new_values.extend(new.values());
        }
        let row = RowChange {
            op,
            position,
            lsn,
            commit_us: transaction.commit_us,
            now_ms: self.now_ms,
            xid: Some(transaction.xid),
            snapshot: false,
            last_end_lsn: self.last_end_lsn,
            transaction: match &mut self.transactions {
                Some(transactions) => transactions.next(table, position, &mut self.appender),
                None => None,
            },
            old: old_kind.map(|kind| OldRow { kind, values: &old_values }),
            new: new.is_some().then_some(&new_values[..]),
        };
        table.note_move(&row);
        table.note_partial(&row);
        let records = encode(table, &row, &mut self.appender, &self.dead_letters);
        if let Some(transactions) = &mut self.transactions {
            transactions.counted(table, records);
        }
        self.old = recycle(old_values);
        self.new = recycle(new_values);
        self.applied(position);
        Ok(())
    }

    fn logical(&mut self, prefix: &str, content: &[u8]) {
        if prefix != MARKER_PREFIX {
            return;
        }
        match serde_json::from_slice::<Marker>(content) {
            Ok(marker) if marker.slot == self.slot => self.marker = Some(marker),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a logical message with the prefix {MARKER_PREFIX} is not ours: left alone");
            }
        }
    }
}

/// Encodes a change into the appender's batch, and gives the number of records with a value; one which cannot be
/// encoded becomes a dead letter.
pub(super) fn encode(
    table: &mut Table,
    row: &RowChange<'_>,
    appender: &mut Appender,
    dead_letters: &Arc<str>,
) -> u32 {
    let topic = Arc::clone(&table.topic);
    let (encoder, schema) = table.encoder();
    let bytes_max = appender.log().record_bytes_max(&topic);
    let encoded = encode_fitting(encoder, row, appender.batch.topic(&topic), bytes_max);
    appender.added();
    match encoded {
        Ok(records) => {
            table.counted(records, row.position, row.commit_us);
            records
        }
        Err(error) => {
            let bytes_max = appender.log().record_bytes_max(dead_letters);
            dead_letter::bury(appender.batch.topic(dead_letters), schema, row, &error, bytes_max);
            table.dead_lettered(1);
            0
        }
    }
}

/// Appends the records of a change and gives their number; none of them may have more than `bytes_max` bytes. On an error
/// `records` are as they were.
pub(super) fn encode_fitting(
    encoder: &mut TableEncoder,
    row: &RowChange<'_>,
    records: &mut TopicRecords,
    bytes_max: Option<usize>,
) -> Result<u32, EncodeError> {
    let mark = records.mark();
    let count = encoder.encode(row, records)?;
    let bytes_max = bytes_max.unwrap_or(usize::MAX);
    let Some(bytes) = records.too_large_since(mark, bytes_max) else { return Ok(count) };
    records.rewind(mark);
    Err(EncodeError::TooLarge { bytes, bytes_max })
}

/// An empty vector of another lifetime in the same buffer, so that a row costs no allocation.
pub(super) fn recycle<'b>(mut values: Vec<Value<'_>>) -> Vec<Value<'b>> {
    values.clear();
    // Collecting a vector's own iterator happens in place.
    values.into_iter().map(|_| Value::Null).collect()
}

fn protocol_error(lsn: Lsn, error: impl std::fmt::Display) -> Error {
    Error::operator(format!("the stream at {lsn} cannot be understood: {error}")).mend(
        "Nothing was acknowledged past it. Report it with the server's version; restarting reads it again.",
    )
}
