//! Deliver: the log in, published days out.
//!
//! ```text
//!   loop: ranges of the log ─> journal (schemas, cuts) ─> each table's turn (stage, publish) ─> the day's manifest
//!         └ of the tables that this process has ([`members`])                                    └ whoever leads
//! ```
//!
//! Why two at once do no harm: leases keep two processes from the same table, and where a lease fails (a process
//! paused past its end), change files are of one sequence that all who stage go by, and every other object has a name that
//! follows from its content and is made by conditional create: whoever comes late finds its own bytes there already, or is
//! refused.

mod delivery;
mod gap;
mod hours;
mod journal;
mod members;
mod notices;
mod premerge;
mod replay;
mod share;
mod table;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::change::TableName;
use crate::coord::Coordinator;
use crate::envelope::Options;
use crate::lake::{Lake, TailRule};
use crate::log::Log;
use crate::notice::Endpoint;
use crate::ops::{Component, Ops};
use crate::runtime::{Backoff, Class, Error, Result, Shutdown};

use delivery::{Delivery, Troubled};
use table::Partitions;

pub use premerge::PremergeSettings;
pub use replay::{From, Replayed, replay};

use members::Membership;

/// How long a step in progress (a merge, a lake that hangs) may take when the process is to stop. Whatever is
/// dropped then is done again, with the same outcome.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

type TailOf = dyn Fn(&TableName) -> Option<TailRule> + Send + Sync;

/// The historic tail of a table; none: every day of it is whole.
#[derive(Clone)]
pub struct HistoricTails(pub Arc<TailOf>);

impl std::fmt::Debug for HistoricTails {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HistoricTails")
    }
}

/// What deliver has to know.
#[derive(Clone, Debug)]
pub struct DeliverSettings {
    /// The source's name.
    pub name: String,
    /// How values are written in the log.
    pub envelope: Options,
    /// How long a lease lasts without renewal.
    pub lease_ttl: Duration,
    /// Bytes which tables may hold before the fullest gives its up and reads them again.
    pub memory_bytes_max: usize,
    /// When days are made before they end.
    pub premerge: PremergeSettings,
    /// Which tables have a historic tail.
    pub historic_tails: HistoricTails,
    /// The database, for notices.
    pub database: String,
    /// Who is told of complete days.
    pub endpoints: Vec<Endpoint>,
}

/// What interrupts a delivery that lasted as long has nothing to do with what came before it.
const DELIVERY_STEADY: Duration = Duration::from_secs(60);

/// Delivers until the process is to stop. Errors that pass are waited out; a table that fails is isolated.
pub async fn run(
    settings: &DeliverSettings,
    log: &Arc<dyn Log>,
    lake: &Lake,
    coordinator: &Arc<dyn Coordinator>,
    ops: &Ops,
    shutdown: &Shutdown,
) -> Result<()> {
    let component = ops.component("deliver");
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
    let mut troubled = Troubled::new();
    while !shutdown.is_raised() {
        let member = match Membership::join(coordinator, &settings.name, settings.lease_ttl).await {
            Ok(Some(member)) => Arc::new(member),
            Ok(None) => {
                component.standby("other processes deliver, as many as may at once; standing by");
                tokio::select! {
                    () = tokio::time::sleep(settings.lease_ttl / 4) => {}
                    () = shutdown.raised() => {}
                }
                continue;
            }
            Err(error) if error.class() == Class::Retry => {
                pause(&component, &error, &mut backoff, shutdown).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let began = Instant::now();
        let mut delivery = Delivery::new(settings, log, lake, ops, &member, &mut troubled);
        // In a task of its own: a turn which computes for long must not hold up the renewal.
        let mut notifying = tokio::task::JoinSet::new();
        for endpoint in settings.endpoints.iter().cloned() {
            let (lake, member, complete) = (lake.clone(), Arc::clone(&member), delivery.complete());
            let (database, ops) = (settings.database.clone(), ops.clone());
            notifying.spawn(notices::run(endpoint, database, lake, member, ops, complete));
        }
        let mut keeper = tokio::task::JoinSet::new();
        let kept = Arc::clone(&member);
        keeper.spawn(async move { kept.run().await });
        let result = tokio::select! {
            result = delivery.run(shutdown) => result,
            Some(lost) = keeper.join_next() => {
                lost.unwrap_or_else(|error| Err(Error::retry("the task that renews the leases died").cause(error)))
            }
            () = overdue(shutdown) => {
                tracing::warn!("delivery did not come to an end in {DRAIN_PATIENCE:?}: what it was doing is done again at the next start");
                Ok(())
            }
        };
        delivery.interrupt();
        keeper.shutdown().await;
        notifying.shutdown().await;
        member.leave().await;
        let Err(error) = result else { return Ok(()) };
        if !matches!(error.class(), Class::Retry | Class::Fenced) {
            return Err(error);
        }
        if began.elapsed() >= DELIVERY_STEADY {
            backoff.reset();
        }
        pause(&component, &error, &mut backoff, shutdown).await;
    }
    Ok(())
}

/// Tells of an error that passes, and waits.
async fn pause(component: &Component, error: &Error, backoff: &mut Backoff, shutdown: &Shutdown) {
    component.failed(error);
    let wait = backoff.next_wait();
    tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "delivery was interrupted: trying again");
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = shutdown.raised() => {}
    }
}

/// Waits until the process is to stop, and then as long as a step in progress may take.
async fn overdue(shutdown: &Shutdown) {
    shutdown.raised().await;
    tokio::time::sleep(DRAIN_PATIENCE).await;
}
