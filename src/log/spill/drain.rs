//! What is kept, and how far it has arrived.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::{Append, Epoch, Fetched, Log, LogPartition, Offset, Rejected};
use super::{Passed, State, codec, hash, note};
use crate::log::{RecordBatch, RecordRef};
use crate::runtime::{Backoff, Class, Error, Result};

/// The remote log's state which says how far a spill has arrived: its name, and the offset of the last append. Whoever
/// writes to the log without a spill takes it away: what is left of that spill does not follow any more.
pub const STATE: &str = "spill";

/// The spill's own state: its name, the hash of the remote log's state when spilling began, and the offset of the
/// first append since; the hash of the state with that one, if nobody knows whether it arrived; and the name of the
/// remote log.
const OWNER: &str = "owner";
const NAME: &str = "name";
const BASE: &str = "base";
const AFTER: &str = "after";
const FIRST: &str = "first";

const TOPIC: &str = "spill";
/// Appends are read one at a time where each is looked at, and up to so many bytes where they are moved: in one step of the
/// remote log, whose price is that of a transaction, so that they go faster than new ones come.
const ONE: usize = 1;
const STEP_BYTES: usize = 1 << 20;

/// Why draining has stopped.
#[derive(Debug)]
pub(super) struct Halt {
    pub error: Error,
    /// Nobody knows whether the append arrived: whoever fences next finds out.
    pub in_doubt: bool,
    /// A record in it is larger than its topic takes.
    pub too_large: bool,
}

impl Halt {
    /// Whether to fence, and to go on from what the state says then.
    pub fn is_settled_by_a_fence(&self) -> bool {
        self.in_doubt && !self.too_large && self.error.class() == Class::Retry
    }
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self { error, in_doubt: false, too_large: false }
    }
}

/// Appends in a local log, one a record, in order.
#[derive(Clone, Debug)]
pub(super) struct Spill {
    local: Arc<dyn Log>,
    /// The remote log.
    owner: Arc<str>,
    partition: LogPartition,
    fenced: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    epoch: Option<Epoch>,
    owner: String,
    name: String,
    base: Vec<u8>,
    after: Vec<u8>,
    first: Offset,
    /// First append that has not arrived. The local log may still hold earlier ones: how long it keeps what it was
    /// told to let go of is its own affair.
    next: Offset,
    /// Just past the last append.
    end: Offset,
    /// Why and since when appends are kept; none while none are.
    away: Option<(String, Instant)>,
}

impl Spill {
    pub fn new(local: Arc<dyn Log>, owner: &str) -> Self {
        let partition = LogPartition { topic: TOPIC.into(), partition: 0 };
        Self { local, owner: owner.into(), partition, fenced: Arc::default() }
    }

    /// Takes the local log over.
    pub async fn fence(&self) -> Result<()> {
        let fenced = self.local.fence().await?;
        let text = |key: &str| fenced.state.get(key).cloned().unwrap_or_default();
        let mut known = self.known();
        known.epoch = Some(fenced.epoch);
        known.owner = String::from_utf8_lossy(&text(OWNER)).into_owned();
        known.name = String::from_utf8_lossy(&text(NAME)).into_owned();
        (known.base, known.after) = (text(BASE), text(AFTER));
        known.first = String::from_utf8_lossy(&text(FIRST)).parse().unwrap_or(0);
        known.next = known.first;
        Ok(())
    }

    /// Lets go of what the remote log has. `arrived` is what its state says of a spill, `state` the rest. Fails when what
    /// is left belongs to another course of the log, and that has not passed it.
    ///
    /// # Errors
    /// `Fenced`, without `anew`: it has been passed, and so has whoever kept it.
    pub async fn resume(
        &self,
        arrived: Option<&[u8]>,
        state: &State,
        passed: Passed,
        anew: bool,
    ) -> Result<()> {
        let (owner, name, base, after, first) = {
            let known = self.known();
            let hashes = (known.base.clone(), known.after.clone());
            (known.owner.clone(), known.name.clone(), hashes.0, hashes.1, known.first)
        };
        if owner != *self.owner {
            if self.is_empty().await? {
                // With a name of its own, which the other log's state does not tell of.
                self.known().name.clear();
                return Ok(());
            }
            return Err(Error::operator(format!(
                "the spill's file holds appends that were kept for the log of {owner:?} and have not arrived there; \
                 this is {:?}",
                self.owner
            ))
            .mend(
                "Give this connector a [state] dir, or a [log.kafka] spill_path, of its own; the other one brings them \
                 into its log when it starts.",
            ));
        }
        let ours = arrived.and_then(|text| std::str::from_utf8(text).ok()?.rsplit_once(' '));
        match ours.filter(|(spill, _)| *spill == name) {
            Some((_, last)) => {
                let last: Offset = last
                    .parse()
                    .map_err(|_| Error::operator(format!("the log's state {STATE:?} cannot be read: {last:?}")))?;
                self.arrived(last).await
            }
            None if self.is_empty().await? || base == hash(state) => Ok(()),
            // The one in doubt had arrived.
            None if after == hash(state) => self.arrived(first).await,
            None if self.is_passed(state, passed).await? => self.let_go(anew).await,
            None => Err(Error::operator(
                "another process has gone on with the log since appends were kept on the local disk: they do not \
                 fit any more, and are left where they are",
            )
            .mend(
                "Nothing of them is in the log. Move the spill's file away, with -wal and -shm; if the slot has \
                 passed those changes, the next start names the gap.",
            )),
        }
    }

