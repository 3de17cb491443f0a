//! A log that is away for a while costs local disk, not the source's: appends which it does not take go to a
//! local one, and follow in order when it is back.
//!
//! ```text
//!   capture ── append ──> remote log                                    as long as it takes them
//!                 │ Retry                ▲
//!                 └──> spill (local log) ┘ drained in order; then directly again
//! ```
//!
//! Why nothing is lost: an append counts as done when it is durable in the remote log or in the spill, and an
//! append is let go of by the spill only after the remote log has it.
//!
//! An append in doubt, whose commit has no answer, is kept too, as the first of the spill, with a hash of the state that
//! it leads to. Before anything else is moved the remote log is fenced anew, and its state is one of the two: without
//! this append, which is moved then, or with it, which is let go of.
//!
//! Why nothing is doubled or reordered: while the spill holds anything, every append goes behind it, and one task
//! moves them in order, several in one atomic step. With each step goes the spill's own progress, as its state `spill`, so
//! that whoever goes on after a crash knows the last append which arrived. [`Log::fence`] drains what a former process left
//! before it hands out the state: capture then finds it as if there had been no spill.
//!
//! Why the right spill meets the right log: when spilling begins, the spill notes a hash of the state which the
//! remote log is in. What it holds is appended only to a log in this very state, or in one that it has made.
//! Another writer that went on meanwhile makes it differ, and the spill is refused, and kept; unless that writer has
//! come beyond everything in it ([`Passed`]): then the log has those changes from there, and the spill is let go of by
//! the next fence of capture. A spill is refused, too, that was made for another log, whose name it notes: two connectors
//! may have been given one file.
//!
//! The ends of log partitions are known only when all has arrived: a cut waits for the remote log, too.

mod codec;
mod drain;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::{Append, Epoch, Fenced, Fetched, Log, LogPartition, Offset, OffsetRange, Rejected};
use crate::runtime::{Backoff, Class, Error, Result};

pub use drain::STATE;
use drain::{Halt, Spill};

/// How long a question about the ends of the log waits for the spill to be drained.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

type State = BTreeMap<String, Vec<u8>>;

/// Whether a log in that state has, from another writer, all that an append which sets such entries was to bring.
pub type Passed = fn(&BTreeMap<String, Vec<u8>>, &[(String, Vec<u8>)]) -> bool;

/// A remote log with a local one to fall back on. For the one process that captures; others use the remote log.
#[derive(Debug)]
pub struct SpillLog {
    remote: Arc<dyn Log>,
    course: Arc<Mutex<Course>>,
    spill: Spill,
    passed: Passed,
}

/// Where appends go, and what is known of the log.
#[derive(Debug, Default)]
struct Course {
    /// The epoch that capture knows; none before the first fence.
    epoch: Option<Epoch>,
    /// The remote log's own, which grows when the log is fenced to settle a doubt.
    remote_epoch: Option<Epoch>,
    /// The state that the remote log will be in when all has arrived, without the spill's own.
    state: State,
    /// The remote log's state tells of a spill: the next append to it takes that away.
    told: bool,
    /// What has become of spilling; none: appends go to the remote log.
    spilling: Option<Spilling>,
}

#[derive(Debug, Default)]
struct Spilling {
    /// Nobody knows whether the first append that is kept has arrived.
    in_doubt: bool,
    /// Why moving what is kept has stopped; told to each append.
    stopped: Option<Halt>,
    drainer: Option<JoinHandle<()>>,
}

impl Drop for Spilling {
    fn drop(&mut self) {
        if let Some(drainer) = self.drainer.take() {
            drainer.abort();
        }
    }
}

impl SpillLog {
    /// Puts a local log, which is for this alone, beside a remote one. `owner` names the remote log: what was kept for
    /// another one is not brought into it.
    pub fn new(remote: Arc<dyn Log>, local: Arc<dyn Log>, owner: &str, passed: Passed) -> Self {
        Self { remote, course: Arc::default(), spill: Spill::new(local, owner), passed }
    }

