//! As which table a walsender before PostgreSQL 15 sends the changes of a partition.
//!
//! Its output plugin remembers of each table whether it is published, and as which root, and after ATTACH and DETACH goes on
//! with what it remembers (`rel_sync_cache_relation_cb` in `src/backend/replication/pgoutput/pgoutput.c` of 14 has it send
//! the shape again, and no more): changes of a detached partition come as the root's, those of an attached table as its own
//! or not at all. A new connection remembers nothing. So the stream is taken up again once it has passed what a sight saw,
//! before anybody asks for the copy that the table needs: its point lies beyond all that was sent wrongly.

use std::collections::BTreeMap;

use crate::postgres::published::Sight;

/// Servers from here on look again after ATTACH and DETACH.
const LOOKS_AGAIN: u32 = 150_000;

/// What held rows of which table when the stream was last taken up, as far as known: OIDs, and when each was attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes(BTreeMap<u32, u64>);

impl Routes {
    /// Those that a sight saw.
    fn seen(sight: &Sight) -> Self {
        let parts = sight.tables.values().flat_map(|table| &table.parts);
        Self(parts.map(|(oid, part)| (*oid, part.joined)).collect())
    }

    /// The routes of a sight that the stream has passed, where the server may still send by others.
    pub fn stale(&self, sight: &Sight, server_version: u32) -> Option<Self> {
        if server_version >= LOOKS_AGAIN {
            return None;
        }
        Some(Self::seen(sight)).filter(|seen| seen != self)
    }
}

impl FromIterator<(u32, u64)> for Routes {
    fn from_iter<I: IntoIterator<Item = (u32, u64)>>(parts: I) -> Self {
        Self(parts.into_iter().collect())
    }
}
