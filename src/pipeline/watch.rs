//! Looks from outside at what grows when nobody reads (the WAL that the slot keeps the server from removing, and the
//! embedded log's file), and at whether the log is out of reach; and gives the slot up where that was asked for.
//!
//! It has a connection and a task of its own, and waits for nobody: so it sees the slot also while capture waits for a
//! dead log, and in a process that stands by for another one. Which process gives the slot up does not matter: the server
//! drops it once, and whoever streams next finds it gone, and names the range from what the log holds
//! (`capture::verify`).

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::change::Lsn;
use crate::log::Log;
use crate::ops::{Ops, SlotLook, SourceThresholds};
use crate::postgres::retained;
use crate::postgres::wire::{Client, ConnectOptions, Session};
use crate::runtime::{Error, Result, Shutdown};

const EVERY: Duration = Duration::from_secs(10);
/// The same when the slot keeps much: a server may write gigabytes in ten seconds.
const EVERY_NEAR: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// Less than this is kept for any slot: it is not asked for whom.
const HELD_BYTES_MIN: u64 = 64 << 20;

/// Moments that are remembered; more of them are thinned out.
const MOMENTS_MAX: usize = 512;

/// The embedded log's file and its limit in bytes.
#[derive(Clone, Debug)]
pub struct LogFile {
    /// The file.
    pub path: PathBuf,
    /// `[log.embedded] bytes_max`.
    pub bytes_max: u64,
}

/// The slot to be watched.
#[derive(Clone, Debug)]
pub struct WatchedSlot {
    /// How to connect.
    pub connect: ConnectOptions,
    /// Its name.
    pub slot: String,
    /// From where on its figures are told, and when it is given up.
    pub thresholds: SourceThresholds,
}

/// Keeps the gauges up to date until `shutdown`; without a slot, those of the log. Troubles here are those of the source,
/// which capture reports; they only leave the gauges as they were.
pub async fn run(
    slot: Option<WatchedSlot>,
    log: Arc<dyn Log>,
    file: Option<LogFile>,
    ops: Ops,
    shutdown: Shutdown,
) {
    let mut slot = slot.map(Watch::new);
    let mut troubled = false;
    loop {
        if let Some(log) = &file
            && let Ok(file) = std::fs::metadata(&log.path)
        {
            ops.log().set_size(file.len(), log.bytes_max);
        }
        // A log that is out of reach is told also while there is nothing to append.
        let trouble = log.trouble();
        match &trouble {
            Some(reason) => ops.component("log").waiting(reason.clone()),
            None if troubled => ops.component("log").ok(),
            None => {}
        }
        troubled = trouble.is_some();
        let mut wait = EVERY;
        if let Some(watch) = &mut slot {
            match tokio::time::timeout(PATIENCE, watch.look(&ops)).await {
                Ok(Ok(next)) => wait = next,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the slot could not be looked at");
                    watch.client = None;
                }
                Err(_) => watch.client = None,
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.raised() => return,
        }
    }
}

struct Watch {
    of: WatchedSlot,
    client: Option<Client>,
    pace: Pace,
}

impl Watch {
    const fn new(of: WatchedSlot) -> Self {
        Self { of, client: None, pace: Pace { moments: VecDeque::new() } }
    }

