//! Exactness under kill: real traffic on a real server, and the program killed again and again where it hurts.
//!
//! ```text
//!   traffic ──> Postgres ──> tidemark run ──> log ──> lake      killed, paused, doubled, the server crashed,
//!                  │                           │        │       its clock stepped over midnight and back
//!                  └─> oracle (triggers, slot) ┴── equal ┘
//! ```
//!
//! The oracle (`oracle/`) is inside the database and not of our making: triggers note every change,
//! and Postgres's own `test_decoding` tells in what order transactions committed. At the end the log must hold
//! each change once, in that order, with those values, and each published day the state at its cut.
//!
//! Copies of tables have a test of their own (`exactness/backfills.rs`), with pieces so small that one copy is many.
//!
//! So have days that are made before they end (`exactness/premerging.rs`), with traffic that leaves it the time.
//!
//! `CRASH_ROUNDS` sets the number of rounds, `BACKFILL_KILLS` and `PREMERGE_KILLS` those of the other tests, `TIDEMARK_TEST_SEED` replays what the test itself decides (how
//! processes meet is up to the machine), and `TIDEMARK_TEST_KEEP` keeps the folder.

mod backfills;
mod check_lake;
pub mod check_log;
mod check_transactions;
pub mod connector;
mod premerging;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::oracle::traffic::Traffic;
use crate::oracle::{History, source};
use crate::support::clock::Clock;
use crate::support::{Postgres, Replay, Stop};
use connector::{Connector, NAME, Process};
use tidemark::change::BACKFILL_PARTITION;

