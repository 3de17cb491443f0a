//! What copies of tables take from the source at the moment.

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering::Relaxed};

use super::now_ms;

/// The snapshot of a round of copies, and the connections that read under it.
#[derive(Debug, Default)]
pub struct Copies {
    /// When it was taken; zero: none is held.
    taken_ms: AtomicI64,
    connections: AtomicU32,
}

impl Copies {
    /// A round has its snapshot, and reads with as many connections at most.
    pub fn began(&self, connections: u32) {
        self.taken_ms.store(now_ms(), Relaxed);
        self.connections.store(connections, Relaxed);
    }

    /// It is over.
    pub fn ended(&self) {
        self.taken_ms.store(0, Relaxed);
    }

    /// When the snapshot that is held was taken, milliseconds since 1970, and how many connections read.
    pub(super) fn held(&self) -> Option<(i64, u32)> {
        let taken_ms = self.taken_ms.load(Relaxed);
        (taken_ms != 0).then(|| (taken_ms, self.connections.load(Relaxed)))
    }
}
