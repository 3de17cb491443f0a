//! Throughput of the embedded log: batches of 4 MiB of Debezium-like JSON records of about 900 bytes, appended
//! one after the other, then read back.
//!
//! `cargo bench --profile fast --bench log`; `LOG_BENCH_MB` sets how much (default 2000), `LOG_BENCH_DIR` where.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark::log::{Append, Log, LogPartition, RecordBatch, SqliteLog, SqliteLogOptions};

const BATCH_BYTES: usize = 4 << 20;

fn main() {
    let bytes: usize = std::env::var("LOG_BENCH_MB").map_or(2000, |mb| mb.parse().unwrap()) * 1_000_000;
    let parent = std::env::var_os("LOG_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = parent.join(format!("tidemark-bench-log-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(run(&folder, bytes));
    std::fs::remove_dir_all(folder).unwrap();
}

async fn run(folder: &std::path::Path, bytes: usize) {
    let path = folder.join("log.db");
    let log = SqliteLog::open(SqliteLogOptions::new(&path)).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    let mut batches: Vec<RecordBatch> = (0..8).map(batch).collect();
    let (mut records, mut done) = (0u64, 0usize);
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    for n in 0..bytes / BATCH_BYTES {
        let slot = n % batches.len();
        let batch = std::mem::take(&mut batches[slot]);
        records += batch.count();
        done += batch.bytes();
        let state = vec![("position".to_owned(), records.to_string().into_bytes())];
        let append = Append { records: batch, state };
        batches[slot] = log.append(epoch, append).await.unwrap().records;
    }
    let written = std::fs::metadata(&path).unwrap().len();
    report("append", records, done, wall.elapsed(), cpu_seconds() - cpu);
    println!(
        "        {:.0} bytes on disk a record of {:.0}",
        written as f64 / records as f64,
        done as f64 / records as f64
    );

    let partition = LogPartition { topic: topic(), partition: 0 };
    let (mut from, mut read, mut read_bytes) = (0, 0u64, 0usize);
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    loop {
        let fetched = log.read(&partition, from, BATCH_BYTES).await.unwrap();
        if fetched.next == from {
            break;
        }
        read += fetched.iter().count() as u64;
        read_bytes += fetched.frames.len();
        from = fetched.next;
    }
    assert_eq!(read, records);
    report("read", read, read_bytes, wall.elapsed(), cpu_seconds() - cpu);
}

fn report(what: &str, records: u64, bytes: usize, wall: Duration, cpu: f64) {
    let seconds = wall.as_secs_f64();
    println!(
        "{what:7} {:9.0} records/s {:6.0} MB/s  {:5.2} microseconds CPU a record  ({records} records, {seconds:.1} s)",
        records as f64 / seconds,
        bytes as f64 / seconds / 1e6,
        cpu * 1e6 / records as f64,
    );
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn topic() -> Arc<str> {
    "shop.public.orders".into()
}

/// Orders with realistic entropy: ids, amounts, times, names from a list, a random token.
fn batch(seed: u64) -> RecordBatch {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut batch = RecordBatch::default();
    let mut json = String::new();
    while batch.bytes() < BATCH_BYTES {
        let (id, lsn) = (next() % 100_000_000, 0x15_0000_0000 + next() % 1_000_000_000);
        json.clear();
        write_envelope(&mut json, id, lsn, &mut next);
        let mut record = batch.topic(&topic()).begin(1_790_000_000_000 + (lsn % 100_000) as i64);
        record.field(|b| b.extend_from_slice(format!("{{\"id\":{id}}}").as_bytes()));
        record.field(|b| b.extend_from_slice(json.as_bytes()));
        record.header("tidemark.position", |b| {
            b.extend_from_slice(format!("1/{lsn:X}/{}", id % 1000).as_bytes());
        });
        record.header("tidemark.schema", |b| b.extend_from_slice(b"1"));
        record.finish();
    }
    batch
}

fn write_envelope(json: &mut String, id: u64, lsn: u64, next: &mut impl FnMut() -> u64) {
    const WORDS: [&str; 8] = ["amber", "basalt", "cobalt", "dune", "ember", "fjord", "garnet", "harbour"];
    let mut word = || WORDS[(next() % 8) as usize];
    let text = format!("{} {} {} {}", word(), word(), word(), word());
    let (cents, day, token) = (next() % 1_000_000, next() % 28 + 1, next());
    write!(
        json,
        "{{\"before\":null,\"after\":{{\"id\":{id},\"customer_id\":{},\"status\":\"{}\",\"total\":\"{}.{:02}\",\
         \"currency\":\"AED\",\"created_at\":\"2026-11-{day:02}T{:02}:{:02}:{:02}.{:06}Z\",\
         \"updated_at\":\"2026-11-{day:02}T10:{:02}:00.{:06}Z\",\"token\":\"{token:016x}{:016x}\",\"note\":\"{text}\",\
         \"lines\":{},\"weight\":{}.{},\"gift\":{},\"tags\":[\"{}\",\"web\"],\"channel\":\"app\"}},\
         \"source\":{{\"version\":\"0.1.0\",\"connector\":\"postgresql\",\"name\":\"shop\",\"ts_ms\":{},\"snapshot\":\
         \"false\",\"db\":\"shop\",\"sequence\":\"[\\\"{lsn}\\\",\\\"{}\\\"]\",\"ts_us\":{},\"ts_ns\":{},\
         \"schema\":\"public\",\"table\":\"orders\",\"txId\":{},\"lsn\":{lsn},\"xmin\":null}},\"transaction\":null,\
         \"op\":\"c\",\"ts_ms\":{},\"ts_us\":{},\"ts_ns\":{}}}",
        next() % 1_000_000,
        if token % 3 == 0 { "paid" } else { "shipped" },
        cents / 100,
        cents % 100,
        next() % 24,
        next() % 60,
        next() % 60,
        next() % 1_000_000,
        next() % 60,
        next() % 1_000_000,
        next(),
        next() % 9,
        next() % 30,
        next() % 1000,
        token % 7 == 0,
        WORDS[(token % 8) as usize],
        1_790_000_000_000 + lsn % 100_000,
        lsn + 56,
        (1_790_000_000_000 + lsn % 100_000) * 1000 + token % 1000,
        (1_790_000_000_000 + lsn % 100_000) * 1_000_000 + token % 1000 * 1000,
        700 + id % 1000,
        1_790_000_000_100 + lsn % 100_000,
        (1_790_000_000_100 + lsn % 100_000) * 1000 + token % 991,
        (1_790_000_000_100 + lsn % 100_000) * 1_000_000 + token % 991 * 1000,
    )
    .unwrap();
}
