//! The servers, the program, and how a round begins and ends.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::check;
use super::faults::Fault;
use super::topics::Consumer;
use crate::oracle::source::{self, PUBLICATION};
use crate::oracle::traffic::Traffic;
use crate::support::{Cluster, Connector, Postgres, Running};

/// No single step takes longer, on a busy machine with brokers that come back.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Kafka gives up a transaction that is silent for so long; and so long is an append tried before it is kept.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a broker looks for such transactions.
pub const SWEEP: Duration = Duration::from_secs(1);

/// How the names of all topics begin.
pub const TOPICS: &str = "shop.";

/// Partitions of each table's topic.
const PARTITIONS: u32 = 3;

/// Sessions that write, and how long each rests after a transaction: a build without optimisation keeps up.
const SESSIONS: u64 = 2;
const REST: Duration = Duration::from_millis(25);

/// Everything that is there.
pub struct Campaign {
    pub server: Postgres,
    pub brokers: Cluster,
    pub random: StdRng,
    /// Whether changes are kept on the local disk while brokers are away.
    pub spill: bool,
    /// The program, between rounds always.
    pub process: Option<Running>,
    /// Where it runs, and another machine with a disk of its own.
    pub connectors: [Connector; 2],
    /// Which of both it is.
    pub home: usize,
    traffic: Option<Traffic>,
    /// Reads all the while.
    follower: Option<Consumer>,
    began: Instant,
}

impl Campaign {
    /// Starts all, and waits for the first copy: what is seen of one that breaks off is said in the log's documents.
    pub async fn start(
        seed: u64,
        brokers: usize,
        spill: bool,
        more: impl Fn(Connector) -> Connector,
    ) -> Self {
        let began = Instant::now();
        let sweep = SWEEP.as_millis().to_string();
        let properties = [
            ("transaction.abort.timed.out.transaction.cleanup.interval.ms", sweep.as_str()),
            // Its leader is the coordinator of our one writer.
            ("transaction.state.log.num.partitions", "1"),
            // Leaders go back to where they belong soon after a node has returned.
            ("leader.imbalance.check.interval.seconds", "2"),
            ("leader.imbalance.per.broker.percentage", "0"),
        ];
        let brokers = Cluster::start(brokers, &properties);
        let server = Postgres::builder()
            .set("timezone", "UTC")
            .set("deadlock_timeout", "50ms")
            .set("max_connections", "40")
            .start()
            .await;
        source::prepare(&server.connect().await).await;
        let connectors = [(); 2].map(|()| more(connector(&server, &brokers, spill)));
        let traffic = Some(Traffic::start(&server.url(), seed, SESSIONS, REST));
        let mut campaign = Self {
            follower: Some(Consumer::start(&brokers.addresses(), TOPICS)),
            server,
            brokers,
            random: StdRng::seed_from_u64(seed),
            spill,
            process: None,
            connectors,
            home: 0,
            traffic,
            began,
        };
        campaign.ensure_streaming().await;
        campaign
    }

    /// Those faults in an order of the seed.
    pub fn shuffled(&mut self, faults: &[Fault]) -> Vec<Fault> {
        let mut faults = faults.to_vec();
        faults.shuffle(&mut self.random);
        faults
    }

    /// A fault under load, and the way back.
    pub async fn round(&mut self, round: u64, fault: Fault) {
        self.ensure_streaming().await;
        let life = self.moment(2_000);
        tokio::time::sleep(life).await;
        eprintln!("{:?}: round {round}: {fault:?} after {life:?}", self.began.elapsed());
        let what = fault.happen(self).await;
        let healed = Instant::now();
        self.brokers.start_all();
        self.ensure_streaming().await;
        // Now and then the next fault meets the brokers and the program while they still recover.
        let settles = self.random.random_ratio(3, 4);
        if settles {
            self.brokers.in_sync().await;
            self.progress().await;
        }
        let (began, healed) = (self.began.elapsed(), settles.then(|| healed.elapsed()));
        eprintln!("{began:?}: round {round}: {what}; well again {healed:?} later");
    }

    /// A time below so many milliseconds, mostly a short one.
    pub fn moment(&mut self, ms_max: u64) -> Duration {
        let longest = if self.random.random() { ms_max } else { ms_max / 8 };
        Duration::from_micros(self.random.random_range(0..longest * 1000))
    }

    /// Starts the program where it lives.
    pub fn launch(&self) -> Running {
        self.connectors[self.home].start("capture")
    }

    /// Waits until the program streams, which it does only after the fence.
    pub async fn ensure_streaming(&mut self) {
        if self.process.is_none() {
            self.process = Some(self.launch());
        }
        let process = self.process.as_mut().unwrap();
        assert!(streams(process).await, "the program has ended by itself:\n{}", process.output());
    }

    /// The program, which runs.
    pub fn running(&mut self) -> &mut Running {
        self.process.as_mut().expect("the program runs")
    }