    /// Whether another writer has brought the remote log, which is in that state, beyond all that is kept.
    async fn is_passed(&self, state: &State, passed: Passed) -> Result<bool> {
        let (mut next, end) = self.range().await?;
        while next < end {
            let fetched = self.local.read(&self.partition, next, ONE).await?;
            for (offset, record) in fetched.iter() {
                if !passed(state, &read_kept(offset, record)?.state) {
                    return Ok(false);
                }
            }
            next = fetched.next;
        }
        Ok(true)
    }

    /// Lets go of all that is kept, which the remote log has from somebody else.
    async fn let_go(&self, anew: bool) -> Result<()> {
        let (next, end) = self.range().await?;
        if !anew {
            return Err(Error::fenced(
                "another process has gone on with the log since appends were kept on the local disk, and beyond them",
            ));
        }
        tracing::warn!(
            appends = end - next,
            "another process has brought the log beyond what was kept on the local disk: that is let go of (copies that were \
             asked for, paused or resumed meanwhile: see `tidemark status`)"
        );
        self.arrived(end - 1).await
    }

    /// Spilling begins from a remote log in the state of the hash `base`; or, if the first append that is going to be
    /// kept has arrived all the same, of the hash `after`, which is empty where that is known not to be so.
    pub async fn begin(&self, base: &[u8], after: &[u8], reason: &Error) -> Result<()> {
        let mut name = self.known().name.clone();
        if name.is_empty() {
            name = format!("{:x}", jiff::Timestamp::now().as_nanosecond());
        }
        let (_, first) = self.range().await?;
        self.set(vec![
            (OWNER.to_owned(), self.owner.as_bytes().to_vec()),
            (NAME.to_owned(), name.clone().into_bytes()),
            (BASE.to_owned(), base.to_vec()),
            (AFTER.to_owned(), after.to_vec()),
            (FIRST.to_owned(), first.to_string().into_bytes()),
        ])
        .await?;
        let mut known = self.known();
        (known.name, known.base, known.after) = (name, base.to_vec(), after.to_vec());
        known.owner = self.owner.to_string();
        (known.first, known.next, known.end) = (first, first, first);
        known.away = Some((reason.message(), Instant::now()));
        Ok(())
    }

    /// Spilling has come to its end: from here on the remote log may forget how far it had arrived.
    pub async fn end(&self) -> Result<()> {
        let next = self.known().next;
        self.set(vec![(FIRST.to_owned(), next.to_string().into_bytes())]).await?;
        self.known().away = None;
        Ok(())
    }

    /// Spilling did not begin after all: nothing is kept.
    pub fn did_not_begin(&self) {
        self.known().away = None;
    }

    /// For people: why appends are kept, for how long, and how many.
    pub fn trouble(&self) -> Option<String> {
        let known = self.known();
        let (reason, since) = known.away.as_ref()?;
        let (seconds, count) = (since.elapsed().as_secs(), known.end.saturating_sub(known.next));
        Some(format!("{reason}; for {seconds} s appends are kept on the local disk, {count} of them now"))
    }

    async fn set(&self, state: Vec<(String, Vec<u8>)>) -> Result<()> {
        let append = Append { records: RecordBatch::default(), state };
        let appended = self.local.append(self.epoch()?, append).await;
        appended.map(drop).map_err(|rejected| rejected.error)
    }

    /// Keeps an append; hands it back as [`Log::append`] does.
    pub async fn push(&self, append: Append) -> Result<Append, Rejected> {
        let epoch = match self.epoch() {
            Ok(epoch) => epoch,
            Err(error) => return Err(Rejected { error, append, in_doubt: false }),
        };
        let mut records = RecordBatch::default();
        let mut record = records.topic(&self.partition.topic).begin(jiff::Timestamp::now().as_millisecond());
        record.null();
        record.field(|out| codec::write(&append, out));
        record.finish();
        let kept = Append { records, state: Vec::new() };
        match self.local.append(epoch, kept).await {
            Ok(_) => {
                self.known().end += 1;
                Ok(append)
            }
            Err(rejected) => {
                let error = rejected.error;
                let message = format!("the log is away, and no more is kept for it: {}", error.message());
                // Why it is away is told by the log itself; a full disk has a mend of its own.
                let mend = match (error.class(), error.mend_text()) {
                    (Class::Retry, _) | (_, None) => {
                        "Capture waits, Postgres keeps the WAL, and nothing is lost. Mend the brokers, or give the spill more room."
                    }
                    (_, Some(mend)) => mend,
                };
                let error = Error::new(error.class(), message).mend(mend);
                Err(Rejected { error, append, in_doubt: false })
            }
        }
    }

