//! Watches what the publication publishes, for all that changes a table without a change of its rows in the stream.
//!
//! ```text
//!   watcher (a connection of its own) ─ Sight, Sight … ─> queue ── stream has passed it ──> compared with Standing
//!                                                           └───── cut: the sight next to it ──┘     │
//!                                                                  a new copy is needed <────────────┴─> noted
//! ```
//!
//! **What is compared.** A [`Standing`] says what a table was at the source when all its rows were accounted for: when
//! it was copied, or at a later sight that differed in nothing that matters. It is in the log's state. What became of it
//! since is in the catalog: see [`crate::postgres::published`]. Partitions that came and went in between left nothing
//! there, but rows in the stream: [`leaves`].
//!
//! **Why nothing is missed.** Standings are durable and the catalog is the source's: whatever happened while nobody
//! looked, between two sights or while the process was away, is a difference at the next one. A cut is compared with a
//! sight that saw everything below it, so a day never holds a table that such a change made wrong. Of a table that the
//! stream has seen made where the sight may not have, a later one tells.
//!
//! **Why little is copied for nothing.** A sight counts only when the stream has come past it: by then a TRUNCATE of the
//! root was in the stream, and its transaction is the one that wrote the leaves' rows of `pg_class`. A partition that
//! was made as one, or was empty, brought nothing. What is left over (VACUUM FULL of a partition, a
//! TRUNCATE of the root within a subtransaction, whose leaves name that one) is copied: it cannot be told from a loss.

mod compare;
mod leaves;
mod routes;
mod standing;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::change::Lsn;
use crate::postgres::published::{self, KnownParts, Sight};
use crate::postgres::wire::{Client, Session};
use crate::runtime::Error;

use super::CaptureSettings;
use super::state::leaves_entry;
use leaves::Leaves;
pub use leaves::{Commits, Descriptions, Streamed};
pub use routes::Routes;
pub use standing::Standing;

/// Between two sights.
const PAUSE: Duration = Duration::from_secs(5);
/// Or so many times as long as one took: looking costs the server little.
const PAUSE_FACTOR: u32 = 50;
/// But no longer than that: one may have taken long because it waited for a lock.
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// Sights that differ and wait for the stream; of more, those in the middle are not kept.
const SIGHTS_MAX: usize = 16;

/// The publication as it was seen.
pub struct Publication {
    settings: CaptureSettings,
    known: BTreeMap<Arc<str>, Standing>,
    leaves: Leaves,
    /// As the server's process has them, at the latest.
    routes: Routes,
    /// Those which the stream has not passed, the oldest first.
    sights: VecDeque<Arc<Sight>>,
    /// The last that it has.
    passed: Option<Arc<Sight>>,
    /// By topic, just below the point where the last copy of a table in this session began.
    copied: BTreeMap<Arc<str>, Lsn>,
    /// The last commit that made a table, or was read of one, of which the sight that was compared cannot tell.
    untold: Option<Lsn>,
    events: mpsc::Receiver<Sight>,
    watcher: Option<AbortHandle>,
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.watcher.iter().for_each(AbortHandle::abort);
    }
}

impl Publication {
    /// Begins to watch; goes on from the state that a fence found. `routes`: those at which an earlier session ended.
    pub fn watch(
        settings: &CaptureSettings,
        known: BTreeMap<String, Standing>,
        leaves: BTreeMap<String, Commits>,
        routes: Option<Routes>,
    ) -> Self {
        let known: BTreeMap<Arc<str>, Standing> =
            known.into_iter().map(|(topic, standing)| (Arc::from(topic), standing)).collect();
        let parts = known.values().flat_map(Standing::known).collect();
        let routes = routes.unwrap_or_else(|| known.values().flat_map(Standing::routes).collect());
        let (sender, events) = mpsc::channel(1);
        // Without the first copy there is nothing that later ones would complete.
        let watcher =
            settings.backfill.then(|| tokio::spawn(watch(settings.clone(), parts, sender)).abort_handle());
        let (settings, leaves) = (settings.clone(), Leaves::new(leaves));
        let (sights, passed, copied, untold) = (VecDeque::new(), None, BTreeMap::new(), None);
        Self { settings, known, leaves, routes, sights, passed, copied, untold, events, watcher }
    }

    /// The next sight; for ever when there is none. Cancel-safe.
    pub async fn seen(&mut self) -> Sight {
        match self.events.recv().await {
            Some(sight) => sight,
            None => std::future::pending().await,
        }
    }

    /// Takes a sight in.
    pub fn take(&mut self, sight: Sight) {
        let last = self.sights.back_mut().or(self.passed.as_mut());
        match last {
            Some(last) if last.tables == sight.tables => Arc::make_mut(last).complete_to = sight.complete_to,
            _ => {
                if self.sights.len() == SIGHTS_MAX {
                    self.sights.pop_back();
                }
                self.sights.push_back(Arc::new(sight));
            }
        }
    }

    /// The next sight that a stream which has come to `flush_lsn` has passed; or the last one, where leaves or tables are
    /// to be compared with it that are younger than it was.
    pub fn pass(&mut self, flush_lsn: Lsn) -> Option<Arc<Sight>> {
        if self.sights.front().is_some_and(|next| has_reached(flush_lsn, next.pass)) {
            self.passed = self.sights.pop_front();
            return self.passed.clone();
        }
        let (leaves, untold) = (&mut self.leaves, &mut self.untold);
        self.passed.clone().filter(|passed| {
            let is_told = untold.take_if(|made_at| *made_at < passed.complete_to).is_some();
            leaves.are_due(passed.complete_to) || is_told
        })
    }

