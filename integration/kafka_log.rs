//! The log on Kafka, on a real broker: the conformance suite, and what only a broker can show.
//!
//! Who judges what consumers see is Kafka's own console consumer, reading what is committed. Writers that are killed
//! or paused are processes of their own: this binary started again with `KAFKA_LOG_VICTIM` set.

mod broker;
mod markers;
mod nodes;
mod numbers;
mod prefixed;
mod topics;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Kafka, Replay, test_path};
use numbers::{check_committed, counted, options, step};
use prefixed::Prefixed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use tidemark::log::{KafkaLog, Log, conformance};
use tidemark::runtime::Class;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    conformance::run(|name: String| async move {
        let log = KafkaLog::open(options(&name)).unwrap();
        Arc::new(Prefixed::new(&name, Arc::new(log))) as Arc<dyn Log>
    })
    .await;
}

/// Not a test by itself: the process that is killed or paused. Appends numbers, and prints the count after each append
/// that was confirmed.
#[tokio::test]
async fn victim() {
    let Ok(given) = std::env::var("KAFKA_LOG_VICTIM") else { return };
    let [address, name, seed] = given.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let mut random = StdRng::seed_from_u64(seed.parse().unwrap());
    let log = KafkaLog::open(numbers::options_at(name, address)).unwrap();
    let fenced = log.fence().await.unwrap();
    let mut count = counted(&fenced);
    let mut stdout = std::io::stdout();
    writeln!(stdout, "victim at {count}").unwrap();
    loop {
        let until = count + random.random_range(1..400);
        refused(log.append(fenced.epoch, step(name, count..until)).await);
        count = until;
        writeln!(stdout, "victim at {count}").unwrap();
    }
}

/// Ends the process when an append was refused.
fn refused(outcome: Result<tidemark::log::Append, tidemark::log::Rejected>) {
    if let Err(rejected) = outcome {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "victim refused: {:?}: {}", rejected.error.class(), rejected.error).unwrap();
        std::process::exit(3);
    }
}

