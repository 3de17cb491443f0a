//! The embedded log under faults: killed at any moment, on a full disk, with a damaged file.
//!
//! The victims are processes of their own: this program started again with `LOG_FAULTS_PATH` set, running the one
//! test that does what it is told and does nothing otherwise.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Connector, PATIENCE, Postgres, Replay, SmallDisk, again_in_a_namespace, test_path};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidemark::log::conformance::{numbered, read_numbered};
use tidemark::log::{
    Append, Fenced, Log, LogPartition, RecordBatch, SPILL_STATE, SqliteLog, SqliteLogOptions,
};
use tidemark::runtime::Class;

const TOPIC: &str = "numbers";
const OTHER: &str = "others";

fn open(path: &Path) -> SqliteLog {
    SqliteLog::open(SqliteLogOptions { retention_ms: 0, ..SqliteLogOptions::new(path) }).unwrap()
}

fn seed() -> u64 {
    let seed = std::env::var("LOG_FAULTS_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    let _replay = Replay::with(format!("LOG_FAULTS_SEED={seed}"));
    seed
}

fn counted(fenced: &Fenced) -> u64 {
    fenced.state.get("count").map_or(0, |v| String::from_utf8_lossy(v).parse().unwrap())
}

fn step(count: u64, records: RecordBatch) -> Append {
    let state = vec![("count".into(), count.to_string().into_bytes())];
    Append { records, state }
}

/// Every number below `count`, once and in order; each topic holds the same.
async fn check(log: &dyn Log, count: u64) {
    for topic in [TOPIC, OTHER] {
        let found = read_numbered(log, topic, 0, 1 << 20).await.unwrap();
        assert_eq!(found.len() as u64, count, "{topic}: the state says {count} records");
        for (at, (offset, n)) in found.into_iter().enumerate() {
            assert_eq!((offset, n), (at as u64, at as u64), "{topic}: a gap or a double");
        }
    }
}

/// Not a test by itself: the process that is killed. Appends to two topics, and
/// prints the count after each append that was confirmed.
#[tokio::test]
async fn victim() {
    let Some(path) = std::env::var_os("LOG_FAULTS_PATH") else { return };
    let mut random = StdRng::seed_from_u64(std::env::var("LOG_FAULTS_SEED").unwrap().parse().unwrap());
    let log = open(Path::new(&path));
    let fenced = log.fence().await.unwrap();
    let mut count = counted(&fenced);
    let mut stdout = std::io::stdout();
    writeln!(stdout, "victim at {count}").unwrap();
    loop {
        let until = count + random.random_range(1..800);
        let mut records = numbered(TOPIC, count..until);
        let other = numbered(OTHER, count..until);
        for record in other.topics().flat_map(tidemark::log::TopicRecords::iter) {
            copy(record, &mut records);
        }
        // Ballast which the check need not read brings the WAL to a checkpoint every dozen appends or so.
        let mut append = step(until, records);
        append.state.push(("ballast".into(), vec![1; random.random_range(1..6 << 20)]));
        log.append(fenced.epoch, append).await.unwrap();
        count = until;
        writeln!(stdout, "victim at {count}").unwrap();
    }
}

fn copy(record: tidemark::log::RecordRef<'_>, to: &mut RecordBatch) {
    let mut writer = to.topic(&OTHER.into()).begin(record.timestamp_ms);
    for field in [record.key, record.value] {
        match field {
            Some(bytes) => writer.field(|b| b.extend_from_slice(bytes)),
            None => writer.null(),
        }
    }
    for (name, value) in record.headers() {
        writer.header(name, |b| b.extend_from_slice(value));
    }
    writer.finish();
}

fn start_victim(path: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([&test_path(module_path!(), "victim"), "--exact", "--nocapture"])
        .env("LOG_FAULTS_PATH", path)
        .env("LOG_FAULTS_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_writer_killed_at_any_moment_loses_and_doubles_nothing() {
    let rounds: u32 = std::env::var("CRASH_ROUNDS").map_or(25, |r| r.parse().unwrap());
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    let mut last = 0;
    for round in 0..rounds {
        let mut child = start_victim(&path, random.random());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let at = |line: &str| line.split_once("victim at ").and_then(|(_, n)| n.parse::<u64>().ok());
        let first = lines.find_map(|line| at(&line.unwrap())).unwrap();
        assert_eq!(first, last, "round {round}: the next writer begins where the last one was");
        std::thread::sleep(Duration::from_micros(random.random_range(0..150_000)));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "round {round}: the victim ended by itself: {status}");
        let confirmed = lines.map_while(Result::ok).filter_map(|line| at(&line)).last().unwrap_or(first);
        let log = open(&path);
        last = counted(&log.fence().await.unwrap());
        assert!(last >= confirmed, "round {round}: {confirmed} were confirmed and {last} are there");
        check(&log, last).await;
    }
    assert!(last > 0, "no round appended anything");
    eprintln!("{rounds} rounds, {last} records a topic");
}

/// Two writers at once: whichever has fenced last appends, and nothing is doubled.
#[tokio::test]
async fn writers_of_two_processes_take_over_from_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    for round in 0..5 {
        let mut child = start_victim(&path, round);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Three lines: it is appending.
        assert_eq!(lines.by_ref().filter(|l| l.as_ref().unwrap().contains("victim at")).take(3).count(), 3);
        let log = open(&path);
        // The victim holds the file most of the time.
        let start = Instant::now();
        let fenced = loop {
            match log.fence().await {
                Ok(fenced) => break fenced,
                Err(error) => {
                    assert!(error.class() == Class::Retry && start.elapsed() < PATIENCE, "{error}");
                }
            }
        };
        let count = counted(&fenced);
        let rest = lines.count();
        assert!(!child.wait().unwrap().success(), "the victim is fenced and says so ({rest} lines)");
        check(&log, count).await;
    }
}

