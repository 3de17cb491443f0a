use std::sync::Arc;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::log::RecordBatch;
use crate::log::conformance::{self, numbered, read_numbered};
use crate::runtime::Class;

const TOPIC: &str = "t";

fn options(dir: &TempDir) -> SqliteLogOptions {
    SqliteLogOptions { retention_ms: 0, ..SqliteLogOptions::new(dir.path().join("log.db")) }
}

fn now(records: RecordBatch) -> Append {
    Append { records, state: Vec::new() }
}

fn partition() -> LogPartition {
    LogPartition { topic: TOPIC.into(), partition: 0 }
}

/// One record of that many bytes which do not compress.
fn noise(bytes: usize) -> RecordBatch {
    let mut batch = RecordBatch::default();
    let mut record = batch.topic(&TOPIC.into()).begin(0);
    record.null();
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    record.field(|b| {
        b.extend(
            std::iter::repeat_with(|| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x as u8
            })
            .take(bytes),
        );
    });
    record.finish();
    batch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conformance::run(|name: String| {
        let path = dir.path().join(name).join("log.db");
        async move {
            let options = SqliteLogOptions { retention_ms: 0, ..SqliteLogOptions::new(path) };
            Arc::new(SqliteLog::open(options).unwrap()) as Arc<dyn Log>
        }
    })
    .await;
}

#[tokio::test]
async fn trim_deletes_whole_delivered_batches_and_reading_them_names_the_gap() {
    let dir = tempfile::tempdir().unwrap();
    let log = SqliteLog::open(options(&dir)).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    for n in 0..300 {
        log.append(epoch, now(numbered(TOPIC, n * 10..(n + 1) * 10))).await.unwrap();
    }
    log.trim(&partition(), 2995).await.unwrap();
    let range = log.ranges().await.unwrap()[&partition()];
    assert_eq!((range.start, range.end), (2990, 3000));
    let e = log.read(&partition(), 17, 100).await.unwrap_err();
    assert!(e.to_string().contains("t/0 no longer holds offsets 17 to 2989"), "{e}");
    // The space of what went is used again, and the numbers that retention keeps stay right.
    let c = Connection::open(dir.path().join("log.db")).unwrap();
    let kept: i64 = c.query_row("SELECT delivered_bytes FROM partitions", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 0);
    log.trim(&partition(), 3000).await.unwrap();
    assert_eq!(log.ranges().await.unwrap()[&partition()].start, 3000);
    log.append(epoch, now(numbered(TOPIC, 3000..3001))).await.unwrap();
    assert_eq!(read_numbered(&log, TOPIC, 3000, 100).await.unwrap(), [(3000, 3000)]);
}

#[tokio::test]
async fn retention_keeps_young_records_up_to_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let log = SqliteLog::open(SqliteLogOptions {
        retention_ms: 3_600_000,
        retention_bytes: Some(500_000),
        ..options(&dir)
    })
    .unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    for _ in 0..100 {
        log.append(epoch, now(noise(10_000))).await.unwrap();
    }
    log.trim(&partition(), 40).await.unwrap();
    assert_eq!(log.ranges().await.unwrap()[&partition()].start, 0, "young, and not too many bytes");
    log.trim(&partition(), 80).await.unwrap();
    let start = log.ranges().await.unwrap()[&partition()].start;
    assert!((30..=32).contains(&start), "500 kB are kept of 800: {start}");
    log.trim(&partition(), 80).await.unwrap();
    assert_eq!(log.ranges().await.unwrap()[&partition()].start, start);
}

#[tokio::test]
async fn trim_gives_space_back_to_the_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let log = SqliteLog::open(options(&dir)).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    for _ in 0..40 {
        log.append(epoch, now(noise(4 << 20))).await.unwrap();
    }
    let path = dir.path().join("log.db");
    let checkpoint = || {
        let c = Connection::open(&path).unwrap();
        c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        std::fs::metadata(&path).unwrap().len()
    };
    let before = checkpoint();
    assert!(before > 160 << 20);
    log.trim(&partition(), 40).await.unwrap();
    let after = checkpoint();
    assert!(after <= 48 << 20, "{before} bytes before, {after} after");
}

#[tokio::test]
async fn a_log_at_its_limit_names_the_key_and_goes_on_after_a_trim() {
    let dir = tempfile::tempdir().unwrap();
    let log = SqliteLog::open(SqliteLogOptions { bytes_max: Some(8 << 20), ..options(&dir) }).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    let mut count = 0;
    let rejected = loop {
        match log.append(epoch, now(noise(1 << 20))).await {
            Ok(_) => count += 1,
            Err(rejected) => break rejected,
        }
        assert!(count < 10, "the limit was passed");
    };
    assert_eq!(rejected.error.class(), Class::Retry, "deliver can make room");
    let text = rejected.error.to_string();
    assert!(text.contains("[log.embedded] bytes_max = 8388608"), "{text}");
    assert!(log.is_short_of_room().await.unwrap());
    assert_eq!(log.ranges().await.unwrap()[&partition()].end, count);
    log.trim(&partition(), 3).await.unwrap();
    log.append(epoch, rejected.append).await.unwrap();
    assert_eq!(log.ranges().await.unwrap()[&partition()].end, count + 1);
    log.trim(&partition(), count + 1).await.unwrap();
    assert!(!log.is_short_of_room().await.unwrap());
}

