//! What every [`Log`] must do, as one suite that each implementation runs on itself.
//!
//! It is compiled into the library, so that integration tests reach it without a feature. It needs nothing but the
//! trait; what nobody calls does not get into the binary.
#![expect(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a test suite: it panics where a log fails"
)]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::{Append, Epoch, Log, LogPartition, Offset, RecordBatch};
use crate::runtime::{Class, Result};

/// Opens the log of a name: created empty at its first use; opened once more, as another process would, when
/// the name has been used before. Retention of delivered records should be as short as it can be.
pub trait Open: Fn(String) -> Self::Opening + Sync {
    /// The opening.
    type Opening: Future<Output = Arc<dyn Log>> + Send;
}

impl<F: Fn(String) -> O + Sync, O: Future<Output = Arc<dyn Log>> + Send> Open for F {
    type Opening = O;
}

/// Runs every behaviour on a log of its own.
pub async fn run(open: impl Open) {
    appended_records_read_back_in_order_with_headers(&open).await;
    records_and_state_move_together(&open).await;
    a_fenced_writer_cannot_append_and_the_log_is_unchanged(&open).await;
    reading_outside_of_what_is_held_names_the_gap(&open).await;
    trim_never_removes_later_records(&open).await;
    reads_respect_bytes_max_but_always_progress(&open).await;
    a_concurrent_reader_sees_whole_appends_and_a_growing_end(&open).await;
    reopening_finds_everything(&open).await;
    an_append_wakes_those_who_wait(&open).await;
    an_append_may_be_empty_or_span_many_topics(&open).await;
    prepared_records_stand_where_they_were_taken_in(&open).await;
}

/// A batch of numbered records: value `n`, key `k<n % 7>` (none for every fifth), a header or two.
pub fn numbered(topic: &str, numbers: std::ops::Range<u64>) -> RecordBatch {
    let mut batch = RecordBatch::default();
    for n in numbers {
        write_numbered(&mut batch, topic, n);
    }
    batch
}

/// Never 0, which is none.
fn time(n: u64) -> i64 {
    1 + n as i64 * 1000
}

fn write_numbered(batch: &mut RecordBatch, topic: &str, n: u64) {
    let mut record = batch.topic(&topic.into()).begin(time(n));
    match n % 5 {
        0 => record.null(),
        _ => record.field(|b| b.extend_from_slice(format!("k{}", n % 7).as_bytes())),
    }
    record.field(|b| b.extend_from_slice(&n.to_le_bytes()));
    record.header("n", |b| b.extend_from_slice(n.to_string().as_bytes()));
    if n.is_multiple_of(2) {
        record.header("even", |_| ());
    }
    record.finish();
}

/// Reads a topic's partition 0 from `from` to its end in portions, checks what [`numbered`] wrote, and gives the
/// numbers with their offsets.
pub async fn read_numbered(
    log: &dyn Log,
    topic: &str,
    from: Offset,
    bytes_max: usize,
) -> Result<Vec<(Offset, u64)>> {
    let partition = LogPartition { topic: topic.into(), partition: 0 };
    let mut found: Vec<(Offset, u64)> = Vec::new();
    let mut next = from;
    loop {
        let fetched = log.read(&partition, next, bytes_max).await?;
        let before = found.len();
        for (offset, record) in fetched.iter() {
            let n = u64::from_le_bytes(record.value.unwrap().try_into().unwrap());
            let key = (n % 5 != 0).then(|| format!("k{}", n % 7));
            assert_eq!(record.key, key.as_deref().map(str::as_bytes), "the key of record {n}");
            assert_eq!(record.timestamp_ms, time(n), "the time of record {n}");
            assert_eq!(record.header("n"), Some(n.to_string().as_bytes()), "the header of record {n}");
            assert_eq!(record.headers().count(), if n % 2 == 0 { 2 } else { 1 }, "the headers of record {n}");
            assert!(offset >= next && found.last().is_none_or(|(last, _)| *last < offset), "offsets grow");
            found.push((offset, n));
        }
        assert_eq!(found.len() - before, fetched.offsets.len(), "one frame an offset");
        assert!(fetched.next >= next, "reading goes forward");
        if fetched.next == next {
            return Ok(found);
        }
        next = fetched.next;
    }
}

const TOPIC: &str = "conformance.a";

fn append(records: RecordBatch, state: &[(&str, &str)]) -> Append {
    let state = state.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
    Append { records, state }
}

async fn put(log: &dyn Log, epoch: Epoch, numbers: std::ops::Range<u64>) {
    log.append(epoch, append(numbered(TOPIC, numbers), &[])).await.unwrap();
}

async fn values(log: &dyn Log) -> Vec<u64> {
    let start = range(log).await.map_or(0, |r| r.start);
    read_numbered(log, TOPIC, start, 1 << 20).await.unwrap().into_iter().map(|(_, n)| n).collect()
}

async fn range(log: &dyn Log) -> Option<super::OffsetRange> {
    log.ranges().await.unwrap().get(&LogPartition { topic: TOPIC.into(), partition: 0 }).copied()
}

