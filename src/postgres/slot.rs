//! Replication slots: what the server knows of them, making one, dropping one.
//!
//! Source: `src/include/catalog/system_views`, `pg_replication_slots`;
//! <https://www.postgresql.org/docs/current/protocol-replication.html>.

use super::wire::{Client, Row, quote_ident, quote_literal};
use crate::change::{Lsn, Timeline};
use crate::runtime::{Error, Result};

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Made by initdb; a restored backup and a standby keep it.
    pub system_identifier: u64,
    /// Current timeline.
    pub timeline: Timeline,
    /// Current flush position of the WAL.
    pub current_lsn: Lsn,
    /// The session's database.
    pub database: Option<String>,
}

/// Whether the server still has what the slot needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Kept for the slot alone.
    Extended,
    /// To be removed at the next checkpoint.
    Unreserved,
    /// Removed: the slot cannot be used any more.
    Lost,
}

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "facts, each of which is asked on its own")]
pub struct SlotState {
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Database; `None` for a physical slot.
    pub database: Option<String>,
    /// Dropped with its session.
    pub temporary: bool,
    /// Who streams from it.
    pub active_pid: Option<i32>,
    /// Oldest WAL that the slot keeps.
    pub restart_lsn: Option<Lsn>,
    /// What has been acknowledged: streaming starts here or later.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// Whether the WAL is still there; `None` before the slot has reserved any.
    pub wal_status: Option<WalStatus>,
    /// Why the slot cannot be used any more (`wal_removed`, `rows_removed`, `wal_level_insufficient`,
    /// `idle_timeout`); on servers before 17 as far as it can be told.
    pub invalidation_reason: Option<String>,
    /// Bytes that may still be written before the slot is in danger; `None` without a limit, or when lost.
    pub safe_wal_bytes: Option<i64>,
    /// Bytes of WAL kept for the slot.
    pub retained_bytes: Option<i64>,
    /// Synchronised to standbys (17 and later).
    pub failover: bool,
    /// This server is a standby, and the slot is kept like the primary's (17 and later).
    pub synced: bool,
    /// Whether transactions are sent when they are prepared, and not sent again once that was acknowledged.
    pub two_phase: bool,
}

/// Whether slots are to be synchronised to standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failover {
    /// A slot that is made, where the server can: a primary of 17 or later.
    Auto,
    /// Also one that is there; nothing goes without.
    On,
    /// No.
    Off,
}

impl Failover {
    /// Whether a slot that is made now on this server is to be.
    ///
    /// # Errors
    /// That it has to be, and cannot.
    pub async fn applies(self, client: &mut Client) -> Result<bool> {
        if self == Self::Off {
            return Ok(false);
        }
        let knows = client.server_version() >= 170_000;
        let standby = knows && client.query_one("SELECT pg_is_in_recovery()").await?.is_true(0);
        match (self, knows && !standby) {
            (Self::On, false) => Err(Error::operator(format!(
                "[source] failover is \"on\", and the server at {} {}",
                client.address(),
                if knows {
                    "is a standby, which makes no slots for others"
                } else {
                    "is older than PostgreSQL 17"
                }
            ))
            .mend("Set [source] failover = \"auto\", or connect to a primary of PostgreSQL 17 or later.")),
            (_, applies) => Ok(applies),
        }
    }
}

/// A slot that was just made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Every transaction whose commit record begins at this LSN or later is streamed; the snapshot has the others.
    pub consistent_point: Lsn,
    /// For `SET TRANSACTION SNAPSHOT`; good until the session's next statement, or its end.
    pub snapshot_name: Option<String>,
}

/// Asks who the server is. Needs a replication session, and no right beyond that.
pub async fn identify_system(client: &mut Client) -> Result<SystemIdentity> {
    let row = client.query_one("IDENTIFY_SYSTEM").await?;
    Ok(SystemIdentity {
        system_identifier: row.parse(0)?,
        timeline: row.parse(1)?,
        current_lsn: row.parse(2)?,
        database: row.get(3).map(str::to_owned),
    })
}

/// The end of the WAL: written by a primary, replayed by a standby.
pub async fn current_wal_lsn(client: &mut Client) -> Result<Lsn> {
    client.query_one(&format!("SELECT {WAL_END}")).await?.parse(0)
}

const WAL_END: &str =
    "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END";

/// The state of a slot; `None` if there is none of that name. PostgreSQL 14 to 18.
pub async fn slot_state(client: &mut Client, name: &str) -> Result<Option<SlotState>> {
    let version = client.server_version();
    let since = |number, column, older| if version >= number { column } else { older };
    let sql = format!(
        "SELECT plugin, database, temporary, active_pid, restart_lsn, confirmed_flush_lsn, wal_status, {reason}, \
         safe_wal_size, pg_wal_lsn_diff({WAL_END}, restart_lsn)::bigint, {failover}, two_phase, {synced} \
         FROM pg_replication_slots WHERE slot_name = {name}",
        reason = since(170_000, "invalidation_reason", since(160_000, CONFLICT, OLD_REASON)),
        failover = since(170_000, "failover", "false"),
        synced = since(170_000, "synced AND pg_is_in_recovery()", "false"),
        name = quote_literal(name),
    );
    let rows = client.query(&sql).await?;
    rows.first().map(read_state).transpose()
}

