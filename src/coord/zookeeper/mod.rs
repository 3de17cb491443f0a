//! The coordinator on ZooKeeper, for processes of many machines.
//!
//! ```text
//!   <root>/leases/<name>          persistent; the version of its data is the epoch
//!   <root>/leases/<name>/holder   ephemeral; there while the lease is held
//!   <root>/state/<key>            persistent; the version of its data + 1 is the state's
//! ```
//!
//! - **Epochs only grow.** A lease is taken by one transaction: the data of `<name>` is set at the version that was seen,
//!   and `holder` is created. So each holder has a version of its own, `<name>` is never removed, and of many who try
//!   at once one comes through.
//! - **`set` is one transaction** of three: `<name>` has still the epoch's version, `holder` is still there, and the state
//!   has the expected version. A lease of a session that has expired has no `holder` any more.
//! - **A lost session ends its leases**: ZooKeeper removes `holder`, and whoever held it learns it at the next renewal,
//!   since what is held is noted with its session. A session outlives a cut connection and a server that is started again,
//!   as long as it is resumed within its timeout.
//! - **A lease that is not renewed ends as well**, while the session lives: its holder's own task gives it back after
//!   `ttl`. It also gives back what a broken connection, or a caller that was dropped, left in doubt.

mod session;

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::time::Instant;
use zookeeper_client::{Client, Error as Failure, MultiWriteError};

use super::{Coordinator, Lease, Versioned};
use crate::runtime::{Error, Result};
use session::{LEASES, STATE, Sessions, unescape};

/// A lease that could not be given back is tried again after this long.
const AGAIN: Duration = Duration::from_millis(200);

/// How to reach ZooKeeper, and where to be in it.
#[derive(Clone)]
pub struct ZookeeperOptions {
    /// `host:port` of servers.
    pub servers: Vec<String>,
    /// The node below which everything is. It is made when it is missing.
    pub root: String,
    /// A session that hears of no server for so long has ended. The servers have limits of their own for it.
    pub session_timeout: Duration,
    /// User and password of ZooKeeper's scheme `digest`.
    pub credentials: Option<(String, String)>,
}

impl std::fmt::Debug for ZookeeperOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZookeeperOptions").field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// The coordinator on ZooKeeper; see the module.
#[derive(Debug)]
pub struct ZookeeperCoordinator {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sessions: Sessions,
    holder: String,
    /// One after the other within a process, so that what an earlier attempt left is told from one under way.
    acquiring: tokio::sync::Mutex<()>,
    held: Mutex<HashMap<String, Held>>,
}

/// A lease of this process.
#[derive(Clone, Copy, Debug)]
struct Held {
    epoch: u64,
    session: i64,
    ends: Instant,
    /// Whether ZooKeeper has told that it is ours.
    sure: bool,
}

impl ZookeeperCoordinator {
    /// The servers are reached with its first use, not here.
    pub fn new(options: ZookeeperOptions) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
        let host = host.as_deref().map_or("localhost", str::trim);
        // Tells apart two processes which got the same pid in two containers; no secret.
        let random = RandomState::new().build_hasher().finish() as u32;
        let holder = format!("{host}/{}/{random:08x}", std::process::id());
        let (acquiring, held) = (tokio::sync::Mutex::new(()), Mutex::new(HashMap::new()));
        Self { shared: Arc::new(Shared { sessions: Sessions::new(options), holder, acquiring, held }) }
    }

    /// Whether ZooKeeper answers and all rights are there: takes a lease, sets a state under it, and gives it back.
    /// Cancel-safe.
    pub async fn probe(&self) -> Result<()> {
        const NAME: &str = "check";
        let Some(lease) = self.acquire(NAME, Duration::from_secs(10)).await? else { return Ok(()) };
        let version = self.get(NAME).await?.map(|found| found.version);
        self.set(&lease, NAME, version, self.shared.holder.as_bytes()).await?;
        self.release(&lease).await
    }
}

