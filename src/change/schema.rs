//! The shape of a table, versioned. Shapes only ever grow: see [`TableSchema::evolve`].

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
    /// Name, unquoted.
    pub name: String,
    /// Representation.
    #[serde(rename = "type")]
    pub column_type: ColumnType,
    /// The type as `format_type` prints it, such as `numeric(12,2)`, for people.
    pub type_name: String,
    /// Whether the column may hold nulls.
    pub nullable: bool,
    /// Dropped at the source: stays here, null from then on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
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
}

impl TableSchema {
    /// The columns of the key, in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().map(|index| &self.columns[*index])
    }

    /// The next version: `self` grown by what `source`, the table's shape at the source now, adds.
    ///
    /// Columns are matched by name. One which `source` lacks stays, marked dropped; a new one goes to the
    /// end; type, nullability, key and identity follow the source. Returns `None` when nothing changes.
    pub fn evolve(&self, source: &Self) -> Option<Self> {
        let mut next = self.clone();
        for column in &mut next.columns {
            if let Some(now) = source.columns.iter().find(|c| c.name == column.name) {
                // Rows written before may hold nulls: a column never becomes narrower.
                *column = Column { nullable: column.nullable || now.nullable, ..now.clone() };
            } else {
                column.dropped = true;
                column.nullable = true;
            }
        }
        for column in &source.columns {
            if !next.columns.iter().any(|c| c.name == column.name) {
                next.columns.push(Column { nullable: true, ..column.clone() });
            }
        }
        let place = |index: &usize| next.columns.iter().position(|c| c.name == source.columns[*index].name);
        next.key = source.key.iter().filter_map(place).collect();
        next.identity = source.identity;
        next.oid = source.oid;
        (next != *self).then(|| {
            next.version = SchemaVersion(self.version.0 + 1);
            next
        })
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
    /// The shape before; none for a table seen for the first time.
    pub before: Option<TableSchema>,
    /// The shape after it.
    pub after: TableSchema,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, column_type: ColumnType) -> Column {
        Column { name: name.into(), column_type, type_name: String::new(), nullable: false, dropped: false }
    }

    fn table(columns: Vec<Column>, key: Vec<usize>) -> TableSchema {
        let name = TableName::new("public", "t");
        TableSchema {
            name,
            oid: 1,
            version: SchemaVersion(1),
            columns,
            key,
            identity: ReplicaIdentity::Default,
        }
    }

    #[test]
    fn a_dropped_column_stays_and_new_ones_go_to_the_end() {
        let first = table(vec![column("a", ColumnType::Int32), column("b", ColumnType::TEXT)], vec![0]);
        let source = table(vec![column("z", ColumnType::Bool), column("a", ColumnType::Int64)], vec![1]);
        let next = first.evolve(&source).unwrap();
        assert_eq!(next.version, SchemaVersion(2));
        let names: Vec<_> = next.columns.iter().map(|c| (c.name.as_str(), c.dropped)).collect();
        assert_eq!(names, [("a", false), ("b", true), ("z", false)]);
        assert_eq!(next.columns[0].column_type, ColumnType::Int64);
        assert_eq!(next.key, [0]);
        assert_eq!(next.evolve(&source), None, "the same source adds nothing");
    }
}
