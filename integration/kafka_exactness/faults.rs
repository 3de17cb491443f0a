//! What happens to the program and to the brokers. Each fault begins while all is well, or while the last one is
//! still being recovered from; the round brings back what is missing afterwards.

use std::time::{Duration, Instant};

use rand::Rng;
use rustix::process::Signal;

use super::campaign::{Campaign, PATIENCE, SWEEP, TRANSACTION_TIMEOUT, streams};
use crate::support::{NAME, Running, wait_until};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the program at any moment.
    Kill,
    /// The same in the middle of a source transaction which is larger than one of Kafka.
    KillInLarge,
    /// SIGSTOP past the transaction's timeout, and a successor meanwhile; then SIGCONT.
    Succeeded,
    /// SIGKILL of the program, or SIGSTOP, while another machine stands by for it; the former one comes back as the standby.
    TakenOver,
    /// SIGSTOP past the transaction's timeout, then SIGCONT, with nobody else there.
    Paused,
    /// SIGKILL of a broker, which is started again: the only one, or the leader of some partition.
    BrokerKill,
    /// Too few brokers are left for so long that changes are kept on the local disk, where they may be; the program is
    /// killed before they are back, or while it brings what was kept into the log.
    Outage,
    /// SIGKILL of the transaction coordinator.
    CoordinatorKill,
    /// SIGKILL of a leader and of the program, one right after the other.
    LeaderAndProgramKill,
    /// SIGTERM of a leader: what it led goes to others first.
    LeaderStop,
    /// Each broker is stopped and started again, one after the other.
    Roll,
}

/// Those of `faults` that are asked for: all, or the ones which `KAFKA_CRASH_FAULTS` names.
pub fn chosen(faults: &[Fault]) -> Vec<Fault> {
    let Ok(names) = std::env::var("KAFKA_CRASH_FAULTS") else { return faults.to_vec() };
    let is_named = |fault: &&Fault| names.split(',').any(|name| name == format!("{fault:?}"));
    let chosen: Vec<_> = faults.iter().filter(is_named).copied().collect();
    assert!(!chosen.is_empty(), "KAFKA_CRASH_FAULTS={names} names none of {faults:?}");
    chosen
}

impl Fault {
    /// Those that one broker can show.
    pub const ON_ONE: &'static [Self] = &[
        Self::Kill,
        Self::KillInLarge,
        Self::Succeeded,
        Self::TakenOver,
        Self::Paused,
        Self::BrokerKill,
        Self::Outage,
    ];

    /// Those of several.
    pub const ON_THREE: &'static [Self] = &[
        Self::BrokerKill,
        Self::CoordinatorKill,
        Self::LeaderAndProgramKill,
        Self::LeaderStop,
        Self::Roll,
        Self::Succeeded,
        Self::TakenOver,
        Self::Outage,
        Self::KillInLarge,
    ];

    /// Lets it happen; says what, for the log of the test.
    pub async fn happen(self, campaign: &mut Campaign) -> String {
        match self {
            Self::Kill => {
                campaign.kill();
                String::new()
            }
            Self::KillInLarge => kill_in_large(campaign).await,
            Self::Succeeded => succeeded(campaign).await,
            Self::TakenOver => taken_over(campaign).await,
            Self::Paused => paused(campaign).await,
            Self::BrokerKill => {
                let node = leader_of_some_table(campaign);
                kill_and_restart(campaign, node).await
            }
            Self::CoordinatorKill => {
                let node = campaign.brokers.leader("__transaction_state", 0).unwrap_or(0);
                kill_and_restart(campaign, node).await
            }
            Self::LeaderAndProgramKill => leader_and_program_kill(campaign).await,
            Self::LeaderStop => leader_stop(campaign).await,
            Self::Roll => roll(campaign).await,
            Self::Outage => outage(campaign).await,
        }
    }
}

fn leader_of_some_table(campaign: &mut Campaign) -> usize {
    let table = ["items", "items", "pairs", "tokens", "bag"][campaign.random.random_range(0..5)];
    let partition = campaign.random.random_range(0..3);
    campaign.brokers.leader(&format!("{NAME}.public.{table}"), partition).unwrap_or(0)
}