    /// SIGKILL of the program.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Waits until the slot has passed what has been written until now.
    pub async fn progress(&mut self) {
        let sql = self.server.connect().await;
        let written: String = sql.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
        let passed = format!(
            "SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots WHERE slot_name = '{PUBLICATION}'"
        );
        let started = Instant::now();
        while !sql.query_one(&passed, &[]).await.unwrap().get::<_, bool>(0) {
            let process = self.running();
            assert!(process.is_running(), "the program has ended by itself:\n{}", process.output());
            assert!(
                started.elapsed() < PATIENCE,
                "the slot has not passed {written} within {PATIENCE:?}: {:?}\n{}",
                process.get("/health"),
                process.output()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The last commit, and everything of it in the topics.
    pub async fn drain(&mut self) {
        self.quiet().await;
        self.ensure_streaming().await;
        self.progress().await;
        self.terminate().await;
        // What was kept on the local disk has arrived before the next one streams.
        self.ensure_streaming().await;
        self.progress().await;
        self.terminate().await;
    }

    /// Nobody writes any more.
    pub async fn quiet(&mut self) {
        let Some(traffic) = self.traffic.take() else { return };
        let committed = traffic.committed();
        traffic.stop().await;
        eprintln!("{:?}: {committed} transactions; draining", self.began.elapsed());
    }

    async fn terminate(&mut self) {
        let mut process = self.process.take().unwrap();
        let status = process.terminate().await;
        assert!(status.success(), "SIGTERM ended with {status}:\n{}", process.output());
    }

    /// The view of a consumer that comes late beside the oracle, and beside that of one which was there all the while.
    pub async fn compare(&mut self) {
        eprintln!("{:?}: comparing", self.began.elapsed());
        let topics = Consumer::start(&self.brokers.addresses(), TOPICS).finish();
        let compared = check::check(&topics, &self.server.connect().await).await;
        topics.assert_same(&self.follower.take().unwrap().finish());
        assert!(compared.unchanged > 0, "the traffic never left a long value unchanged");
        let used = compared.partitions.values().filter(|records| **records > 0).count();
        assert!(used > 2 * PARTITIONS as usize, "few partitions hold anything: {:?}", compared.partitions);
        let (writers, within) = compared.writers;
        eprintln!(
            "{:?}: {} transactions, {} records in {used} partitions: 0 lost, 0 doubled, 0 out of order; {writers} \
             writers, {within} of them from within a transaction",
            self.began.elapsed(),
            compared.transactions,
            compared.records,
        );
        if !compared.parts.is_empty() {
            eprintln!(
                "copied later, beside their topics: {:?}: {:?}",
                compared.parts,
                self.compare_copies().await
            );
        }
        for line in self.mended() {
            eprintln!("a marker was missing: {line}");
        }
    }
}

impl Campaign {
    /// What the program said of commits whose markers the brokers had left out, which it made good.
    fn mended(&self) -> Vec<String> {
        let folders = self.connectors.iter().flat_map(|c| std::fs::read_dir(c.folder()).unwrap().flatten());
        let texts = folders.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
        let is_one = |line: &&str| line.contains("without its marker") || line.contains("whose markers");
        texts.flat_map(|text| text.lines().filter(is_one).map(str::to_owned).collect::<Vec<_>>()).collect()
    }
}

impl Drop for Campaign {
    /// What programs and brokers said and stored, for whoever looks for the cause.
    fn drop(&mut self) {
        let Some(folder) = std::env::var_os("TIDEMARK_TEST_KEEP").filter(|_| std::thread::panicking()) else {
            return;
        };
        let nodes = (0..self.brokers.count()).map(|node| self.brokers[node].folder());
        let all = self.connectors.iter().map(Connector::folder).chain(nodes);
        for from in all {
            let copied = Command::new("cp").arg("-a").arg(from).arg(Path::new(&folder)).status();
            eprintln!("{} kept: {copied:?}", from.display());
        }
    }
}

/// Whether the program streams in the end; false if it ends instead.
pub async fn streams(process: &mut Running) -> bool {
    let started = Instant::now();
    while !process.output().contains("\"streaming\"") {
        if !process.is_running() {
            return false;
        }
        assert!(started.elapsed() < PATIENCE, "not streaming within {PATIENCE:?}:\n{}", process.output());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    process.is_running()
}

fn connector(server: &Postgres, brokers: &Cluster, spill: bool) -> Connector {
    let connector = Connector::new(&server.url())
        .set("source", "slot", PUBLICATION)
        .set("source", "publication", PUBLICATION)
        .set("log", "kind", "kafka")
        // Large transactions of the source become many of Kafka.
        .set("log", "append_bytes_max", 262_144)
        .set("log", "linger_ms", 2)
        .set("log.kafka", "brokers", json!(brokers.addresses()))
        .set("log.kafka", "partitions", PARTITIONS)
        .set("log.kafka", "replication_factor", brokers.count())
        .set("log.kafka.topic_config", "\"min.insync.replicas\"", brokers.count().div_ceil(2))
        .set("log.kafka.topic_config", "\"retention.ms\"", -1)
        .set("log.kafka.properties", "\"transaction.timeout.ms\"", TRANSACTION_TIMEOUT.as_millis() as u64);
    if spill { connector } else { connector.set("log.kafka", "spill_bytes_max", 0) }
}