    /// Where the server may send changes as those of other tables than a sight saw, since the stream was taken up before:
    /// the routes with which to take it up again.
    pub fn stale_routes(&self, sight: &Sight, server_version: u32) -> Option<Routes> {
        self.routes.stale(sight, server_version)
    }

    /// The condition of rows which a table's copy took, if that was not all of them.
    pub fn copied_where(&self, topic: &str) -> Option<&str> {
        self.known.get(topic)?.copied_where()
    }

    /// A copy of a table begins with what commits below `point`, or is whole: sights from before say nothing of it.
    pub fn copied(&mut self, topic: &Arc<str>, point: Lsn) {
        self.copied.insert(Arc::clone(topic), Lsn(point.0.saturating_sub(1)));
    }

    /// Has the last sight compared again: what a table stood for has changed.
    pub fn look_again(&mut self) {
        if let Some(passed) = self.passed.take() {
            self.sights.push_front(passed);
        }
    }

    /// The first sight that saw everything below a cut, if there is one already.
    fn at(&self, cut: Lsn) -> Option<&Arc<Sight>> {
        self.passed.iter().chain(&self.sights).find(|sight| sight.complete_to >= cut)
    }

    /// Parts of tables that have been looked at.
    fn parts(&self) -> KnownParts {
        let seen = self.passed.iter().chain(&self.sights).flat_map(|sight| parts_of(sight));
        self.known.values().flat_map(Standing::known).chain(seen).collect()
    }

    /// Forgets what a table was: it is another one. Gives state for the next append.
    pub fn forget(&mut self, topic: &Arc<str>) -> Vec<(String, Vec<u8>)> {
        let standing = self.known.remove(topic).map(|_| Standing::no_entry(topic));
        standing.into_iter().chain(self.accounted(topic, Lsn(u64::MAX))).collect()
    }

    /// Takes in a leaf of which rows came; gives state for the append with them. `copied`: a copy of the table is on its
    /// way, which may be of when the leaf was not there.
    pub fn streamed(
        &mut self,
        topic: &Arc<str>,
        Streamed { leaf, commit_lsn, .. }: Streamed,
        copied: bool,
    ) -> Option<(String, Vec<u8>)> {
        let is_known = self.known.get(topic).is_some_and(|standing| standing.has(leaf));
        // Where nobody looks, nobody asks either.
        if (is_known && !copied) || self.watcher.is_none() {
            return None;
        }
        Some(leaves_entry(topic, self.leaves.note(topic, leaf, commit_lsn)))
    }

    /// Takes in leaves that a later round of a copy reads at `point` beside those which the copy began with: when it is
    /// whole it stands for what it began with, and they may be gone by then. Gives state for the append with their rows.
    pub fn read(&mut self, topic: &Arc<str>, leaves: &[u32], point: Lsn) -> Option<(String, Vec<u8>)> {
        let below = Lsn(point.0.saturating_sub(1));
        leaves.iter().map(|leaf| leaves_entry(topic, self.leaves.note(topic, *leaf, below))).last()
    }

    /// Rows of leaves that committed below `before` are accounted for. Gives the state if that is news.
    pub fn accounted(&mut self, topic: &str, before: Lsn) -> Option<(String, Vec<u8>)> {
        self.leaves.forget(topic, before).map(|left| leaves_entry(topic, &left))
    }

    /// Notes that the rows of a table are accounted for as it is; gives the state if that is news.
    pub fn note(&mut self, topic: &Arc<str>, standing: Standing) -> Option<(String, Vec<u8>)> {
        if self.known.get(topic) == Some(&standing) {
            return None;
        }
        let entry = standing.entry(topic);
        self.known.insert(Arc::clone(topic), standing);
        Some(entry)
    }
}

/// Whether a stream that has come to `passed` has all that was written below `target`. An end of WAL at the end of a page
/// may be told as the beginning of the next one, past its header; no record is that short.
pub(super) const fn has_reached(passed: Lsn, target: Lsn) -> bool {
    const PAGE: u64 = 8192;
    const HEADER_MAX: u64 = 40;
    passed.0 >= target.0 || (passed.0.is_multiple_of(PAGE) && target.0 - passed.0 <= HEADER_MAX)
}

fn parts_of(sight: &Sight) -> impl Iterator<Item = ((u32, u64), bool)> {
    let parts = sight.tables.values().filter(|table| table.partitioned).flat_map(|table| &table.parts);
    parts.map(|(oid, part)| ((*oid, part.joined), part.quiet))
}

/// Looks again and again. Ends when nobody listens any more.
async fn watch(settings: CaptureSettings, mut known: KnownParts, events: mpsc::Sender<Sight>) {
    let mut client = None;
    loop {
        let began = Instant::now();
        match look(&settings, &mut client, &known).await {
            Ok(sight) => {
                known.extend(parts_of(&sight));
                if events.send(sight).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                client = None;
                tracing::warn!(%error, "what the publication publishes could not be looked at: trying again");
            }
        }
        tokio::time::sleep((began.elapsed() * PAUSE_FACTOR).clamp(PAUSE, PAUSE_MAX)).await;
    }
}

async fn look(
    settings: &CaptureSettings,
    client: &mut Option<Client>,
    known: &KnownParts,
) -> Result<Sight, Error> {
    let mut sql = match client.take() {
        Some(sql) => sql,
        None => Client::connect(&settings.connect, Session::Sql).await?,
    };
    let sight = published::look(&mut sql, &settings.publication, known).await?;
    *client = Some(sql);
    Ok(sight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_page_is_the_beginning_of_the_next() {
        assert!(has_reached(Lsn(8192), Lsn(8192 + 24)));
        assert!(!has_reached(Lsn(8192), Lsn(8192 + 48)));
        assert!(!has_reached(Lsn(8000), Lsn(8024)));
        assert!(has_reached(Lsn(8024), Lsn(8024)));
    }
}
