//! The catalog, looked at from time to time, for what the stream does not show: without the event trigger a comment, a
//! default, new labels, or any change of a table without rows after it.
//!
//! ```text
//!   catalog under one snapshot ─> end of WAL ─> stream has passed that ─> shapes laid over what is known
//! ```
//!
//! **Why a look is never older than what the stream has told.** It counts once the stream has passed the end of the WAL
//! as it was after the look, so everything that it saw has been told before. The other way round a transaction may
//! come in the stream before others see it (its commit record is sent before it leaves the list of running ones, and a
//! synchronous standby may keep it there): the look carries its `pg_current_snapshot()`, and says nothing of a table
//! whose last shape came with a transaction that it did not see.
//!
//! With the trigger nothing is new here, unless somebody has switched it off for a session.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::change::{Lsn, TableSchema};
use crate::postgres::catalog::{self, PublishedColumns};
use crate::postgres::snapshot::Snapshot;
use crate::postgres::wire::Client;
use crate::runtime::Result;

use super::publication::has_reached;

/// With the trigger, so many intervals are one.
const SELDOM: u32 = 15;

/// When to look, and the look that waits for the stream.
#[derive(Debug)]
pub struct Polled {
    every: Duration,
    due: Instant,
    look: Option<Look>,
}

/// What the catalog said.
#[derive(Debug)]
pub struct Look {
    /// Tables, as far as they are published without a column list.
    pub tables: Vec<TableSchema>,
    snapshot: Snapshot,
    pass: Lsn,
}

impl Polled {
    /// Looks after an interval for the first time.
    pub fn new(interval: Duration, trigger: bool) -> Self {
        let every = if trigger { interval * SELDOM } else { interval };
        Self { every, due: Instant::now() + every, look: None }
    }

    /// Whether it is time to look.
    pub fn is_due(&self) -> bool {
        self.look.is_none() && Instant::now() >= self.due
    }

    /// Takes a look in, or that there was none.
    pub fn looked(&mut self, look: Option<Look>) {
        self.due = Instant::now() + self.every;
        self.look = look;
    }

    /// The look, if the stream has passed it.
    pub fn passed(&mut self, flush_lsn: Lsn) -> Option<Look> {
        self.look.take_if(|look| has_reached(flush_lsn, look.pass))
    }
}

impl Look {
    /// Looks at tables by OID.
    pub async fn at(client: &mut Client, publication: &str, mut oids: Vec<u32>) -> Result<Self> {
        client.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
        let snapshot = Snapshot::current(client).await?;
        let published = catalog::published_tables(client, publication).await?;
        let published: HashSet<u32> = published.into_iter().map(|(oid, _)| oid).collect();
        let columns = PublishedColumns::load(client, publication).await?;
        oids.retain(|oid| published.contains(oid) && !columns.listed.contains(oid));
        let tables = catalog::load_tables(client, &oids, columns.generated).await?;
        client.execute("COMMIT").await?;
        // What the snapshot sees has its commit record below.
        let pass = client.query_one("SELECT pg_current_wal_insert_lsn()").await?.parse(0)?;
        Ok(Self { tables, snapshot, pass })
    }

    /// Whether it saw what a transaction did.
    pub fn saw(&self, xid: u32) -> bool {
        self.snapshot.sees(xid)
    }
}
