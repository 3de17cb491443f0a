//! The embedded coordinator: one SQLite file, `coordinator.db`, for the processes of one machine.
//!
//! Time is `CLOCK_BOOTTIME`, which no clock step moves and which goes on while the machine sleeps, together
//! with the kernel's boot id: a lease from before the last boot has expired. Each method is one transaction
//! that takes the write lock first, so "still held, and still this version" and the write that depends on it
//! are one step.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, params};
use rustix::time::{ClockId, clock_gettime};

use super::{Coordinator, Lease, Versioned};
use crate::runtime::sqlite::{self, Kind};
use crate::runtime::{Error, Result};

const KIND: Kind = Kind {
    name: "coordinator",
    application_id: 0x5469_6443, // "TidC"
    version: 1,
    page_bytes: 4096,
    // A released lease stays as a row without an end, because its epoch must never come again.
    schema: "
        CREATE TABLE leases (
            name    TEXT PRIMARY KEY,
            epoch   INTEGER NOT NULL,
            holder  TEXT NOT NULL,
            boot_id TEXT NOT NULL,
            ends_ms INTEGER          -- CLOCK_BOOTTIME of boot_id; null: released
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE state (
            key     TEXT PRIMARY KEY,
            version INTEGER NOT NULL,
            value   BLOB NOT NULL
        ) STRICT, WITHOUT ROWID;",
};

/// The embedded coordinator; see the module.
#[derive(Debug)]
pub struct SqliteCoordinator {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    connection: Mutex<Connection>,
    holder: String,
    boot_id: String,
}

impl SqliteCoordinator {
    /// Opens the coordinator, creating file and folder when there is none. Blocks for some milliseconds.
    /// `Operator`: the file is not ours, is of a newer version, or cannot be written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let connection = Mutex::new(sqlite::open(&path, &KIND)?);
        let boot_id = kernel("random/boot_id")?;
        let host = kernel("hostname").unwrap_or_else(|_| "localhost".into());
        // Tells apart two processes which got the same pid in two containers; no secret.
        let random = RandomState::new().build_hasher().finish() as u32;
        let holder = format!("{host}/{}/{random:08x}", std::process::id());
        Ok(Self { shared: Arc::new(Shared { path, connection, holder, boot_id }) })
    }

    /// Runs a transaction on a blocking thread. It goes on to its end when the caller is dropped.
    async fn with<T: Send + 'static>(
        &self,
        doing: &'static str,
        job: impl FnOnce(&Shared, &Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        let task = tokio::task::spawn_blocking(move || {
            let mut connection = shared.connection.lock().unwrap_or_else(PoisonError::into_inner);
            sqlite::immediate(&mut connection, |c| job(&shared, c))
                .map_err(|e| sqlite::error(&shared.path, doing, e))
        });
        task.await
            .map_err(|e| Error::operator(format!("cannot {doing}: the coordinator has stopped")).cause(e))?
    }
}

#[async_trait]
impl Coordinator for SqliteCoordinator {
    async fn acquire(&self, name: &str, ttl: Duration) -> Result<Option<Lease>> {
        let name = name.to_owned();
        self.with("acquire a lease", move |this, c| {
            if this.live(c, &name)?.is_some() {
                return Ok(None);
            }
            let sql = "INSERT INTO leases VALUES (?1, 1, ?2, ?3, ?4) ON CONFLICT (name) DO UPDATE
                       SET epoch = epoch + 1, holder = ?2, boot_id = ?3, ends_ms = ?4 RETURNING epoch";
            let epoch = c
                .prepare_cached(sql)?
                .query_row(params![name, this.holder, this.boot_id, end_ms(ttl)], |row| row.get(0))?;
            Ok(Some(Lease { name, epoch, holder: this.holder.clone() }))
        })
        .await
    }

    async fn renew(&self, leases: &[Lease], ttl: Duration) -> Result<Vec<Lease>> {
        let mut leases = leases.to_vec();
        self.with("renew leases", move |this, c| {
            let mut lost = Vec::new();
            for lease in &leases {
                if this.is_held(c, lease)? {
                    c.prepare_cached("UPDATE leases SET ends_ms = ?2 WHERE name = ?1")?
                        .execute(params![lease.name, end_ms(ttl)])?;
                } else {
                    lost.push(lease.clone());
                }
            }
            leases.retain(|lease| !lost.contains(lease));
            Ok(leases)
        })
        .await
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        let lease = lease.clone();
        self.with("release a lease", move |_, c| {
            c.prepare_cached(
                "UPDATE leases SET ends_ms = NULL WHERE name = ?1 AND epoch = ?2 AND holder = ?3",
            )?
            .execute(params![lease.name, lease.epoch, lease.holder])?;
            Ok(())
        })
        .await
    }

