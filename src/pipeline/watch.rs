//! Looks from outside, now and then, at what grows when nobody reads (the WAL that the slot keeps the server from
//! removing, and the embedded log's file), and at whether the log is out of reach.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::log::Log;
use crate::ops::Ops;
use crate::postgres::wire::{Client, ConnectOptions, Session, quote_literal};
use crate::runtime::{Result, Shutdown};

const EVERY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// The embedded log's file and its limit in bytes.
#[derive(Clone, Debug)]
pub struct LogFile {
    /// The file.
    pub path: PathBuf,
    /// `[log.embedded] bytes_max`.
    pub bytes_max: u64,
}

/// Keeps the gauges up to date until `shutdown`. Troubles here are those of the source, which
/// capture reports; they only leave the gauges as they were.
pub async fn run(
    options: ConnectOptions,
    slot: String,
    log: Arc<dyn Log>,
    file: Option<LogFile>,
    ops: Ops,
    shutdown: Shutdown,
) {
    let mut client = None;
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
        let looked = tokio::time::timeout(PATIENCE, look(&mut client, &options, &slot, &ops)).await;
        if !matches!(looked, Ok(Ok(()))) {
            client = None;
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.raised() => return,
        }
    }
}

async fn look(client: &mut Option<Client>, options: &ConnectOptions, slot: &str, ops: &Ops) -> Result<()> {
    let sql = match client.take() {
        Some(sql) => client.insert(sql),
        None => client.insert(Client::connect(options, Session::Sql).await?),
    };
    let rows = sql
        .query(&format!(
            "SELECT greatest(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() \
                    ELSE pg_current_wal_lsn() END, restart_lsn), 0)::bigint, \
                    (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') \
             FROM pg_replication_slots WHERE slot_name = {}",
            quote_literal(slot)
        ))
        .await?;
    let number = |column: usize| {
        rows.first().and_then(|row| row.get(column)).and_then(|text| text.parse::<i64>().ok())
    };
    if let Some(retained) = number(0) {
        let limit = number(1).filter(|megabytes| *megabytes >= 0).map(|megabytes| (megabytes as u64) << 20);
        ops.source().set_slot(retained as u64, limit);
    }
    Ok(())
}
