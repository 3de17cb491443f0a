//! The processes that deliver one source, and who of them has which tables.
//!
//! ```text
//!   deliver/<name>/member/<place>   each process; whoever starts takes the lowest place that is free
//!   deliver/<name>/day              the leader: says who has which share, and makes the days' manifests
//!   deliver/<name>/share/<n>        the owner of a share of the tables
//!
//!   leader ── places, costs ──> assignment (state) ──> each process gives up what is not its own, and takes what is
//! ```
//!
//! A share goes over when its owner has given it back, or lost it. Its state (which days its tables are not in, and why)
//! is set under the owner's lease: whoever takes the share afterwards sees all of it, and a former owner adds nothing.
//! That is all that leases decide. What a process that has lost one without knowing still writes, is harmless by itself: see
//! [`crate::lake`] and its sequences of change files.
//!
//! One that loses any lease gives up all of them and begins anew: it was paused, or cut off, and knows nothing for sure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::share::{Assignment, Place, SHARES, Share, ShareState, TableStanding, assign};
use crate::coord::{Coordinator, Lease, Versioned};
use crate::runtime::{Class, Error, Result};

/// Processes that may deliver one source at once.
const PLACES: Place = 64;

/// What others have told is read again after this long, beside when processes come or go.
const COSTS_AGAIN: Duration = Duration::from_secs(30);

/// How long leases may take to be given back when the process leaves.
const LEAVE_PATIENCE: Duration = Duration::from_secs(3);

/// A process's part in the delivery of a source, as long as none of its leases is lost.
#[derive(Debug)]
pub struct Membership {
    coordinator: Arc<dyn Coordinator>,
    name: String,
    ttl: Duration,
    place: Place,
    holding: Mutex<Holding>,
    /// The delivery knows tables that were not known before.
    tables_known: Notify,
    /// Shares came or went.
    moved: Notify,
}

#[derive(Debug)]
struct Holding {
    member: Lease,
    day: Option<Lease>,
    shares: BTreeMap<Share, Owned>,
    /// The share in whose tables something is being done: it is not given back meanwhile.
    busy: Option<Share>,
    /// Tables by share, as this process knows them.
    tables: BTreeMap<Share, usize>,
    members: usize,
}

#[derive(Clone, Debug)]
struct Owned {
    lease: Lease,
    version: Option<u64>,
    state: ShareState,
}

/// What the leader remembers from one time to the next.
#[derive(Debug, Default)]
struct Leading {
    costs: BTreeMap<Share, u64>,
    costs_at: Option<Instant>,
    places: BTreeSet<Place>,
}

/// How a process stands among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Shares that it has.
    pub shares: usize,
    /// Shares with tables.
    pub known: usize,
    /// Processes, this one among them.
    pub members: usize,
}

impl Membership {
    /// Takes a place. `None`: all are taken.
    pub async fn join(coordinator: &Arc<dyn Coordinator>, name: &str, ttl: Duration) -> Result<Option<Self>> {
        let prefix = format!("deliver/{name}/member/");
        let taken = places(&coordinator.leases(&prefix).await?, &prefix);
        for place in (0..PLACES).filter(|place| !taken.contains(place)) {
            let Some(member) = coordinator.acquire(&format!("{prefix}{place}"), ttl).await? else { continue };
            tracing::info!(place, others = taken.len(), "delivers {name} with others, if there are any");
            return Ok(Some(Self {
                coordinator: Arc::clone(coordinator),
                name: name.to_owned(),
                ttl,
                place,
                holding: Mutex::new(Holding {
                    member,
                    day: None,
                    shares: BTreeMap::new(),
                    busy: None,
                    tables: BTreeMap::new(),
                    members: taken.len() + 1,
                }),
                tables_known: Notify::new(),
                moved: Notify::new(),
            }));
        }
        Ok(None)
    }

    /// Keeps the leases, and follows the leader or leads, until a lease is lost or an error needs a person. Cancel-safe.
    pub async fn run(&self) -> Result<()> {
        let (mut renewed, mut leading) = (Instant::now(), Leading::default());
        let tick = (self.ttl / 20).clamp(Duration::from_millis(50), Duration::from_millis(500));
        loop {
            match self.step(&mut renewed, &mut leading).await {
                Ok(()) => {}
                Err(error) if error.class() == Class::Retry && renewed.elapsed() < self.ttl => {
                    tracing::warn!(%error, "the coordinator does not answer: trying again");
                }
                Err(error) if error.class() == Class::Retry => {
                    return Err(
                        Error::fenced("the leases of delivery could not be renewed in time").cause(error)
                    );
                }
                Err(error) => return Err(error),
            }
            tokio::select! {
                () = tokio::time::sleep(tick) => {}
                () = self.tables_known.notified() => {}
            }
        }
    }

