//! A consistent point with its snapshot, and what the catalog says of tables' storage there and now.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::change::{Lsn, Position, Timeline};
use crate::postgres::slot;
use crate::postgres::wire::{Client, quote_literal};
use crate::runtime::{Error, Result};

use super::CaptureSettings;
use super::asking::Asking;

/// Between the end of the WAL of a commit and its entry in `pg_xact` a process has next to nothing to do.
const SETTLED_WITHIN: Duration = Duration::from_secs(2);

/// A place in the WAL and the snapshot that shows exactly the transactions which committed below it. The
/// snapshot, and the temporary slot that made it, live as long as the connection inside.
#[derive(Debug)]
pub struct ConsistentPoint {
    /// Transactions whose commit record begins here or later are not in the snapshot.
    pub lsn: Lsn,
    snapshot: String,
    _holder: Client,
}

impl ConsistentPoint {
    /// Makes one with a replication session of its own; waits until the transactions that are open now have ended.
    pub async fn take(settings: &CaptureSettings, mut holder: Client) -> Result<Self> {
        // A name of its own for each attempt: the session of an earlier one may linger.
        let attempt = jiff::Timestamp::now().as_nanosecond() as u64;
        let temporary = format!("{:.40}_copy_{attempt:x}", settings.slot);
        let created = slot::create_slot(&mut holder, &temporary, true, true).await?;
        let snapshot = created.snapshot_name.unwrap_or_default();
        Ok(Self { lsn: created.consistent_point, snapshot, _holder: holder })
    }

    /// Begins a transaction under the snapshot, in a session that is to read nothing before.
    ///
    /// The server takes what has committed from the WAL, where a commit stands a moment before `pg_xact` says so. Whoever
    /// read a row of such a transaction in that moment would take it for aborted, and leave that behind in the row for
    /// everybody (`HeapTupleSatisfiesMVCC` in `src/backend/access/heap/heapam_visibility.c`). So it is waited here until
    /// none of them counts as running any more. One that waits for a synchronous standby does, for as long as that takes,
    /// though `pg_xact` has it.
    pub async fn begin(&self, sql: &mut Client, asking: &Asking) -> Result<()> {
        sql.execute(&begin_under(&self.snapshot)).await?;
        let shown = sql.query_one("SELECT pg_current_snapshot()").await?;
        let end = Instant::now() + SETTLED_WITHIN;
        while asking.runs_of(shown.get(0).unwrap_or_default()).await? {
            if Instant::now() < end {
                tokio::time::sleep(SETTLED_WITHIN / 100).await;
            } else if asking.waits_for_standbys().await? {
                break;
            } else {
                return Err(Error::retry(
                    "transactions that committed before the copy's point still count as running: it is begun again",
                ));
            }
        }
        Ok(())
    }
}

/// SQL that begins a transaction under a snapshot that was exported.
pub fn begin_under(snapshot: &str) -> String {
    let snapshot = quote_literal(snapshot);
    format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {snapshot}")
}

/// Rows stand one byte before the consistent point (see [`Position`]).
pub const fn before(timeline: Timeline, consistent_point: Lsn, ordinal: u64) -> Position {
    Position { timeline, commit_lsn: Lsn(consistent_point.0 - 1), ordinal }
}

/// Which files hold a table's rows: `oid:file` of the table, or of each leaf of a partitioned one. Another one
/// after TRUNCATE, a rewrite, or a change of the partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// Whether it has partitions.
    pub partitioned: bool,
    files: String,
}

/// What the catalog says of a table.
#[derive(Debug)]
pub struct Facts {
    pub storage: Storage,
    pub rows_estimated: u64,
    /// Size of its files.
    pub bytes: u64,
    /// Pages of the largest file with rows.
    pub pages: u32,
    /// Whether a value may lie outside its row, in TOAST.
    pub toasted: bool,
}

/// Facts by OID, as the transaction's snapshot sees them.
pub async fn facts(sql: &mut Client, oids: &[u32]) -> Result<HashMap<u32, Facts>> {
    let oids: Vec<String> = oids.iter().map(u32::to_string).collect();
    // Only a partitioned table is read with what is below it; other inheritance is not replicated through the parent.
    let query = format!(
        "WITH RECURSIVE tree(root, oid, relkind) AS ( \
           SELECT oid, oid, relkind FROM pg_class WHERE oid = ANY ('{{{}}}'::oid[]) \
           UNION ALL SELECT t.root, i.inhrelid, c.relkind FROM tree t \
             JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE t.relkind = 'p' AND NOT i.inhdetachpending) \
         SELECT t.root, bool_or(t.oid = t.root AND t.relkind = 'p'), \
           coalesce(string_agg(c.oid || ':' || c.relfilenode, ' ' ORDER BY c.oid) FILTER (WHERE t.relkind <> 'p'), ''), \
           coalesce(sum(greatest(c.reltuples, 0)) FILTER (WHERE t.relkind <> 'p'), 0)::bigint, \
           coalesce(sum(pg_table_size(c.oid)) FILTER (WHERE t.relkind <> 'p'), 0)::bigint, \
           coalesce(max(pg_relation_size(c.oid)) FILTER (WHERE t.relkind <> 'p'), 0) / current_setting('block_size')::bigint, \
           coalesce(sum(pg_relation_size(nullif(c.reltoastrelid, 0))) FILTER (WHERE t.relkind <> 'p'), 0) > 0 \
         FROM tree t JOIN pg_class c ON c.oid = t.oid GROUP BY t.root",
        oids.join(",")
    );
    let rows = sql.query(&query).await?;
    rows.iter()
        .map(|row| {
            let files = row.get(2).unwrap_or_default().to_owned();
            let storage = Storage { partitioned: row.is_true(1), files };
            let facts = Facts {
                storage,
                rows_estimated: row.parse(3)?,
                bytes: row.parse(4)?,
                pages: row.parse(5)?,
                toasted: row.is_true(6),
            };
            Ok((row.parse(0)?, facts))
        })
        .collect()
}

impl Storage {
    /// Whether all of an earlier one is still there; partitions may have come since.
    pub fn extends(&self, earlier: &Self) -> bool {
        let mut files = self.files.split(' ');
        // Both are in the order of their OIDs.
        self.partitioned == earlier.partitioned
            && earlier
                .files
                .split(' ')
                .filter(|file| !file.is_empty())
                .all(|file| files.any(|now| now == file))
    }

    /// Whether the table still has it. Looks past the snapshot, at the table as it is now, which stays so while the
    /// transaction holds a lock on it.
    pub async fn is_now(&self, sql: &mut Client, oid: u32) -> Result<bool> {
        // These functions read the catalog as it is, not as the snapshot sees it.
        let query = if self.partitioned {
            format!(
                "SELECT coalesce(string_agg(relid::oid || ':' || coalesce(pg_relation_filenode(relid), 0), ' ' \
                 ORDER BY relid::oid), '') FROM pg_partition_tree({oid}) WHERE isleaf"
            )
        } else {
            format!("SELECT {oid} || ':' || coalesce(pg_relation_filenode({oid}), 0)")
        };
        Ok(sql.query_one(&query).await?.get(0) == Some(&self.files))
    }
}
