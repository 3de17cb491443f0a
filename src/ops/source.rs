//! Gauges of the replication stream and of the log.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

use serde::{Deserialize, Serialize};

use super::{lock, now_ms};
use crate::change::Lsn;

/// Silence of the server after which nobody knows what is pending there: twice the pause between keepalives
/// at the default `wal_sender_timeout`.
const SILENCE_MS: i64 = 60_000;

/// From where on the source's figures are told. Zero: never.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SourceThresholds {
    /// The log's lag in seconds: worth knowing …
    pub lag_seconds_warn: f64,
    /// … and a person must look.
    pub lag_seconds_max: f64,
    /// Its lag in bytes of WAL: worth knowing …
    pub lag_bytes_warn: u64,
    /// … and a person must look.
    pub lag_bytes_max: u64,
    /// WAL which the slot may keep.
    pub retained_bytes_max: u64,
    /// Percent of that, or of the server's limit, which are worth knowing.
    pub retained_percent_warn: u64,
    /// Whether the slot is dropped there.
    pub drops_slot: bool,
}

impl Default for SourceThresholds {
    fn default() -> Self {
        Self {
            lag_seconds_warn: 60.0,
            lag_seconds_max: 900.0,
            lag_bytes_warn: 0,
            lag_bytes_max: 0,
            retained_bytes_max: 0,
            retained_percent_warn: 50,
            drops_slot: false,
        }
    }
}

impl SourceThresholds {
    /// The limit of WAL that the slot keeps, the server's or ours, whichever comes first.
    pub fn retained_limit(&self, server: Option<u64>) -> Option<u64> {
        server.into_iter().chain(Some(self.retained_bytes_max).filter(|max| *max > 0)).min()
    }
}

/// The slot, as the server shows it to whoever asks, streaming or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlotLook {
    /// End of the server's WAL.
    pub wal_end: Lsn,
    /// What the slot has confirmed.
    pub confirmed: Lsn,
    /// For so long at least it has not confirmed WAL that was there.
    pub lag_seconds: f64,
    /// WAL which it keeps.
    pub retained_bytes: u64,
    /// `max_slot_wal_keep_size` in bytes, if it is set.
    pub limit_bytes: Option<u64>,
    /// Bytes that may still be written before the server gives WAL of it up; none without a limit, or when it has.
    pub safe_wal_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// What keeps the WAL although all before it is confirmed: the oldest transaction.
    pub held_by: Option<String>,
}

/// The replication stream's gauges. Zero: not known yet.
#[derive(Debug, Default)]
pub struct SourceStats {
    flush_lsn: AtomicU64,
    received_lsn: AtomicU64,
    server_wal_end: AtomicU64,
    heard_ms: AtomicI64,
    /// Commit time up to which everything is durable, while something is pending.
    pending_from_ms: AtomicI64,
    slot: Mutex<Option<SlotLook>>,
    thresholds: OnceLock<SourceThresholds>,
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

    /// What the slot looks like; none: there is none.
    pub fn set_slot(&self, look: Option<SlotLook>) {
        *lock(&self.slot) = look;
    }

    /// From where on figures are told. The first call counts.
    pub fn set_thresholds(&self, thresholds: SourceThresholds) {
        // A second call would be one of another run of the same process, with the same configuration.
        let _ = self.thresholds.set(thresholds);
    }

    /// Another process streams: what this one knew of the stream is of no account any more.
    pub fn left(&self) {
        for gauge in [&self.flush_lsn, &self.received_lsn, &self.server_wal_end, &self.in_flight_bytes] {
            gauge.store(0, Relaxed);
        }
        self.heard_ms.store(0, Relaxed);
        self.pending_from_ms.store(0, Relaxed);
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

    pub(super) fn slot(&self) -> Option<SlotLook> {
        lock(&self.slot).clone()
    }

    pub(super) fn thresholds(&self) -> SourceThresholds {
        self.thresholds.get().copied().unwrap_or_default()
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
