//! Coordination between processes: who may do what (leases with a fencing epoch), and what they have agreed
//! on (small versioned state).
//!
//! A lease alone protects nothing: its holder may be paused past its end and wake up believing. What makes it
//! safe is that every write which it guards carries the epoch or is a conditional create. The lease only
//! keeps two processes from doing the same work at the same time.
//!
//! To add a coordinator, implement [`Coordinator`] and run [`conformance`] on it.

pub mod conformance;
mod sqlite;
mod zookeeper;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::runtime::Result;

pub use sqlite::SqliteCoordinator;
pub use zookeeper::{ZookeeperCoordinator, ZookeeperOptions};

/// Ownership of a name, with its fencing number: each new holder's epoch is higher than every earlier one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What is owned, such as `deliver/shop/public.orders`.
    pub name: String,
    /// Grows with each acquisition of this name.
    pub epoch: u64,
    /// Who holds it, for people: host, pid and a random part.
    pub holder: String,
}

/// State with its version; the first is 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// Grows by one at each change.
    pub version: u64,
    /// The state.
    pub value: Vec<u8>,
}

/// Leases and small versioned state. All methods are cancel-safe.
#[async_trait]
pub trait Coordinator: Send + Sync + fmt::Debug + 'static {
    /// Takes the lease if nobody holds it, or if its holder has not renewed it for `ttl`. `None`: held by another.
    async fn acquire(&self, name: &str, ttl: Duration) -> Result<Option<Lease>>;

    /// Keeps leases for another `ttl`, all at once, and gives those which are kept. Another one was lost, and its holder
    /// must stop.
    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Lease>>;

    /// Gives the lease back, if it is still held.
    async fn release(&self, lease: &Lease) -> Result<()>;

    /// The leases which are held now and whose names begin with `prefix`, by name.
    async fn leases(&self, prefix: &str) -> Result<Vec<Lease>>;

    /// The state under a key.
    async fn get(&self, key: &str) -> Result<Option<Versioned>>;

    /// Sets the state if its version is still `expected` (`None`: if there is none yet) and `lease` is still
    /// held, in one atomic step. `false`: it was not, and nothing has changed. After an error it may have been set.
    async fn set(&self, lease: &Lease, key: &str, expected: Option<u64>, value: &[u8]) -> Result<bool>;
}
