//! Several `deliver` processes on one lake, which are killed, stopped beyond their session, started again, while ZooKeeper is
//! started again under them. Every day of every table is what Postgres held at its cut, and no object ever changes.
//!
//! Twenty tables and six processes by hand: `SHARES_TABLES=20 SHARES_PROCESSES=6 SHARES_DAYS_EVENTS=30`; `SHARES_SEED` replays.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tokio_postgres::Client;

use support::days::{days, use_rule};
use support::lake::{Rows, duckdb, hashes, postgres};
use support::{Connector, PATIENCE, Postgres, Running, Zookeeper, wait_until};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Everything that has been seen of the lake: an object that was there stays, and stays what it was.
#[derive(Default)]
struct Seen(BTreeMap<String, String>);

impl Seen {
    /// Compares with what is there now. Parts, plans and half-written objects of a day that is not published may go.
    fn look(&mut self, connector: &Connector) {
        let found = hashes(&connector.lake());
        for (path, hash) in &self.0 {
            match found.get(path) {
                Some(now) => assert_eq!(now, hash, "{path} has changed"),
                None => assert!(path.starts_with("snapshots/") || path.contains("_probe"), "{path} is gone"),
            }
        }
        for (path, hash) in found {
            if !path.contains('#') && !path.contains("_probe") {
                self.0.insert(path, hash);
            }
        }
    }
}

struct World {
    client: Client,
    _server: Postgres,
    connector: Connector,
    zookeeper: Option<Zookeeper>,
    tables: u64,
    days: [String; 3],
    capture: Option<Running>,
    delivering: Vec<Running>,
    stopped: Vec<Running>,
    random: StdRng,
    seen: Seen,
}

impl World {
    async fn new(zookeeper: Option<Zookeeper>, tables: u64, processes: u64, seed: u64) -> Self {
        let server = Postgres::start().await;
        let client = server.connect().await;
        for table in 0..tables {
            // One is much larger than the others.
            let rows = if table == 0 { 5000 } else { 50 };
            let sql = format!(
                "CREATE TABLE t{table} (id int PRIMARY KEY, a text, n int NOT NULL DEFAULT 0);
                 INSERT INTO t{table} SELECT i, md5(i::text), 0 FROM generate_series(1, {rows}) i"
            );
            client.batch_execute(&sql).await.unwrap();
        }
        let days = days(&client).await;
        let mut connector = Connector::new(&server.url()).set("coordinator", "lease_ttl_ms", 2000).set(
            "lake",
            "stage_bytes_max",
            65536,
        );
        if let Some(zookeeper) = &zookeeper {
            connector.change("coordinator", "kind", "zookeeper");
            connector.change("coordinator.zookeeper", "servers", vec![zookeeper.address()]);
            connector.change("coordinator.zookeeper", "session_timeout_ms", 2000);
        }
        use_rule(&mut connector, 0);
        let capture = Some(connector.start_ready("capture").await);
        let mut world = Self {
            client,
            _server: server,
            connector,
            zookeeper,
            tables,
            days,
            capture,
            delivering: Vec::new(),
            stopped: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            seen: Seen::default(),
        };
        for _ in 0..processes {
            world.delivering.push(world.connector.start("deliver"));
        }
        world
    }

    /// How many tables each process says that it has.
    fn owned(&self) -> Vec<usize> {
        self.delivering
            .iter()
            .map(|running| running.get("/health").map_or(0, |(_, body)| owned(&body)))
            .collect()
    }

    async fn all_owned(&self, what: &str) {
        wait_until(PATIENCE, what, async || self.owned().iter().sum::<usize>() as u64 == self.tables).await;
    }

    async fn change_rows(&mut self) {
        for table in 0..self.tables {
            let (some, more) = (self.random.random_range(2..9), self.random.random_range(0..20));
            let sql = format!(
                "UPDATE t{table} SET n = n + 1 WHERE id % {some} = 0; DELETE FROM t{table} WHERE id % 50 = {some};
                 INSERT INTO t{table} SELECT m + i, repeat('x', 300), i FROM (SELECT max(id) AS m FROM t{table}) t, generate_series(1, {more}) i"
            );
            self.client.batch_execute(&sql).await.unwrap();
        }
    }

    /// Something happens to somebody.
    async fn event(&mut self) {
        let all = self.delivering.len();
        let who = self.random.random_range(0..all);
        match self.random.random_range(0..6) {
            0 | 1 => {
                let mut running = self.delivering.swap_remove(who);
                running.kill();
                self.delivering.push(self.connector.start("deliver"));
            }
            2 | 3 if self.stopped.is_empty() => {
                // It believes what it believed, and wakes up long after its session.
                let running = self.delivering.swap_remove(who);
                running.signal(Signal::STOP);
                self.stopped.push(running);
                self.delivering.push(self.connector.start("deliver"));
            }
            2 | 3 => {
                let running = self.stopped.pop().unwrap();
                running.signal(Signal::CONT);
                let mut leaving = std::mem::replace(&mut self.delivering[who], running);
                // One that has only just begun may not listen yet.
                let listens = leaving.output().contains("delivers");
                let left = leaving.terminate().await;
                assert!(left.success() || !listens, "a process leaves when it is asked to: {left}");
            }
            4 => {
                if let Some(zookeeper) = &mut self.zookeeper {
                    zookeeper.kill();
                    zookeeper.start_again();
                }
            }
            _ => {}
        }
        self.change_rows().await;
        let pause = self.random.random_range(0..1500);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        self.seen.look(&self.connector);
    }

