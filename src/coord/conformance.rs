//! What every [`Coordinator`] must do, as one suite that each implementation runs on itself. Compiled into the
//! library, so that integration tests reach it without a feature.
#![expect(clippy::unwrap_used, reason = "a test suite: it panics where a coordinator fails")]

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Coordinator, Lease};

/// Opens the coordinator of a name: empty at its first use; opened once more, as another process would, when the
/// name has been used before.
pub trait Open: Fn(String) -> Self::Opening + Sync {
    /// The opening.
    type Opening: Future<Output = Arc<dyn Coordinator>> + Send;
}

impl<F: Fn(String) -> O + Sync, O: Future<Output = Arc<dyn Coordinator>> + Send> Open for F {
    type Opening = O;
}

const LONG: Duration = Duration::from_secs(3600);

/// Runs every behaviour on a coordinator of its own.
pub async fn run(open: impl Open) {
    a_lease_has_one_holder_and_its_epoch_only_grows(&open).await;
    one_of_many_who_acquire_at_once_wins(&open).await;
    a_lease_that_is_not_renewed_is_taken_over(&open).await;
    a_renewed_lease_is_kept_beyond_its_first_ttl(&open).await;
    of_many_leases_those_that_were_lost_are_told(&open).await;
    leases_are_listed_by_the_beginning_of_their_names(&open).await;
    whoever_lost_its_lease_cannot_set(&open).await;
    state_is_set_at_the_expected_version_only(&open).await;
    counting_by_compare_and_set_loses_nothing(&open).await;
    reopening_finds_leases_and_state(&open).await;
}

/// Tries until the lease is free.
async fn acquire(coordinator: &dyn Coordinator, name: &str, ttl: Duration) -> Lease {
    acquired(coordinator, name, ttl).await.1
}

/// The same with a time so short that it may be over before the lease is given; and when that attempt began.
async fn acquired(coordinator: &dyn Coordinator, name: &str, ttl: Duration) -> (Instant, Lease) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let begun = Instant::now();
        if let Some(lease) = coordinator.acquire(name, ttl).await.unwrap() {
            return (begun, lease);
        }
        assert!(Instant::now() < deadline, "the lease {name} never came free");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Renews one lease; whether it was kept.
async fn renew(coordinator: &Arc<dyn Coordinator>, lease: &Lease, ttl: Duration) -> bool {
    !coordinator.renew(std::slice::from_ref(lease), ttl).await.unwrap().is_empty()
}

async fn holder(coordinator: &Arc<dyn Coordinator>, name: &str) -> Option<Lease> {
    coordinator.leases(name).await.unwrap().into_iter().find(|lease| lease.name == name)
}

async fn a_lease_has_one_holder_and_its_epoch_only_grows(open: &impl Open) {
    let (a, b) = (open("epoch".into()).await, open("epoch".into()).await);
    assert_eq!(holder(&a, "x").await, None);
    let mut last = 0;
    for round in 0..6 {
        let (winner, loser) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let lease = winner.acquire("x", LONG).await.unwrap().unwrap();
        assert!(lease.epoch > last, "the epoch grows, also after a release");
        last = lease.epoch;
        assert_eq!(loser.acquire("x", LONG).await.unwrap(), None);
        assert_eq!(winner.acquire("x", LONG).await.unwrap(), None, "not twice by the same holder either");
        assert_eq!(holder(loser, "x").await.as_ref(), Some(&lease));
        assert!(loser.acquire(&format!("y{round}"), LONG).await.unwrap().is_some(), "names do not share");
        assert!(renew(winner, &lease, LONG).await);
        winner.release(&lease).await.unwrap();
        winner.release(&lease).await.unwrap();
        assert_eq!(holder(loser, "x").await, None);
        assert!(!renew(winner, &lease, LONG).await, "a released lease does not come back");
    }
}

async fn one_of_many_who_acquire_at_once_wins(open: &impl Open) {
    for round in 0..5 {
        let name = format!("x{round}");
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (coordinator, name) = (open("many".into()).await, name.clone());
            tasks.spawn(async move {
                let won = coordinator.acquire(&name, LONG).await.unwrap().is_some();
                // Whoever is gone has no lease any more.
                (coordinator, won)
            });
        }
        let winners = tasks.join_all().await.into_iter().filter(|(_, won)| *won).count();
        assert_eq!(winners, 1, "winners of {name}");
    }
}

async fn a_lease_that_is_not_renewed_is_taken_over(open: &impl Open) {
    let (a, b) = (open("takeover".into()).await, open("takeover".into()).await);
    let ttl = Duration::from_millis(500);
    let (begun, lost) = acquired(&*a, "x", ttl).await;
    let lease = acquire(&*b, "x", LONG).await;
    assert!(begun.elapsed() >= ttl, "not before its time");
    assert!(lease.epoch > lost.epoch);
    assert!(!renew(&a, &lost, LONG).await);
    a.release(&lost).await.unwrap();
    assert_eq!(holder(&a, "x").await, Some(lease), "a late release takes nothing from the new holder");
}

