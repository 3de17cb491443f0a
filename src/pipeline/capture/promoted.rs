//! A standby that is promoted while it is streamed from: its walsender goes on, on the new timeline, and says nothing of it.
//!
//! What comes then is numbered by the former timeline. Whoever connects next would find the log beyond the place where the
//! server left that one, as if it held what never happened there: a gap that is none. So a session of its own, opened while
//! the server was in recovery, asks it once a second; it lives as long as that very server does. When the answer changes,
//! all that came is of this server's history: the state goes over to its timeline, and the stream is taken up again on it.
//! Positions grow, since their timeline does. Died before the answer was seen, the gap is told.
//!
//! Source: `logical_read_xlog_page` in `src/backend/replication/walsender.c` (16 and later).

use std::time::Duration;

use tokio::time::Instant;

use crate::change::Timeline;
use crate::postgres::wire::{Client, Session};
use crate::runtime::Result;

use super::CaptureSettings;
use super::source::PATIENCE;

/// Between two questions.
const EVERY: Duration = Duration::from_secs(1);

/// The server's timeline, once it is a primary.
const TIMELINE: &str = "SELECT CASE WHEN NOT pg_is_in_recovery() \
    THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END";

/// Watches a standby that is streamed from.
#[derive(Debug)]
pub struct Standby {
    client: Client,
    asked: Instant,
}

impl Standby {
    /// Begins to watch the server that `streamed` is the address of, if it is a standby.
    pub async fn watch(settings: &CaptureSettings, streamed: &str) -> Result<Option<Self>> {
        let mut client = Client::connect(&settings.connect, Session::Sql).await?;
        let recovers = client.query_one("SELECT pg_is_in_recovery()").await?.is_true(0);
        // Of several hosts it may be another one.
        let is_it = recovers && client.address() == streamed;
        Ok(is_it.then(|| Self { client, asked: Instant::now() }))
    }

    /// The timeline which it has gone over to, if it was promoted. Not cancel-safe.
    ///
    /// # Errors
    /// That it did not answer: nothing is known of it any more.
    pub async fn promoted(&mut self) -> Result<Option<Timeline>> {
        if self.asked.elapsed() < EVERY {
            return Ok(None);
        }
        self.asked = Instant::now();
        let answer = tokio::time::timeout(PATIENCE, self.client.query_one(TIMELINE)).await;
        let row = answer.map_err(|_| {
            crate::runtime::Error::retry(format!(
                "the standby did not answer in {PATIENCE:?} whether it was promoted"
            ))
        })??;
        row.get(0).map(|_| row.parse(0)).transpose()
    }
}