async fn kill_in_large(campaign: &mut Campaign) -> String {
    let sql = campaign.server.connect().await;
    let rows = campaign.random.random_range(5_000..15_000);
    let insert = format!(
        "INSERT INTO journal (at, text) SELECT instant(g), 'large ' || g FROM generate_series(1, {rows}) g"
    );
    sql.batch_execute(&insert).await.unwrap();
    let moment = campaign.moment(1_000);
    tokio::time::sleep(moment).await;
    if campaign.brokers.count() > 1 && campaign.random.random() {
        let node = leader_of_some_table(campaign);
        campaign.brokers[node].kill();
        tokio::time::sleep(moment).await;
    }
    campaign.kill();
    format!("{rows} rows, {moment:?} after their commit")
}

/// Another machine would miss what is still kept on the disk of this one.
async fn nothing_is_kept(campaign: &mut Campaign) {
    let process = campaign.running();
    wait_until(PATIENCE, "nothing is kept on the local disk", async || is_state(process, "log", "ok")).await;
}

fn is_state(process: &Running, component: &str, state: &str) -> bool {
    process.get("/health").is_some_and(|(_, body)| {
        let health: serde_json::Value = serde_json::from_str(&body).unwrap();
        health["components"][component]["state"] == state
    })
}

/// One which stands by begins by itself, and the former writer stands by for it.
async fn taken_over(campaign: &mut Campaign) -> String {
    nothing_is_kept(campaign).await;
    campaign.home = 1 - campaign.home;
    let mut standby = campaign.launch();
    wait_until(PATIENCE, "the second process stands by", async || is_state(&standby, "source", "standby"))
        .await;
    assert_eq!(standby.health().0, 200, "{:?}", standby.health());
    let moment = campaign.moment(1_000);
    tokio::time::sleep(moment).await;
    let mut former = campaign.process.take().unwrap();
    let killed = campaign.random.random();
    if killed {
        former.kill();
    } else {
        former.signal(Signal::STOP);
        // What the server itself does after wal_sender_timeout.
        let sql = campaign.server.connect().await;
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE pid = \
                   (SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'exact')";
        sql.batch_execute(end).await.unwrap();
    }
    let fault = Instant::now();
    assert!(streams(&mut standby).await, "the standby has ended by itself:\n{}", standby.output());
    let took = fault.elapsed();
    campaign.process = Some(standby);
    campaign.progress().await;
    if !killed {
        former.signal(Signal::CONT);
        wait_until(PATIENCE, "the former writer stands by", async || is_state(&former, "source", "standby"))
            .await;
        campaign.progress().await;
    }
    former.kill();
    format!("{}; taken over {took:?} later", if killed { "killed" } else { "stopped" })
}

