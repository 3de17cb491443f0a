//! What capture leaves in the log with every append, and finds there when it starts.
//!
//! Everything that capture knows is a function of this state and of the schemas in the topic `<name>.ddl`.
//! It moves in the same atomic step as the records, so a restart, wherever the process died, goes on exactly
//! after the last record that is there.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::change::{CutBackfill, Ds, Lsn, Position, TableName, Timeline};
use crate::postgres::assemble::Transaction;
use crate::runtime::{Error, Result};

use super::backfill::{Absence, CopyProgress};
use super::publication::{Commits, Standing};

const STREAM: &str = "stream";
const CUT: &str = "cut";
const COUNT: &str = "count/";
const BACKFILL: &str = "backfill/";
const PUBLISHED: &str = "published/";
const LEAVES: &str = "leaves/";

/// Where the stream stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// `pg_control_system().system_identifier` of the source.
    pub system_id: String,
    /// Database of the slot.
    pub database: String,
    /// Slot.
    pub slot: String,
    /// Timeline of `position`.
    pub timeline: Timeline,
    /// The last change in the log.
    pub position: Position,
    /// The end of the last transaction that is wholly in the log: what the server may be told.
    pub flush_lsn: Lsn,
    /// The end of the last transaction before what comes next, where one was seen; envelopes name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end_lsn: Option<Lsn>,
    /// How much the timeline of positions is above the server's, so that they grow: not 0 only after a gap was accepted
    /// that led to lower ones.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lift: Timeline,
    /// A gap was accepted, and no copies were asked for yet: every table needs one, for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
    /// Where the WAL of a source ended that was found to have been set back, until that is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_back: Option<Lsn>,
    /// The transaction that `position` lies in: a server that sends again what lies before it has to send it, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<Witness>,
    /// By which the witness came: see [`Self::streams_by`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publication: Option<String>,
    /// Where the stream went on after the last gap that was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<Position>,
}

/// A transaction, as a server always sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// Where its commit record begins.
    pub commit_lsn: Lsn,
    /// Its id.
    pub xid: u32,
    /// When it committed, microseconds since 1970.
    pub commit_us: i64,
}

impl From<Transaction> for Witness {
    fn from(Transaction { commit_lsn, commit_us, xid }: Transaction) -> Self {
        Self { commit_lsn, xid, commit_us }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_zero(lift: &Timeline) -> bool {
    *lift == 0
}

/// Which days have been cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutState {
    /// The last day with a cut.
    pub last_ds: Option<Ds>,
    /// The day that the next cut ends.
    pub next_ds: Ds,
}

/// Changes of one table since the last cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCount {
    /// Records with a value.
    pub changes: u64,
    /// Changes that could not be encoded.
    pub dead_letters: u64,
    /// Those of the last transaction with one; only where transaction metadata is provided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<TransactionCount>,
}

/// Changes of one table in one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionCount {
    /// The transaction.
    pub commit_lsn: Lsn,
    /// Records with a value.
    pub changes: u64,
}

impl TableCount {
    /// Records with a value in the transaction of that commit.
    pub fn of_transaction(&self, commit_lsn: Lsn) -> u64 {
        let of = self.transaction.filter(|count| count.commit_lsn == commit_lsn);
        of.map_or(0, |count| count.changes)
    }

    /// Counts records of that transaction; whether they are its first ones.
    pub fn add_of_transaction(&mut self, commit_lsn: Lsn, records: u32) -> bool {
        let before = self.of_transaction(commit_lsn);
        self.transaction = Some(TransactionCount { commit_lsn, changes: before + u64::from(records) });
        before == 0
    }
}

/// A later copy of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillState {
    /// The table.
    pub table: TableName,
    /// Asked for, and not whole yet.
    pub wanted: bool,
    /// Somebody holds it up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// How far it has come; none before it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<CopyProgress>,
    /// Whole, and not in a cut yet.
    pub done: Option<CutBackfill>,
    /// Why the days lack the table until a copy is whole; none where somebody merely wanted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacking: Option<String>,
    /// Why there can be no copy now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<Absence>,
}

/// The whole state, as found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureState {
    /// None before the first copy has its point.
    pub stream: Option<StreamState>,
    /// None before the first copy has its point.
    pub cut: Option<CutState>,
    /// By topic.
    pub counts: HashMap<String, TableCount>,
    /// By topic.
    pub backfills: BTreeMap<String, BackfillState>,
    /// By topic: what the table was at the source when its rows were all accounted for.
    pub published: BTreeMap<String, Standing>,
    /// By topic: leaves of which rows came, and which the table was not known to have.
    pub leaves: BTreeMap<String, Commits>,
}

