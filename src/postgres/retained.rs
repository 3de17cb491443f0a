//! WAL that a slot keeps the server from removing: how much, for whom, and how to end it.

use super::slot;
use super::wire::{Client, quote_literal};
use crate::change::Lsn;
use crate::runtime::Result;

/// What the server says of a slot's WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    /// End of the server's WAL.
    pub wal_end: Lsn,
    /// What the slot has confirmed.
    pub confirmed: Lsn,
    /// WAL from the slot's `restart_lsn` on; zero when it has none any more.
    pub retained_bytes: u64,
    /// `max_slot_wal_keep_size` in bytes; none without a limit.
    pub limit_bytes: Option<u64>,
    /// `safe_wal_size`.
    pub safe_wal_bytes: Option<i64>,
    /// `wal_status`, in the server's words.
    pub wal_status: String,
}

/// Looks at a slot; none if there is none. Takes no right beyond connecting.
pub async fn look(client: &mut Client, name: &str) -> Result<Option<Retained>> {
    let sql = format!(
        "SELECT e.wal_end, coalesce(s.confirmed_flush_lsn, e.wal_end), \
         coalesce(greatest(pg_wal_lsn_diff(e.wal_end, s.restart_lsn), 0), 0)::bigint, \
         (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
         s.safe_wal_size, coalesce(s.wal_status, '') \
         FROM pg_replication_slots s, (SELECT CASE WHEN pg_is_in_recovery() \
         THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_lsn() END AS wal_end) e \
         WHERE s.slot_name = {}",
        quote_literal(name)
    );
    let rows = client.query(&sql).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let megabytes = row.parse::<i64>(3)?;
    Ok(Some(Retained {
        wal_end: row.parse(0)?,
        confirmed: row.parse(1)?,
        retained_bytes: row.parse(2)?,
        limit_bytes: u64::try_from(megabytes).ok().map(|megabytes| megabytes << 20),
        safe_wal_bytes: row.get(4).map(|_| row.parse(4)).transpose()?,
        wal_status: row.get(5).unwrap_or_default().to_owned(),
    }))
}

/// The oldest transaction of the server that may still need WAL, whatever its database, in words. What the role may not
/// see (without `pg_read_all_stats`) is left out.
pub async fn oldest_transaction(client: &mut Client) -> Result<Option<String>> {
    let sql = "SELECT what FROM (SELECT age(p.transaction) AS age, format('the prepared transaction %L of database %s, since %s: \
               COMMIT PREPARED or ROLLBACK PREPARED', p.gid, p.database, p.prepared::timestamptz(0)) AS what \
               FROM pg_prepared_xacts p UNION ALL SELECT age(a.backend_xid), format('the open transaction of server process \
               %s (application %s, database %s), since %s', a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'), \
               a.datname, a.xact_start::timestamptz(0)) FROM pg_stat_activity a WHERE a.backend_xid IS NOT NULL) t \
               ORDER BY age DESC LIMIT 1";
    let rows = client.query(sql).await?;
    Ok(rows.first().and_then(|row| row.get(0)).map(str::to_owned))
}

/// Ends whoever streams from a slot, and drops it. False if it is not there, or not one of pgoutput in this database, which
/// is somebody else's. Whoever comes between the two is met by the next attempt.
pub async fn drop_slot(client: &mut Client, name: &str, database: &str) -> Result<bool> {
    let Some(state) = slot::slot_state(client, name).await? else { return Ok(false) };
    if state.plugin.as_deref() != Some("pgoutput") || state.database.as_deref() != Some(database) {
        return Ok(false);
    }
    if let Some(pid) = state.active_pid {
        client.execute(&format!("SELECT pg_terminate_backend({pid}, 5000)")).await?;
    }
    slot::drop_slot(client, name).await?;
    Ok(true)
}
