//! When a table's next day is made before it ends: in rounds, beside everything else, and given to its merge at the cut.
//!
//! A round that fails, or is dropped with the table, costs time and nothing else: the merge does without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::change::{Ds, TableName};
use crate::lake::{Lake, Manifest, Premerged, Round, RoundEnd, Shapes};
use crate::log::Offset;
use crate::ops::TableStats;
use crate::runtime::{Error, Result};

/// The next round comes no sooner than after so many times what the last one took.
const PAUSE: u32 = 10;

/// A round that others had no memory left for is tried again after this long.
const AGAIN: Duration = Duration::from_secs(5);

/// When days are made before they end.
#[derive(Clone, Copy, Debug)]
pub struct PremergeSettings {
    /// Time between two rounds of a table; none: not at all.
    pub interval: Option<Duration>,
    /// Bytes of a table's snapshot from which on it is worth it.
    pub table_bytes_min: u64,
}

/// What is made of a table's next day.
#[derive(Debug)]
pub struct Premerging {
    settings: PremergeSettings,
    /// The round at work.
    round: JoinSet<Result<Round>>,
    /// Ends it.
    stop: Arc<AtomicBool>,
    began: Instant,
    /// When the next round may begin.
    next: Instant,
    made: Option<Premerged>,
    /// Up to where changes were handed in when the last round began.
    seen: Offset,
    /// Whether a round has something to do.
    wanted: bool,
    /// When what was open was written early for a round.
    flushed: Option<Instant>,
    /// The day after which nothing more is made of the next one.
    ended: Option<Ds>,
}

impl Premerging {
    /// Nothing yet.
    pub fn new(settings: PremergeSettings) -> Self {
        let now = Instant::now();
        Self {
            settings,
            round: JoinSet::new(),
            stop: Arc::default(),
            began: now,
            next: now + settings.interval.unwrap_or_default(),
            made: None,
            seen: 0,
            wanted: false,
            flushed: None,
            ended: None,
        }
    }

    /// When there is something to do again, without anything that happens.
    pub fn due(&self) -> Option<Instant> {
        self.wanted.then_some(self.next)
    }

    /// There are days to be made: nothing is begun, and a round at work ends at its next step.
    pub fn rest(&mut self) {
        self.wanted = false;
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Drops what was made of the day after `held` when its disk is nearly full.
    pub fn give_way(&mut self, held: &Manifest, watch: &TableStats) {
        if self.made.as_ref().is_some_and(Premerged::is_in_the_way) {
            tracing::info!(table = %held.table, after = %held.ds, "what was made of the next day is given up: the disk of the scratch folder is nearly full");
            self.made = None;
            self.ended = Some(held.ds);
            watch.set_premerged_bytes(0);
        }
    }

    /// Whether it is time for a round. `handed` is up to where the changes of the day were handed in; a round that has ended is
    /// taken.
    pub fn begins(&mut self, held: &Manifest, handed: Offset, watch: &TableStats) -> bool {
        let Some(interval) = self.settings.interval else { return false };
        if let Some(round) = self.round.try_join_next() {
            self.took(&held.table, held.ds, interval, flat(round));
            watch.set_premerged_bytes(self.bytes());
        }
        let small = held.bytes() < self.settings.table_bytes_min;
        let waiting = self.made.as_ref().is_some_and(Premerged::is_waiting);
        let idle = self.round.is_empty() && self.ended != Some(held.ds);
        self.wanted = idle && !small && (handed != self.seen || waiting);
        self.wanted && Instant::now() >= self.next
    }

    /// Whether what is open has to be written early for the round that begins; not for one that is tried again.
    pub fn wants_what_is_open(&mut self) -> bool {
        let interval = self.settings.interval.unwrap_or_default();
        let wants = self.flushed.is_none_or(|at| at.elapsed() >= interval);
        if wants {
            self.flushed = Some(Instant::now());
        }
        wants
    }

    /// No round for now: what is open cannot be written early.
    pub fn put_off(&mut self, held: &Manifest, error: &Error) {
        tracing::warn!(table = %held.table, after = %held.ds, %error, "the next day is not made any further for now");
        self.next = Instant::now() + self.settings.interval.unwrap_or_default();
    }

    /// Begins a round, of what is in the lake.
    pub fn begin(&mut self, lake: &Lake, held: &Manifest, handed: Offset, shapes: Shapes) {
        let (lake, held, made) = (lake.clone(), held.clone(), self.made.take());
        self.began = Instant::now();
        self.seen = handed;
        self.wanted = false;
        self.stop = Arc::default();
        let stop = Arc::clone(&self.stop);
        self.round.spawn(async move { lake.premerge(&shapes, &held, made, stop).await });
    }

    /// What was made, for the merge of the day, which takes all that was `handed` in; a round at work ends at its next step.
    /// Cancel-safe; what was made is lost.
    pub async fn take(&mut self, table: &TableName, handed: Offset) -> Option<Premerged> {
        self.rest();
        self.seen = handed;
        if let Some(round) = self.round.join_next().await {
            match flat(round) {
                Ok(Round { premerged, end }) => {
                    self.made = premerged;
                    if let RoundEnd::Failed(error) = end {
                        tracing::warn!(%table, %error, "the day was not made any further before its cut");
                    }
                }
                Err(error) => tracing::warn!(%table, %error, "the day is made after its cut alone"),
            }
        }
        self.made.take()
    }

    fn bytes(&self) -> u64 {
        self.made.as_ref().map_or(0, |made| made.made().1)
    }

    fn took(&mut self, table: &TableName, ds: Ds, interval: Duration, round: Result<Round>) {
        let took = self.began.elapsed();
        self.next = Instant::now() + interval.max(took * PAUSE);
        match round {
            Ok(Round { premerged, end }) => {
                self.made = premerged;
                match end {
                    RoundEnd::Whole => {}
                    RoundEnd::Stopped => {
                        self.next = Instant::now() + AGAIN;
                        self.seen = 0;
                    }
                    RoundEnd::Failed(error) => {
                        tracing::warn!(%table, after = %ds, %error, "the next day is not made any further for now");
                        self.seen = 0;
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%table, after = %ds, %error, "the next day is made after its cut alone");
                self.ended = Some(ds);
            }
        }
        let Some(made) = &self.made else { return };
        if let Some(reason) = made.ended() {
            tracing::info!(%table, after = %ds, reason, "what comes from now on is left to the next cut");
            self.ended = Some(ds);
        }
        let (stretches, bytes) = made.made();
        let seconds = took.as_secs_f64();
        tracing::debug!(%table, after = %ds, stretches, bytes, seconds, "the next day is made as far as it can be");
    }
}

fn flat(round: Result<Result<Round>, tokio::task::JoinError>) -> Result<Round> {
    round.unwrap_or_else(|error| Err(Error::retry("a round of premerging was interrupted").cause(error)))
}