fn numbers(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}

async fn appended_records_read_back_in_order_with_headers(open: &impl Open) {
    let log = open("order".into()).await;
    let epoch = log.fence().await.unwrap().epoch;
    for n in 0..10 {
        let given = log.append(epoch, append(numbered(TOPIC, n * 100..(n + 1) * 100), &[])).await;
        assert_eq!(given.unwrap().records.count(), 100, "the input comes back as it was");
    }
    assert_eq!(values(&*log).await, numbers(0..1000));
    let all = read_numbered(&*log, TOPIC, 0, 1 << 20).await.unwrap();
    for (offset, n) in all.iter().step_by(77) {
        let found = read_numbered(&*log, TOPIC, *offset, 1 << 20).await.unwrap();
        assert_eq!(found[0], (*offset, *n), "a read may begin at any record");
    }
    let end = range(&*log).await.unwrap().end;
    assert!(read_numbered(&*log, TOPIC, end, 1 << 20).await.unwrap().is_empty());
}

async fn records_and_state_move_together(open: &impl Open) {
    let log = open("state".into()).await;
    let fenced = log.fence().await.unwrap();
    assert!(fenced.state.is_empty());
    let state = [("position", "1/2/3"), ("gone", "x"), ("kept", "y")];
    log.append(fenced.epoch, append(numbered(TOPIC, 0..3), &state)).await.unwrap();
    let state = [("position", "4/5/6"), ("gone", "")];
    log.append(fenced.epoch, append(RecordBatch::default(), &state)).await.unwrap();
    let found = log.fence().await.unwrap();
    assert!(found.epoch > fenced.epoch);
    let found: Vec<_> = found.state.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
    assert_eq!(found, [("kept", &b"y"[..]), ("position", b"4/5/6")], "an empty value removes its key");
}

async fn a_fenced_writer_cannot_append_and_the_log_is_unchanged(open: &impl Open) {
    let (old, new) = (open("fence".into()).await, open("fence".into()).await);
    let old_epoch = old.fence().await.unwrap().epoch;
    old.append(old_epoch, append(numbered(TOPIC, 0..3), &[("a", "1")])).await.unwrap();
    let new_epoch = new.fence().await.unwrap().epoch;
    assert!(new_epoch > old_epoch);
    let rejected = old.append(old_epoch, append(numbered(TOPIC, 9..12), &[("a", "2")])).await.unwrap_err();
    assert_eq!(rejected.error.class(), Class::Fenced, "{}", rejected.error);
    assert_eq!(rejected.append.records.count(), 3, "the input comes back");
    put(&*new, new_epoch, 3..5).await;
    // Another process sees an append when the log shows it to all, which may be a moment later.
    let shown = async {
        while values(&*old).await.len() < 5 {
            old.appended().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), shown).await.unwrap();
    assert_eq!(values(&*old).await, numbers(0..5));
    assert_eq!(new.fence().await.unwrap().state["a"], b"1");
}

async fn reading_outside_of_what_is_held_names_the_gap(open: &impl Open) {
    let log = open("gap".into()).await;
    let partition = LogPartition { topic: TOPIC.into(), partition: 0 };
    assert!(log.read(&partition, 0, 100).await.unwrap().offsets.is_empty(), "a topic may not be there yet");
    let epoch = log.fence().await.unwrap().epoch;
    put(&*log, epoch, 0..5).await;
    put(&*log, epoch, 5..10).await;
    let (fifth, _) = read_numbered(&*log, TOPIC, 0, 1 << 20).await.unwrap()[5];
    log.trim(&partition, fifth).await.unwrap();
    let range = range(&*log).await.unwrap();
    let mut outside = vec![range.end + 1];
    outside.extend(range.start.checked_sub(1));
    for from in outside {
        let error = log.read(&partition, from, 100).await.unwrap_err();
        assert_eq!(error.class(), Class::Operator);
        let text = error.to_string();
        assert!(text.contains(&from.to_string()) && text.contains(TOPIC), "names topic and offset: {text}");
    }
}

async fn trim_never_removes_later_records(open: &impl Open) {
    let (log, other) = (open("trim".into()).await, open("trim".into()).await);
    let epoch = log.fence().await.unwrap().epoch;
    let partition = LogPartition { topic: TOPIC.into(), partition: 0 };
    for n in 0..50 {
        put(&*log, epoch, n * 10..(n + 1) * 10).await;
    }
    let all = read_numbered(&*log, TOPIC, 0, 1 << 20).await.unwrap();
    for at in [0, 3, 10, 11, 99, 250, 499] {
        let (before, n) = all[at];
        // A process that only reads may trim as well.
        other.trim(&partition, before).await.unwrap();
        assert!(range(&*log).await.unwrap().start <= before);
        assert_eq!(read_numbered(&*log, TOPIC, before, 1 << 20).await.unwrap()[0], (before, n));
        let mut left = values(&*log).await;
        left.drain(..left.len() - (500 - at));
        assert_eq!(left, numbers(n..500));
    }
    let end = range(&*log).await.unwrap().end;
    log.trim(&partition, end + 1000).await.unwrap();
    put(&*log, epoch, 900..901).await;
    assert!(values(&*log).await.ends_with(&[900]), "what comes later is not trimmed");
    assert!(range(&*log).await.unwrap().start <= end);
}