    /// Appends to the spill, behind what is there. `course` is locked.
    async fn spill(
        &self,
        course: &mut Course,
        append: Append,
        refused: Option<(&Error, bool)>,
    ) -> Result<Append, Rejected> {
        if let Some(error) = drain::unfit(self.remote.as_ref(), &append) {
            return Err(Rejected { error, append, in_doubt: refused.is_some_and(|(_, doubt)| doubt) });
        }
        if let (Some((error, in_doubt)), None) = (refused, &course.spilling) {
            let base = hash(&course.state);
            let mut after = course.state.clone();
            note(&mut after, &append.state);
            let after = if in_doubt { hash(&after) } else { Vec::new() };
            if let Err(error) = self.spill.begin(&base, &after, error).await {
                return Err(Rejected { error, append, in_doubt });
            }
            tracing::warn!(%error, "the log does not take appends: they are kept on the local disk until it does");
            course.spilling = Some(Spilling { in_doubt, stopped: None, drainer: None });
        }
        let append = match self.spill.push(append).await {
            Ok(append) => append,
            Err(Rejected { error, append, in_doubt }) => {
                let Some((_, doubt)) = refused else { return Err(Rejected { error, append, in_doubt }) };
                // Nothing is kept, and nobody would bring it: the next append asks the remote log again.
                course.spilling = None;
                self.spill.did_not_begin();
                return Err(Rejected { error, append, in_doubt: doubt });
            }
        };
        note(&mut course.state, &append.state);
        let Some(spilling) = &mut course.spilling else { return Ok(append) };
        if let (None, Some(epoch)) = (&spilling.drainer, course.remote_epoch) {
            let (remote, spill) = (Arc::clone(&self.remote), self.spill.clone());
            let known = (!spilling.in_doubt).then_some(epoch);
            spilling.drainer =
                Some(tokio::spawn(drain(remote, spill, self.passed, known, Arc::downgrade(&self.course))));
        }
        Ok(append)
    }
}

/// Fences the remote log, waiting while it is away, and lets go of what has arrived there; the new epoch.
async fn settle(remote: &dyn Log, spill: &Spill, passed: Passed) -> Result<Epoch, Halt> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut fenced = loop {
        match remote.fence().await {
            Ok(fenced) => break fenced,
            Err(error) if error.class() == Class::Retry => tokio::time::sleep(backoff.next_wait()).await,
            Err(error) => return Err(error.into()),
        }
    };
    let arrived = fenced.state.remove(drain::STATE);
    spill.resume(arrived.as_deref(), &fenced.state, passed, false).await?;
    Ok(fenced.epoch)
}

/// Moves what is spilled until nothing is left, or nobody can.
async fn drain(
    remote: Arc<dyn Log>,
    spill: Spill,
    passed: Passed,
    mut epoch: Option<Epoch>,
    course: Weak<Mutex<Course>>,
) {
    loop {
        let drained = match epoch {
            Some(epoch) => spill.drain(remote.as_ref(), epoch).await,
            None => settle(remote.as_ref(), &spill, passed).await.map(|fenced| epoch = Some(fenced)),
        };
        let Some(course) = course.upgrade() else { return };
        let mut course = course.lock().await;
        // Under the lock nothing is added: what is empty now stays so, and appends go directly again.
        let ended = match drained {
            Ok(()) if spill.is_empty().await.is_ok_and(|empty| empty) => {
                spill.end().await.map_err(Halt::from)
            }
            Ok(()) => continue,
            Err(halt) => Err(halt),
        };
        match ended {
            Ok(()) => {
                tracing::info!("the log has taken all that was kept on the local disk");
                (course.told, course.remote_epoch) = (true, epoch);
                // This very task is what ends; it must not be aborted by its own handle.
                if let Some(mut spilling) = course.spilling.take() {
                    spilling.drainer = None;
                }
            }
            Err(halt) if halt.is_settled_by_a_fence() => {
                epoch = None;
                continue;
            }
            Err(Halt { error, in_doubt: false, .. }) if error.class() == Class::Retry => {
                drop(course);
                tokio::time::sleep(DRAIN_PATIENCE / 10).await;
                continue;
            }
            Err(halt) => {
                tracing::warn!(error = %halt.error, "what was kept on the local disk cannot be brought into the log");
                if let Some(spilling) = &mut course.spilling {
                    spilling.stopped = Some(halt);
                }
            }
        }
        return;
    }
}

/// Applies what an append sets.
fn note(state: &mut State, set: &[(String, Vec<u8>)]) {
    for (key, value) in set {
        if value.is_empty() {
            state.remove(key);
        } else {
            state.insert(key.clone(), value.clone());
        }
    }
}

