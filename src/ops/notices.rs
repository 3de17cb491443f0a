//! Notices on published days, by endpoint.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::lock;

/// Counters of all endpoints.
pub(super) type Endpoints = Mutex<BTreeMap<&'static str, Arc<NoticeStats>>>;

/// Counters of an endpoint.
#[derive(Debug, Default)]
pub struct NoticeStats {
    sent: AtomicU64,
    failed: AtomicU64,
    pending: AtomicU64,
}

impl NoticeStats {
    /// A notice was taken.
    pub fn sent(&self) {
        self.sent.fetch_add(1, Relaxed);
    }

    /// A try failed.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// Days that are complete and not told.
    pub fn set_pending(&self, days: u64) {
        self.pending.store(days, Relaxed);
    }
}

/// An endpoint at an instant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticesReport {
    /// Notices that were taken, since the process began.
    pub sent: u64,
    /// Tries that failed.
    pub failed: u64,
    /// Days that are complete and not told.
    pub pending_days: u64,
}

/// Whether a component is an endpoint of notices: the process does its work without it.
pub(super) fn is_endpoint(component: &str) -> bool {
    component.starts_with("notices.")
}

pub(super) fn report(endpoints: &Endpoints) -> BTreeMap<String, NoticesReport> {
    let of = |stats: &NoticeStats| NoticesReport {
        sent: stats.sent.load(Relaxed),
        failed: stats.failed.load(Relaxed),
        pending_days: stats.pending.load(Relaxed),
    };
    lock(endpoints).iter().map(|(name, stats)| ((*name).to_owned(), of(stats))).collect()
}