#[tokio::test]
async fn a_large_append_is_cut_into_blobs_of_a_mebibyte() {
    let dir = tempfile::tempdir().unwrap();
    let log = SqliteLog::open(options(&dir)).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    let mut batch = numbered(TOPIC, 0..100_000);
    let bytes = batch.bytes();
    batch = log.append(epoch, now(batch)).await.unwrap().records;
    assert_eq!(batch.bytes(), bytes);
    let c = Connection::open(dir.path().join("log.db")).unwrap();
    let sql = "SELECT count(*), max(frames_bytes), sum(count) FROM batches";
    let (blobs, largest, count): (usize, usize, u64) =
        c.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    assert_eq!((blobs, count), (bytes.div_ceil(1 << 20), 100_000));
    assert!(largest <= 1 << 20);
    let found = read_numbered(&log, TOPIC, 77_777, 1 << 20).await.unwrap();
    assert_eq!((found[0], found.len()), ((77_777, 77_777), 22_223));
    // A record larger than any portion goes through whole.
    log.append(epoch, now(noise(9 << 20))).await.unwrap();
    assert!(log.read(&partition(), 100_000, 1).await.unwrap().frames.len() > 9 << 20);
}

#[tokio::test]
async fn a_record_of_tens_of_megabytes_comes_back_whether_it_compresses_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let log = SqliteLog::open(options(&dir)).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    let mut text = RecordBatch::default();
    let mut record = text.topic(&TOPIC.into()).begin(0);
    record.null();
    record.field(|buffer| (0..4_000_000_u32).for_each(|i| buffer.extend_from_slice(&(i / 16).to_le_bytes())));
    record.finish();
    for (offset, batch) in [(0, text), (1, noise(20 << 20))] {
        let expected = batch.topics().next().unwrap().frames().collect::<Vec<_>>().concat();
        log.append(epoch, now(batch)).await.unwrap();
        log.append(epoch, now(numbered("other", 0..10))).await.unwrap();
        assert!(log.read(&partition(), offset, 1).await.unwrap().frames == expected, "offset {offset}");
    }
    let c = Connection::open(dir.path().join("log.db")).unwrap();
    let codecs = c
        .prepare("SELECT codec FROM batches WHERE frames_bytes > 10000000 ORDER BY id")
        .unwrap()
        .query_map([], |row| row.get::<_, i64>(0))
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    assert_eq!(codecs, [1, 0]);
    let checked: String = c.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(checked, "ok");
    let damage =
        "UPDATE batches SET blob = CAST(substr(blob, 1, 10000000) || x'00' || substr(blob, 10000002) AS BLOB)
                  WHERE codec = 0 AND frames_bytes > 10000000";
    c.execute(damage, []).unwrap();
    let e = log.read(&partition(), 1, 1).await.unwrap_err();
    assert!(e.to_string().contains("offsets 1 to 1: its checksum is"), "{e}");
}

#[tokio::test]
async fn a_damaged_blob_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = SqliteLog::open(options(&dir)).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    log.append(epoch, now(numbered(TOPIC, 0..10))).await.unwrap();
    log.append(epoch, now(numbered(TOPIC, 10..20))).await.unwrap();
    let c = Connection::open(dir.path().join("log.db")).unwrap();
    c.execute("UPDATE batches SET frames_bytes = frames_bytes + 1 WHERE first_offset = 10", []).unwrap();
    let e = log.read(&partition(), 12, 1 << 20).await.unwrap_err();
    assert_eq!(e.class(), Class::Operator);
    assert!(e.to_string().contains("log.db is damaged: t/0, offsets 10 to 19: its checksum is"), "{e}");
    c.execute("DELETE FROM batches WHERE first_offset = 0", []).unwrap();
    let e = log.read(&partition(), 0, 1 << 20).await.unwrap_err();
    assert!(e.to_string().contains("damaged"), "{e}");
}

#[tokio::test]
async fn an_append_whose_commit_was_thought_lost_fences_its_writer() {
    let dir = tempfile::tempdir().unwrap();
    let log = SqliteLog::open(options(&dir)).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    log.append(epoch, now(numbered(TOPIC, 0..10))).await.unwrap();
    // As if an append that was reported as failed had come to be durable after all.
    let c = Connection::open(dir.path().join("log.db")).unwrap();
    c.execute("UPDATE writer SET appends = appends + 1", []).unwrap();
    let rejected = log.append(epoch, now(numbered(TOPIC, 10..20))).await.unwrap_err();
    assert_eq!(rejected.error.class(), Class::Fenced);
    let epoch = log.fence().await.unwrap().epoch;
    log.append(epoch, rejected.append).await.unwrap();
    assert_eq!(read_numbered(&log, TOPIC, 0, 1 << 20).await.unwrap().len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wal_stays_bounded_while_some_reader_is_always_at_work() {
    let dir = tempfile::tempdir().unwrap();
    let log = SqliteLog::open(options(&dir)).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    let path = dir.path().join("log.db");
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers = {
        let (path, stop) = (path.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let open = || Connection::open(&path).unwrap();
            let (mut current, mut next) = (open(), open());
            let begin = |c: &Connection| c.execute_batch("BEGIN; SELECT count(*) FROM state;").unwrap();
            begin(&current);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
                begin(&next);
                current.execute_batch("COMMIT").unwrap();
                std::mem::swap(&mut current, &mut next);
            }
        })
    };
    let mut longest = 0;
    for _ in 0..100 {
        log.append(epoch, now(noise(4 << 20))).await.unwrap();
        longest = longest.max(std::fs::metadata(dir.path().join("log.db-wal")).unwrap().len());
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    readers.join().unwrap();
    assert!(longest < 120 << 20, "the WAL has grown to {longest} bytes");
}