    async fn step(&self, renewed: &mut Instant, leading: &mut Leading) -> Result<()> {
        if renewed.elapsed() >= self.ttl {
            return Err(Error::fenced(
                "the leases of delivery were not renewed in time: this process stood still",
            ));
        }
        if renewed.elapsed() >= self.ttl / 3 {
            let (at, leases) = (Instant::now(), self.leases());
            let kept = self.coordinator.renew(&leases, self.ttl).await?;
            // One that was given back meanwhile is none of them.
            let held = self.leases();
            if let Some(lost) = leases.iter().find(|lease| held.contains(lease) && !kept.contains(lease)) {
                let name = &lost.name;
                return Err(Error::fenced(format!("the lease {name} ran out, or was taken over")));
            }
            *renewed = at;
        }
        self.lead(leading).await?;
        self.follow().await
    }

    /// Says who has what, if nobody else does.
    async fn lead(&self, leading: &mut Leading) -> Result<()> {
        if self.held().day.is_none() {
            let lease = self.coordinator.acquire(&format!("deliver/{}/day", self.name), self.ttl).await?;
            if lease.is_some() {
                *leading = Leading::default();
            }
            self.held().day = lease;
        }
        let Some(lease) = self.held().day.clone() else { return Ok(()) };
        let tables = self.held().tables.clone();
        if tables.is_empty() {
            return Ok(());
        }
        let prefix = format!("deliver/{}/member/", self.name);
        let places = places(&self.coordinator.leases(&prefix).await?, &prefix);
        let known = tables.keys().all(|share| leading.costs.contains_key(share));
        let due = leading.costs_at.is_none_or(|at| at.elapsed() >= COSTS_AGAIN);
        if known && !due && places == leading.places {
            return Ok(());
        }
        let told = self.standings().await?;
        let (current, version) = self.assignment().await?;
        // Others may know tables which this process does not know yet.
        let shares: BTreeSet<Share> = tables.keys().chain(current.keys()).copied().collect();
        let cost = |share: &Share| {
            let count = tables.get(share).copied().unwrap_or(1);
            told.get(share).map_or_else(|| ShareState::default().cost(count), |state| state.cost(count))
        };
        leading.costs = shares.iter().map(|share| (*share, cost(share))).collect();
        let assigned = assign(&current, &places, &leading.costs);
        if assigned != current {
            let moved = assigned.iter().filter(|(share, place)| current.get(share) != Some(place)).count();
            tracing::info!(
                processes = places.len(),
                shares = assigned.len(),
                moved,
                "tables are divided anew"
            );
            let value = to_json(&assigned)?;
            if !self.coordinator.set(&lease, &self.assignment_key(), version, &value).await? {
                return Err(Error::fenced(format!("the lease {} ran out, or was taken over", lease.name)));
            }
        }
        (leading.places, leading.costs_at) = (places, Some(Instant::now()));
        Ok(())
    }

    /// Gives up what is not this process's, and takes what is.
    async fn follow(&self) -> Result<()> {
        let (assigned, _) = self.assignment().await?;
        let places: BTreeSet<_> = assigned.values().copied().collect();
        let mine: BTreeSet<Share> =
            assigned.into_iter().filter(|(_, place)| *place == self.place).map(|(share, _)| share).collect();
        let leaving: Vec<Lease> = {
            let mut held = self.held();
            held.members = places.len().max(1);
            let busy = held.busy;
            let leaving: Vec<Share> = held
                .shares
                .keys()
                .copied()
                .filter(|share| !mine.contains(share) && Some(*share) != busy)
                .collect();
            leaving.iter().filter_map(|share| Some(held.shares.remove(share)?.lease)).collect()
        };
        let moved = !leaving.is_empty();
        for lease in leaving {
            // What cannot be given back comes to its end by itself.
            if let Err(error) = self.coordinator.release(&lease).await {
                tracing::warn!(%error, lease = lease.name, "a lease could not be given back");
            }
        }
        let missing: Vec<Share> = {
            let held = self.held();
            mine.into_iter().filter(|share| !held.shares.contains_key(share)).collect()
        };
        let mut taken = false;
        for share in missing {
            let Some(lease) = self.coordinator.acquire(&self.share_key(share), self.ttl).await? else {
                continue;
            };
            let found = self.coordinator.get(&self.share_key(share)).await?;
            let version = found.as_ref().map(|found| found.version);
            let state = found.map(|found| from_json(&found, &lease.name)).transpose()?.unwrap_or_default();
            self.held().shares.insert(share, Owned { lease, version, state });
            taken = true;
        }
        if moved || taken {
            self.moved.notify_one();
        }
        Ok(())
    }

    /// Tells which shares have tables, and how many.
    pub fn know(&self, tables: BTreeMap<Share, usize>) {
        let mut held = self.held();
        if held.tables != tables {
            held.tables = tables;
            self.tables_known.notify_one();
        }
    }

    /// Waits until shares came or went. Cancel-safe.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }

    /// How this process stands among the others.
    pub fn standing(&self) -> Standing {
        let held = self.held();
        Standing { shares: held.shares.len(), known: held.tables.len(), members: held.members }
    }

    /// Whether this process makes the days' manifests.
    pub fn leads(&self) -> bool {
        self.held().day.is_some()
    }