/// The former writer must not write any more, and its successor must not be disturbed.
async fn succeeded(campaign: &mut Campaign) -> String {
    // The successor is another machine.
    nothing_is_kept(campaign).await;
    let mut former = campaign.process.take().unwrap();
    former.signal(Signal::STOP);
    let early = campaign.random.random_ratio(1, 3);
    if !early {
        let longer = campaign.moment(2_000);
        tokio::time::sleep(TRANSACTION_TIMEOUT + SWEEP + longer).await;
    }
    // What the server itself does with a client which does not answer.
    let sql = campaign.server.connect().await;
    sql.batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication").await.unwrap();
    campaign.home = 1 - campaign.home;
    let mut successor = campaign.launch();
    assert!(streams(&mut successor).await, "the successor has ended by itself:\n{}", successor.output());
    let moment = campaign.moment(2_000);
    tokio::time::sleep(moment).await;
    let known = former.output().len();
    former.signal(Signal::CONT);
    let started = Instant::now();
    let stands_back = |told: &str| told[known..].contains("the slot is in use, waiting for it");
    while former.is_running() && !stands_back(&former.output()) {
        assert!(started.elapsed() < PATIENCE, "the former writer goes on:\n{}", former.output());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let end = if former.is_running() { "stands back" } else { "has left" };
    let fenced = if former.output().contains("another writer has taken over") { ", fenced" } else { "" };
    campaign.process = Some(successor);
    campaign.progress().await;
    former.kill();
    format!("the former one {end}{fenced}, its successor came {}", if early { "early" } else { "late" })
}

async fn paused(campaign: &mut Campaign) -> String {
    campaign.running().signal(Signal::STOP);
    let longer = campaign.moment(4_000);
    tokio::time::sleep(TRANSACTION_TIMEOUT + longer).await;
    campaign.running().signal(Signal::CONT);
    campaign.progress().await;
    format!("for {:?}", TRANSACTION_TIMEOUT + longer)
}

async fn kill_and_restart(campaign: &mut Campaign, node: usize) -> String {
    campaign.brokers[node].kill();
    let away = campaign.moment(3_000);
    tokio::time::sleep(away).await;
    campaign.brokers[node].start_again();
    format!("node {node} for {away:?}")
}

async fn leader_and_program_kill(campaign: &mut Campaign) -> String {
    let node = leader_of_some_table(campaign);
    let (between, first) = (campaign.moment(400), campaign.random.random());
    if first {
        campaign.brokers[node].kill();
        tokio::time::sleep(between).await;
        campaign.kill();
    } else {
        campaign.kill();
        tokio::time::sleep(between).await;
        campaign.brokers[node].kill();
    }
    // The next one begins with two brokers.
    campaign.ensure_streaming().await;
    campaign.brokers[node].start_again();
    format!("node {node} {} the program, {between:?} between", if first { "before" } else { "after" })
}

async fn leader_stop(campaign: &mut Campaign) -> String {
    let node = leader_of_some_table(campaign);
    let brokers = &mut campaign.brokers;
    tokio::task::block_in_place(|| brokers[node].stop());
    let away = campaign.moment(2_000);
    tokio::time::sleep(away).await;
    campaign.brokers[node].start_again();
    format!("node {node} for {away:?}")
}

async fn roll(campaign: &mut Campaign) -> String {
    for node in 0..campaign.brokers.count() {
        let brokers = &mut campaign.brokers;
        tokio::task::block_in_place(|| {
            brokers[node].stop();
            brokers[node].start_again();
        });
        campaign.brokers.in_sync().await;
    }
    campaign.progress().await;
    String::new()
}

async fn outage(campaign: &mut Campaign) -> String {
    let away: Vec<usize> = match campaign.brokers.count() {
        1 => vec![0],
        count => {
            let first = campaign.random.random_range(0..count);
            vec![first, (first + 1) % count]
        }
    };
    for node in &away {
        campaign.brokers[*node].kill();
    }
    let spill = campaign.spill;
    let process = campaign.running();
    // A commit whose outcome nobody knows is not kept, nor what follows it: the brokers have to say first.
    let interrupted = |process: &Running| process.output().matches("capture was interrupted").count();
    let before = interrupted(process);
    let told = |process: &Running| {
        let health = process.get("/health").map_or_else(String::new, |(_, body)| body);
        match () {
            () if health.contains("kept on the local disk") => Some("kept on the local disk"),
            () if interrupted(process) > before => Some("in doubt, nothing kept"),
            () if !spill && health.contains("waiting") => Some("held by the slot"),
            () => None,
        }
    };
    wait_until(PATIENCE, "it is told that the brokers are away", async || told(process).is_some()).await;
    let told = told(process).unwrap_or("told and not told");
    let longer = campaign.moment(3_000);
    tokio::time::sleep(longer).await;
    let when = campaign.random.random_range(0..4);
    if when == 0 {
        campaign.kill();
    }
    let brokers = &mut campaign.brokers;
    tokio::task::block_in_place(|| brokers.start_all());
    if when == 1 {
        // While it brings into the log what was kept.
        let moment = campaign.moment(4_000);
        tokio::time::sleep(moment).await;
        campaign.kill();
    }
    let end = ["killed before the brokers were back", "killed after it", "not killed", "not killed"][when];
    format!("nodes {away:?}, {told}, {longer:?} after that {end}")
}
