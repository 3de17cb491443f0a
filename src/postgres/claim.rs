//! Who holds a slot, and a lock of the server on its name for the time before anybody does.
//!
//! Source: <https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADVISORY-LOCKS>,
//! <https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-REPLICATION-VIEW>.

use std::fmt;

use super::wire::{Client, Row, quote_literal};
use crate::runtime::Result;

/// A session that streams from a slot, or is on its way to it. What the role may not see is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The server process.
    pub pid: i32,
    /// `application_name` of its client.
    pub application_name: Option<String>,
    /// Where the client is; none for a Unix socket.
    pub client_address: Option<String>,
    /// Since when it is connected, as the server writes it.
    pub connected: Option<String>,
    /// When its client last replied, as the server writes it; none for a session that does not stream.
    pub last_reply: Option<String>,
    /// It streams; otherwise it is getting ready to.
    pub streams: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let does =
            if self.streams { "which streams from the slot" } else { "which is getting ready to stream" };
        write!(f, "server process {} (", self.pid)?;
        match &self.application_name {
            Some(name) => write!(f, "application {name}")?,
            None => write!(f, "application not shown to this role")?,
        }
        if let Some(address) = &self.client_address {
            write!(f, ", from {address}")?;
        }
        if let Some(connected) = &self.connected {
            write!(f, ", since {connected}")?;
        }
        write!(f, "), {does}")
    }
}

/// Makes a session fit to hold claims: it is idle for as long as a first copy takes, and the server notices within half a
/// minute when its client's machine or network is gone. (No session of ours ends by a timeout of its role.)
pub async fn prepare(client: &mut Client) -> Result<()> {
    client
        .execute(
            "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3",
        )
        .await
}

/// Claims a slot that nobody streams from, for as long as the session lives; otherwise gives who is before it. Not
/// cancel-safe: the session may then have the claim, and is to be closed.
pub async fn try_claim(client: &mut Client, slot: &str) -> Result<Option<Holder>> {
    let key = key(slot);
    loop {
        if let Some(holder) = streaming(client, slot).await? {
            return Ok(Some(holder));
        }
        if client.query_one(&format!("SELECT pg_try_advisory_lock({key})")).await?.is_true(0) {
            break;
        }
        if let Some(holder) = claiming(client, key).await? {
            return Ok(Some(holder));
        }
        // Whoever had it has given it back meanwhile.
    }
    // Somebody may have come to stream between the two questions.
    let holder = streaming(client, slot).await?;
    if holder.is_some() {
        client.execute(&format!("SELECT pg_advisory_unlock({key})")).await?;
    }
    Ok(holder)
}

const SESSION: &str =
    "a.application_name, coalesce(host(a.client_addr), ''), a.backend_start::timestamptz(0)";

async fn streaming(client: &mut Client, slot: &str) -> Result<Option<Holder>> {
    let sql = format!(
        "SELECT s.active_pid, {SESSION}, r.reply_time FROM pg_replication_slots s \
         LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid \
         WHERE s.slot_name = {} AND s.active_pid IS NOT NULL",
        quote_literal(slot)
    );
    let rows = client.query(&sql).await?;
    rows.first().map(|row| read(row, true)).transpose()
}

async fn claiming(client: &mut Client, key: i64) -> Result<Option<Holder>> {
    let sql = format!(
        "SELECT l.pid, {SESSION}, NULL FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND (l.classid::bigint << 32 | l.objid::bigint) = {key}"
    );
    let rows = client.query(&sql).await?;
    rows.first().map(|row| read(row, false)).transpose()
}

fn read(row: &Row, streams: bool) -> Result<Holder> {
    let text = |column: usize| row.get(column).filter(|text| !text.is_empty()).map(str::to_owned);
    Ok(Holder {
        pid: row.parse(0)?,
        application_name: text(1),
        client_address: text(2),
        connected: text(3),
        last_reply: text(4),
        streams,
    })
}

/// The lock's key in the slot's database: FNV-1a of a fixed word and the name. Other versions of Tidemark have to find
/// the same.
fn key(slot: &str) -> i64 {
    let name = "tidemark slot ".bytes().chain(slot.bytes());
    let hash = name.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    i64::from_ne_bytes(hash.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_slot_is_the_same_in_every_version() {
        assert_eq!(key("tidemark_shop"), 4_972_561_406_270_866_754);
        assert_ne!(key("tidemark_shop"), key("tidemark_shop2"));
    }

    #[test]
    fn a_holder_is_named_with_all_that_is_known() {
        let mut holder = Holder {
            pid: 42,
            application_name: Some("tidemark".into()),
            client_address: Some("10.0.0.5".into()),
            connected: Some("2026-11-26 03:00:00+00".into()),
            last_reply: None,
            streams: true,
        };
        assert_eq!(
            holder.to_string(),
            "server process 42 (application tidemark, from 10.0.0.5, since 2026-11-26 03:00:00+00), which streams from the slot"
        );
        (holder.application_name, holder.client_address, holder.connected) = (None, None, None);
        holder.streams = false;
        assert_eq!(
            holder.to_string(),
            "server process 42 (application not shown to this role), which is getting ready to stream"
        );
    }
}
