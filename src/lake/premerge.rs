//! Making a table's next day before it ends, as far as it can be; [`super::merge::premerged`] says what, and why the day
//! comes out the same.
//!
//! One table at a time, and not beside a merge: the memory is theirs together. A merge has a round that is at work end at
//! its next step; what that has made by then stays.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::change::BACKFILL_PARTITION;
use crate::runtime::{Class, Error, Result};

use super::Lake;
use super::manifest::Manifest;
use super::merge::MergeFile;
use super::merge::premerged::Premerged;
use super::merge::premerged::room::Room;
use super::publish::RaiseOnDrop;
use super::scratch::{Scratch, is_of_scratch};
use super::shapes::Shapes;
use super::stage::{early, is_early, recent};

/// Who of a process works with the memory of merges.
#[derive(Debug, Default)]
pub(super) struct Turns {
    lock: Arc<RwLock<()>>,
    /// Merges that wait.
    waiting: AtomicUsize,
    /// Ends the round that is at work.
    round: Mutex<Option<Arc<AtomicBool>>>,
    /// What rounds have left on scratch.
    room: Room,
}

impl Turns {
    /// Waits until no round is at work. Cancel-safe.
    pub(super) async fn merge(&self) -> OwnedRwLockReadGuard<()> {
        struct Waits<'a>(&'a AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        // A round that begins now sees this, or is seen below.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waits = Waits(&self.waiting);
        self.stop();
        Arc::clone(&self.lock).read_owned().await
    }

    pub(super) fn room(&self) -> Room {
        self.room.clone()
    }

    /// Has the round that is at work end.
    fn stop(&self) {
        if let Some(stop) = self.round.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            stop.store(true, Ordering::SeqCst);
        }
    }

    /// None while others are at work.
    fn begin(&self, stop: &Arc<AtomicBool>) -> Option<OwnedRwLockWriteGuard<()>> {
        let turn = Arc::clone(&self.lock).try_write_owned().ok()?;
        *self.round.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(stop));
        (self.waiting.load(Ordering::SeqCst) == 0).then_some(turn)
    }
}

/// What a round came to.
#[derive(Debug)]
pub struct Round {
    /// What was made so far.
    pub premerged: Option<Premerged>,
    /// How it ended.
    pub end: RoundEnd,
}

/// How a round ended.
#[derive(Debug)]
pub enum RoundEnd {
    /// With everything that it had to do.
    Whole,
    /// By others, who had the memory or wanted it: it may be tried again soon.
    Stopped,
    /// By an error of the store: it may be tried again later.
    Failed(Error),
}

impl Lake {
    /// A round of making a table's next day from `previous`, which is its last manifest, and the change files that are
    /// there. `shapes` are the table's as they are, `premerged` what the rounds before have made. Once `stop` is raised, it
    /// ends at its next step.
    ///
    /// # Errors
    /// Those of the scratch folder, and what a merge of the day would meet: what was made is lost then.
    ///
    /// Cancel-safe; what was made is lost.
    pub async fn premerge(
        &self,
        shapes: &Shapes,
        previous: &Manifest,
        premerged: Option<Premerged>,
        stop: Arc<AtomicBool>,
    ) -> Result<Round> {
        let _guard = RaiseOnDrop(Arc::clone(&stop));
        let Some(turn) = self.turns.begin(&stop) else {
            return Ok(Round { premerged, end: RoundEnd::Stopped });
        };
        let files = match self.files_since(previous).await {
            Ok(files) => files,
            Err(error) => return Ok(Round { premerged, end: RoundEnd::Failed(error) }),
        };
        let base = (Some(previous), None, None);
        let plan = self.new_plan(None);
        let early: Vec<_> =
            files.iter().map(|file| &file.file.path).filter(|path| is_early(path)).cloned().collect();
        let mut input =
            self.merge_input(shapes, previous.ds, &plan, base, (files, None), Arc::clone(&stop))?;
        let scratch_dir = self.options.scratch_dir.clone();
        let bytes_max = self.options.premerge_bytes_max;
        let shown = format!("premerging {}", previous.table);
        let round = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let exact = input.begins_exact()?;
            let mut premerged = match premerged.filter(|premerged| premerged.is_of(&input, exact)) {
                Some(premerged) => premerged,
                None => Premerged::new(&input, exact, Scratch::new(&scratch_dir)?)?,
            };
            let mut done = premerged.advance(&input, bytes_max).map(|()| RoundEnd::Whole);
            // What was written early is in a change file meanwhile, where the next round finds it. The others are read now:
            // they are never removed, so that rounds come on however fast such files are made.
            let is_missing = |error: &Error| error.class() == Class::Operator;
            if done.as_ref().is_err_and(is_missing) && early.iter().any(|path| input.store.is_gone(path)) {
                input.files.retain(|file| !is_early(&file.file.path));
                done = premerged.advance(&input, bytes_max).map(|()| RoundEnd::Stopped);
            }
            let end = match done {
                Ok(end) => end,
                Err(_) if stop.load(Ordering::SeqCst) => RoundEnd::Stopped,
                Err(error) if error.class() == Class::Retry && !is_of_scratch(&error) => {
                    RoundEnd::Failed(error)
                }
                Err(error) => return Err(error),
            };
            Ok(Round { premerged: Some(premerged), end })
        });
        round
            .await
            .map_err(|error| {
                Error::operator("a premerge stopped by a defect; please report it").cause(error)
            })?
            .map_err(|error: Error| error.context(shown))
    }

    /// The change files that are there after a day, and what was written early of the next ones; those that only a look at
    /// all days would find are left to the cut.
    async fn files_since(&self, previous: &Manifest) -> Result<Vec<MergeFile>> {
        let mut files = Vec::new();
        for held in previous.log.iter().filter(|held| held.partition != BACKFILL_PARTITION) {
            let (store, table) = ((&self.store, &self.layout), (&previous.table, held.partition));
            let since = (held.end, previous.ds);
            let found = recent(&self.store, &self.layout, table.0, table.1, since).await?;
            let mut at = found.next;
            files.extend(found.files.into_iter().map(|file| MergeFile { file, offsets: 0..u64::MAX }));
            for file in early(store, table, at).await? {
                let offsets = at..u64::MAX;
                at = file.range.next();
                files.push(MergeFile { file, offsets });
            }
        }
        Ok(files)
    }

    /// Clears the scratch folder of what processes that died have left there.
    pub fn sweep_scratch(&self) -> Result<()> {
        Scratch::sweep(&self.options.scratch_dir)
    }
}
