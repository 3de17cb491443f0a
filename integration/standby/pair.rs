//! Two processes on one log, each with a network of its own to the database, and what happens to the one that streams.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::exactness::connector::{Connector, Process};
use crate::oracle::source::{self, PUBLICATION};
use crate::oracle::traffic::Traffic;
use crate::support::{Network, Postgres, Proxy};

/// No single step takes longer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// What one says while the other one, which does not stream any more, keeps the log's file locked.
const LOCKED: &str = "is being written by another process";

/// After so long the server lets go of a silent connection.
const SENDER_TIMEOUT: Duration = Duration::from_secs(6);

/// What ends the time of the one that streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Leave,
    /// SIGSTOP until the other one streams, then SIGCONT.
    Stop,
    /// Its packets are lost; the server learns of it by its timeout. It comes back when the other one streams.
    Stalled,
    /// Its own side of the connections breaks, the server's does not; new ones are possible at once.
    HalfOpen,
    /// Its connections break and it cannot make new ones.
    Cut,
}

impl Fault {
    pub const ALL: &'static [Self] =
        &[Self::Kill, Self::Leave, Self::Stop, Self::Stalled, Self::HalfOpen, Self::Cut];
}

/// See the module's head.
pub struct Pair {
    pub server: Postgres,
    pub connector: Connector,
    networks: [Proxy; 2],
    processes: [Option<Process>; 2],
    traffic: Option<Traffic>,
    _dir: tempfile::TempDir,
}

impl Pair {
    /// Starts both under load; the first one streams.
    pub async fn start(seed: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("tidemark-standby-").tempdir().unwrap();
        let timeout = format!("{}s", SENDER_TIMEOUT.as_secs());
        let server = Postgres::builder()
            .set("timezone", "UTC")
            .set("deadlock_timeout", "50ms")
            .set("max_connections", "40")
            .set("wal_sender_timeout", &timeout)
            .start()
            .await;
        source::prepare(&server.connect().await).await;
        let networks = [Proxy::start(server.port()).await, Proxy::start(server.port()).await];
        let folder = dir.path().join("connector");
        let connector = Connector::new(&folder, &server.url(), "UTC", "00:00", "");
        for (number, network) in networks.iter().enumerate() {
            let path = folder.join(format!("connector-{number}.toml"));
            let text = std::fs::read_to_string(&path).unwrap();
            let url = format!("postgres://postgres@127.0.0.1:{}/postgres", network.port());
            std::fs::write(&path, text.replace(&server.url(), &url)).unwrap();
        }
        let traffic = Some(Traffic::start(&server.url(), seed, 2, Duration::from_millis(10)));
        let mut pair = Self { server, connector, networks, processes: [None, None], traffic, _dir: dir };
        pair.launch(0);
        pair.said_times(0, "\"streaming\"", 1).await;
        pair
    }

    fn launch(&mut self, number: usize) {
        self.processes[number] = Some(self.connector.start("capture", number));
    }

    fn process(&mut self, number: usize) -> &mut Process {
        self.processes[number].as_mut().expect("it was started")
    }

    /// The one that has begun to stream last: who streams also changes where none of ours are at work, when the server
    /// hears nothing from a process for too long.
    fn active(&self) -> usize {
        let last = |number: usize| {
            let said = self.processes[number].as_ref().map(Process::said)?;
            // Begins with the time.
            said.lines().rfind(|line| line.contains("\"streaming\"")).map(str::to_owned)
        };
        usize::from(last(1) > last(0))
    }

