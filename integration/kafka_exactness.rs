//! Exactness on Kafka under kill: real traffic on a real server, real brokers, and both they and the program killed,
//! paused and doubled where it hurts.
//!
//! ```text
//!   traffic ──> Postgres ──> tidemark capture ──> brokers ──> a consumer which is not ours, committed records only
//!                  │             killed, paused,    killed, stopped, rolled            │
//!                  │             succeeded          leaders moved                      │
//!                  └─> oracle (triggers, slot) ───────────── equal ────────────────────┘
//! ```
//!
//! The oracle is that of the embedded log's test (`oracle/`): triggers note every change, and Postgres's own
//! `test_decoding` tells in what order transactions committed. At the end the topics must hold each change once,
//! in order within every partition, with the values it had.
//!
//! Copies of tables have a test of their own (`kafka_exactness/backfills.rs`): `BACKFILL_KILLS` sets its rounds.
//!
//! `KAFKA_CRASH_ROUNDS` sets the number of rounds of each test, `TIDEMARK_TEST_SEED` replays what the test itself
//! decides, `KAFKA_CRASH_FAULTS` takes the names of the only faults to try, and `TIDEMARK_TEST_KEEP`, a
//! folder, keeps what the processes and brokers said and stored when it fails.

mod backfills;
mod campaign;
mod check;
mod faults;
mod topics;

use crate::support::Replay;
use campaign::Campaign;
use faults::Fault;
use rand::Rng;

/// One after the other: each has load enough of its own.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_one_broker_consumers_see_every_change_once_and_in_order_whatever_is_killed() {
    let _alone = ALONE.lock().await;
    run(1, Fault::ON_ONE, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_three_brokers_consumers_see_every_change_once_and_in_order_whoever_leads() {
    let _alone = ALONE.lock().await;
    run(3, Fault::ON_THREE, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn copies_on_kafka_are_the_tables_however_often_they_are_killed_under_load() {
    let _alone = ALONE.lock().await;
    let seed = setting("TIDEMARK_TEST_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let kills = setting("BACKFILL_KILLS").unwrap_or(4);
    let _replay = Replay::with(format!("TIDEMARK_TEST_SEED={seed} BACKFILL_KILLS={kills}"));
    let mut campaign = Campaign::start(seed, 1, true, backfills::settings).await;
    let faults =
        faults::chosen(&[Fault::Kill, Fault::Kill, Fault::Kill, Fault::KillInLarge, Fault::BrokerKill]);
    let mut plan = Vec::new();
    for round in 0..kills {
        if plan.is_empty() {
            plan = campaign.shuffled(&faults);
        }
        campaign.ask_for_copies().await;
        campaign.round(round, plan.remove(0)).await;
    }
    campaign.day_is_exact().await;
    campaign.drain().await;
    campaign.compare().await;
    let copied = campaign.compare_copies().await;
    assert!(copied.copies > 0, "{copied:?}");
    eprintln!("{copied:?}");
}

/// `spill`: whether changes are kept on the local disk while brokers are away.
async fn run(brokers: usize, faults: &[Fault], spill: bool) {
    let seed = setting("TIDEMARK_TEST_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let rounds = setting("KAFKA_CRASH_ROUNDS").unwrap_or(5);
    let _replay = Replay::with(format!("TIDEMARK_TEST_SEED={seed} KAFKA_CRASH_ROUNDS={rounds}"));
    let mut campaign = Campaign::start(seed, brokers, spill, |connector| connector).await;
    let mut plan = Vec::new();
    for round in 0..rounds {
        if plan.is_empty() {
            plan = campaign.shuffled(&faults::chosen(faults));
        }
        campaign.round(round, plan.remove(0)).await;
    }
    campaign.drain().await;
    campaign.compare().await;
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
