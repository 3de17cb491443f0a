//! DDL in the stream: event triggers at the source leave a logical message for each statement that concerns a table.
//!
//! ```text
//!   ALTER TABLE ── ddl_command_end, sql_drop, table_rewrite ── tidemark.ddl() ── pg_logical_emit_message
//!                                                                                       │
//!   capture <── DdlMessage <── DdlMessage::parse <── Logical { prefix: PREFIX } <── WAL ─┘
//! ```
//!
//! Why it is in order: the message is transactional and written by the statement itself, when the catalog already has
//! what it did. So it stands behind all rows that the transaction wrote before and before all that it writes
//! after, comes only if the transaction commits, and describes the tables as they are at just that place, which the
//! catalog, asked later, no longer can. One exception: rows that a statement itself writes stand before its
//! message (`CREATE TABLE AS`).
//!
//! Why it is safe for the source: see `trigger.sql`. Messages are bounded (a statement's text is cut at 100,000
//! characters, many tables go in several messages of about 1 MB), and a slot of another database never sees them.

mod install;
mod message;

use std::ops::Range;

pub use install::{DdlTrigger, TriggerUse, UNINSTALL_SQL, install_sql};
pub use message::{DdlEvent, DdlMessage, DescribedTable, DroppedColumn, DroppedTable, Rewritten};

/// Of servers on which the triggers do anything (14 to 18): on one whose catalog nobody has tried, an error of theirs
/// would be one of every statement.
pub const SERVER_VERSIONS: Range<u32> = 140_000..190_000;

/// Prefix of the logical messages.
pub const PREFIX: &str = "tidemark.ddl";
