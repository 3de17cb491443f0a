//! The shape of a table, versioned, and what changes it. Shapes only ever grow: see [`TableSchema::evolve`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ColumnType, Position};

/// A table's qualified name, unquoted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// Namespace, such as `public`.
    pub schema: String,
    /// Table, such as `orders`.
    pub table: String,
}

impl TableName {
    /// A name from its two parts.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self { schema: schema.into(), table: table.into() }
    }

    /// `"schema"."table"`, quoted for SQL.
    pub fn quoted(&self) -> String {
        let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        format!("{}.{}", quote(&self.schema), quote(&self.table))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

impl FromStr for TableName {
    type Err = String;

    /// Splits `schema.table` at the first dot.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('.') {
            Some((schema, table)) if !schema.is_empty() && !table.is_empty() => Ok(Self::new(schema, table)),
            _ => Err(format!("{text:?} is not a table name; expected schema.table")),
        }
    }
}

/// Counts a table's shapes from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SchemaVersion(pub u32);

/// `pg_class.relreplident`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaIdentity {
    /// `d`: the primary key.
    Default,
    /// `n`: none; updates and deletes cannot be carried.
    Nothing,
    /// `f`: the whole old row.
    Full,
    /// `i`: the columns of one unique index.
    Index,
}

/// A column of a [`TableSchema`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Name, unquoted. The column's name at the source, unless `source_name` has that.
    pub name: String,
    /// Representation. It only ever widens.
    #[serde(rename = "type")]
    pub column_type: ColumnType,
    /// The type at the source as `format_type` prints it, such as `numeric(12,2)`, for people.
    pub type_name: String,
    /// `pg_type.oid` of the type at the source; 0 where it is not known.
    #[serde(default, skip_serializing_if = "is_none_oid")]
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`, -1 for none.
    #[serde(default = "no_modifier", skip_serializing_if = "is_no_modifier")]
    pub type_modifier: i32,
    /// Whether the column may hold nulls.
    pub nullable: bool,
    /// Dropped at the source, renamed or of another type there: stays here, null from then on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
    /// `pg_attribute.attnum`, which tells a renamed column from a new one; 0 where it is not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub number: i16,
    /// The name at the source, where a column of another type holds that name here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_name: Option<String>,
    /// Whether it is declared NOT NULL at the source now; rows from before may hold nulls.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_null: bool,
    /// Its comment at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Its default at the source, as SQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// `pg_attribute.attmissingval` as text: what rows from before the column hold. Only in a shape that was just
    /// read from the source: an evolved one has it in `existing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// What rows of older versions hold in it, by version ascending. Empty: whatever they were written with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub existing: Vec<Existing>,
}

/// What a column holds in rows that were written under versions below one, and not below that of the entry before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Existing {
    /// Rows of versions below it.
    pub below: SchemaVersion,
    /// What they hold.
    pub holds: Holds,
}

/// See [`Existing`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// Nothing.
    Null,
    /// A constant: Postgres' text of it.
    Value(String),
    /// What stands in those rows as written, in the column of this name.
    Column(String),
}

impl Column {
    /// A column as it is, with nothing known of its past.
    pub fn new(
        name: impl Into<String>,
        column_type: ColumnType,
        type_name: impl Into<String>,
        nullable: bool,
    ) -> Self {
        Self {
            name: name.into(),
            column_type,
            type_name: type_name.into(),
            type_oid: 0,
            type_modifier: no_modifier(),
            nullable,
            dropped: false,
            number: 0,
            source_name: None,
            not_null: false,
            comment: None,
            default: None,
            missing: None,
            existing: Vec::new(),
        }
    }

    /// Its name at the source, where it is not dropped.
    pub fn source_name(&self) -> &str {
        self.source_name.as_deref().unwrap_or(&self.name)
    }

    /// What rows written under a version hold in it.
    pub fn in_rows_of(&self, version: SchemaVersion) -> Holds {
        match self.existing.iter().find(|existing| version < existing.below) {
            Some(existing) => existing.holds.clone(),
            None => Holds::Column(self.name.clone()),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
const fn is_zero(number: &i16) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
const fn is_none_oid(oid: &u32) -> bool {
    *oid == 0
}

const fn no_modifier() -> i32 {
    -1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
const fn is_no_modifier(modifier: &i32) -> bool {
    *modifier == -1
}

/// One version of a table's shape, as the log and the lake know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// The table.
    #[serde(flatten)]
    pub name: TableName,
    /// `pg_class.oid`; changes when a table is dropped and made again.
    pub oid: u32,
    /// Which shape of the table this is.
    pub version: SchemaVersion,
    /// Columns: those of the first version in table order, later ones at the end.
    pub columns: Vec<Column>,
    /// Indexes into `columns` of the key, in key order; empty when rows have none (then rows are a multiset).
    pub key: Vec<usize>,
    /// What the server logs of an old row.
    pub identity: ReplicaIdentity,
    /// The table's comment at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Dropped or renamed at the source: no rows follow, unless a table of that name is made again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
}

impl TableSchema {
    /// The first version of a shape, without comment.
    pub const fn new(
        name: TableName,
        oid: u32,
        columns: Vec<Column>,
        key: Vec<usize>,
        identity: ReplicaIdentity,
    ) -> Self {
        Self { name, oid, version: SchemaVersion(1), columns, key, identity, comment: None, dropped: false }
    }

    /// The columns of the key, in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().map(|index| &self.columns[*index])
    }
}

/// A schema operation, as one record of the topic `<name>.ddl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaChange {
    /// Where it stands among the changes; rows after it have the shape `after`.
    pub position: Position,
    /// The topic that holds the table's changes.
    pub topic: String,
    /// The statement, where it is known.
    pub statement: Option<String>,
    /// Whether all of it is applied: what would destroy is only told.
    #[serde(default = "yes")]
    pub applied: bool,
    /// What it consists of.
    #[serde(default)]
    pub actions: Vec<SchemaAction>,
    /// The shape before; none for a table seen for the first time.
    pub before: Option<TableSchema>,
    /// The shape after it.
    pub after: TableSchema,
}

const fn yes() -> bool {
    true
}

/// One part of a [`SchemaChange`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaAction {
    /// What it is.
    #[serde(rename = "action")]
    pub kind: ActionKind,
    /// The column at the source, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// Whether it is applied.
    pub applied: bool,
    /// What became of it, for people.
    pub detail: String,
}

/// What a [`SchemaAction`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    /// A table is seen for the first time; it may have had rows before.
    FirstSeen,
    /// A table was created: its rows are in the stream from the first one on.
    CreateTable,
    /// A table of a name that was there before: another one.
    RecreateTable,
    /// A table is gone, with its rows.
    DropTable,
    /// A table has another name or is in another schema; its rows go on under that name.
    RenameTable,
    /// A column was added.
    AddColumn,
    /// A column was dropped.
    DropColumn,
    /// A column has another name.
    RenameColumn,
    /// A column's type holds all values of the former one.
    WidenType,
    /// A column's type holds fewer values than the former one.
    NarrowType,
    /// A column's type is another one.
    ChangeType,
    /// An enum has new labels.
    AddLabels,
    /// A column takes nulls from now on.
    DropNotNull,
    /// A column takes no nulls any more.
    SetNotNull,
    /// Another key.
    ChangeKey,
    /// Another replica identity.
    ChangeIdentity,
    /// Another comment, of the table or of a column.
    Comment,
    /// Another default.
    ChangeDefault,
    /// The rows were written anew, other than they were, without events.
    Rewrite,
}