fn start_victim(address: &str, name: &str, seed: u64) -> (Child, std::io::Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([&test_path(module_path!(), "victim"), "--exact", "--nocapture"])
        .env("KAFKA_LOG_VICTIM", format!("{address} {name} {seed}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

fn at(line: &str) -> Option<u64> {
    line.split_once("victim at ").and_then(|(_, n)| n.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_killed_at_any_moment_loses_and_doubles_nothing() {
    let last = kill_again_and_again("killed").await;
    check_committed(Kafka::shared(), "killed", last);
}

/// Gives the number of records that are there in the end.
async fn kill_again_and_again(name: &str) -> u64 {
    let rounds: u32 = std::env::var("CRASH_ROUNDS").map_or(5, |r| r.parse::<u32>().unwrap() / 4);
    let seed = std::env::var("KAFKA_LOG_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    let _replay = Replay::with(format!("KAFKA_LOG_SEED={seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let address = Kafka::shared().address();
    let mut last = 0;
    for round in 0..rounds {
        let (mut child, mut lines) = start_victim(&address, name, random.random());
        let first = lines.find_map(|line| at(&line.unwrap())).unwrap();
        assert_eq!(first, last, "round {round}: the next writer begins where the last one was");
        std::thread::sleep(Duration::from_micros(random.random_range(0..900_000)));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "round {round}: the victim ended by itself");
        let confirmed = lines.map_while(Result::ok).filter_map(|line| at(&line)).last().unwrap_or(first);
        let log = KafkaLog::open(options(name)).unwrap();
        last = counted(&log.fence().await.unwrap());
        assert!(last >= confirmed, "round {round}: {confirmed} were confirmed and {last} are there");
        numbers::check_read(&log, name, last).await;
    }
    assert!(last > 0, "no round appended anything");
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_writer_that_wakes_up_is_fenced() {
    let (mut child, mut lines) = start_victim(&Kafka::shared().address(), "paused", 7);
    assert_eq!(lines.by_ref().filter(|l| at(l.as_ref().unwrap()).is_some()).take(5).count(), 5);
    kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
    let log = KafkaLog::open(options("paused")).unwrap();
    let fenced = log.fence().await.unwrap();
    let count = counted(&fenced);
    log.append(fenced.epoch, step("paused", count..count + 100)).await.unwrap();
    kill_process(Pid::from_child(&child), Signal::CONT).unwrap();
    let said: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(3), "{said:?}");
    let refused = said.iter().find(|line| line.contains("victim refused")).unwrap();
    assert!(refused.contains("Fenced: another writer has taken over"), "{refused}");
    // The one that is not fenced goes on.
    log.append(fenced.epoch, step("paused", count + 100..count + 200)).await.unwrap();
    numbers::check_read(&log, "paused", count + 200).await;
    check_committed(Kafka::shared(), "paused", count + 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_writer_has_sent_and_not_committed_is_never_seen() {
    let log = KafkaLog::open(options("half")).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    log.append(epoch, step("half", 0..10)).await.unwrap();
    // Sent by a producer of the same id, and left open: as if killed before the commit.
    let partition = numbers::partition("half", 0);
    let before = numbers::high_watermark(&partition);
    let dead = numbers::send_without_commit("half", &partition, 50);
    assert!(numbers::high_watermark(&partition) >= before + 50, "the records are on the broker");
    drop(dead);
    let log = KafkaLog::open(options("half")).unwrap();
    let fenced = log.fence().await.unwrap();
    assert_eq!(counted(&fenced), 10);
    log.append(fenced.epoch, step("half", 10..30)).await.unwrap();
    numbers::check_read(&log, "half", 30).await;
    check_committed(Kafka::shared(), "half", 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_larger_than_the_queue_is_one_transaction() {
    let mut options = options("large");
    options.properties.insert("queue.buffering.max.kbytes".into(), "1024".into());
    options.properties.insert("queue.buffering.max.messages".into(), "1000".into());
    let log = KafkaLog::open(options).unwrap();
    let epoch = log.fence().await.unwrap().epoch;
    let mut append = step("large", 0..5_000);
    for n in 0..20 {
        let mut record = append.records.topic(&"large.noise".into()).begin(1 + n);
        record.null();
        record.field(|b| b.resize(b.len() + 900_000, n as u8));
        record.finish();
    }
    let bytes = append.records.bytes();
    assert!(bytes > 16 << 20, "{bytes}");
    log.append(epoch, append).await.unwrap();
    numbers::check_read(&log, "large", 5_000).await;
    let noise = tidemark::log::LogPartition { topic: "large.noise".into(), partition: 0 };
    assert_eq!(log.ranges().await.unwrap()[&noise].end, 20, "one transaction: one marker, after the last");
    let (mut next, mut found) = (0, 0);
    while next < 20 {
        let fetched = log.read(&noise, next, 2 << 20).await.unwrap();
        assert!(fetched.frames.len() <= 2 << 20);
        found += fetched.iter().filter(|(_, record)| record.value.unwrap().len() == 900_000).count();
        next = fetched.next;
    }
    assert_eq!(found, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_in_turn_are_told_apart_by_their_epochs() {
    let (first, second) =
        (KafkaLog::open(options("turns")).unwrap(), KafkaLog::open(options("turns")).unwrap());
    let mut count = 0;
    let mut last = tidemark::log::Epoch(0);
    for round in 0..4 {
        let log = if round % 2 == 0 { &first } else { &second };
        let started = Instant::now();
        let fenced = log.fence().await.unwrap();
        eprintln!("fenced in {:?}", started.elapsed());
        assert!(fenced.epoch > last);
        assert_eq!(counted(&fenced), count);
        last = fenced.epoch;
        log.append(fenced.epoch, step("turns", count..count + 10)).await.unwrap();
        count += 10;
        let other = if round % 2 == 0 { &second } else { &first };
        let rejected = other.append(fenced.epoch, step("turns", count..count + 1)).await.unwrap_err();
        assert_eq!(rejected.error.class(), Class::Fenced, "an epoch is of one writer");
    }
    numbers::check_read(&second, "turns", count).await;
}
