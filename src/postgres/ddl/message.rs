//! What the triggers write: JSON, described by `trigger.sql` and `describe.sql`.

use serde::Deserialize;

use crate::change::{TableName, TableSchema};
use crate::postgres::catalog::TableDescription;
use crate::runtime::{Error, Result};

/// The only version of messages there is.
pub(super) const VERSION: u32 = 1;

/// One message. A statement may leave several: of its drops, its rewrites, its end, and more than one of each where
/// it concerns very many tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DdlMessage {
    /// When it was written.
    pub event: DdlEvent,
    /// The command, such as `ALTER TABLE`.
    pub tag: String,
    /// What the client sent, which may hold several statements, or be a `DO` block or a function call; its first
    /// 100,000 characters. None in some background workers.
    pub statement: Option<String>,
    /// The tables concerned which are there, as the statement leaves them, by OID: those altered or created, with their
    /// inheritance children and the root of a partition; those with a column of an altered type. Never temporary ones.
    pub tables: Vec<DescribedTable>,
    /// Tables that are gone.
    pub dropped: Vec<DroppedTable>,
    /// Columns that are gone from tables which stay.
    pub dropped_columns: Vec<DroppedColumn>,
    /// Tables that are about to be written anew, without row events.
    pub rewritten: Vec<Rewritten>,
}

/// When a message was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DdlEvent {
    /// After the command.
    DdlCommandEnd,
    /// After objects were dropped, before the command's own end.
    SqlDrop,
    /// Before a table is rewritten; the catalog has its new shape already.
    TableRewrite,
}

/// A table as a statement left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedTable {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Name.
    pub name: TableName,
    /// The statement has made it: it had no rows before.
    pub is_created: bool,
    /// Its shape without generated columns; `None` where the values of existing rows (`attmissingval`) were too
    /// long for a message, or could not be looked at safely beside other sessions' DDL: ask the catalog.
    pub schema: Option<TableSchema>,
    /// The same with its stored generated columns, where it has any.
    pub whole: Option<TableSchema>,
    /// Of a partition: the OID of the topmost table.
    pub root: Option<u32>,
    /// Of a partitioned table: the OIDs of all partitions below it, on every level. What is attached, detached or
    /// dropped shows here.
    pub partitions: Option<Vec<u32>>,
    /// The publications that sent its rows under its own name when the statement ended.
    pub publications: Vec<String>,
    /// Not an unlogged table, whose rows are never streamed.
    pub is_logged: bool,
}

/// A table that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppedTable {
    /// What `pg_class.oid` was.
    pub oid: u32,
    /// Name.
    pub name: TableName,
}

/// A column that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppedColumn {
    /// `pg_class.oid` of the table.
    pub oid: u32,
    /// The table.
    pub table: TableName,
    /// Name of the column.
    pub name: String,
    /// What `pg_attribute.attnum` was; no other column of the table ever has it.
    pub number: i16,
}

/// A table that is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Rewritten {
    /// `pg_class.oid`.
    pub oid: u32,
    /// `AT_REWRITE_*` of `src/include/commands/event_trigger.h`.
    reason: i32,
}

impl Rewritten {
    /// Whether rows may hold other values afterwards: a column was added with a volatile default, or its type was changed.
    pub const fn changes_values(self) -> bool {
        const DEFAULT_VAL: i32 = 2;
        const COLUMN_REWRITE: i32 = 4;
        self.reason & (DEFAULT_VAL | COLUMN_REWRITE) != 0
    }

    /// Whether it becomes logged, or unlogged: what was written before or after is not in the stream.
    pub const fn changes_persistence(self) -> bool {
        const ALTER_PERSISTENCE: i32 = 1;
        self.reason & ALTER_PERSISTENCE != 0
    }
}

#[derive(Deserialize)]
struct Wire {
    event: DdlEvent,
    tag: String,
    statement: Option<String>,
    created: Vec<u32>,
    dropped: Vec<DroppedObject>,
    rewritten: Vec<Rewritten>,
    tables: Vec<TableDescription>,
}