    async fn leases(&self, prefix: &str) -> Result<Vec<Lease>> {
        let prefix = prefix.to_owned();
        self.with("list leases", move |this, c| {
            let sql = "SELECT name, epoch, holder FROM leases
                       WHERE boot_id = ?1 AND ends_ms > ?2 AND substr(name, 1, length(?3)) = ?3 ORDER BY name";
            let mut query = c.prepare_cached(sql)?;
            let found = query.query_map(params![this.boot_id, now_ms(), prefix], |row| {
                Ok(Lease { name: row.get(0)?, epoch: row.get(1)?, holder: row.get(2)? })
            })?;
            found.collect()
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Option<Versioned>> {
        let key = key.to_owned();
        self.with("read the coordinator's state", move |_, c| {
            c.prepare_cached("SELECT version, value FROM state WHERE key = ?1")?
                .query_row([key], |row| Ok(Versioned { version: row.get(0)?, value: row.get(1)? }))
                .optional()
        })
        .await
    }

    async fn set(&self, lease: &Lease, key: &str, expected: Option<u64>, value: &[u8]) -> Result<bool> {
        let (lease, key, value) = (lease.clone(), key.to_owned(), value.to_vec());
        self.with("set the coordinator's state", move |this, c| {
            if !this.is_held(c, &lease)? {
                return Ok(false);
            }
            let changed = match expected {
                None => c
                    .prepare_cached("INSERT INTO state VALUES (?1, 1, ?2) ON CONFLICT DO NOTHING")?
                    .execute(params![key, value])?,
                Some(version) => c
                    .prepare_cached(
                        "UPDATE state SET version = version + 1, value = ?2 WHERE key = ?1 AND version = ?3",
                    )?
                    .execute(params![key, value, version])?,
            };
            Ok(changed == 1)
        })
        .await
    }
}

impl Shared {
    /// The lease on a name, if it is held and has not ended.
    fn live(&self, c: &Connection, name: &str) -> rusqlite::Result<Option<Lease>> {
        let sql = "SELECT epoch, holder FROM leases WHERE name = ?1 AND boot_id = ?2 AND ends_ms > ?3";
        c.prepare_cached(sql)?
            .query_row(params![name, self.boot_id, now_ms()], |row| {
                Ok(Lease { name: name.to_owned(), epoch: row.get(0)?, holder: row.get(1)? })
            })
            .optional()
    }

    fn is_held(&self, c: &Connection, lease: &Lease) -> rusqlite::Result<bool> {
        Ok(self.live(c, &lease.name)?.is_some_and(|live| live == *lease))
    }
}

/// Milliseconds since boot, with those of sleep.
fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

fn end_ms(ttl: Duration) -> u64 {
    now_ms() + ttl.as_millis() as u64
}

fn kernel(name: &str) -> Result<String> {
    let path = format!("/proc/sys/kernel/{name}");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(e) => {
            Err(Error::operator(format!("cannot read {path}, which tells one boot from another")).cause(e))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coord::conformance;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_conforms() {
        let dir = tempfile::tempdir().unwrap();
        conformance::run(|name: String| {
            let path = dir.path().join(name).join("coordinator.db");
            async move { Arc::new(SqliteCoordinator::open(path).unwrap()) as Arc<dyn Coordinator> }
        })
        .await;
    }

    #[tokio::test]
    async fn a_lease_from_before_the_last_boot_has_expired() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coordinator.db");
        let coordinator = SqliteCoordinator::open(&path).unwrap();
        let lease = coordinator.acquire("a", Duration::from_secs(3600)).await.unwrap().unwrap();
        assert!(coordinator.acquire("a", Duration::from_secs(1)).await.unwrap().is_none());
        Connection::open(&path).unwrap().execute("UPDATE leases SET boot_id = 'earlier'", []).unwrap();
        let kept = coordinator.renew(std::slice::from_ref(&lease), Duration::from_secs(1)).await.unwrap();
        assert!(kept.is_empty());
        assert!(!coordinator.set(&lease, "k", None, b"v").await.unwrap());
        let next = coordinator.acquire("a", Duration::from_secs(1)).await.unwrap().unwrap();
        assert_eq!(next.epoch, lease.epoch + 1);
    }
}
