//! Questions of a round outside its snapshot, by a session of their own that its readers share.
//!
//! A question that is given up, with its reader, takes the session along: the next one makes another.

use tokio::sync::{Mutex, MutexGuard};

use super::now_us;
use super::round::Work;
use super::worker::PASS_PREFIX;
use crate::change::{Lsn, TableSchema};
use crate::postgres::catalog;
use crate::postgres::wire::{Client, ConnectOptions, Session, quote_literal};
use crate::runtime::Result;

/// The session.
pub struct Asking {
    connect: ConnectOptions,
    idle: Mutex<Option<Client>>,
}

/// The session while it is asked.
struct Asked<'a> {
    idle: MutexGuard<'a, Option<Client>>,
    client: Client,
}

impl Asked<'_> {
    /// All was answered: it may be asked again.
    fn answered(mut self) {
        *self.idle = Some(self.client);
    }
}

impl Asking {
    /// Connects with the first question.
    pub fn new(connect: ConnectOptions) -> Self {
        Self { connect, idle: Mutex::default() }
    }

    async fn ask(&self) -> Result<Asked<'_>> {
        let mut idle = self.idle.lock().await;
        let client = match idle.take() {
            Some(client) => client,
            None => Client::connect(&self.connect, Session::Sql).await?,
        };
        Ok(Asked { idle, client })
    }

    /// The server's clock, microseconds since 1970.
    pub async fn now_us(&self) -> Result<i64> {
        let mut asked = self.ask().await?;
        let now = now_us(&mut asked.client).await?;
        asked.answered();
        Ok(now)
    }

    /// Whether of the transactions that a `pg_snapshot` shows as ended some count as running; also one that is younger than
    /// all that have ended. A standby's snapshots show what it has replayed.
    pub async fn runs_of(&self, snapshot: &str) -> Result<bool> {
        let statement = format!(
            "SELECT NOT pg_is_in_recovery() AND (pg_snapshot_xmax(shown) > pg_snapshot_xmax(now) OR EXISTS ( \
               SELECT FROM pg_snapshot_xip(now) AS xid WHERE pg_visible_in_snapshot(xid, shown))) \
             FROM (SELECT {}::pg_snapshot, pg_current_snapshot()) AS snapshots(shown, now)",
            quote_literal(snapshot)
        );
        let mut asked = self.ask().await?;
        let some = asked.client.query_one(&statement).await?.is_true(0);
        asked.answered();
        Ok(some)
    }

    /// Whether commits may wait for synchronous standbys.
    pub async fn waits_for_standbys(&self) -> Result<bool> {
        let mut asked = self.ask().await?;
        let statement = "SELECT current_setting('synchronous_standby_names') <> ''";
        let waits = asked.client.query_one(statement).await?.is_true(0);
        asked.answered();
        Ok(waits)
    }

    /// The table's shape as it is now; none: it is gone.
    pub async fn shape(&self, work: &Work) -> Result<Option<TableSchema>> {
        let mut asked = self.ask().await?;
        let whole = catalog::load_whole_table(&mut asked.client, work.wanted.oid).await?;
        asked.answered();
        Ok(whole.map(|whole| work.wanted.published.shape(whole)))
    }

    /// Whether operators named in SQL compare these columns of a table as its index does: those of the system's own types,
    /// and of enums, stand in no other schema that a `search_path` may leave out.
    pub async fn is_comparable(&self, work: &Work, key: &[String]) -> Result<bool> {
        let key: Vec<String> = key.iter().map(|name| quote_literal(name)).collect();
        if key.is_empty() {
            return Ok(false);
        }
        let statement = format!(
            "SELECT bool_and(coalesce(b.typtype = 'e' OR b.typnamespace = 'pg_catalog'::regnamespace, false)) \
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
             LEFT JOIN pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END \
             WHERE a.attrelid = {} AND NOT a.attisdropped AND a.attname IN ({})",
            work.wanted.oid,
            key.join(", ")
        );
        let mut asked = self.ask().await?;
        let comparable = asked.client.query_one(&statement).await?.is_true(0);
        asked.answered();
        Ok(comparable)
    }

    /// A transaction of its own in the stream, with that content; it touches no table. Gives its place.
    pub async fn leave_mark(&self, content: &str) -> Result<Lsn> {
        let (prefix, content) = (quote_literal(PASS_PREFIX), quote_literal(content));
        let mut asked = self.ask().await?;
        let recovers = asked.client.query_one("SELECT pg_is_in_recovery()").await?.is_true(0);
        let place = if recovers {
            // A standby takes no messages. What it has replayed has all that was seen under the lock.
            "pg_last_wal_replay_lsn()".to_owned()
        } else {
            format!("pg_catalog.pg_logical_emit_message(true, {prefix}, {content})")
        };
        let lsn = asked.client.query_one(&format!("SELECT {place}")).await?.parse(0)?;
        asked.answered();
        Ok(lsn)
    }
}
