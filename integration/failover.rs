//! The source is another server, or not what it was: a standby is promoted, a backup is restored, a slot is gone. What
//! can go on goes on exactly; of the rest the very range is told, nothing is passed over, and one command leads on.
//! Through the real binary, against primaries and standbys of PostgreSQL 17 and 18. The oracle is Postgres itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod support;

#[path = "failover/gap.rs"]
mod gap;
#[path = "failover/pair.rs"]
mod pair;
#[path = "failover/promotion.rs"]
mod promotion;
#[path = "failover/troubles.rs"]
mod troubles;