    /// Waits until a process has said a word so many times.
    async fn said_times(&mut self, number: usize, word: &str, times: usize) {
        let start = Instant::now();
        loop {
            let process = self.process(number);
            if process.said().matches(word).count() >= times {
                return;
            }
            assert!(process.ended().is_none(), "process {number} has ended by itself:\n{}", process.said());
            assert!(
                start.elapsed() < PATIENCE,
                "process {number} does not say {word} in {PATIENCE:?}:\n{}",
                process.said()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Something happens to the one that streams while the other one stands by; gives how long the slot was without
    /// anybody who streams from it.
    pub async fn round(&mut self, fault: Fault) -> Duration {
        let began = |process: &Process| process.said().matches("\"streaming\"").count();
        let stood = |process: &Process| process.said().matches("waiting for it").count();
        let (one, two, before, stood_before, locked_before) = loop {
            let one = self.active();
            let two = 1 - one;
            if self.processes[two].is_none() {
                self.launch(two);
            }
            self.said_times(two, "waiting for it", 1).await;
            let (before, stood_before) = (began(self.process(two)), stood(self.process(one)));
            let locked_before = self.process(two).said().matches(LOCKED).count();
            // Who streams may have changed meanwhile.
            if self.active() == one {
                break (one, two, before, stood_before, locked_before);
            }
        };
        let start = Instant::now();
        match fault {
            Fault::Kill => self.processes[one].take().unwrap().kill(),
            Fault::Leave => {
                let mut leaving = self.processes[one].take().unwrap();
                leaving.signal(Signal::TERM);
                let status = leaving.wait(PATIENCE);
                assert!(status.success(), "SIGTERM ended with {status}:\n{}", leaving.said());
            }
            Fault::Stop => self.process(one).signal(Signal::STOP),
            Fault::Stalled => self.networks[one].set(Network::Stalled),
            Fault::HalfOpen => self.networks[one].set(Network::HalfOpen),
            Fault::Cut => self.networks[one].set(Network::Cut),
        }
        let took = if fault == Fault::HalfOpen {
            // Both ask for the slot when the server lets go of it, and either may get it.
            let before = [began(self.process(one)), before];
            self.either_streams([one, two], before).await;
            start.elapsed()
        } else {
            let locked_before = (fault == Fault::Stop).then_some(locked_before);
            self.streams_or_is_locked_out(two, before, locked_before).await;
            start.elapsed()
        };
        match fault {
            Fault::Kill | Fault::Leave => {}
            Fault::Stop => {
                // Where it had locked the other one out, both ask for the slot.
                let before = [began(self.process(one)), before];
                self.process(one).signal(Signal::CONT);
                self.either_streams([one, two], before).await;
            }
            Fault::Stalled | Fault::HalfOpen | Fault::Cut => self.networks[one].set(Network::Up),
        }
        if self.active() == two && self.processes[one].is_some() {
            self.said_times(one, "waiting for it", stood_before + 1).await;
        }
        self.passes_what_was_written().await;
        took
    }

    /// Waits until one of two has begun to stream more often than before.
    async fn either_streams(&mut self, numbers: [usize; 2], before: [usize; 2]) {
        let count = |process: &Process| process.said().matches("\"streaming\"").count();
        let start = Instant::now();
        while numbers.map(|number| count(self.process(number))) == before {
            assert!(start.elapsed() < PATIENCE, "nobody streams:\n{}", self.process(numbers[1]).said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// One which is stopped in the middle of a write keeps the lock on the log's file: nobody can take over, and the
    /// other one says so, more often than before; without that number it must not come to it.
    async fn streams_or_is_locked_out(&mut self, two: usize, before: usize, locked_before: Option<usize>) {
        let start = Instant::now();
        loop {
            let process = self.process(two);
            if process.said().matches("\"streaming\"").count() > before {
                return;
            }
            if locked_before.is_some_and(|before| process.said().matches(LOCKED).count() > before) {
                eprintln!("stopped in the middle of a write: it is let go on");
                return;
            }
            assert!(process.ended().is_none(), "the standby has ended by itself:\n{}", process.said());
            assert!(start.elapsed() < PATIENCE, "it does not take over:\n{}", process.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn passes_what_was_written(&mut self) {
        let sql = self.server.connect().await;
        let written: String = sql.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
        let passed = format!(
            "SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots WHERE slot_name = '{PUBLICATION}'"
        );
        let start = Instant::now();
        while !sql.query_one(&passed, &[]).await.unwrap().get::<_, bool>(0) {
            assert!(start.elapsed() < PATIENCE, "the slot has not passed {written}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The last commit, and everything of it in the log.
    pub async fn drain(&mut self) {
        self.traffic.take().unwrap().stop().await;
        self.passes_what_was_written().await;
        for mut process in self.processes.iter_mut().filter_map(Option::take) {
            process.signal(Signal::TERM);
            let status = process.wait(PATIENCE);
            assert!(status.success(), "SIGTERM ended with {status}:\n{}", process.said());
        }
    }
}