async fn a_renewed_lease_is_kept_beyond_its_first_ttl(open: &impl Open) {
    let (a, b) = (open("renew".into()).await, open("renew".into()).await);
    let ttl = Duration::from_secs(5);
    let lease = a.acquire("x", ttl).await.unwrap().unwrap();
    assert!(renew(&a, &lease, LONG).await);
    let begun = Instant::now();
    while begun.elapsed() < ttl + Duration::from_millis(300) {
        assert_eq!(b.acquire("x", ttl).await.unwrap(), None);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(renew(&a, &lease, LONG).await);
}

async fn of_many_leases_those_that_were_lost_are_told(open: &impl Open) {
    let (a, b) = (open("several".into()).await, open("several".into()).await);
    let mut leases = Vec::new();
    for name in ["x", "y/1", "z"] {
        leases.push(a.acquire(name, LONG).await.unwrap().unwrap());
    }
    a.release(&leases[1]).await.unwrap();
    let taken = b.acquire("y/1", LONG).await.unwrap().unwrap();
    let kept = a.renew(&leases, LONG).await.unwrap();
    assert_eq!(kept, [leases[0].clone(), leases[2].clone()]);
    assert_eq!(b.renew(std::slice::from_ref(&taken), LONG).await.unwrap(), [taken]);
    assert_eq!(a.renew(&[], LONG).await.unwrap(), []);
}

async fn leases_are_listed_by_the_beginning_of_their_names(open: &impl Open) {
    let (a, b) = (open("list".into()).await, open("list".into()).await);
    let mut held = Vec::new();
    for (number, name) in ["shop/member/2", "shop/member/10", "shop/day", "shop%/member/1", "Straße/member/1"]
        .into_iter()
        .enumerate()
    {
        let coordinator = if number % 2 == 0 { &a } else { &b };
        held.push(coordinator.acquire(name, LONG).await.unwrap().unwrap());
    }
    held.sort_by(|a, b| a.name.cmp(&b.name));
    let of = |prefix: &str| -> Vec<Lease> {
        held.iter().filter(|lease| lease.name.starts_with(prefix)).cloned().collect()
    };
    for prefix in ["", "shop/member/", "shop/", "Straße/", "none"] {
        assert_eq!(b.leases(prefix).await.unwrap(), of(prefix), "{prefix:?}");
    }
    let released = held.remove(1);
    a.release(&released).await.unwrap();
    b.release(&released).await.unwrap();
    assert_eq!(a.leases("").await.unwrap(), held);
}

async fn whoever_lost_its_lease_cannot_set(open: &impl Open) {
    let (a, b) = (open("fenced".into()).await, open("fenced".into()).await);
    let old = acquire(&*a, "x", Duration::from_millis(200)).await;
    let new = acquire(&*b, "x", LONG).await;
    assert!(!a.set(&old, "k", None, b"old").await.unwrap());
    assert_eq!(a.get("k").await.unwrap(), None);
    assert!(b.set(&new, "k", None, b"new").await.unwrap());
    assert!(!a.set(&old, "k", Some(1), b"old").await.unwrap());
    b.release(&new).await.unwrap();
    assert!(!b.set(&new, "k", Some(1), b"released").await.unwrap());
    assert_eq!(a.get("k").await.unwrap().unwrap().value, b"new");
}

async fn state_is_set_at_the_expected_version_only(open: &impl Open) {
    let coordinator = open("version".into()).await;
    let lease = coordinator.acquire("x", LONG).await.unwrap().unwrap();
    assert!(!coordinator.set(&lease, "k", Some(1), b"a").await.unwrap(), "there is none yet");
    assert!(coordinator.set(&lease, "k", None, b"a").await.unwrap());
    assert!(!coordinator.set(&lease, "k", None, b"b").await.unwrap(), "there is one already");
    for version in 1..5 {
        let value = format!("v{version}");
        assert!(!coordinator.set(&lease, "k", Some(version + 1), b"early").await.unwrap());
        assert!(coordinator.set(&lease, "k", Some(version), value.as_bytes()).await.unwrap());
        assert!(!coordinator.set(&lease, "k", Some(version), b"late").await.unwrap());
        let found = coordinator.get("k").await.unwrap().unwrap();
        assert_eq!((found.version, found.value), (version + 1, value.into_bytes()));
    }
}

async fn counting_by_compare_and_set_loses_nothing(open: &impl Open) {
    let first = open("count".into()).await;
    let lease = first.acquire("x", LONG).await.unwrap().unwrap();
    assert!(first.set(&lease, "k", None, b"0").await.unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (coordinator, lease) = (open("count".into()).await, lease.clone());
        tasks.spawn(async move {
            let mut done = 0;
            while done < 10 {
                let found = coordinator.get("k").await.unwrap().unwrap();
                let number: u64 = String::from_utf8(found.value).unwrap().parse().unwrap();
                let value = (number + 1).to_string();
                if coordinator.set(&lease, "k", Some(found.version), value.as_bytes()).await.unwrap() {
                    done += 1;
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(first.get("k").await.unwrap().unwrap().value, b"40");
}

async fn reopening_finds_leases_and_state(open: &impl Open) {
    let coordinator = open("reopen".into()).await;
    let lease = coordinator.acquire("x", LONG).await.unwrap().unwrap();
    assert!(coordinator.set(&lease, "k", None, b"v").await.unwrap());
    let again = open("reopen".into()).await;
    assert_eq!(again.acquire("x", LONG).await.unwrap(), None);
    assert_eq!(holder(&again, "x").await, Some(lease));
    assert_eq!(again.get("k").await.unwrap().unwrap().value, b"v");
}