fn hash(state: &State) -> Vec<u8> {
    let mut hasher = Sha256::new();
    for (key, value) in state {
        for part in [key.as_bytes(), value] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.finalize().to_vec()
}

#[async_trait]
impl Log for SpillLog {
    async fn fence(&self) -> Result<Fenced> {
        let mut course = self.course.lock().await;
        // Its task is stopped: what it was about is found in the spill and in the log's state.
        *course = Course::default();
        let mut fenced = self.remote.fence().await?;
        self.spill.fence().await?;
        let arrived = fenced.state.remove(drain::STATE);
        course.told = arrived.is_some();
        self.spill.resume(arrived.as_deref(), &fenced.state, self.passed, true).await?;
        if !self.spill.is_empty().await? {
            tracing::info!("bringing what a former process kept on the local disk into the log");
            let drained = self.spill.drain_once(self.remote.as_ref(), fenced.epoch, &mut fenced.state).await;
            drained.map_err(|halt| halt.error)?;
            course.told = true;
        }
        self.spill.end().await?;
        (course.epoch, course.remote_epoch) = (Some(fenced.epoch), Some(fenced.epoch));
        course.state.clone_from(&fenced.state);
        Ok(fenced)
    }

    async fn append(&self, epoch: Epoch, mut append: Append) -> Result<Append, Rejected> {
        let mut course = self.course.lock().await;
        if course.epoch != Some(epoch) {
            let error =
                Error::fenced("this process has fenced the log anew; an append of before cannot be made");
            return Err(Rejected { error, append, in_doubt: false });
        }
        if let Some(spilling) = &course.spilling {
            if let Some(Halt { error, in_doubt, .. }) = &spilling.stopped {
                let again = Error::new(error.class(), error.message());
                let error = error.mend_text().into_iter().fold(again, Error::mend);
                return Err(Rejected { error, append, in_doubt: *in_doubt });
            }
            return self.spill(&mut course, append, None).await;
        }
        if course.told {
            append.state.push((drain::STATE.to_owned(), Vec::new()));
        }
        let appended = self.remote.append(course.remote_epoch.unwrap_or(epoch), append).await;
        let untold = |mut append: Append| {
            append.state.retain(|(key, _)| key != drain::STATE);
            append
        };
        match appended {
            Ok(append) => {
                let append = untold(append);
                note(&mut course.state, &append.state);
                course.told = false;
                Ok(append)
            }
            // A record that is too large has to be made smaller: capture fences, and does.
            Err(Rejected { error, append, in_doubt })
                if error.class() == Class::Retry && !drain::too_large(self.remote.as_ref(), &append) =>
            {
                self.spill(&mut course, untold(append), Some((&error, in_doubt))).await
            }
            Err(Rejected { error, append, in_doubt }) => {
                Err(Rejected { error, append: untold(append), in_doubt })
            }
        }
    }

    async fn ranges(&self) -> Result<BTreeMap<LogPartition, OffsetRange>> {
        let deadline = tokio::time::Instant::now() + DRAIN_PATIENCE;
        while self.course.lock().await.spilling.is_some() {
            if tokio::time::Instant::now() >= deadline {
                return Err(Error::retry(
                    "the ends of the log are known only when all that is kept on the local disk has arrived there",
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.remote.ranges().await
    }

    async fn read(&self, partition: &LogPartition, from: Offset, bytes_max: usize) -> Result<Fetched> {
        self.remote.read(partition, from, bytes_max).await
    }

    async fn trim(&self, partition: &LogPartition, before: Offset) -> Result<()> {
        self.remote.trim(partition, before).await
    }

    async fn is_short_of_room(&self) -> Result<bool> {
        self.remote.is_short_of_room().await
    }

    fn record_bytes_max(&self, topic: &str) -> Option<usize> {
        self.remote.record_bytes_max(topic)
    }

    fn record_bytes_sure(&self, topic: &str) -> Option<usize> {
        self.remote.record_bytes_sure(topic)
    }

    fn trouble(&self) -> Option<String> {
        self.spill.trouble().or_else(|| self.remote.trouble())
    }

    async fn appended(&self) {
        self.remote.appended().await;
    }
}

#[cfg(test)]
mod tests;
