//! A slot that somebody streams from.
//!
//! Right after a crash it is the former connection, of which the server has not noticed yet that it is gone: at
//! once where the kernel closed it, but only after `wal_sender_timeout` where a machine or a network went away.
//! Or it is another consumer, started by mistake. The two are told apart by the replies to the server: a
//! consumer that lives makes them, and is not waited for.

use std::time::Duration;

use tokio::time::Instant;

use crate::postgres::slot;
use crate::postgres::wire::Client;
use crate::runtime::{Class, Error, Result, Shutdown};

use super::source::Source;
use super::{CaptureSettings, Contact, verify};

/// A consumer replies at least every ten seconds, also an idle one.
const ALIVE_PATIENCE: Duration = Duration::from_secs(15);

/// How much longer than `wal_sender_timeout` the server may take to let go of a connection.
const TIMEOUT_SLACK: Duration = Duration::from_secs(5);

const EVERY: Duration = Duration::from_millis(200);

/// Waits until nobody streams from the slot. A process which has streamed from it may try again afterwards; for
/// a new one, another consumer is an error that needs a person. Cancel-safe.
pub async fn wait_for_slot(
    settings: &CaptureSettings,
    source: &mut Source,
    contact: Contact,
    shutdown: &Shutdown,
) -> Result<()> {
    let started = Instant::now();
    let mut held: Option<(i32, Option<String>)> = None;
    let mut alive = false;
    let mut patience = ALIVE_PATIENCE;
    loop {
        let sql = source.client().await?;
        let Some(pid) = slot::slot_state(sql, &settings.slot).await?.and_then(|slot| slot.active_pid) else {
            return Ok(());
        };
        let reply = slot::last_reply(sql, pid).await?;
        match &held {
            Some((known, first)) => alive |= *known != pid || *first != reply,
            None => {
                patience = server_patience(sql).await?;
                tracing::warn!(
                    slot = settings.slot,
                    pid,
                    "the slot is still in use: waiting up to {patience:?} for the server to let go of it"
                );
                held = Some((pid, reply));
            }
        }
        if started.elapsed() >= if alive { ALIVE_PATIENCE } else { patience } {
            let class = if contact.streamed { Class::Retry } else { Class::Operator };
            let message = format!("replication slot {:?} is in use by server process {pid}", settings.slot);
            return Err(Error::new(class, message).mend(format!(
                "Stop the other consumer (SELECT * FROM pg_stat_replication WHERE pid = {pid}), or give this \
                 connector a slot of its own under [source] slot."
            )));
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.raised() => return Err(Error::retry("asked to stop while the slot was in use")),
        }
    }
}

/// How long the server believes in a connection that is silent; it is not waited for where that is for ever.
async fn server_patience(sql: &mut Client) -> Result<Duration> {
    let timeout = verify::wal_sender_timeout(sql).await?;
    Ok(timeout.map_or(ALIVE_PATIENCE, |timeout| (timeout + TIMEOUT_SLACK).max(ALIVE_PATIENCE)))
}