impl CaptureState {
    /// Whether a first copy has begun, and the log holds no row and no change yet.
    pub fn has_no_rows(&self) -> bool {
        let nothing = |count: &TableCount| count.changes == 0 && count.dead_letters == 0;
        let unread = |state: &BackfillState| {
            let read = state.progress.as_ref().map_or(0, |progress| progress.read);
            read == 0 && state.wanted && !state.paused && state.done.is_none() && state.absent.is_none()
        };
        self.cut.as_ref().is_some_and(|cut| cut.last_ds.is_none())
            && self.counts.values().all(nothing)
            && !self.backfills.is_empty()
            && self.backfills.values().all(unread)
    }

    /// Reads the state which a fence found.
    pub fn read(entries: &BTreeMap<String, Vec<u8>>) -> Result<Self> {
        let mut state = Self::default();
        for (key, value) in entries {
            match key.as_str() {
                STREAM => state.stream = Some(parse(key, value)?),
                CUT => state.cut = Some(parse(key, value)?),
                _ => {
                    if let Some(topic) = key.strip_prefix(COUNT) {
                        state.counts.insert(topic.to_owned(), parse(key, value)?);
                    } else if let Some(topic) = key.strip_prefix(BACKFILL) {
                        state.backfills.insert(topic.to_owned(), parse(key, value)?);
                    } else if let Some(topic) = key.strip_prefix(PUBLISHED) {
                        state.published.insert(topic.to_owned(), parse(key, value)?);
                    } else if let Some(topic) = key.strip_prefix(LEAVES) {
                        state.leaves.insert(topic.to_owned(), parse(key, value)?);
                    }
                }
            }
        }
        Ok(state)
    }
}

/// Whether another process, which went on from the same state of the log by the same slot, has come beyond an append that
/// sets such entries: its changes are in the log then. What a process knows beside the stream goes on as if the append had
/// not been made. Where a gap was accepted since, nobody can tell: what only the append has may lie in it.
pub fn has_passed(log: &BTreeMap<String, Vec<u8>>, set: &[(String, Vec<u8>)]) -> bool {
    let stream = |text: &[u8]| serde_json::from_slice::<StreamState>(text).ok();
    let Some((_, set)) = set.iter().find(|(key, _)| key == STREAM) else { return true };
    let (Some(log), Some(kept)) = (log.get(STREAM).and_then(|text| stream(text)), stream(set)) else {
        return false;
    };
    (&log.system_id, &log.database, &log.slot) == (&kept.system_id, &kept.database, &kept.slot)
        && log.position >= kept.position
        && log.flush_lsn >= kept.flush_lsn
        && log.resumed_at == kept.resumed_at
}

fn parse<T: for<'de> Deserialize<'de>>(key: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| {
        Error::operator(format!("the state {key:?} in the log cannot be read"))
            .cause(error)
            .mend("It was written by another version, or the log is damaged: run the version that wrote it.")
    })
}

/// An entry of an append.
fn entry(key: String, value: &impl Serialize) -> (String, Vec<u8>) {
    // These types hold numbers and strings only, which always serialise.
    (key, serde_json::to_vec(value).unwrap_or_default())
}

impl StreamState {
    /// The server's own number of the timeline.
    pub const fn server_timeline(&self) -> Timeline {
        self.timeline - self.lift
    }

    /// Up to where nothing of the stream is new: transactions that end before `flush_lsn` are done, with or without a
    /// change of theirs in the log.
    pub fn passed(&self) -> Position {
        let below = Lsn(self.flush_lsn.0.saturating_sub(1));
        let done = Position { timeline: self.timeline, commit_lsn: below, ordinal: u64::MAX };
        self.position.max(done)
    }

    /// From now on changes come by this publication: what came last by another one need not come by it again, and the
    /// server has no witness then until something has.
    pub fn streams_by(&mut self, publication: &str) {
        if self.publication.as_deref() != Some(publication) {
            self.witness = None;
            self.publication = Some(publication.to_owned());
        }
    }

    /// As an entry of an append.
    pub fn entry(&self) -> (String, Vec<u8>) {
        entry(STREAM.to_owned(), self)
    }
}

impl CutState {
    /// As an entry of an append.
    pub fn entry(&self) -> (String, Vec<u8>) {
        entry(CUT.to_owned(), self)
    }
}

impl TableCount {
    /// As an entry of an append; zero removes it.
    pub fn entry(&self, topic: &str) -> (String, Vec<u8>) {
        let key = format!("{COUNT}{topic}");
        if *self == Self::default() { (key, Vec::new()) } else { entry(key, self) }
    }
}

impl BackfillState {
    /// Nothing is wanted.
    pub const fn new(table: TableName) -> Self {
        Self { table, wanted: false, paused: false, progress: None, done: None, lacking: None, absent: None }
    }

    /// The first consistent point of the copy that is on its way, once that is taken.
    pub fn point(&self) -> Option<Lsn> {
        self.progress.as_ref()?.point()
    }

    /// Whether there is nothing to be remembered.
    pub const fn is_over(&self) -> bool {
        !self.wanted && self.done.is_none() && self.lacking.is_none()
    }