    /// Whether nothing is kept.
    pub async fn is_empty(&self) -> Result<bool> {
        let (next, end) = self.range().await?;
        Ok(next == end)
    }

    /// Appends what is kept to the remote log, waiting while it is away. An error is one that waiting does not mend.
    pub async fn drain(&self, remote: &dyn Log, epoch: Epoch) -> Result<(), Halt> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match self.drain_once(remote, epoch, &mut State::new()).await {
                Err(halt) if halt.error.class() == Class::Retry && !halt.in_doubt => {
                    tokio::time::sleep(backoff.next_wait()).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// The same, up to the first error of any kind. `state` is brought to what the remote log holds.
    pub async fn drain_once(&self, remote: &dyn Log, epoch: Epoch, state: &mut State) -> Result<(), Halt> {
        let name = self.known().name.clone();
        let (mut next, end) = self.range().await?;
        // Before here one at a time, so that those before one that is refused arrive.
        let mut apart_until = next;
        while next < end {
            let bytes = if next < apart_until { ONE } else { STEP_BYTES };
            let fetched = self.local.read(&self.partition, next, bytes).await?;
            let Some(last) = fetched.offsets.last().copied() else {
                next = fetched.next;
                continue;
            };
            let several = fetched.offsets.len() > 1;
            let mut append = read_together(&fetched)?;
            if several && too_large(remote, &append) {
                apart_until = fetched.next;
                continue;
            }
            note(state, &append.state);
            append.state.push((STATE.to_owned(), format!("{name} {last}").into_bytes()));
            match remote.append(epoch, append).await {
                Ok(_) => {
                    self.arrived(last).await?;
                    next = fetched.next;
                }
                Err(Rejected { error, in_doubt: false, .. })
                    if several && error.class() == Class::Operator =>
                {
                    apart_until = fetched.next;
                }
                Err(Rejected { error, append, in_doubt }) => {
                    return Err(Halt { error, in_doubt, too_large: too_large(remote, &append) });
                }
            }
        }
        Ok(())
    }

    /// The remote log has everything up to an append.
    async fn arrived(&self, last: Offset) -> Result<()> {
        {
            let mut known = self.known();
            known.next = known.next.max(last + 1);
        }
        self.local.trim(&self.partition, last + 1).await
    }

    /// The appends that have not arrived. What is gone from the file has, or was let go of, whether or not anybody came to
    /// note that.
    async fn range(&self) -> Result<(Offset, Offset)> {
        let next = self.known().next;
        let ranges = self.local.ranges().await?;
        let (start, end) = ranges.get(&self.partition).map_or((0, 0), |range| (range.start, range.end));
        Ok((next.max(start).min(end), end))
    }

    fn epoch(&self) -> Result<Epoch> {
        self.known()
            .epoch
            .ok_or_else(|| Error::retry("the spill was not taken over yet: fence the log first"))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.fenced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Several that were kept as one.
fn read_together(fetched: &Fetched) -> Result<Append> {
    let (mut records, mut state) = (RecordBatch::default(), State::new());
    for (offset, record) in fetched.iter() {
        let behind = |value| codec::read_behind(&mut records, &mut state, value);
        record.value.and_then(behind).ok_or_else(|| unreadable(offset))?;
    }
    Ok(Append { records, state: state.into_iter().collect() })
}

fn read_kept(offset: Offset, record: RecordRef<'_>) -> Result<Append> {
    record.value.and_then(codec::read).ok_or_else(|| unreadable(offset))
}

fn unreadable(offset: Offset) -> Error {
    Error::operator(format!("append {offset} that was kept on the local disk cannot be read"))
        .mend("Restore the spill's file, or check the disk that holds it.")
}

/// Why an append is not to be kept: with a record that its topic may not take it could not be made smaller in the spill, and
/// would hold up all behind it.
pub(super) fn unfit(log: &dyn Log, append: &Append) -> Option<Error> {
    let (topic, bytes) = append.records.topics().find_map(|records| {
        let sure = log.record_bytes_sure(records.topic()).filter(|sure| records.largest() > *sure)?;
        let larger = records.iter().map(|record| record.bytes()).find(|bytes| *bytes > sure)?;
        Some((records.topic(), larger))
    })?;
    let message = format!(
        "a record of {bytes} bytes is not kept on the local disk: topic {topic} may not take it, which is settled when \
         the log is back"
    );
    Some(
        Error::retry(message)
            .mend("Capture waits, Postgres keeps the WAL, and nothing is lost. Mend the brokers."),
    )
}

/// Whether a record is larger than its topic takes, as far as the log knows.
pub(super) fn too_large(log: &dyn Log, append: &Append) -> bool {
    append.records.topics().any(|records| {
        let bytes_max = log.record_bytes_max(records.topic());
        bytes_max.is_some_and(|max| records.iter().any(|record| record.bytes() > max))
    })
}