    /// Looks once, and gives the slot up if it is time to; how long until the next look.
    async fn look(&mut self, ops: &Ops) -> Result<Duration> {
        let client = match self.client.take() {
            Some(client) => self.client.insert(client),
            None => self.client.insert(Client::connect(&self.of.connect, Session::Sql).await?),
        };
        let Some(seen) = retained::look(client, &self.of.slot).await? else {
            ops.source().set_slot(None);
            return Ok(EVERY);
        };
        let mut look = SlotLook {
            wal_end: seen.wal_end,
            confirmed: seen.confirmed,
            lag_seconds: self.pace.lag(Instant::now(), seen.wal_end, seen.confirmed).as_secs_f64(),
            retained_bytes: seen.retained_bytes,
            limit_bytes: seen.limit_bytes,
            safe_wal_bytes: seen.safe_wal_bytes,
            wal_status: seen.wal_status.clone(),
            held_by: None,
        };
        // Most of it lies before what is confirmed: nobody is late, but an open transaction may still need it.
        let unconfirmed = seen.wal_end.bytes_since(seen.confirmed);
        if look.retained_bytes >= HELD_BYTES_MIN && unconfirmed < look.retained_bytes / 2 {
            look.held_by = retained::oldest_transaction(client).await?;
        }
        let limits = &self.of.thresholds;
        if limits.drops_slot
            && limits.retained_bytes_max > 0
            && look.retained_bytes >= limits.retained_bytes_max
        {
            give_up(client, &self.of, &look, ops).await?;
            ops.source().set_slot(None);
            return Ok(EVERY_NEAR);
        }
        let limit = limits.retained_limit(look.limit_bytes);
        let is_near =
            limit.is_some_and(|limit| look.retained_bytes > limit / 100 * limits.retained_percent_warn);
        ops.source().set_slot(Some(look));
        Ok(if is_near { EVERY_NEAR } else { EVERY })
    }
}

/// Drops the slot, and says what is lost.
async fn give_up(client: &mut Client, of: &WatchedSlot, look: &SlotLook, ops: &Ops) -> Result<()> {
    if !retained::drop_slot(client, &of.slot, &of.connect.database).await? {
        return Ok(());
    }
    let error = Error::operator(format!(
        "slot {:?} was dropped, since it kept {} bytes of WAL at the source and [source] retained_wal_bytes_max is {}, with \
         retained_wal_action = \"drop_slot\": changes from {} on are lost (the WAL ended at {} then) but for those that \
         are on their way into the log",
        of.slot, look.retained_bytes, of.thresholds.retained_bytes_max, look.confirmed, look.wal_end
    ))
    .mend(
        "Mend what kept capture from reading. Its next start names the exact range, to be given up by `tidemark accept-gap`; \
         then every table is copied anew.",
    );
    tracing::error!(%error, mend = error.mend_text(), "the slot was given up to save the source's disk");
    ops.component("slot").failed(&error);
    Ok(())
}

/// How long the slot has been behind, from ends of the WAL that were seen before.
struct Pace {
    /// What is not confirmed, the oldest first.
    moments: VecDeque<(Instant, Lsn)>,
}

impl Pace {
    fn lag(&mut self, now: Instant, wal_end: Lsn, confirmed: Lsn) -> Duration {
        while self.moments.front().is_some_and(|(_, end)| *end <= confirmed) {
            self.moments.pop_front();
        }
        if wal_end > confirmed && self.moments.back().is_none_or(|(_, end)| *end < wal_end) {
            if self.moments.len() == MOMENTS_MAX {
                let mut at = 0;
                // Every second one: the oldest stays.
                self.moments.retain(|_| {
                    at += 1;
                    at % 2 == 1
                });
            }
            self.moments.push_back((now, wal_end));
        }
        self.moments.front().map_or(Duration::ZERO, |(at, _)| now - *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_late_by_the_age_of_the_oldest_wal_that_it_has_not_confirmed() {
        let mut pace = Pace { moments: VecDeque::new() };
        let start = Instant::now();
        let mut lag = |seconds: u64, wal_end: u64, confirmed: u64| {
            pace.lag(start + Duration::from_secs(seconds), Lsn(wal_end), Lsn(confirmed)).as_secs()
        };
        assert_eq!(lag(0, 100, 100), 0);
        assert_eq!(lag(10, 200, 100), 0);
        assert_eq!(lag(20, 300, 100), 10);
        assert_eq!(lag(30, 300, 200), 10, "of the first part nothing is pending any more");
        assert_eq!(lag(40, 300, 300), 0);
        for second in 0..5_000 {
            lag(50 + second, 400 + second, 300);
        }
        assert_eq!(lag(5_050, 10_000, 300), 5_000, "the oldest moment is kept however many follow");
    }
}