#[tokio::test]
async fn a_full_disk_is_an_operators_error_and_appends_go_on_after_space_is_freed() {
    let Some(disk) = SmallDisk::mount(100 << 20) else {
        return again_in_a_namespace(
            module_path!(),
            "a_full_disk_is_an_operators_error_and_appends_go_on_after_space_is_freed",
        );
    };
    let folder = disk.path();
    let ballast = folder.join("ballast");
    std::fs::write(&ballast, vec![1; 20 << 20]).unwrap();
    let path = folder.join("log.db");
    let log = open(&path);
    let epoch = log.fence().await.unwrap().epoch;
    let mut random = StdRng::seed_from_u64(seed());
    let mut count = 0;
    let (rejected, until) = loop {
        // The noise fills the disk: first a checkpoint finds no room in the file, then an append none in the WAL.
        let until = count + random.random_range(10..200);
        let mut records = both(count..until);
        let mut record = records.topic(&"noise".into()).begin(0);
        record.null();
        record
            .field(|b| b.extend((&mut random).random_iter::<u64>().take(200_000).flat_map(u64::to_le_bytes)));
        record.finish();
        match log.append(epoch, step(until, records)).await {
            Ok(_) => count = until,
            Err(rejected) => break (rejected, until),
        }
    };
    let text = rejected.error.to_string();
    assert_eq!(rejected.error.class(), Class::Operator, "{text}");
    for part in [path.to_str().unwrap(), "nothing was written", "Free space at"] {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
    // Again and again: the error stays the same, and readers go on.
    let mut append = rejected.append;
    for _ in 0..5 {
        let rejected = log.append(epoch, append).await.unwrap_err();
        assert_eq!(rejected.error.class(), Class::Operator, "{}", rejected.error);
        append = rejected.append;
        check(&log, count).await;
    }
    // Whatever still fits is no excuse for a gap.
    std::fs::remove_file(ballast).unwrap();
    log.append(epoch, append).await.unwrap();
    check(&log, until).await;
    drop(log);
    let log = open(&path);
    assert_eq!(counted(&log.fence().await.unwrap()), until);
    check(&log, until).await;
}

fn both(range: std::ops::Range<u64>) -> RecordBatch {
    let mut records = numbered(TOPIC, range.clone());
    for record in numbered(OTHER, range).topics().flat_map(tidemark::log::TopicRecords::iter) {
        copy(record, &mut records);
    }
    records
}

#[tokio::test]
async fn a_damaged_byte_is_named_by_topic_offset_and_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    let log = open(&path);
    let epoch = log.fence().await.unwrap().epoch;
    log.append(epoch, step(1000, numbered(TOPIC, 0..1000))).await.unwrap();
    // A marker that does not compress, to be found in the file.
    let marker: Vec<u8> = StdRng::seed_from_u64(7).random_iter().take(64).collect();
    let mut records = RecordBatch::default();
    let mut record = records.topic(&TOPIC.into()).begin(0);
    record.null();
    record.field(|b| b.extend_from_slice(&marker));
    record.finish();
    log.append(epoch, step(1001, records)).await.unwrap();
    drop(log);

    wait_until_closed(&path);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(marker.len()).position(|w| w == marker).unwrap();
    bytes[at + 30] ^= 0x10;
    std::fs::write(&path, bytes).unwrap();

    let log = open(&path);
    let partition = LogPartition { topic: TOPIC.into(), partition: 0 };
    assert_eq!(log.read(&partition, 0, 1).await.unwrap().offsets, [0]);
    let error = log.read(&partition, 1000, 1 << 20).await.unwrap_err();
    assert_eq!(error.class(), Class::Operator);
    let text = error.to_string();
    for part in [path.to_str().unwrap(), "numbers/0", "offsets 1000 to 1000", "checksum"] {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
}

/// The writer's thread closes its connection, and with it removes the WAL, shortly after the log is dropped.
fn wait_until_closed(path: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while path.with_extension("db-wal").exists() {
        assert!(Instant::now() < deadline, "the log was not closed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The log's state may tell of a spill that this process does not have. Were that left there, whoever has it would bring the
/// rest of it behind what came since.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_without_a_spill_takes_away_what_the_spill_of_another_has_left_in_the_log() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let connector = Connector::new(&server.url());
    let mut running = connector.start_ready("capture").await;
    assert!(running.terminate().await.success());
    let path = connector.state().join("log.db");
    let log = open(&path);
    let epoch = log.fence().await.unwrap().epoch;
    let state = vec![(SPILL_STATE.to_owned(), b"another 7".to_vec())];
    log.append(epoch, Append { records: RecordBatch::default(), state }).await.unwrap();
    drop(log);
    let mut running = connector.start_ready("capture").await;
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    connector.wait_for_records("t", 1).await;
    assert!(running.terminate().await.success());
    let state = open(&path).fence().await.unwrap().state;
    assert!(!state.contains_key(SPILL_STATE), "{:?}", state.keys());
}