    /// The entry of an append that removes it.
    pub fn no_entry(topic: &str) -> (String, Vec<u8>) {
        (format!("{BACKFILL}{topic}"), Vec::new())
    }

    /// As an entry of an append; one that is over removes it.
    pub fn entry(&self, topic: &str) -> (String, Vec<u8>) {
        if self.is_over() { Self::no_entry(topic) } else { entry(format!("{BACKFILL}{topic}"), self) }
    }
}

/// Leaves as an entry of an append; none removes it.
pub fn leaves_entry(topic: &str, leaves: &Commits) -> (String, Vec<u8>) {
    let key = format!("{LEAVES}{topic}");
    if leaves.is_empty() { (key, Vec::new()) } else { entry(key, leaves) }
}

impl Standing {
    /// The entry of an append that removes it.
    pub fn no_entry(topic: &str) -> (String, Vec<u8>) {
        (format!("{PUBLISHED}{topic}"), Vec::new())
    }

    /// As an entry of an append.
    pub fn entry(&self, topic: &str) -> (String, Vec<u8>) {
        entry(format!("{PUBLISHED}{topic}"), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_back() {
        let stream = StreamState {
            system_id: "7".into(),
            database: "shop".into(),
            slot: "tidemark_shop".into(),
            timeline: 1,
            position: Position { timeline: 1, commit_lsn: Lsn(16), ordinal: 2 },
            flush_lsn: Lsn(8),
            last_end_lsn: Some(Lsn(8)),
            lift: 0,
            given_up: None,
            set_back: None,
            witness: None,
            publication: None,
            resumed_at: None,
        };
        let cut = CutState { last_ds: None, next_ds: "2026-11-20".parse().unwrap() };
        let within = TransactionCount { commit_lsn: Lsn(16), changes: 2 };
        let count = TableCount { changes: 3, dead_letters: 1, transaction: Some(within) };
        let copy = BackfillState { wanted: true, ..BackfillState::new(TableName::new("public", "t")) };
        let entries: BTreeMap<_, _> =
            [stream.entry(), cut.entry(), count.entry("shop.public.t"), copy.entry("shop.public.t")].into();
        let state = CaptureState::read(&entries).unwrap();
        assert_eq!((state.stream, state.cut), (Some(stream), Some(cut)));
        assert_eq!(state.counts["shop.public.t"], count);
        assert_eq!(state.backfills["shop.public.t"], copy);
        let over = BackfillState { wanted: false, ..copy };
        assert!(over.entry("t").1.is_empty(), "a copy that nobody waits for removes the entry");
        assert!(TableCount::default().entry("t").1.is_empty(), "zero removes the entry");
        let plain = TableCount { transaction: None, ..count };
        assert_eq!(
            plain.entry("t").1,
            b"{\"changes\":3,\"dead_letters\":1}",
            "as it was before there were any"
        );
    }

    #[test]
    fn what_was_kept_is_passed_by_the_same_stream_without_a_gap_since() {
        let at = |commit, flush| StreamState {
            system_id: "7".into(),
            database: "shop".into(),
            slot: "s".into(),
            timeline: 1,
            position: Position { timeline: 1, commit_lsn: Lsn(commit), ordinal: 2 },
            flush_lsn: Lsn(flush),
            last_end_lsn: None,
            lift: 0,
            given_up: None,
            set_back: None,
            witness: None,
            publication: None,
            resumed_at: None,
        };
        let passed = |log: &StreamState| has_passed(&[log.entry()].into(), &[at(100, 90).entry()]);
        assert!(passed(&at(100, 90)) && passed(&at(200, 190)));
        assert!(!passed(&at(99, 90)), "not so far");
        assert!(!passed(&at(100, 89)), "the server may have been told more");
        assert!(!passed(&StreamState { slot: "other".into(), ..at(200, 190) }));
        let resumed = StreamState { resumed_at: Some(at(50, 0).position), ..at(200, 190) };
        assert!(!passed(&resumed), "what was kept may be of the gap");
        let kept = StreamState { resumed_at: resumed.resumed_at, ..at(100, 90) };
        assert!(has_passed(&[resumed.entry()].into(), &[kept.entry()]), "a gap of before");
        assert!(!has_passed(&BTreeMap::new(), &[at(1, 1).entry()]), "a log that knows nothing");
        assert!(has_passed(&BTreeMap::new(), &[]), "nothing of the stream was kept");
    }

    #[test]
    fn records_of_another_transaction_do_not_count() {
        let mut count = TableCount::default();
        assert!(count.add_of_transaction(Lsn(16), 1), "the first");
        assert!(!count.add_of_transaction(Lsn(16), 2));
        assert_eq!((count.of_transaction(Lsn(16)), count.of_transaction(Lsn(24))), (3, 0));
        assert!(count.add_of_transaction(Lsn(24), 1), "the first of the next one");
        assert_eq!((count.of_transaction(Lsn(16)), count.of_transaction(Lsn(24))), (0, 1));
    }
}
