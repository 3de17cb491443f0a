//! Telling others of complete days: a task beside delivery for each endpoint.
//!
//! ```text
//!   delivery ── a day is complete ──> (watch) ──> task of an endpoint, where this process leads ── send, note ──> lake
//! ```
//!
//! Delivery waits for none of it: all that the task shares with it is the last complete day, which it looks at. Which
//! days are to be told is read from the lake ([`crate::lake::Notice`]), so a process that takes the lead goes on where
//! another one stopped; two that lead for a moment send the same messages twice.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::watch;

use super::members::Membership;
use crate::change::Ds;
use crate::lake::Lake;
use crate::notice::{Endpoint, Message};
use crate::ops::{NoticeStats, Ops};
use crate::runtime::{Backoff, Result};

/// How soon a process finds that it leads.
const LOOK: Duration = Duration::from_secs(1);
/// Pauses after failures.
const PAUSE: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(60)];

/// Tells an endpoint of days while this process leads, until delivery has ended. Cancel-safe.
pub(super) async fn run(
    endpoint: Endpoint,
    database: String,
    lake: Lake,
    member: std::sync::Arc<Membership>,
    ops: Ops,
    mut complete: watch::Receiver<Option<Ds>>,
) {
    let component = ops.component(endpoint.component());
    let mut telling =
        Telling { stats: ops.notices(endpoint.name()), endpoint, database, lake, taken: HashSet::new() };
    let mut backoff = Backoff::new(PAUSE[0], PAUSE[1]);
    // What was complete when everything had been told.
    let mut told: Option<Option<Ds>> = None;
    loop {
        let now = *complete.borrow_and_update();
        if !member.leads() {
            component.standby("the process that leads sends notices");
            told = None;
        } else if told != Some(now) {
            if let Err(error) = telling.tell().await {
                component.failed(&error);
                telling.stats.failed();
                let wait = backoff.next_wait();
                tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "a notice was not taken: trying again");
                tokio::time::sleep(wait).await;
                continue;
            }
            component.ok();
            backoff.reset();
            told = Some(now);
        }
        tokio::select! {
            changed = complete.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

struct Telling {
    endpoint: Endpoint,
    database: String,
    lake: Lake,
    stats: std::sync::Arc<NoticeStats>,
    /// Ids of the day under way that were taken.
    taken: HashSet<String>,
}

impl Telling {
    /// Tells all that is untold.
    async fn tell(&mut self) -> Result<()> {
        let days = self.lake.untold_days(self.endpoint.name()).await?;
        for (number, ds) in days.iter().enumerate() {
            self.stats.set_pending((days.len() - number) as u64);
            let notices = self.lake.notices(&self.database, *ds).await?;
            for notice in &notices {
                if self.taken.contains(&notice.id) {
                    continue;
                }
                let key = notice.table.as_ref().map_or_else(String::new, ToString::to_string);
                let body = notice.to_json()?;
                let message = Message { id: notice.id.clone(), group: notice.name.clone(), key, body };
                self.endpoint.send(&message).await?;
                self.stats.sent();
                self.taken.insert(notice.id.clone());
            }
            self.lake.note_told(self.endpoint.name(), *ds, notices.len()).await?;
            self.taken.clear();
            tracing::info!(%ds, endpoint = self.endpoint.name(), notices = notices.len(), "the day is told");
        }
        self.stats.set_pending(0);
        Ok(())
    }
}