    /// Begins to work on a share, which stays until the guard is gone. None: it is another process's.
    pub fn begin(&self, share: Share) -> Option<Turn<'_>> {
        let mut held = self.held();
        let epoch = held.shares.get(&share)?.lease.epoch;
        held.busy = Some(share);
        Some(Turn { of: self, share, epoch })
    }

    /// How far the tables of all shares are, as their owners have told.
    pub async fn standings(&self) -> Result<BTreeMap<Share, ShareState>> {
        let (known, owned) = {
            let held = self.held();
            (held.tables.keys().copied().collect::<Vec<_>>(), held.shares.clone())
        };
        let asked = known.into_iter().map(|share| {
            let own = owned.get(&share).map(|owned| owned.state.clone());
            async move {
                if let Some(own) = own {
                    return Ok((share, own));
                }
                let key = self.share_key(share);
                let found = self.coordinator.get(&key).await?;
                Ok((share, found.map(|found| from_json(&found, &key)).transpose()?.unwrap_or_default()))
            }
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Gives everything back, so that others need not wait for its end.
    pub async fn leave(&self) {
        let leases = self.leases();
        // The place comes last: whoever divides the tables anew finds them free.
        let shares = join_all(leases.iter().skip(1).map(|lease| self.coordinator.release(lease)));
        let all = async {
            let failed = shares.await.into_iter().find_map(Result::err);
            let member = leases.first().map(|lease| self.coordinator.release(lease));
            match member {
                Some(member) => member.await.err().or(failed),
                None => failed,
            }
        };
        match tokio::time::timeout(LEAVE_PATIENCE, all).await {
            Ok(None) => {}
            Ok(Some(error)) => {
                tracing::warn!(%error, "a lease of delivery could not be given back: it ends by itself");
            }
            Err(_) => tracing::warn!(
                "the leases of delivery could not be given back in time: they end by themselves"
            ),
        }
    }

    /// All leases, the place first.
    fn leases(&self) -> Vec<Lease> {
        let held = self.held();
        let shares = held.shares.values().map(|owned| &owned.lease);
        [&held.member].into_iter().chain(&held.day).chain(shares).cloned().collect()
    }

    async fn assignment(&self) -> Result<(Assignment, Option<u64>)> {
        let key = self.assignment_key();
        match self.coordinator.get(&key).await? {
            Some(found) => Ok((from_json(&found, &key)?, Some(found.version))),
            None => Ok((Assignment::new(), None)),
        }
    }

    fn assignment_key(&self) -> String {
        format!("deliver/{}/assignment/{SHARES}", self.name)
    }

    fn share_key(&self, share: Share) -> String {
        format!("deliver/{}/share/{SHARES}/{share}", self.name)
    }

    fn held(&self) -> MutexGuard<'_, Holding> {
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A share at work; see [`Membership::begin`].
#[derive(Debug)]
pub struct Turn<'m> {
    of: &'m Membership,
    share: Share,
    /// Of the share's lease: a table that was opened under another one is opened again.
    pub epoch: u64,
}

impl Turn<'_> {
    /// What was last told of a table.
    pub fn told(&self, topic: &str) -> Option<TableStanding> {
        self.of.held().shares.get(&self.share)?.state.tables.get(topic).cloned()
    }

    /// Tells how far a table is, for all that come after. `Fenced`: the share is another process's by now.
    pub async fn tell(&self, topic: &str, standing: TableStanding) -> Result<()> {
        let fenced = || Error::fenced(format!("share {} of the tables was taken over", self.share));
        let mut owned = self.of.held().shares.get(&self.share).cloned().ok_or_else(fenced)?;
        owned.state.tables.insert(topic.to_owned(), standing);
        let (key, value) = (self.of.share_key(self.share), to_json(&owned.state)?);
        let coordinator = &self.of.coordinator;
        if !coordinator.set(&owned.lease, &key, owned.version, &value).await? {
            // An earlier one, which had no answer, may have come through.
            owned.version = coordinator.get(&key).await?.map(|found| found.version);
            if !coordinator.set(&owned.lease, &key, owned.version, &value).await? {
                self.of.held().shares.remove(&self.share);
                return Err(fenced());
            }
        }
        owned.version = Some(owned.version.unwrap_or(0) + 1);
        self.of.held().shares.insert(self.share, owned);
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.of.held().busy = None;
    }
}

fn places(leases: &[Lease], prefix: &str) -> BTreeSet<Place> {
    leases.iter().filter_map(|lease| lease.name.strip_prefix(prefix)?.parse().ok()).collect()
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Error::operator("the coordinator's state cannot be written as JSON").cause(error))
}

fn from_json<T: for<'de> serde::Deserialize<'de>>(found: &Versioned, key: &str) -> Result<T> {
    serde_json::from_slice(&found.value).map_err(|error| {
        Error::operator(format!("the coordinator's {key} is nothing that this version reads"))
            .cause(error)
            .mend("Was it written by a newer tidemark? Run that one again, or remove it: it is made anew.")
    })
}