const OLD_REASON: &str = "CASE WHEN wal_status = 'lost' THEN 'wal_removed' END";
/// 16 says `conflicting` of every slot that is lost, but only one whose WAL is removed has no place left.
const CONFLICT: &str = "CASE WHEN wal_status = 'lost' AND restart_lsn IS NULL THEN 'wal_removed' \
                        WHEN conflicting THEN 'rows_removed or wal_level_insufficient' END";

fn read_state(row: &Row) -> Result<SlotState> {
    let text = |column: usize| row.get(column).map(str::to_owned);
    let lsn = |column: usize| row.get(column).map(|_| row.parse(column)).transpose();
    let bytes = |column: usize| row.get(column).map(|_| row.parse(column)).transpose();
    let wal_status = match row.get(6) {
        None => None,
        Some("reserved") => Some(WalStatus::Reserved),
        Some("extended") => Some(WalStatus::Extended),
        Some("unreserved") => Some(WalStatus::Unreserved),
        Some("lost") => Some(WalStatus::Lost),
        Some(other) => {
            return Err(Error::operator(format!("the server reports the unknown wal_status {other:?}")));
        }
    };
    Ok(SlotState {
        plugin: text(0),
        database: text(1),
        temporary: row.is_true(2),
        active_pid: row.get(3).map(|_| row.parse(3)).transpose()?,
        restart_lsn: lsn(4)?,
        confirmed_flush_lsn: lsn(5)?,
        wal_status,
        invalidation_reason: text(7),
        safe_wal_bytes: bytes(8)?,
        retained_bytes: bytes(9)?,
        failover: row.is_true(10),
        two_phase: row.is_true(11),
        synced: row.is_true(12),
    })
}

/// Makes a slot for pgoutput. Needs a replication session outside a transaction. Waits until every transaction
/// that is open at this moment has ended.
///
/// With `export_snapshot` the session holds a snapshot of exactly the slot's consistent point.
pub async fn create_slot(
    client: &mut Client,
    name: &str,
    temporary: bool,
    export_snapshot: bool,
) -> Result<CreatedSlot> {
    let sql = format!(
        "CREATE_REPLICATION_SLOT {}{} LOGICAL pgoutput {}",
        quote_ident(name),
        if temporary { " TEMPORARY" } else { "" },
        // The syntax of 14, which later servers still take.
        if export_snapshot { "EXPORT_SNAPSHOT" } else { "NOEXPORT_SNAPSHOT" },
    );
    let row = client.query_one(&sql).await?;
    Ok(CreatedSlot { consistent_point: row.parse(1)?, snapshot_name: row.get(2).map(str::to_owned) })
}

/// Has a slot that nobody streams from synchronised to standbys from now on. Needs a replication session; 17 and later.
pub async fn set_failover(client: &mut Client, name: &str) -> Result<()> {
    client.execute(&format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", quote_ident(name))).await
}

/// Where the history of `timeline` left the timeline `from`; none where it does not have it. Needs a replication session.
pub async fn switch_point(client: &mut Client, timeline: Timeline, from: Timeline) -> Result<Option<Lsn>> {
    let row = client.query_one(&format!("TIMELINE_HISTORY {timeline}")).await?;
    let history = row.get(1).unwrap_or_default();
    find_switch(history, from).map_err(|line| {
        Error::operator(format!(
            "the server's file {} has the line {line:?}, which was not expected",
            row.get(0).unwrap_or("of the timeline's history")
        ))
    })
}

/// Lines of `timeline LSN reason`, where blanks divide, and comments.
///
/// Source: `readTimeLineHistory` in `src/backend/access/transam/timeline.c`.
fn find_switch(history: &str, from: Timeline) -> Result<Option<Lsn>, &str> {
    for line in history.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let timeline = words.next().and_then(|word| word.parse::<Timeline>().ok());
        let lsn = words.next().and_then(|word| word.parse::<Lsn>().ok());
        match (timeline, lsn) {
            (Some(timeline), Some(lsn)) if timeline == from => return Ok(Some(lsn)),
            (Some(_), Some(_)) => {}
            _ => return Err(line),
        }
    }
    Ok(None)
}

/// Drops a slot that nobody streams from. Its WAL is given up.
pub async fn drop_slot(client: &mut Client, name: &str) -> Result<()> {
    client.execute(&format!("SELECT pg_drop_replication_slot({})", quote_literal(name))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_s_history_says_where_each_was_left() {
        let history =
            "1\t0/3000060\tno recovery target specified\n\n# by hand\n3\t2/A0\tbefore transaction 7\n";
        assert_eq!(find_switch(history, 1), Ok(Some("0/3000060".parse().unwrap())));
        assert_eq!(find_switch(history, 3), Ok(Some("2/A0".parse().unwrap())));
        assert_eq!(find_switch(history, 2), Ok(None));
        assert_eq!(find_switch("", 1), Ok(None));
        assert_eq!(find_switch("1 there", 1), Err("1 there"));
    }
}