    /// What Postgres holds of all tables.
    async fn held(&self) -> Vec<Rows> {
        let mut held = Vec::new();
        for table in 0..self.tables {
            let mut rows = postgres(&self.client, &format!("SELECT id, a, n FROM t{table}")).await;
            rows.sort();
            held.push(rows);
        }
        held
    }

    async fn run(&mut self, events: u64) {
        for (day, ds) in self.days.clone().into_iter().enumerate() {
            for _ in 0..events {
                self.event().await;
            }
            let held = self.held().await;
            let capture = self.capture.as_mut().unwrap();
            capture.cut(&ds);
            // What comes now is the next day's, and things go on happening while the day is made.
            self.event().await;
            let begun = Instant::now();
            let patience = PATIENCE * 2;
            while !self.connector.day(&ds).exists() {
                assert!(begun.elapsed() < patience, "ds={ds} is not published; owned: {:?}", self.owned());
                // One that was stopped in the middle of a write keeps SQLite's lock on the log from everybody.
                if begun.elapsed() > PATIENCE / 3 {
                    self.stopped.iter().for_each(|running| running.signal(Signal::CONT));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            println!("ds={ds} published {:?} after the cut and what happened then", begun.elapsed());
            let missing = Connector::json(&self.connector.day(&ds))["missing"].clone();
            assert!(missing.is_null(), "{missing}");
            for (table, expected) in held.into_iter().enumerate() {
                let mut found = duckdb(&self.connector, &ds, &format!("SELECT id, a, n FROM {{t{table}}}"));
                found.sort();
                assert_eq!(found, expected, "t{table} on ds={ds}");
            }
            self.seen.look(&self.connector);
            if day < 2 {
                use_rule(&mut self.connector, day + 1);
                self.capture.as_mut().unwrap().kill();
                self.capture = Some(self.connector.start_ready("capture").await);
            }
        }
    }

    /// The change history holds each offset once.
    fn history_is_one_sequence(&self) {
        let mut ranges: BTreeMap<(String, String), Vec<(u64, u64)>> = BTreeMap::new();
        for path in
            self.seen.0.keys().filter(|path| path.starts_with("changes/") && path.ends_with(".parquet"))
        {
            let parts: Vec<_> = path.split('/').collect();
            let numbers: Vec<_> =
                parts.last().unwrap().strip_suffix(".parquet").unwrap().split('-').collect();
            let range = (numbers[1].parse().unwrap(), numbers[2].parse().unwrap());
            ranges.entry((parts[2].to_owned(), numbers[0].to_owned())).or_default().push(range);
        }
        assert!(ranges.len() as u64 >= self.tables);
        for (of, mut ranges) in ranges {
            ranges.sort_unstable();
            let mut at = 0;
            for (first, last) in &ranges {
                assert_eq!(*first, at, "{of:?}: each offset once in {ranges:?}");
                at = last + 1;
            }
        }
    }
}

fn owned(health: &str) -> usize {
    let health: serde_json::Value = serde_json::from_str(health).unwrap();
    let tables = health["tables"].as_object().cloned().unwrap_or_default();
    tables.values().filter(|table| table["owned"] == true).count()
}

fn seed() -> u64 {
    let seed = number("SHARES_SEED", rand::random::<u32>().into());
    println!("SHARES_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread")]
async fn days_are_exact_and_objects_never_change_whatever_happens_to_processes_and_zookeeper() {
    let (tables, processes) = (number("SHARES_TABLES", 5), number("SHARES_PROCESSES", 3));
    let mut world = World::new(Some(Zookeeper::start()), tables, processes, seed()).await;
    world.run(number("SHARES_DAYS_EVENTS", 3)).await;
    world.history_is_one_sequence();
}

#[tokio::test(flavor = "multi_thread")]
async fn on_one_machine_processes_share_by_the_embedded_coordinator() {
    let mut world = World::new(None, 5, 3, seed()).await;
    world.run(number("SHARES_DAYS_EVENTS", 2)).await;
    world.history_is_one_sequence();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_move_within_seconds_when_processes_come_and_go_and_rest_in_between() {
    let mut world = World::new(Some(Zookeeper::start()), 6, 1, 1).await;
    world.all_owned("one process has all tables").await;
    for _ in 0..2 {
        world.delivering.push(world.connector.start("deliver"));
    }
    // Tables on the way from one to the other are nobody's, or still their former owner's.
    let (began, mut since, mut last) = (Instant::now(), Instant::now(), Vec::new());
    while since.elapsed() < Duration::from_secs(2) {
        let owned = world.owned();
        if owned != last || owned.contains(&0) || owned.iter().sum::<usize>() != 6 {
            since = Instant::now();
        }
        assert!(began.elapsed() < PATIENCE, "each has some, and that stays: {owned:?}");
        last = owned;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let moves = |world: &World| -> usize {
        world.delivering.iter().map(|running| running.output().matches("are divided anew").count()).sum()
    };
    let (settled, before) = (world.owned(), moves(&world));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((world.owned(), moves(&world)), (settled, before), "nothing moves while nobody comes or goes");

    let began = Instant::now();
    world.delivering.remove(0).kill();
    world.all_owned("the others have the tables of one that was killed").await;
    println!("taken over {:?} after a kill, with a session timeout of 2 s", began.elapsed());
    let began = Instant::now();
    assert!(world.delivering.remove(0).terminate().await.success());
    world.all_owned("the last one has the tables of one that left").await;
    println!("taken over {:?} after a process left", began.elapsed());
}
