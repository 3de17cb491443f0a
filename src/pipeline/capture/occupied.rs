//! Who may stream from the slot: one process, and others stand by for it.
//!
//! ```text
//!   claim (advisory lock) ─> slot free? ─ yes ─> fence, checks, first copy, START_REPLICATION ─> claim given back
//!        ^                       │ no
//!        └── stand by <──────────┘   the claim is given back at once
//! ```
//!
//! Why there is never more than one, and soon one again:
//!
//! - *The slot decides.* Postgres lets one walsender have it, and takes it back when the connection closes (a process that
//!   is killed), or when nothing was heard for `wal_sender_timeout` (one that stands still, a machine or a network that
//!   went away). A process that stands by asks whether the slot is free, and touches nothing until it is: neither the
//!   log nor the slot.
//! - *On the way there* (fence, checks, perhaps the first copy) nobody has the slot yet. For that time a lock of the same
//!   server stands in for it: an advisory lock on the slot's name, held by a session of its own, which ends with the
//!   process as the slot does, or soon after its network. It needs no right and touches no table. Without it two
//!   processes that see a free slot would fence each other in turn.
//! - *Neither of the two is trusted with the data.* Whoever lost the slot without knowing (it stood still, and goes on) may
//!   still have an append under way. It carries the epoch of its fence, and the log itself refuses it once another
//!   process has fenced ([`crate::log::Log::fence`]): SQLite by the row that it updates, Kafka by the producer's epoch.
//!   So a claim that is lost or wrongly given costs time, and no change.
//!
//! The log's own leases would not do: a lease says nothing of the walsender, which is what the next one has to wait for.

use std::time::Duration;

use tokio::time::Instant;

use crate::ops::Ops;
use crate::postgres::claim::{self, Holder};
use crate::postgres::wire::{Client, Session};
use crate::runtime::{Class, Error, Result, Shutdown};

use super::{CaptureSettings, Contact, verify};

/// Another program on the slot is waited for so long by a process that never streamed from it.
const STRANGER_PATIENCE: Duration = Duration::from_secs(15);

/// How much longer than `wal_sender_timeout` the server may take to let go of a connection.
const TIMEOUT_SLACK: Duration = Duration::from_secs(5);

/// A consumer that lives replies at least every ten seconds.
const SILENCE: Duration = Duration::from_secs(30);

/// How often it is asked whether the slot is free.
const EVERY: Duration = Duration::from_millis(250);

/// An answer takes no longer, or the connection is broken.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);

/// Nobody else begins while this is held. Dropped, it is given back.
#[derive(Debug)]
pub struct Claim {
    _session: Client,
}

/// Who is waited for, and since when nothing was heard of it.
struct Waiting {
    holder: Holder,
    silent_since: Instant,
}

/// Waits until nobody streams from the slot and nobody else is about to, as a standby. Another program on the slot, which
/// has another `application_name`, needs a person where this process has not streamed from it. Cancel-safe.
pub async fn claim(
    settings: &CaptureSettings,
    contact: &mut Contact,
    ops: &Ops,
    shutdown: &Shutdown,
) -> Result<Claim> {
    let component = ops.component("source");
    let mut session = answered(Client::connect(&settings.connect, Session::Sql)).await?;
    contact.connected = true;
    answered(claim::prepare(&mut session)).await?;
    let patience = verify::wal_sender_timeout(&mut session).await?.map(|timeout| timeout + TIMEOUT_SLACK);
    let started = Instant::now();
    let mut waiting: Option<Waiting> = None;
    loop {
        let Some(holder) = answered(claim::try_claim(&mut session, &settings.slot)).await? else {
            if let Some(Waiting { holder, .. }) = waiting {
                tracing::info!(slot = settings.slot, pid = holder.pid, "the slot is free: taking over");
                component.starting();
            }
            return Ok(Claim { _session: session });
        };
        if contact.walsender != Some(holder.pid) {
            // Whoever was fenced, and finds another at work, has met its successor.
            contact.fenced = 0;
        }
        let is_another = waiting.as_ref().is_none_or(|known| known.holder.pid != holder.pid);
        if is_another {
            tracing::info!(slot = settings.slot, "the slot is in use, waiting for it: {holder}");
        }
        if is_another || waiting.as_ref().is_some_and(|known| known.holder.last_reply != holder.last_reply) {
            waiting = Some(Waiting { holder, silent_since: Instant::now() });
        }
        if let Some(waiting) = &waiting {
            match trouble(settings, waiting, patience, contact) {
                None if waiting.holder.streams && contact.walsender == Some(waiting.holder.pid) => component.waiting(format!(
                    "the server still believes in this process's former connection, {}; it lets go after wal_sender_timeout",
                    waiting.holder
                )),
                None => {
                    component.standby(format!(
                        "stands by for {}; takes over when it lets go of slot {:?}",
                        waiting.holder, settings.slot
                    ));
                    ops.source().left();
                }
                Some(error) if started.elapsed() >= STRANGER_PATIENCE && error.class() == Class::Operator => {
                    return Err(error);
                }
                Some(error) => component.waiting(error.message()),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.raised() => return Err(Error::retry("asked to stop while the slot was in use")),
        }
    }
}

/// Why waiting for the holder may not help, if so.
fn trouble(
    settings: &CaptureSettings,
    waiting: &Waiting,
    patience: Option<Duration>,
    contact: &Contact,
) -> Option<Error> {
    let holder = &waiting.holder;
    let message = format!("replication slot {:?} is in use by {holder}", settings.slot);
    if holder.application_name.as_ref().is_some_and(|name| *name != settings.connect.application_name) {
        let class = if contact.streamed { Class::Retry } else { Class::Operator };
        return Some(Error::new(class, message).mend(format!(
            "That is no Tidemark with this configuration. Stop the other consumer (SELECT * FROM pg_stat_replication WHERE \
             pid = {}), or give this connector a slot of its own under [source] slot.",
            holder.pid
        )));
    }
    let silent = waiting.silent_since.elapsed();
    let is_silent = holder.last_reply.is_some() && silent >= patience.unwrap_or(SILENCE);
    is_silent.then(|| {
        let until = match patience {
            Some(_) => "the server should have ended that by wal_sender_timeout",
            None => "wal_sender_timeout is 0, so the server never ends that by itself",
        };
        Error::retry(format!(
            "{message}, and has not replied for {} s; {until}: SELECT pg_terminate_backend({})",
            silent.as_secs(),
            holder.pid
        ))
    })
}

/// A question to a server that does not answer is given up: the next attempt makes a new connection.
async fn answered<T>(question: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(ANSWER_PATIENCE, question).await.unwrap_or_else(|_| {
        Err(Error::retry(format!(
            "the source did not answer in {ANSWER_PATIENCE:?} whether its slot is free"
        )))
    })
}
