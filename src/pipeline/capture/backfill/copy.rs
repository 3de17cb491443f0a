//! A table under a snapshot: locked as it was, and its rows read.

use crate::change::TableSchema;
use crate::postgres::wire::{Client, CopyOut, quote_ident, sqlstate};
use crate::runtime::{Error, Result};

use super::Wanted;

/// The table is not there any more, or not with these columns.
const GONE: [&str; 2] = ["42P01", "42703"];

/// Locks a table, within the transaction that has begun under a point's snapshot, so that it can be neither truncated
/// nor rewritten to its end; false when that has happened to it since the point.
pub(super) async fn lock_as_it_was(sql: &mut Client, wanted: &Wanted) -> Result<bool> {
    match sql.execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", wanted.name.quoted())).await {
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => wanted.storage.is_now(sql, wanted.oid).await,
    }
}

/// Begins to copy these columns of a table that is locked, and the rows that are published and for which the condition holds.
///
/// The lock holds nobody up who attaches a partition, whose rows an older snapshot sees, too, where they are older: those
/// which the table had at the point are named.
pub(super) async fn copy_out<'c>(
    sql: &'c mut Client,
    wanted: &Wanted,
    schema: &TableSchema,
    condition: Option<&str>,
) -> Result<CopyOut<'c>> {
    let table = wanted.name.quoted();
    let columns: Vec<String> = schema.columns.iter().map(|column| quote_ident(&column.name)).collect();
    let only = wanted.only();
    // Rows for which it is null are not published, and not selected either.
    let published = wanted.published.condition().map(|condition| format!("({condition})"));
    let conditions: Vec<String> =
        [wanted.parts(), published, condition.map(|condition| format!("({condition})"))]
            .into_iter()
            .flatten()
            .collect();
    let filter =
        if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    let statement = format!("COPY (SELECT {} FROM {only}{table}{filter}) TO STDOUT", columns.join(", "));
    // Its columns are there: what else is not is of somebody's condition.
    sql.copy_out(&statement).await.map_err(|error| Error::retry(format!("copying {table}")).cause(error))
}

fn is_gone(error: &Error) -> bool {
    sqlstate(error).is_some_and(|state| GONE.contains(&state))
}