/// Rounds that may meet the very first backfill; from then on one is let through.
const EARLY_ROUNDS: u32 = 5;
/// No single step takes longer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long all days may take that were left behind: a process that lives for a second publishes next to none.
const CATCH_UP: &str = "15m";
/// Said of a cut that nobody waits for any longer, and that is made as soon as it can be.
const LATER: &str = "not done yet";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_change_is_there_once_in_order_and_every_day_is_exact_however_often_it_is_killed() {
    crate::oracle::reader::python();
    let seed = setting("TIDEMARK_TEST_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let rounds = setting("CRASH_ROUNDS").unwrap_or(20) as u32;
    let _replay = Replay::with(format!("TIDEMARK_TEST_SEED={seed} CRASH_ROUNDS={rounds}"));
    let mut test = Test::start(seed, "").await;
    let traffic = Traffic::start(&test.server.url(), seed, 4, Duration::ZERO);
    for round in 0..rounds {
        test.round(round).await;
        if round == rounds / 2 {
            test.midway = check_lake::published(&test.connector.lake());
        }
    }
    let committed = traffic.committed();
    traffic.stop().await;
    eprintln!("{:?}: {committed} transactions; draining", test.began.elapsed());
    test.drain().await;
    test.compare().await;
    test.nothing_changes_any_more().await;
    eprintln!("{:?}: done", test.began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn copies_of_many_pieces_are_the_tables_however_often_they_are_killed_under_load() {
    crate::oracle::reader::python();
    let seed = setting("TIDEMARK_TEST_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let kills = setting("BACKFILL_KILLS").unwrap_or(8) as u32;
    let _replay = Replay::with(format!("TIDEMARK_TEST_SEED={seed} BACKFILL_KILLS={kills}"));
    let mut test = Test::start(seed, &backfills::settings()).await;
    let traffic = Traffic::start(&test.server.url(), seed, 3, Duration::from_millis(2));
    for round in 0..kills {
        test.copy_round(round).await;
    }
    // As many as a build without optimisation keeps up with on a busy machine: a copy needs a stream that is near.
    traffic.rest_for(Duration::from_millis(100));
    test.copies_end().await;
    traffic.stop().await;
    test.drain().await;
    test.compare_copies().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn days_that_are_made_before_they_end_are_exact_however_often_that_is_killed() {
    crate::oracle::reader::python();
    let seed = setting("TIDEMARK_TEST_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let kills = setting("PREMERGE_KILLS").unwrap_or(2) as u32;
    let _replay = Replay::with(format!("TIDEMARK_TEST_SEED={seed} PREMERGE_KILLS={kills}"));
    let mut test = Test::start(seed, "").await;
    let traffic = Traffic::start(&test.server.url(), seed, 3, Duration::from_millis(20));
    test.first_day().await;
    for round in 0..=kills {
        test.premerging_round(round, round == kills).await;
        if round == kills / 2 {
            test.midway = check_lake::published(&test.connector.lake());
        }
    }
    traffic.stop().await;
    test.drain().await;
    test.compare().await;
    test.nothing_changes_any_more().await;
    let changes = test.premerged_changes();
    eprintln!("{:?}: {changes} changes were sorted before their cuts", test.began.elapsed());
    assert!(changes > 0, "nothing that was made before a cut was of use");
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

struct Test {
    server: Postgres,
    clock: Clock,
    connector: Connector,
    random: StdRng,
    /// What was published half way, with its hashes.
    midway: BTreeMap<PathBuf, String>,
    /// The first copy was let through.
    streamed: bool,
    began: Instant,
    _dir: Option<tempfile::TempDir>,
}

impl Test {
    async fn start(seed: u64, settings: &str) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let dir = tempfile::Builder::new().prefix("tidemark-exact-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().to_owned();
        eprintln!("in {}", path.display());
        // Days near a change of the clocks, too.
        let (zone, start, at) = [
            ("UTC", "2026-11-20T12:00:00Z", "00:00"),
            ("Asia/Dubai", "2026-12-28T19:00:00Z", "00:00"),
            ("Europe/Berlin", "2026-10-20T12:00:00Z", "02:30"),
            ("America/New_York", "2027-03-10T12:00:00Z", "02:30"),
            ("Australia/Lord_Howe", "2026-09-30T12:00:00Z", "00:00"),
        ][random.random_range(0..5)];
        let clock = Clock::new(&path, start.parse().unwrap(), at.parse().unwrap(), zone);
        let mut builder = Postgres::builder()
            .set("timezone", "UTC")
            .set("deadlock_timeout", "50ms")
            .set("max_connections", "40")
            // Each step of the clock would end the connection.
            .set("wal_sender_timeout", "0");
        for (name, value) in clock.environment() {
            builder = builder.env(name, &value);
        }
        let server = builder.start().await;
        source::prepare(&server.connect().await).await;
        let connector = Connector::new(&path.join("connector"), &server.url(), zone, at, settings);
        let keep = std::env::var_os("TIDEMARK_TEST_KEEP").is_some();
        let (midway, began) = (BTreeMap::new(), Instant::now());
        let held = if keep {
            drop(dir.keep());
            None
        } else {
            Some(dir)
        };
        Self { server, clock, connector, random, midway, streamed: false, began, _dir: held }
    }

    /// One life of the program, and its end.
    async fn round(&mut self, round: u32) {
        let kind = if round < EARLY_ROUNDS { 0 } else { self.random.random_range(0..100) };
        let life = Duration::from_millis(self.random.random_range(5..1500));
        let step = self.random.random_range(0..100);
        if kind >= 95 {
            return self.apart(round, life).await;
        }
        let mut process = self.connector.start("run", 0);
        if round >= EARLY_ROUNDS {
            self.until_streaming(&mut process).await;
        }
        self.step_clock(step);
        let asked = (step % 4 == 0).then(|| self.connector.ask_for_cut());
        let what = match kind {
            0..40 => {
                tokio::time::sleep(life).await;
                process.kill();
                "kill"
            }
            40..46 => {
                tokio::time::sleep(life).await;
                process.signal(Signal::STOP);
                tokio::time::sleep(life / 2).await;
                process.kill();
                "pause and kill"
            }
            46..52 => {
                tokio::time::sleep(life).await;
                process.signal(Signal::TERM);
                let status = process.wait(PATIENCE);
                assert!(status.success(), "round {round}: SIGTERM ended with {status}:\n{}", process.said());
                "terminate"
            }
            52..60 => {
                tokio::time::sleep(life / 3).await;
                self.server.stop(Stop::Immediate);
                self.server.start_again().await;
                tokio::time::sleep(life).await;
                process.kill();
                "server crash and kill"
            }
            60..66 => {
                self.zombie(process, life).await;
                "zombie"
            }
            _ => self.kill_when_something_appears(process, kind, life).await,
        };
        eprintln!(
            "{:?}: round {round}: {what} after {life:?}, clock {step}, {}",
            self.began.elapsed(),
            self.clock.now()
        );
        if let Some(mut asked) = asked {
            // Its process has died, or it was answered.
            let _ = asked.kill();
            asked.wait().unwrap();
        }
    }

    /// Days end: mostly by themselves a moment later, sometimes several at once, and sometimes again.
    fn step_clock(&mut self, step: u32) {
        let end = self.clock.end_of(self.clock.today());
        match step {
            0..45 => {
                self.clock.set(end);
                self.clock.step_ms(-self.random.random_range(0..300));
            }
            45..50 => self.clock.step_ms(3 * 24 * 3_600_000),
            50..58 => self.clock.step_ms(-30 * 60_000),
            _ => {}
        }
    }

    /// Waits until the process streams, which it does only after the backfill.
    async fn until_streaming(&mut self, process: &mut Process) {
        let streams = self.streams(process).await;
        assert!(streams, "the process ended by itself:\n{}", process.said());
    }

    /// The same; false if the process has ended.
    async fn streams(&mut self, process: &mut Process) -> bool {
        let start = Instant::now();
        while !process.has_said("\"streaming\"") {
            if process.ended().is_some() {
                return false;
            }
            assert!(start.elapsed() < PATIENCE, "not streaming within {PATIENCE:?}:\n{}", process.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    /// Kills at the moment in which something happens that is short: a part, a manifest, a day, a cut.
    async fn kill_when_something_appears(
        &mut self,
        process: Process,
        kind: u32,
        life: Duration,
    ) -> &'static str {
        let lake = self.connector.lake();
        let (what, name) = match kind {
            66..75 => ("kill at a part", "part-"),
            75..82 => ("kill at a table's manifest", "_manifest.json"),
            82..88 => ("kill at a change file", "/changes/"),
            _ => ("kill at a day's manifest", "/cuts/"),
        };
        let count = || names(&lake).iter().filter(|path| path.to_string_lossy().contains(name)).count();
        let (before, start) = (count(), Instant::now());
        while count() == before && start.elapsed() < Duration::from_secs(4) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(life / 100).await;
        process.kill();
        what
    }

    /// A process is paused for so long that another takes over, and then goes on as if nothing had been.
    async fn zombie(&mut self, mut process: Process, life: Duration) {
        tokio::time::sleep(life / 2).await;
        process.signal(Signal::STOP);
        let sql = self.server.connect().await;
        let mut other = self.connector.start("run", 1);
        // What the server itself does with a client which does not answer; again, since the paused one may have been about
        // to take the slot.
        let start = Instant::now();
        while other.ended().is_none()
            && !["\"streaming\"", "taking over"].iter().any(|said| other.has_said(said))
        {
            assert!(start.elapsed() < PATIENCE, "the slot is not free:\n{}", other.said());
            let end =
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'";
            sql.batch_execute(end).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        if !self.streams(&mut other).await {
            // Paused in the middle of a write, it holds the file's lock, and nobody can take over.
            assert!(other.has_said("is being written by another process"), "{}", other.said());
        }
        tokio::time::sleep(life).await;
        process.signal(Signal::CONT);
        tokio::time::sleep(life).await;
        // Which of both streams is up to them; the other stands by for it, or leaves.
        let start = Instant::now();
        let stands_back =
            |process: &mut Process| process.ended().is_some() || process.has_said("waiting for it");
        while !stands_back(&mut process) && !stands_back(&mut other) {
            assert!(start.elapsed() < PATIENCE, "both go on:\n{}\n\n{}", process.said(), other.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        process.kill();
        other.kill();
    }

    /// Capture and two delivers, each a process of its own.
    async fn apart(&mut self, round: u32, life: Duration) {
        let mut capture = self.connector.start("capture", 0);
        let (one, two) = (self.connector.start("deliver", 1), self.connector.start("deliver", 2));
        self.until_streaming(&mut capture).await;
        self.step_clock(0);
        tokio::time::sleep(life).await;
        one.signal(Signal::STOP);
        tokio::time::sleep(life).await;
        one.signal(Signal::CONT);
        tokio::time::sleep(life).await;
        two.kill();
        capture.kill();
        one.kill();
        eprintln!("{:?}: round {round}: apart, {life:?}", self.began.elapsed());
    }

    /// Lets the program catch up, cuts the last day, and waits until it is published.
    async fn drain(&mut self) {
        // Into a day which surely has no cut yet, wherever the clock was stepped back to. Nobody writes any
        // more: the days until then end by themselves.
        for _ in 0..2 {
            self.clock.set(self.clock.end_of(self.clock.today()));
        }
        self.clock.step_ms(1000);
        let mut process = self.connector.start("run", 0);
        self.until_streaming(&mut process).await;
        // A first copy that was broken off: the day would lack its table.
        self.until_copied(&mut process).await;
        let today = self.clock.today().to_string();
        let (made, said) = self.connector.run(&["cut", "--ds", &today]);
        assert!(made || said.contains(LATER), "cut of {today}: {said}\n{}", process.said());
        let (published, said) = self.connector.run(&["wait", "--ds", &today, "--timeout", CATCH_UP]);
        assert!(published, "wait for {today}: {said}\n{}", process.said());
        eprintln!("{:?}: {today} is published", self.began.elapsed());
        process.signal(Signal::TERM);
        let status = process.wait(PATIENCE);
        assert!(status.success(), "SIGTERM ended with {status}:\n{}", process.said());
    }

    async fn compare(&self) {
        let history = History::load(&self.server.connect().await).await;
        let changes: usize = history.transactions.iter().map(|t| t.changes.len()).sum();
        eprintln!(
            "{:?}: {} transactions, {changes} changes",
            self.began.elapsed(),
            history.transactions.len()
        );
        let log = check_log::check(&self.connector, &history).await;
        eprintln!(
            "{:?}: the log is right; {} values were left out as unchanged",
            self.began.elapsed(),
            log.unchanged
        );
        assert!(log.unchanged > 0, "the traffic never left a long value unchanged");
        check_transactions::check(&self.connector, &history, &log).await;
        check_lake::check(&self.connector, &history, &log, &self.clock);
        eprintln!("{:?}: {} days are right", self.began.elapsed(), log.cuts.len());
    }

    /// Published objects stay what they were: since half way, over a restart, and when all is made again.
    async fn nothing_changes_any_more(&mut self) {
        let lake = self.connector.lake();
        let now = check_lake::objects(&lake);
        check_lake::assert_unchanged(&self.midway, &now, "since half way");

        let mut process = self.connector.start("run", 0);
        self.until_streaming(&mut process).await;
        // A cut of a day that has one is refused, after everything before it was looked at.
        let last = names(&lake.join("cuts")).pop().unwrap();
        let ds = last.file_stem().unwrap().to_str().unwrap().trim_start_matches("ds=").to_owned();
        let (made, said) = self.connector.run(&["cut", "--ds", &ds]);
        assert!(!made, "a second cut of {ds}: {said}");
        process.signal(Signal::TERM);
        assert!(process.wait(PATIENCE).success(), "{}", process.said());
        let after = check_lake::objects(&lake);
        check_lake::assert_unchanged(&now, &after, "over a restart");
        // Rows of a copy that no cut has told of yet may still have been on their way.
        let rows_of_a_copy = format!("{BACKFILL_PARTITION}-");
        let is_of_a_copy =
            |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&rows_of_a_copy);
        let made: Vec<_> =
            after.keys().filter(|path| !now.contains_key(*path) && !is_of_a_copy(path)).collect();
        assert!(made.is_empty(), "a restart made {made:?}");
        self.made_again_elsewhere(&lake, &now);
    }

    /// The same log delivered into an empty lake makes the same objects.
    fn made_again_elsewhere(&self, lake: &Path, published: &BTreeMap<PathBuf, String>) {
        let dir = self.connector.dir.with_file_name("again");
        let mut again = Connector::again(&self.connector, &dir);
        std::fs::create_dir_all(dir.join("state")).unwrap();
        for name in ["log.db", "log.db-wal"] {
            let from = self.connector.dir.join("state").join(name);
            if from.exists() {
                std::fs::copy(from, dir.join("state").join(name)).unwrap();
            }
        }
        let last = names(&lake.join(format!("cuts/{NAME}"))).pop().unwrap();
        let ds = last.file_stem().unwrap().to_str().unwrap().trim_start_matches("ds=").to_owned();
        let mut process = again.start("deliver", 0);
        let (done, said) = again.run(&["wait", "--ds", &ds, "--timeout", CATCH_UP]);
        assert!(done, "{said}\n{}", process.said());
        process.signal(Signal::TERM);
        assert!(process.wait(PATIENCE).success(), "{}", process.said());
        let objects = published.keys().map(|path| path.strip_prefix(lake).unwrap());
        let objects: Vec<_> =
            objects.filter(|path| path.starts_with("snapshots") || path.starts_with("cuts")).collect();
        let made = check_lake::objects(&again.lake());
        let count = made.keys().map(|path| path.strip_prefix(again.lake()).unwrap());
        let count = count.filter(|path| path.starts_with("snapshots") || path.starts_with("cuts")).count();
        assert_eq!(count, objects.len(), "the same log makes more objects, or less");
        for path in objects {
            let (once, again) = (content(&lake.join(path)), content(&again.lake().join(path)));
            assert_eq!(once, again, "the same log makes another {}", path.display());
        }
    }
}

/// What an object holds; of a manifest, without what follows from where change files end, which a clock may have decided: how
/// many bytes of them were read, and so its own checksum.
pub fn content(path: &Path) -> String {
    let Ok(bytes) = std::fs::read(path) else { return format!("{} is missing", path.display()) };
    if path.extension().is_none_or(|extension| extension != "json") {
        return tidemark::lake::sha256(&bytes);
    }
    let mut json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    if let Some(work) = json.get_mut("work").and_then(serde_json::Value::as_object_mut) {
        work.remove("bytes_read").unwrap();
    }
    for table in json.get_mut("tables").and_then(serde_json::Value::as_array_mut).into_iter().flatten() {
        table.as_object_mut().unwrap().remove("sha256").unwrap();
    }
    json.to_string()
}

/// The files below a folder, by name.
fn names(folder: &Path) -> Vec<PathBuf> {
    let (mut names, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder { folders.push(entry.path()) } else { names.push(entry.path()) }
        }
    }
    names.sort();
    names
}
