//! Schema changes as the event trigger tells them: applied where they stand among the rows.
//!
//! ```text
//!   Logical { tidemark.ddl } ─> DdlMessage ─> for each table: what is known of it grows by what the message describes
//!                                               └─> SchemaChange in <name>.ddl, before the rows that follow
//! ```
//!
//! **Why it comes to the same as without the trigger.** Either way the shape which the source has now is laid over the
//! one that is known ([`crate::change::TableSchema::evolve`]); the message only has it at the right place, also where no row follows,
//! and knows what shapes cannot show. When the server describes the table again, before its next row, nothing is new.
//!
//! **Where rows come first.** Those which `CREATE TABLE AS` writes stand before its message: the table is first seen with
//! them, and the message then says that this was all.
//!
//! **What a message may say of a table.** A statement that locks its tables describes them as they are for all that commits
//! before it. `ALTER TYPE` and its like lock none: another session's `ALTER TABLE`, which it did not see, may commit
//! first and stand before it in the stream. Of such a message only the types count, for columns that are known.
//!
//! **Why a table is not taken in that nobody publishes.** The trigger tells of every table. One that is not known yet
//! is taken in if the publication had it when the statement ended; else it is when its first row comes, if ever.

use crate::change::{Column, Position, TableSchema};
use crate::postgres::catalog::PublishedColumns;
use crate::postgres::ddl::{DdlEvent, DdlMessage};

use super::tables::Tables;
use super::told::{Grown, Told};

/// Statements that lock the tables which they describe until they commit.
const LOCKING: [&str; 7] = [
    "ALTER TABLE",
    "ALTER INDEX",
    "COMMENT",
    "CREATE TABLE",
    "CREATE TABLE AS",
    "SELECT INTO",
    "CREATE SCHEMA",
];

/// Applies a message; the changes are to be written in this order. `columns` are those which the publication has.
pub fn apply(
    tables: &mut Tables,
    message: &DdlMessage,
    publication: &str,
    columns: &PublishedColumns,
    xid: Option<u32>,
    position: Position,
) -> Vec<Grown> {
    let statement = || Some(message.statement.as_deref().map(redacted).unwrap_or_default());
    let mut changes = Vec::new();
    for table in &message.dropped {
        changes.extend(tables.end(table.oid, None, position, statement()));
    }
    for table in &message.tables {
        let known = tables.of_oid(table.oid).map(|known| known.schema.name.clone());
        if known.as_ref().is_some_and(|name| *name != table.name) {
            changes.extend(tables.end(table.oid, Some(&table.name), position, statement()));
        }
        let whole = table.whole.as_ref().filter(|_| columns.generated);
        let Some(source) = whole.or(table.schema.as_ref()) else { continue };
        let is_locked = message.event != DdlEvent::DdlCommandEnd || LOCKING.contains(&message.tag.as_str());
        let source = match tables.of_oid(table.oid) {
            Some(known) if !is_locked => with_types_of(&known.schema, source),
            _ => {
                tables.describe(source.clone());
                source.clone()
            }
        };
        let goes_on = known.as_ref() == Some(&table.name);
        let is_streamed = table.is_logged && table.publications.iter().any(|name| name == publication);
        // Columns that the publication leaves out would come and go: its rows describe such a table.
        if !tables.wants(&table.name) || columns.listed.contains(&table.oid) || !(goes_on || is_streamed) {
            continue;
        }
        // A partition's CREATE TABLE tells of its root, too, which has been there before.
        let creating = is_streamed && table.is_created;
        if goes_on && creating {
            changes.extend(tables.was_created(&table.name, xid, position, statement()));
        }
        let told = Told {
            statement: statement(),
            created: known.is_none() && creating,
            rewritten: is_rewritten(message, table.oid, table.is_logged),
        };
        match tables.evolve(source, position, told) {
            Ok(grown) => changes.extend(grown),
            Err(error) => tables.isolate(&table.name, &error),
        }
    }
    changes
}

/// The shape as it is known, its columns with the types that they have in another description.
fn with_types_of(known: &TableSchema, described: &TableSchema) -> TableSchema {
    let live: Vec<usize> = (0..known.columns.len()).filter(|index| !known.columns[*index].dropped).collect();
    let column = |index: &usize| {
        let column = &known.columns[*index];
        let same = |other: &&Column| other.number == column.number && other.name == column.source_name();
        let now = described.columns.iter().find(same).unwrap_or(column);
        Column {
            name: column.source_name().to_owned(),
            source_name: None,
            column_type: now.column_type.clone(),
            type_name: now.type_name.clone(),
            type_oid: now.type_oid,
            type_modifier: now.type_modifier,
            existing: Vec::new(),
            ..column.clone()
        }
    };
    let columns = live.iter().map(column).collect();
    let key = known.key.iter().filter_map(|index| live.iter().position(|other| other == index)).collect();
    TableSchema { columns, key, ..known.clone() }
}

/// Whether rows of a table may be others than those that were streamed; of one that was made logged again, those that it got
/// meanwhile.
fn is_rewritten(message: &DdlMessage, oid: u32, is_logged: bool) -> bool {
    let mut of_table = message.rewritten.iter().filter(|rewritten| rewritten.oid == oid);
    of_table.any(|rewritten| rewritten.changes_values() || (is_logged && rewritten.changes_persistence()))
}

/// A statement without the secrets that it may have: a string of several statements may make a role, too. Of each
/// literal that follows the word PASSWORD, or has it inside (a connection string), only the quotes stay.
fn redacted(statement: &str) -> String {
    const WORD: &str = "password";
    let lower = statement.to_ascii_lowercase();
    if !lower.contains(WORD) {
        return statement.to_owned();
    }
    let (mut out, mut rest, mut at) = (String::with_capacity(statement.len()), statement, 0);
    while let Some(open) = rest.find('\'') {
        let length = rest[open + 1..].find('\'').map_or(rest.len() - open - 1, |length| length);
        let literal = at + open + 1..at + open + 1 + length;
        let secret = lower[at..at + open].trim_end_matches([' ', '\n', '\t', '=', 'e']).ends_with(WORD)
            || lower[literal.clone()].contains(WORD);
        out.push_str(&rest[..=open]);
        out.push_str(if secret { "…" } else { &statement[literal.clone()] });
        let end = (literal.end + 1).min(statement.len());
        out.push_str(&statement[literal.end..end]);
        (rest, at) = (&statement[end..], end);
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn secrets_in_a_string_of_statements_are_left_out() {
        for (statement, told) in [
            ("ALTER TABLE t ADD c text DEFAULT 'a''b'", "ALTER TABLE t ADD c text DEFAULT 'a''b'"),
            (
                "CREATE ROLE r PASSWORD 'geheim'; CREATE TABLE t ()",
                "CREATE ROLE r PASSWORD '…'; CREATE TABLE t ()",
            ),
            ("OPTIONS (user 'u', Password E'geheim')", "OPTIONS (user 'u', Password E'…')"),
            ("CONNECTION 'host=h password=geheim'", "CONNECTION '…'"),
            ("PASSWORD 'geheim", "PASSWORD '…"),
            ("ADD password text", "ADD password text"),
        ] {
            assert_eq!(redacted(statement), told);
        }
    }
}