#[derive(Deserialize)]
struct DroppedObject {
    oid: u32,
    schema: String,
    name: String,
    column: Option<String>,
    number: Option<i16>,
}

impl DdlMessage {
    /// Reads a message's content. Bytes that are no UTF-8, which only a database in `SQL_ASCII` or `MULE_INTERNAL` can send,
    /// are replaced.
    ///
    /// # Errors
    /// Class `Operator` for another version, and for what no trigger of ours writes.
    pub fn parse(content: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let text = String::from_utf8_lossy(content);
        let wrong = |error| {
            Error::operator(format!("a logical message with the prefix {} cannot be read", super::PREFIX))
                .cause(error)
                .mend("Run `tidemark setup`, which installs the trigger of this version.")
        };
        let Versioned { version } = serde_json::from_str(&text).map_err(wrong)?;
        if version != VERSION {
            return Err(Error::operator(format!(
                "a logical message with the prefix {} is of version {version}; this program reads {VERSION}",
                super::PREFIX
            ))
            .mend("Run `tidemark setup` of the newest program that reads this database, and only that."));
        }
        serde_json::from_str::<Wire>(&text).map(Self::from).map_err(wrong)
    }
}

impl From<Wire> for DdlMessage {
    fn from(wire: Wire) -> Self {
        let (mut dropped, mut dropped_columns) = (Vec::new(), Vec::new());
        for DroppedObject { oid, schema, name, column, number } in wire.dropped {
            let table = TableName::new(schema, name);
            match (column, number) {
                (Some(name), Some(number)) => {
                    dropped_columns.push(DroppedColumn { oid, table, name, number });
                }
                _ => dropped.push(DroppedTable { oid, name: table }),
            }
        }
        Self {
            event: wire.event,
            tag: wire.tag,
            statement: wire.statement,
            tables: wire.tables.into_iter().map(|table| described(table, &wire.created)).collect(),
            dropped,
            dropped_columns,
            rewritten: wire.rewritten,
        }
    }
}

fn described(table: TableDescription, created: &[u32]) -> DescribedTable {
    DescribedTable {
        oid: table.oid,
        name: table.table_name(),
        is_created: created.contains(&table.oid),
        whole: (table.is_whole() && table.has_generated()).then(|| table.shape(true)),
        schema: table.is_whole().then(|| table.shape(false)),
        root: table.root,
        is_logged: table.persistence == "p",
        partitions: table.partitions,
        publications: table.publications,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DROP: &str = r#"{"version" : 1, "event" : "sql_drop", "tag" : "DROP SCHEMA", "statement" : null,
        "created":[],"dropped":[{"oid" : 16447, "kind" : "table", "schema" : "s", "name" : "t", "column" : null, "number" : null},
        {"oid" : 16404, "kind" : "table column", "schema" : "s", "name" : "u", "column" : "x", "number" : 5}],
        "rewritten":[],"tables":[]}"#;

    #[test]
    fn what_was_dropped_is_told_apart() {
        let message = DdlMessage::parse(DROP.as_bytes()).unwrap();
        assert_eq!(message.dropped, [DroppedTable { oid: 16447, name: TableName::new("s", "t") }]);
        let table = TableName::new("s", "u");
        let column = DroppedColumn { oid: 16404, table, name: "x".into(), number: 5 };
        assert_eq!((message.event, message.dropped_columns), (DdlEvent::SqlDrop, vec![column]));
    }

    #[test]
    fn other_versions_and_other_content_are_refused_with_what_to_do() {
        let error = DdlMessage::parse(DROP.replace("1,", "2,").as_bytes()).unwrap_err();
        assert!(error.message().contains("version 2"), "{error}");
        for content in ["", "{}", "[]", r#"{"version":1}"#, &DROP[..DROP.len() - 1]] {
            let error = DdlMessage::parse(content.as_bytes()).unwrap_err();
            assert!(error.mend_text().unwrap().contains("tidemark setup"), "{error}");
        }
    }
}
