//! A change that the server itself cannot send: as text its row has more than the gigabyte that Postgres ever holds in one
//! piece. Its walsender ends with an error, at each start anew, so that all that can be done is to say where.

use crate::change::Lsn;
use crate::postgres::wire::{ServerError, server_error};
use crate::runtime::Error;

use super::engine::Engine;

/// Adds to the server's error where it happened, if it is that one.
pub fn told(error: Error, after: Lsn, engine: &Engine) -> Error {
    if !server_error(&error).is_some_and(ServerError::is_too_large_for_server) {
        return error;
    }
    let within = engine.transaction().map_or_else(
        || "in the next transaction".to_owned(),
        |transaction| {
            format!("in transaction {}, which commits at {}", transaction.xid, transaction.commit_lsn)
        },
    );
    let table = engine
        .last_table()
        .map_or_else(String::new, |table| format!("; the last table before it is {table}"));
    error
        .context(format!(
            "the server cannot send a change, since its row has more than 1 GB as text (a bytea has twice its size): it is \
             {within}, behind the message at {after}{table}"
        ))
        .mend(
            "Nothing beyond it was acknowledged: the slot keeps its WAL, and no setting makes the server send it. Make the \
             value smaller, or leave its column out of the publication by a column list; then drop the slot, move the log's \
             file and the lake's folders of this source aside, and start again: a new backfill is made.",
        )
}
