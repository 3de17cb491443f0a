//! Several `deliver` processes on one lake, which are killed, stopped beyond their session, started again, while ZooKeeper
//! (and the broker, where the log is Kafka's) is killed under them, and the bucket is in trouble where the lake is in one.
//! Every day of every table is what Postgres held at its cut, and no object ever changes.
//!
//! Twenty tables and six processes by hand: `SHARES_TABLES=20 SHARES_PROCESSES=6 SHARES_DAYS_EVENTS=30`; `SHARES_SEED` replays.

mod world;

use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Replay};
use world::{Setting, World};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seed() -> u64 {
    let seed = number("SHARES_SEED", rand::random::<u32>().into());
    let _replay = Replay::with(format!("SHARES_SEED={seed}"));
    seed
}

#[tokio::test(flavor = "multi_thread")]
async fn days_are_exact_and_objects_never_change_whatever_happens_to_processes_and_zookeeper() {
    let (tables, processes) = (number("SHARES_TABLES", 5), number("SHARES_PROCESSES", 3));
    let mut world = World::new(Setting::zookeeper(), tables, processes, seed()).await;
    world.run(number("SHARES_DAYS_EVENTS", 3)).await;
    world.history_is_one_sequence();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_log_on_kafka_and_the_lake_in_a_bucket_days_are_exact_and_objects_never_change_either() {
    let (tables, processes, seed) = (number("SHARES_TABLES", 4), number("SHARES_PROCESSES", 3), seed());
    let mut world = World::new(Setting::apart(seed).await, tables, processes, seed).await;
    world.run(number("SHARES_DAYS_EVENTS", 2)).await;
    world.history_is_one_sequence();
    world.takeover().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_one_machine_processes_share_by_the_embedded_coordinator() {
    let mut world = World::new(Setting::default(), 5, 3, seed()).await;
    world.run(number("SHARES_DAYS_EVENTS", 2)).await;
    world.history_is_one_sequence();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_move_within_seconds_when_processes_come_and_go_and_rest_in_between() {
    let mut world = World::new(Setting::with_long_leases(), 6, 1, 1).await;
    world.all_owned("one process has all tables").await;
    for _ in 0..2 {
        world.start_one();
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
    // Longer than from one renewal to the next. Tables may move once more when their costs are looked at again.
    let began = Instant::now();
    loop {
        let before = (world.owned(), moves(&world));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let after = (world.owned(), moves(&world));
        if after == before {
            break;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "nothing moves while nobody comes or goes: {before:?}, then {after:?}"
        );
    }

    world.takeover().await;
    let began = Instant::now();
    assert!(world.delivering.remove(0).terminate().await.success());
    world.all_owned("the last one has the tables of one that left").await;
    println!("taken over {:?} after a process left", began.elapsed());
}
