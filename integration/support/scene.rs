//! A server, a connector that runs on it, and three days to cut: what a test about tables does between two of them.

use std::collections::BTreeSet;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::Client;

use super::days::{days, use_rule};
use super::lake::{Rows, duckdb, postgres};
use super::{Connector, NAME, PATIENCE, Postgres, Running, wait_until};

/// See the module's head.
pub struct Scene {
    /// The server.
    pub server: Postgres,
    /// The oracle, and whoever changes tables.
    pub client: Client,
    /// The connector.
    pub connector: Connector,
    running: Option<Running>,
    days: [String; 3],
    next: usize,
    said: String,
}

impl Scene {
    /// Makes tables and publication by `sql`, and starts the connector.
    pub async fn of(sql: &str) -> Self {
        Self::on(Postgres::start().await, sql, |connector| connector).await
    }

    /// The same on a server, with a connector that was changed first.
    pub async fn on(server: Postgres, sql: &str, change: impl FnOnce(Connector) -> Connector) -> Self {
        let client = server.connect().await;
        client.batch_execute(sql).await.unwrap();
        let days = days(&client).await;
        let mut connector = change(Connector::new(&server.url()));
        use_rule(&mut connector, 0);
        let running = Some(connector.start_ready("run").await);
        Self { server, client, connector, running, days, next: 0, said: String::new() }
    }

    /// The process.
    pub fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Runs SQL at the source.
    pub async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Cuts the next day, waits until it is published, and goes on to the day after it. Gives the day.
    pub async fn cut(&mut self) -> String {
        self.running().cut(&self.days[self.next]);
        self.cut_published().await
    }

    /// Asks for a cut of the next day, and does not wait for it.
    pub fn asks_for_cut(&self) -> Child {
        self.running().start_command(&["cut", "--ds", &self.days[self.next]])
    }

    /// Waits until the next day, whose cut was asked for, is published, and goes on to the day after it. Gives the day.
    pub async fn cut_published(&mut self) -> String {
        let ds = self.days[self.next].clone();
        let start = Instant::now();
        while !self.connector.day(&ds).exists() {
            let reasons = || self.running().health().1["reasons"].to_string();
            assert!(start.elapsed() < PATIENCE, "ds={ds} is not published: {}", reasons());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.next += 1;
        if self.next < self.days.len() {
            self.again().await;
        }
        ds
    }

    /// Kills the process and starts another one, by the rule of the next day.
    pub async fn again(&mut self) {
        let mut running = self.running.take().unwrap();
        running.kill();
        self.said += &running.output();
        use_rule(&mut self.connector, self.next.min(2));
        self.running = Some(self.connector.start_ready("run").await);
    }

    /// All that processes have said.
    pub fn output(&self) -> String {
        format!("{}{}", self.said, self.running().output())
    }

    /// How many copies of a table have become whole, beside the first. One whose end was not durable when the process was
    /// killed is told again.
    pub fn copies(&self, table: &str) -> usize {
        let of = |line: &&str| {
            line.contains("copied: the next cut takes it") && line.contains(&format!("public.{table}\""))
        };
        let at = |line: &str| serde_json::from_str::<Value>(line).unwrap()["at"].to_string();
        self.output().lines().filter(of).map(at).collect::<BTreeSet<_>>().len()
    }

    /// Waits until that many have, and nothing is missing of the table.
    pub async fn copied(&self, table: &str, copies: usize) {
        wait_until(PATIENCE, &format!("{table} is copied {copies} times"), async || {
            self.copies(table) >= copies && self.lacking(table).is_null()
        })
        .await;
        assert_eq!(self.copies(table), copies, "{table}");
    }

    /// What `/health` says that a table lacks.
    pub fn lacking(&self, table: &str) -> Value {
        self.running().health().1["tables"][format!("public.{table}")]["lacking"].clone()
    }

    /// Waits until a table lacks something, in words that contain `text`.
    pub async fn lacks(&self, table: &str, text: &str) {
        wait_until(PATIENCE, &format!("{table} lacks: {text}"), async || {
            self.lacking(table)["reason"].as_str().is_some_and(|reason| reason.contains(text))
        })
        .await;
    }

    /// Waits until all that was written is in the log.
    pub async fn caught_up(&self) {
        let lsn = postgres(&self.client, "SELECT pg_current_wal_insert_lsn()").await[0][0].clone().unwrap();
        self.sql("SELECT pg_logical_emit_message(true, 'test', '')").await;
        wait_until(PATIENCE, "the slot has come as far", async || {
            let passed = format!("SELECT confirmed_flush_lsn >= '{lsn}' FROM pg_replication_slots WHERE slot_name LIKE 'tidemark%'");
            postgres(&self.client, &passed).await[0][0].as_deref() == Some("t")
        })
        .await;
    }

    /// Why a day lacks a table; none when it has it.
    pub fn missing(&self, ds: &str, table: &str) -> Option<String> {
        let day = Connector::json(&self.connector.day(ds));
        let one =
            day["missing"].as_array()?.iter().find(|one| one["topic"] == format!("{NAME}.public.{table}"))?;
        Some(one["reason"].as_str().unwrap().to_owned())
    }

    /// The day's manifest of a table.
    pub fn manifest(&self, ds: &str, table: &str) -> Value {
        Connector::json(&self.connector.snapshot(table, ds).join("_manifest.json"))
    }

    /// What DuckDB reads of a day.
    pub fn read(&self, ds: &str, sql: &str) -> Rows {
        duckdb(&self.connector, ds, sql)
    }

    /// A day of a table is what Postgres holds: `columns` of all rows, as a multiset.
    pub async fn same(&self, ds: &str, table: &str, columns: &str) {
        self.same_where(ds, table, columns, "true").await;
    }

    /// A day of a table is those rows of it.
    pub async fn same_where(&self, ds: &str, table: &str, columns: &str, filter: &str) {
        let mut expected =
            postgres(&self.client, &format!("SELECT {columns} FROM {table} WHERE {filter}")).await;
        let mut found = self.read(ds, &format!("SELECT {columns} FROM {{{table}}}"));
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{table} on ds={ds}");
    }

    /// A day adds up by the product's own account, and nothing became a dead letter.
    pub fn sound(&self, ds: &str) {
        let verified = self.running().command(&["verify", "--ds", ds]);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        let letters = self.running().health().1;
        let with: Vec<_> =
            letters["tables"].as_object().unwrap().iter().filter(|(_, t)| t["dead_letters"] != 0).collect();
        assert!(with.is_empty(), "{with:?}");
    }
}
