//! Tables that change, the processes that deliver them, and what happens to all of these.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tokio_postgres::Client;

use crate::support::days::{days, use_rule};
use crate::support::lake::{Rows, duckdb, hashes, postgres};
use crate::support::{Connector, Kafka, Mirror, PATIENCE, Postgres, Running, S3, S3Proxy, Zookeeper};

/// What a process waits for an answer of the bucket.
const REQUEST_TIMEOUT_MS: u64 = 3000;

/// So long a process stays stopped while others wait: one that was stopped in the middle of a write keeps SQLite's lock on
/// the log from everybody.
const STOPPED_MAX: Duration = Duration::from_secs(20);

/// Where log, lake and leases are: all on this machine, by default.
#[derive(Default)]
pub struct Setting {
    zookeeper: Option<Zookeeper>,
    kafka: Option<Kafka>,
    bucket: Option<Bucket>,
    /// Leases outlive a pause of the machine.
    long_leases: bool,
}

struct Bucket {
    name: String,
    proxy: S3Proxy,
}

impl Setting {
    /// Leases in `ZooKeeper`.
    pub fn zookeeper() -> Self {
        Self { zookeeper: Some(Zookeeper::start()), ..Self::default() }
    }

    /// The same with leases that nobody loses for a moment's wait.
    pub fn with_long_leases() -> Self {
        Self { long_leases: true, ..Self::zookeeper() }
    }

    /// The log on Kafka and the lake in a bucket, too: the processes share no disk.
    pub async fn apart(seed: u64) -> Self {
        let store = S3::shared();
        let bucket = Bucket { name: store.bucket().await, proxy: S3Proxy::start(store.port(), seed).await };
        Self { kafka: Some(Kafka::start()), bucket: Some(bucket), ..Self::zookeeper() }
    }

    fn configure(&self, connector: &mut Connector) {
        let lease_ms = if self.long_leases { 10_000 } else { 2000 };
        connector.change("coordinator", "lease_ttl_ms", lease_ms);
        connector.change("lake", "stage_bytes_max", 65536);
        if let Some(zookeeper) = &self.zookeeper {
            connector.change("coordinator", "kind", "zookeeper");
            connector.change("coordinator.zookeeper", "servers", vec![zookeeper.address()]);
            connector.change("coordinator.zookeeper", "session_timeout_ms", lease_ms);
        }
        if let Some(kafka) = &self.kafka {
            connector.change("log", "kind", "kafka");
            connector.change("log.kafka", "brokers", vec![kafka.address()]);
            connector.change("log.kafka", "partitions", 2);
        }
        if let Some(bucket) = &self.bucket {
            S3::lake_in(connector, &bucket.name, bucket.proxy.port());
            connector.change("lake.s3", "request_timeout_ms", REQUEST_TIMEOUT_MS);
        }
    }
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

pub struct World {
    // Dropped first: what they have said is shown, and lies in the folders of the connectors.
    capture: Option<Running>,
    pub delivering: Vec<Running>,
    stopped: Vec<Running>,
    client: Client,
    _server: Postgres,
    setting: Setting,
    /// Of the process that captures; the lake is in its folder, or a copy of what is in the bucket.
    connector: Connector,
    /// Of those that deliver, in turn, where they share no disk.
    others: Vec<Connector>,
    mirror: Option<Mirror>,
    tables: u64,
    days: [String; 3],
    started: usize,
    random: StdRng,
    seen: Seen,
}

impl World {
    pub async fn new(setting: Setting, tables: u64, processes: u64, seed: u64) -> Self {
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
        let mut connector = Connector::new(&server.url());
        setting.configure(&mut connector);
        use_rule(&mut connector, 0);
        let mirror = setting.bucket.as_ref().map(|bucket| Mirror::new(&bucket.name, connector.lake()));
        let others = if mirror.is_some() { processes } else { 0 };
        let others = (0..others).map(|_| {
            let mut other = Connector::new(&server.url());
            setting.configure(&mut other);
            other
        });
        let others = others.collect();
        let capture = Some(connector.start_ready("capture").await);
        let mut world = Self {
            client,
            _server: server,
            connector,
            setting,
            others,
            mirror,
            tables,
            days,
            capture,
            delivering: Vec::new(),
            started: 0,
            stopped: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            seen: Seen::default(),
        };
        for _ in 0..processes {
            world.start_one();
        }
        world
    }

    /// One more process that delivers, on a machine of its own where there are several.
    pub fn start_one(&mut self) {
        self.started += 1;
        let connector = if self.others.is_empty() {
            &self.connector
        } else {
            &self.others[self.started % self.others.len()]
        };
        self.delivering.push(connector.start("deliver"));
    }