async fn reads_respect_bytes_max_but_always_progress(open: &impl Open) {
    let log = open("bytes".into()).await;
    let epoch = log.fence().await.unwrap().epoch;
    put(&*log, epoch, 0..200).await;
    put(&*log, epoch, 200..400).await;
    let partition = LogPartition { topic: TOPIC.into(), partition: 0 };
    for bytes_max in [0, 1, 100, 1000, 10_000] {
        let fetched = log.read(&partition, 0, bytes_max).await.unwrap();
        let fits = fetched.frames.len() <= bytes_max || fetched.offsets.len() == 1;
        assert!(fits, "{} bytes were read with bytes_max {bytes_max}", fetched.frames.len());
        let found = read_numbered(&*log, TOPIC, 0, bytes_max).await.unwrap();
        assert_eq!(found.into_iter().map(|(_, n)| n).collect::<Vec<_>>(), numbers(0..400));
    }
}

async fn a_concurrent_reader_sees_whole_appends_and_a_growing_end(open: &impl Open) {
    let (log, reader) = (open("whole".into()).await, open("whole".into()).await);
    let epoch = log.fence().await.unwrap().epoch;
    put(&*log, epoch, 0..10).await;
    let writing = async {
        for n in 1..60 {
            put(&*log, epoch, n * 10..(n + 1) * 10).await;
        }
    };
    let reading = async {
        let mut seen = 0;
        while seen < 600 {
            let found = values(&*reader).await;
            assert_eq!(found.len() % 10, 0, "half an append was seen: {} records", found.len());
            assert!(found.len() >= seen, "the end went back from {seen} to {}", found.len());
            assert_eq!(found, numbers(0..found.len() as u64));
            seen = found.len();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(writing, reading) }).await.unwrap();
}

async fn reopening_finds_everything(open: &impl Open) {
    for round in 0..3 {
        let log = open("reopen".into()).await;
        let fenced = log.fence().await.unwrap();
        assert_eq!(fenced.state.get("round").cloned(), (round > 0).then(|| round.to_string().into_bytes()));
        assert_eq!(values(&*log).await, numbers(0..round * 100));
        let state = [("round", &*(round + 1).to_string())];
        let batch = numbered(TOPIC, round * 100..(round + 1) * 100);
        log.append(fenced.epoch, append(batch, &state)).await.unwrap();
    }
}

async fn an_append_wakes_those_who_wait(open: &impl Open) {
    let (log, other) = (open("wake".into()).await, open("wake".into()).await);
    let epoch = log.fence().await.unwrap().epoch;
    let waiting = async {
        while values(&*other).await.len() < 3 {
            tokio::time::timeout(Duration::from_secs(30), other.appended()).await.unwrap();
        }
    };
    let writing = async {
        for n in 0..3 {
            log.appended().await;
            put(&*log, epoch, n..n + 1).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), async { tokio::join!(waiting, writing) }).await.unwrap();
}

async fn an_append_may_be_empty_or_span_many_topics(open: &impl Open) {
    let log = open("many".into()).await;
    let epoch = log.fence().await.unwrap().epoch;
    log.append(epoch, append(RecordBatch::default(), &[])).await.unwrap();
    assert!(log.ranges().await.unwrap().is_empty());
    let mut batch = RecordBatch::default();
    for n in 0..1000 {
        write_numbered(&mut batch, &format!("conformance.t{}", n % 100), n);
    }
    log.append(epoch, append(batch, &[])).await.unwrap();
    assert_eq!(log.ranges().await.unwrap().len(), 100);
    for topic in 0..100 {
        let found = read_numbered(&*log, &format!("conformance.t{topic}"), 0, 1 << 20).await.unwrap();
        let expected: Vec<u64> = (0..10).map(|n| n * 100 + topic).collect();
        assert_eq!(found.into_iter().map(|(_, n)| n).collect::<Vec<_>>(), expected);
    }
}

async fn prepared_records_stand_where_they_were_taken_in(open: &impl Open) {
    let log = open("prepared".into()).await;
    let epoch = log.fence().await.unwrap().epoch;
    let topic: Arc<str> = TOPIC.into();
    let mut batch = numbered(TOPIC, 0..3);
    for numbers in [3..30_000, 30_000..30_001] {
        let mut some = numbered(TOPIC, numbers);
        let prepared = log.prepare(some.topic(&topic));
        assert!(some.is_empty(), "what was taken out is not there any more");
        batch.topic(&topic).take_in(prepared);
    }
    for n in 30_001..30_010 {
        write_numbered(&mut batch, TOPIC, n);
    }
    assert_eq!(batch.count(), 30_010);
    log.append(epoch, append(batch, &[])).await.unwrap();
    assert_eq!(values(&*log).await, numbers(0..30_010));
}