#[async_trait]
impl Coordinator for ZookeeperCoordinator {
    async fn acquire(&self, name: &str, ttl: Duration) -> Result<Option<Lease>> {
        let this = &self.shared;
        let _turn = this.acquiring.lock().await;
        let client = this.sessions.client().await?;
        let (path, node) = this.lease(name);
        let failed = |failure| this.sessions.error("acquire the lease", &path, failure);
        let version = match client.check_stat(&path).await.map_err(failed)? {
            Some(stat) if stat.num_children == 0 => stat.version,
            Some(_) => {
                this.remove_left_over(&client, name).await.map_err(failed)?;
                return Ok(None);
            }
            None => match client.create(&path, b"", &this.sessions.persistent()).await {
                Ok(_) | Err(Failure::NodeExists) => 0,
                Err(failure) => return Err(failed(failure)),
            },
        };
        let epoch = version as u64 + 1;
        let (session, ends) = (client.session_id().0, Instant::now() + ttl);
        this.held().insert(name.to_owned(), Held { epoch, session, ends, sure: false });
        tokio::spawn(keep_time(Arc::downgrade(&self.shared), name.to_owned(), epoch));
        let data = format!("{epoch} {}", this.holder);
        let mut transaction = client.new_multi_writer();
        let added = transaction
            .add_set_data(&path, data.as_bytes(), Some(version))
            .and_then(|()| transaction.add_create(&node, data.as_bytes(), &this.sessions.ephemeral()));
        added.map_err(failed)?;
        match transaction.commit().await {
            Ok(_) => {
                let mut held = this.held();
                // Its time may have run out meanwhile.
                let Some(ours) = held.get_mut(name).filter(|held| held.epoch == epoch) else {
                    return Ok(None);
                };
                ours.sure = true;
                Ok(Some(Lease { name: name.to_owned(), epoch, holder: this.holder.clone() }))
            }
            Err(MultiWriteError::OperationFailed {
                source: Failure::BadVersion | Failure::NodeExists,
                ..
            }) => {
                this.forget(name, epoch);
                Ok(None)
            }
            // What came of it is not known.
            Err(failure) => {
                if let Some(held) = this.held().get_mut(name).filter(|held| held.epoch == epoch) {
                    held.ends = Instant::now();
                }
                tokio::spawn(keep_time(Arc::downgrade(&self.shared), name.to_owned(), epoch));
                Err(failed(failure.into()))
            }
        }
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Lease>> {
        let this = &self.shared;
        let client = this.sessions.client().await?;
        let session = client.session_id().0;
        let noted = |lease: &&Lease| {
            let held = this.held().get(&lease.name).copied();
            held.is_some_and(|held| held.epoch == lease.epoch && held.session == session)
        };
        let ours: Vec<_> = leases.iter().filter(noted).collect();
        let asked = ours.iter().map(|lease| client.check_stat(&this.lease(&lease.name).1));
        let asked: Vec<_> = asked.collect();
        let mut kept = Vec::with_capacity(ours.len());
        for (lease, found) in ours.into_iter().zip(join_all(asked).await) {
            let found = found.map_err(|f| this.sessions.error("renew the lease", &lease.name, f))?;
            if found.is_none_or(|stat| stat.ephemeral_owner != session) {
                this.forget(&lease.name, lease.epoch);
                continue;
            }
            if let Some(held) = this.held().get_mut(&lease.name).filter(|held| held.epoch == lease.epoch) {
                held.ends = Instant::now() + ttl;
                kept.push(lease.clone());
            }
        }
        Ok(kept)
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        let this = &self.shared;
        match this.held().get_mut(&lease.name) {
            // Renewals do not find it any more, and if this fails, its time is over at once.
            Some(held) if held.epoch == lease.epoch => held.ends = Instant::now(),
            _ => return Ok(()),
        }
        this.give_back(&lease.name, lease.epoch)
            .await
            .map_err(|failure| this.sessions.error("release the lease", &lease.name, failure))
    }

    async fn leases(&self, prefix: &str) -> Result<Vec<Lease>> {
        let this = &self.shared;
        let client = this.sessions.client().await?;
        let folder = this.sessions.path(LEASES, None);
        let failed = |failure| this.sessions.error("list the leases of", &folder, failure);
        let nodes = client.list_children(&folder).await.map_err(failed)?;
        let mut names: Vec<_> = nodes.iter().filter_map(|node| unescape(node)).collect();
        names.retain(|name| name.starts_with(prefix));
        names.sort_unstable();
        let asked: Vec<_> = names.iter().map(|name| client.get_data(&this.lease(name).1)).collect();
        let mut leases = Vec::new();
        for (name, found) in names.into_iter().zip(join_all(asked).await) {
            match found {
                Ok((data, _)) => leases.extend(parse(name, &data)),
                Err(Failure::NoNode) => {}
                Err(failure) => return Err(failed(failure)),
            }
        }
        Ok(leases)
    }

    async fn get(&self, key: &str) -> Result<Option<Versioned>> {
        let this = &self.shared;
        let client = this.sessions.client().await?;
        let path = this.sessions.path(STATE, Some(key));
        match client.get_data(&path).await {
            Ok((value, stat)) => Ok(Some(Versioned { version: stat.version as u64 + 1, value })),
            Err(Failure::NoNode) => Ok(None),
            Err(failure) => Err(this.sessions.error("read", &path, failure)),
        }
    }

    async fn set(&self, lease: &Lease, key: &str, expected: Option<u64>, value: &[u8]) -> Result<bool> {
        let this = &self.shared;
        let client = this.sessions.client().await?;
        let ((path, node), state) = (this.lease(&lease.name), this.sessions.path(STATE, Some(key)));
        let failed = |failure| this.sessions.error("set", &state, failure);
        let version =
            |number: u64| i32::try_from(number).map_err(|_| Error::operator("a version beyond ZooKeeper's"));
        let mut transaction = client.new_multi_writer();
        transaction.add_check_version(&path, version(lease.epoch)?).map_err(failed)?;
        transaction.add_check_version(&node, -1).map_err(failed)?;
        match expected {
            None => transaction.add_create(&state, value, &this.sessions.persistent()),
            Some(0) => return Ok(false),
            Some(expected) => transaction.add_set_data(&state, value, Some(version(expected - 1)?)),
        }
        .map_err(failed)?;
        match transaction.commit().await {
            Ok(_) => Ok(true),
            Err(MultiWriteError::OperationFailed {
                source: Failure::BadVersion | Failure::NodeExists | Failure::NoNode,
                ..
            }) => Ok(false),
            Err(failure) => Err(failed(failure.into())),
        }
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The nodes of a lease: its own, and its holder's.
    fn lease(&self, name: &str) -> (String, String) {
        let path = self.sessions.path(LEASES, Some(name));
        let node = format!("{path}/holder");
        (path, node)
    }

    fn forget(&self, name: &str, epoch: u64) {
        let mut held = self.held();
        if held.get(name).is_some_and(|held| held.epoch == epoch) {
            held.remove(name);
        }
    }

    /// Removes the holder of a lease if it is this session's and nobody here knows of it.
    async fn remove_left_over(&self, client: &Client, name: &str) -> Result<(), Failure> {
        if self.held().contains_key(name) {
            return Ok(());
        }
        let node = self.lease(name).1;
        match client.check_stat(&node).await? {
            Some(stat) if stat.ephemeral_owner == client.session_id().0 => {
                match client.delete(&node, None).await {
                    Ok(()) | Err(Failure::NoNode) => Ok(()),
                    Err(failure) => Err(failure),
                }
            }
            _ => Ok(()),
        }
    }

    /// Removes the holder of a lease, if it is still that of the epoch, and forgets it.
    async fn give_back(&self, name: &str, epoch: u64) -> Result<(), Failure> {
        let noted = self.held().get(name).copied().filter(|held| held.epoch == epoch);
        let client = self.sessions.living().await;
        // Leases of a session that has ended end with it.
        if let (Some(held), Some(client)) = (noted, client)
            && client.session_id().0 == held.session
        {
            let (path, node) = self.lease(name);
            let mut transaction = client.new_multi_writer();
            transaction.add_check_version(&path, i32::try_from(epoch).unwrap_or(i32::MAX))?;
            transaction.add_delete(&node, None)?;
            match transaction.commit().await {
                Ok(_)
                | Err(MultiWriteError::OperationFailed {
                    source: Failure::NoNode | Failure::BadVersion,
                    ..
                }) => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        self.forget(name, epoch);
        Ok(())
    }
}

/// Gives a lease back when it was not renewed in time; ends with the lease.
async fn keep_time(shared: Weak<Shared>, name: String, epoch: u64) {
    loop {
        let Some(this) = shared.upgrade() else { return };
        let Some(held) = this.held().get(&name).copied().filter(|held| held.epoch == epoch) else { return };
        if held.ends > Instant::now() {
            drop(this);
            tokio::time::sleep_until(held.ends).await;
            continue;
        }
        if held.sure {
            tracing::debug!(lease = name, epoch, "a lease was not renewed in time, or given back");
        }
        if this.give_back(&name, epoch).await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// A lease by its holder's data.
fn parse(name: String, data: &[u8]) -> Option<Lease> {
    let (epoch, holder) = std::str::from_utf8(data).ok()?.split_once(' ')?;
    Some(Lease { name, epoch: epoch.parse().ok()?, holder: holder.to_owned() })
}