    /// How the lake looks now.
    async fn look(&mut self) {
        if let Some(mirror) = &mut self.mirror {
            mirror.renew().await;
        }
        self.seen.look(&self.connector);
    }

    async fn is_published(&mut self, ds: &str) -> bool {
        if let Some(mirror) = &mut self.mirror {
            mirror.renew().await;
        }
        self.connector.day(ds).exists()
    }

    /// Kills the first process, and waits until the others have its tables.
    pub async fn takeover(&mut self) {
        self.resume_all();
        if let Some(bucket) = &self.setting.bucket {
            bucket.proxy.calm();
        }
        self.all_owned("every table has an owner").await;
        let began = Instant::now();
        self.delivering.remove(0).kill();
        self.all_owned("the others have the tables of one that was killed").await;
        println!("taken over {:?} after a kill", began.elapsed());
    }

    fn resume_all(&mut self) {
        for running in self.stopped.drain(..) {
            running.signal(Signal::CONT);
            self.delivering.push(running);
        }
    }

    /// How many tables each process says that it has.
    pub fn owned(&self) -> Vec<usize> {
        self.delivering
            .iter()
            .map(|running| running.get("/health").map_or(0, |(_, body)| owned(&body)))
            .collect()
    }

    pub async fn all_owned(&self, what: &str) {
        let began = Instant::now();
        loop {
            let owned = self.owned();
            if owned.iter().sum::<usize>() as u64 == self.tables {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain until {what}: {owned:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
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
        match self.random.random_range(0..7) {
            0 | 1 => {
                let mut running = self.delivering.swap_remove(who);
                running.kill();
                self.start_one();
            }
            2 | 3 if self.stopped.is_empty() => {
                // It believes what it believed, and wakes up long after its session.
                let running = self.delivering.swap_remove(who);
                running.signal(Signal::STOP);
                self.stopped.push(running);
                self.start_one();
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
                if let Some(zookeeper) = &mut self.setting.zookeeper {
                    zookeeper.kill();
                    zookeeper.start_again();
                }
            }
            5 => {
                if let Some(kafka) = &mut self.setting.kafka {
                    kafka.kill();
                    kafka.start_again();
                }
            }
            _ => {}
        }
        if let Some(bucket) = &self.setting.bucket {
            bucket.proxy.disturb([0, 0, 2, 10][self.random.random_range(0..4)]);
        }
        self.change_rows().await;
        let pause = self.random.random_range(0..1500);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        self.look().await;
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

    async fn cut(&mut self, ds: &str) {
        let (capture, ds) = (self.capture.take().unwrap(), ds.to_owned());
        let cutting = tokio::task::spawn_blocking(move || {
            capture.cut(&ds);
            capture
        });
        self.capture = Some(unlocked(&self.stopped, cutting).await.unwrap());
    }

    pub async fn run(&mut self, events: u64) {
        for (day, ds) in self.days.clone().into_iter().enumerate() {
            for _ in 0..events {
                self.event().await;
            }
            let held = self.held().await;
            self.cut(&ds).await;
            // What comes now is the next day's, and things go on happening while the day is made.
            self.event().await;
            let begun = Instant::now();
            let patience = PATIENCE * 2 + Duration::from_secs(10) * self.tables as u32;
            while !self.is_published(&ds).await {
                assert!(begun.elapsed() < patience, "ds={ds} is not published; owned: {:?}", self.owned());
                if begun.elapsed() > STOPPED_MAX {
                    go_on(&self.stopped);
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
            self.look().await;
            if day < 2 {
                use_rule(&mut self.connector, day + 1);
                self.capture.as_mut().unwrap().kill();
                let started = self.connector.start_ready("capture");
                self.capture = Some(unlocked(&self.stopped, started).await);
            }
        }
    }

    /// The change history holds each offset once.
    pub fn history_is_one_sequence(&self) {
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
                // On Kafka the ends of transactions have offsets, too.
                let follows = *first == at || (self.setting.kafka.is_some() && *first > at);
                assert!(follows, "{of:?}: each offset once in {ranges:?}");
                at = last + 1;
            }
        }
        if let Some(bucket) = &self.setting.bucket {
            println!("{:?}", bucket.proxy.faults());
        }
    }
}

fn go_on(stopped: &[Running]) {
    for running in stopped {
        running.signal(Signal::CONT);
    }
}

/// Waits for what needs the log's lock.
async fn unlocked<T>(stopped: &[Running], work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    if let Ok(done) = tokio::time::timeout(STOPPED_MAX, work.as_mut()).await {
        return done;
    }
    go_on(stopped);
    work.await
}

fn owned(health: &str) -> usize {
    let health: serde_json::Value = serde_json::from_str(health).unwrap();
    let tables = health["tables"].as_object().cloned().unwrap_or_default();
    tables.values().filter(|table| table["owned"] == true).count()
}
