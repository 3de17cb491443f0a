//! A primary with a standby, and what a connector of both does.

use std::process::Output;
use std::time::{Duration, Instant};

use tidemark::change::{Lsn, Position};
use tokio_postgres::Client;

use crate::support::days::{days, use_rule};
use crate::support::lake::{duckdb, postgres, value};
use crate::support::{Connector, PATIENCE, Postgres, Running, Stop, wait_until};

/// Two tables; `calm` is not written to.
const TABLES: &str = "
    CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL, note text);
    CREATE TABLE calm (id bigint PRIMARY KEY, n int NOT NULL, note text);
    INSERT INTO t SELECT i, 0, 'first' FROM generate_series(1, 100) i;
    INSERT INTO calm SELECT i, 0, 'first' FROM generate_series(1, 10) i";

/// A primary with the tables, for a connector that is to be set up.
pub async fn primary(major: u32) -> Postgres {
    let server = Postgres::version(major).set("wal_keep_size", "256MB").start().await;
    server.connect().await.batch_execute(TABLES).await.unwrap();
    server
}

/// A primary with a standby.
pub struct Pair {
    /// What was the primary.
    pub primary: Postgres,
    /// What is promoted.
    pub standby: Postgres,
}

impl Pair {
    /// Both run, and the standby streams.
    pub async fn start(major: u32) -> Self {
        let primary = primary(major).await;
        let sql = "SELECT pg_create_physical_replication_slot('sb', true)";
        primary.connect().await.batch_execute(sql).await.unwrap();
        let standby = primary.standby("sb").await;
        Self { primary, standby }
    }

    /// A URL that names both.
    pub fn url(&self) -> String {
        let (a, b) = (self.primary.port(), self.standby.port());
        format!("postgres://postgres@127.0.0.1:{a},127.0.0.1:{b}/postgres")
    }

    /// Sends no change before the standby has it, from now on.
    pub async fn synchronize(&self) {
        self.primary.configure(&[("synchronized_standby_slots", "sb")]);
        self.primary.reload();
        let client = self.primary.connect().await;
        wait_until(PATIENCE, "the primary knows of its standby", async || {
            value(&client, "SHOW synchronized_standby_slots").await == "sb"
        })
        .await;
    }

    /// Waits until the standby keeps the slot for good: one that is temporary is gone with a promotion.
    pub async fn slot_is_synced(&self) {
        let (primary, standby) = (self.primary.connect().await, self.standby.connect().await);
        let sql =
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'tidemark_shop' AND NOT temporary";
        wait_until(PATIENCE, "the slot is synchronised", async || {
            // The slot has to move on, past a snapshot of the transactions that run.
            primary
                .batch_execute(
                    "SELECT pg_log_standby_snapshot(); INSERT INTO t SELECT max(id) + 1, 0, 'on' FROM t",
                )
                .await
                .unwrap();
            value(&standby, sql).await == "1"
        })
        .await;
    }

    /// The primary's power goes, and the standby is promoted. Gives where the new timeline begins.
    pub async fn fail_over(&mut self) -> Lsn {
        self.primary.stop(Stop::Immediate);
        self.standby.promote().await;
        switch_point(&self.standby)
    }
}

/// Where the second timeline of a server begins, by its own file.
pub fn switch_point(server: &Postgres) -> Lsn {
    let history = std::fs::read_to_string(server.data().join("pg_wal/00000002.history")).unwrap();
    history.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A connector whose days can be cut one after the other.
pub struct Days {
    /// The connector.
    pub connector: Connector,
    dates: [String; 3],
    next: usize,
}

impl Days {
    /// Of the database at `url`, with today's dates as `client` tells them.
    pub async fn of(url: &str, client: &Client) -> Self {
        let mut connector = Connector::new(url);
        use_rule(&mut connector, 0);
        Self { connector, dates: days(client).await, next: 0 }
    }

    /// Has the next day cut and published, and stops the process.
    pub async fn cut(&mut self, mut running: Running) -> String {
        let ds = self.dates[self.next].clone();
        running.cut(&ds);
        self.connector.wait_published(&ds).await;
        assert!(running.terminate().await.success());
        self.next += 1;
        use_rule(&mut self.connector, self.next.min(2));
        ds
    }

    /// The day of each table is what Postgres holds.
    pub async fn same(&self, client: &Client, ds: &str, tables: &[&str]) {
        for table in tables {
            let sql = "SELECT id, n, note FROM TABLE ORDER BY id";
            let expected = postgres(client, &sql.replace("TABLE", table)).await;
            let found = duckdb(&self.connector, ds, &sql.replace("TABLE", &format!("{{{table}}}")));
            assert_eq!(found, expected, "{table} on ds={ds}");
        }
    }

    /// Why a day lacks a table; none when it has it.
    pub fn missing(&self, ds: &str, table: &str) -> Option<String> {
        let day = Connector::json(&self.connector.day(ds));
        let topic = format!("shop.public.{table}");
        let one = day["missing"].as_array()?.iter().find(|one| one["topic"] == topic)?;
        Some(one["reason"].as_str().unwrap().to_owned())
    }

    /// Positions of a table's topic only grow, none is twice, and each row has come once. Gives the last.
    pub async fn log_is_exact(&self, table: &str) -> Position {
        let mut records = self.connector.table_records(table).await;
        // A tombstone stands where its delete does, and the truncate of a table that was made anew before its first change.
        records.retain(|record| !record.value.is_null() && record.value["op"] != "t");
        let positions: Vec<Position> =
            records.iter().map(|record| record.position.parse().unwrap()).collect();
        assert!(positions.is_sorted_by(|a, b| a < b), "positions of {table}");
        *positions.last().unwrap()
    }

    /// Starts the process, which has to end by itself: it found something that it must not pass over. Gives what it
    /// said.
    pub async fn refused(&self) -> String {
        let start = Instant::now();
        let mut running = self.connector.start("run");
        assert_eq!(running.ended().await.code(), Some(1));
        eprintln!("started, connected, and told of the gap after {:?}", start.elapsed());
        running.output()
    }

    /// Runs `accept-gap`.
    pub fn accept(&self, range: &str) -> Output {
        // Any process's configuration will do: they differ in the port.
        let mut running = self.connector.start("run");
        running.kill();
        running.command(&["accept-gap", range])
    }

    /// Waits until nothing is lacking of the tables.
    pub async fn whole(&self, running: &Running, tables: &[&str]) {
        wait_until(PATIENCE, "every table is whole again", async || {
            let health = running.health().1;
            tables.iter().all(|table| {
                let table = &health["tables"][format!("public.{table}")];
                table["backfill"]["done"] == true && table["lacking"].is_null()
            })
        })
        .await;
    }
}

/// The range that a message tells how to accept.
pub fn range_in(text: &str) -> String {
    let at = text.find("tidemark accept-gap ").unwrap_or_else(|| panic!("no command in:\n{text}"));
    let rest = &text[at + "tidemark accept-gap ".len()..];
    rest.split(['`', ' ']).next().unwrap().to_owned()
}

/// Waits until a process has said something.
pub async fn says(running: &Running, text: &str) {
    let start = Instant::now();
    while !running.output().contains(text) {
        assert!(start.elapsed() < Duration::from_secs(60), "it did not say {text:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the table's record for a row is in the log.
pub async fn captured(connector: &Connector, table: &str, id: i64) {
    wait_until(PATIENCE, &format!("row {id} of {table} is in the log"), async || {
        let records = connector.table_records(table).await;
        records.iter().any(|record| record.value["after"]["id"] == id)
    })
    .await;
}
