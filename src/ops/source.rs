//! Gauges of the replication stream and of the log.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::now_ms;
use crate::change::Lsn;

/// Silence of the server after which nobody knows what is pending there: twice the pause between keepalives
/// at the default `wal_sender_timeout`.
const SILENCE_MS: i64 = 60_000;

/// The replication stream's gauges. Zero: not known yet.
#[derive(Debug, Default)]
pub struct SourceStats {
    flush_lsn: AtomicU64,
    received_lsn: AtomicU64,
    server_wal_end: AtomicU64,
    heard_ms: AtomicI64,
    /// Commit time up to which everything is durable, while something is pending.
    pending_from_ms: AtomicI64,
    slot_retained_bytes: AtomicU64,
    slot_limit_bytes: AtomicU64,
    in_flight_bytes: AtomicU64,
    spooled_bytes: AtomicU64,
}

impl SourceStats {
    /// The server said something; `wal_end` is its end of WAL (in each keepalive and data message).
    pub fn heard(&self, wal_end: Lsn) {
        self.server_wal_end.fetch_max(wal_end.0, Relaxed);
        self.heard_ms.store(now_ms(), Relaxed);
    }

    /// A transaction's commit was received: its `end_lsn` and its commit time.
    pub fn received(&self, end_lsn: Lsn, commit_ms: i64) {
        let before = self.received_lsn.fetch_max(end_lsn.0, Relaxed);
        if self.flush_lsn.load(Relaxed) >= before {
            // Nothing was pending: the lag counts from this transaction, not from the last one before a quiet night.
            self.pending_from_ms.store(commit_ms, Relaxed);
        }
    }

    /// Everything up to `flush_lsn` is durable. `commit_ms`: commit time of the last transaction below it, if
    /// it is one (and not a keepalive's advance).
    pub fn durable(&self, flush_lsn: Lsn, commit_ms: Option<i64>) {
        self.flush_lsn.store(flush_lsn.0, Relaxed);
        if let Some(commit_ms) = commit_ms {
            self.pending_from_ms.store(commit_ms, Relaxed);
        }
    }

    /// WAL which the slot retains, and `max_slot_wal_keep_size` in bytes if it is set.
    pub fn set_slot(&self, retained_bytes: u64, limit_bytes: Option<u64>) {
        self.slot_retained_bytes.store(retained_bytes, Relaxed);
        self.slot_limit_bytes.store(limit_bytes.unwrap_or(0), Relaxed);
    }

    /// Bytes between the socket and the log.
    pub fn set_in_flight(&self, bytes: u64) {
        self.in_flight_bytes.store(bytes, Relaxed);
    }

    /// Bytes of transactions in progress that are kept on disk.
    pub fn set_spooled(&self, bytes: u64) {
        self.spooled_bytes.store(bytes, Relaxed);
    }

    pub(super) fn flush_lsn(&self) -> Lsn {
        Lsn(self.flush_lsn.load(Relaxed))
    }

    pub(super) fn received_lsn(&self) -> Lsn {
        Lsn(self.received_lsn.load(Relaxed))
    }

    pub(super) fn server_wal_end(&self) -> Lsn {
        Lsn(self.server_wal_end.load(Relaxed))
    }

    pub(super) fn slot_retained_bytes(&self) -> u64 {
        self.slot_retained_bytes.load(Relaxed)
    }

    pub(super) fn slot_limit_bytes(&self) -> Option<u64> {
        Some(self.slot_limit_bytes.load(Relaxed)).filter(|limit| *limit > 0)
    }

    pub(super) fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes.load(Relaxed)
    }

    pub(super) fn spooled_bytes(&self) -> u64 {
        self.spooled_bytes.load(Relaxed)
    }

    /// Whether a server was ever heard: a process that only delivers has no source.
    pub(super) fn is_known(&self) -> bool {
        self.heard_ms.load(Relaxed) != 0
    }

    /// WAL of the server that is not durable in the log yet. Includes WAL of other databases until the server
    /// says that there was nothing for us in it.
    pub(super) fn lag_bytes(&self) -> u64 {
        self.server_wal_end().bytes_since(self.flush_lsn())
    }

    /// Age of the newest commit up to which everything is durable, while something is pending; zero when idle.
    /// When the server has been silent for long, the time of the silence: what is pending there is not known.
    pub(super) fn lag_ms(&self, now_ms: i64) -> i64 {
        let silent = now_ms - self.heard_ms.load(Relaxed);
        if self.received_lsn.load(Relaxed) > self.flush_lsn.load(Relaxed) {
            (now_ms - self.pending_from_ms.load(Relaxed)).max(0)
        } else if self.is_known() && silent > SILENCE_MS {
            silent
        } else {
            0
        }
    }
}

/// The log's gauges.
#[derive(Debug, Default)]
pub struct LogStats {
    bytes: AtomicU64,
    bytes_max: AtomicU64,
    oldest_undelivered_ms: AtomicI64,
}

impl LogStats {
    /// Size of the log, and the size at which appends stop (zero: none).
    pub fn set_size(&self, bytes: u64, bytes_max: u64) {
        self.bytes.store(bytes, Relaxed);
        self.bytes_max.store(bytes_max, Relaxed);
    }

    /// Commit time of the oldest record that is not staged yet; none when all are.
    pub fn set_oldest_undelivered(&self, commit_ms: Option<i64>) {
        self.oldest_undelivered_ms.store(commit_ms.unwrap_or(0), Relaxed);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    pub(super) fn bytes_max(&self) -> Option<u64> {
        Some(self.bytes_max.load(Relaxed)).filter(|max| *max > 0)
    }

    pub(super) fn oldest_undelivered_ms(&self) -> Option<i64> {
        Some(self.oldest_undelivered_ms.load(Relaxed)).filter(|ms| *ms != 0)
    }
}
