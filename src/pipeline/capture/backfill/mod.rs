//! Copies of tables: the first one, before the stream begins ([`first`]), and those that are asked for or needed later,
//! while it goes on ([`asked`]).
//!
//! ```text
//!   round 1: point P1, snapshot ─> pieces of many tables, by several sessions ──> rows at P1 - 1 ─┐  state, with every
//!   round 2: point P2, snapshot ─> pieces that are left ────────────────────────> rows at P2 - 1 ─┼─ append: what is left
//!   …                                                                                             └─> whole
//!   stream: every change from P1 on ───────────────────────────────────────────────────────────────────────────────────>
//! ```
//!
//! **A point.** The snapshot which a new slot exports at its consistent point P shows exactly the transactions whose
//! commit record lies below P, also where commits hang between the WAL and their visibility: the server builds it from
//! the WAL, and not from the list of running transactions (`SnapBuildExportSnapshot` in
//! `src/backend/replication/logical/snapbuild.c`). So a row read under it is the row as of P, and stands at P - 1: above
//! every change before P, below every change after. The slot goes as soon as a transaction has the snapshot.
//!
//! **Rounds.** No snapshot is held for longer than `[backfill] snapshot_age_max_ms`, and none outlives its process, so a
//! copy may take several. Of the rows of one key, and its changes, the one with the highest position counts. Then what a
//! copy of rounds P1 < P2 < … and the changes from P1 on make of a key is what Postgres has:
//!
//! * A row that was not changed since P1 has not moved: it has one place and one key, no two pieces share those, all
//!   together leave none out, and each was read whole under some P ([`range`]). It was read once.
//! * A row that was changed at C, the last time: the change stands above every row that was read below C, and a row that
//!   was read under a P above C is that very row.
//! * A key that is no more, and was there at P1 or later: its deletion stands above every row of it that was read.
//!
//! **Values that were not sent.** An update names no TOAST value that it leaves alone; it is completed from the row that
//! is held. One whose row was not read under a point below it is completed by nothing. Where the row is read later, that
//! one stands above it and is whole. Where not, it has moved from what was not read yet to what had been:
//!
//! * by place: any update moves a row. So tables are read by place only where no value lay in TOAST at P1; what came
//!   there since, the stream has sent. The size of the TOAST file is looked at under the snapshot: nothing in it then,
//!   nothing in it before, since a file that was emptied is another one ([`point::Storage`]).
//! * by key: only an update of the key moves a row. The session notes those that leave values alone ([`progress::Moved`]),
//!   and every round after the first also reads the rows of those noted below its point, before the first of its pieces.
//!   From the last round's point on, every key in the log has its values: what is noted later needs no reading.
//!
//! Rows without a key are told apart by nothing: a table of them is read in one round, or from its beginning in the next.
//!
//! **What ends a round for a table.** Its files are looked at under the lock ([`copy::lock_as_it_was`]): after TRUNCATE,
//! a rewrite, or the loss of a partition the copy begins anew, since under an older snapshot such a table looks empty. So
//! it does with another key or other rows published. With other columns it goes on, and the next round describes it.
//!
//! **Partitions that come.** A round reads the partitions that the table had at its point, and no others: the lock holds nobody
//! up who attaches one. Those that a later round reads beside the first one's are noted as those are of which rows come
//! in the stream, since the copy stands for what the table was at its first point.
//!
//! **Progress.** It is in the log's state, in the append with the rows or in a later one, so a kill repeats the pieces
//! that were being read, and no others; rows that were read twice differ in nothing but their position.

mod asked;
mod asking;
mod copy;
mod copying;
mod event;
mod first;
#[cfg(test)]
mod model;
mod needed;
mod point;
mod progress;
mod range;
mod rate;
mod request;
mod round;
mod worker;

use crate::change::TableName;
use crate::postgres::published::Published;
use crate::postgres::wire::Client;
use crate::runtime::Result;

use super::CaptureSettings;
pub use asked::{Backfills, Whole};
pub use event::CopyEvent;
pub use first::{describe_unknown, run};
pub use needed::{Absence, Reason};
use point::Storage;
pub use progress::{CopyProgress, Moved};
pub use round::CopyLimits;

/// A table to be copied.
#[derive(Clone, Debug)]
struct Wanted {
    oid: u32,
    name: TableName,
    published: Published,
    storage: Storage,
    rows_estimated: u64,
}

impl Wanted {
    /// The query form of COPY also reads the partitions of a partitioned table; ONLY keeps to the table itself, as
    /// replication does, where others inherit from it.
    const fn only(&self) -> &'static str {
        if self.storage.partitioned { "" } else { "ONLY " }
    }

    /// SQL for its own rows, of those that a query of a partitioned table gives.
    fn parts(&self) -> Option<String> {
        let oids = || self.published.parts.keys().map(u32::to_string).collect::<Vec<_>>().join(",");
        self.storage.partitioned.then(|| format!("tableoid = ANY ('{{{}}}'::oid[])", oids()))
    }
}

/// The server's clock, microseconds since 1970.
pub(super) async fn now_us(sql: &mut Client) -> Result<i64> {
    sql.query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await?.parse(0)
}
