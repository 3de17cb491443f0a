//! Tables as the system catalog describes them: which are published, and their shapes.
//!
//! One query describes any number of tables, a JSON object each: columns, the types among them that are not built in
//! (followed through domains and arrays), and the indexes that can be a replica identity. The event trigger of
//! [`super::ddl`] runs the same query, so that both give the same shape.
//!
//! Why the key is what it is: the key of a [`TableSchema`] must be known for the old row of every update and
//! delete. `DEFAULT` logs the primary key, but only one that is checked at once: Postgres ignores a `DEFERRABLE`
//! one (`RelationGetIndexList` in `src/backend/utils/cache/relcache.c`), so such a table has no key here either.
//! `INDEX` logs that index's columns, `FULL` the whole row, of which the primary key is enough.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use super::membership::members_sql;
use super::wire::{Client, Row, quote_literal};
use crate::change::{Column, ColumnType, ReplicaIdentity, TableName, TableSchema, TextKind};
use crate::runtime::{Error, Result};

/// The tables of a publication with their OIDs, by name: partition roots or leaves as `publish_via_partition_root`
/// says; without partitions whose rows are in no WAL. Empty when there is no such publication.
pub async fn published_tables(client: &mut Client, publication: &str) -> Result<Vec<(u32, TableName)>> {
    let sql = format!(
        "SELECT c.oid, n.nspname, c.relname FROM {} p JOIN pg_class c ON c.oid = p.oid \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relpersistence = 'p' ORDER BY 2, 3",
        members_sql(client.server_version(), publication)
    );
    let rows = client.query(&sql).await?;
    rows.iter().map(|row| Ok((row.parse(0)?, TableName::new(text(row, 1), text(row, 2))))).collect()
}

/// Which columns of its tables a publication has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishedColumns {
    /// The tables of which it has a column list, by OID.
    pub listed: HashSet<u32>,
    /// Whether it has the stored generated columns of the others, which came with 18.
    pub generated: bool,
}

impl PublishedColumns {
    /// As they are now; of a publication that is missing, nothing.
    pub async fn load(client: &mut Client, publication: &str) -> Result<Self> {
        // pg_publication_rel.prattrs, which Postgres 14 does not have, and pg_publication.pubgencols, which came with 18.
        let sql = format!(
            "SELECT r.prrelid, coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false) FROM pg_publication p \
             LEFT JOIN pg_publication_rel r ON p.oid = r.prpubid AND to_jsonb(r) ->> 'prattrs' IS NOT NULL \
             WHERE p.pubname = {}",
            quote_literal(publication)
        );
        let mut columns = Self::default();
        for row in client.query(&sql).await? {
            columns.generated = row.is_true(1);
            if row.get(0).is_some() {
                columns.listed.insert(row.parse(0)?);
            }
        }
        Ok(columns)
    }
}

/// The shape of a table without generated columns; `None` if there is no table of that OID.
pub async fn load_table(client: &mut Client, oid: u32) -> Result<Option<TableSchema>> {
    Ok(load_tables(client, &[oid], false).await?.pop())
}

/// The same with its stored generated columns, which a publication may have since 18.
pub async fn load_whole_table(client: &mut Client, oid: u32) -> Result<Option<TableSchema>> {
    Ok(load_tables(client, &[oid], true).await?.pop())
}

/// The shapes of tables, as version 1, by OID. Those that do not exist (any more) are left out.
///
/// Columns stand in table order, without dropped ones; with those that are generated and stored, if they are `generated`.
pub async fn load_tables(client: &mut Client, oids: &[u32], generated: bool) -> Result<Vec<TableSchema>> {
    if oids.is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<_> = oids.iter().map(u32::to_string).collect();
    let tables = format!("'{{{}}}'::oid[]", list.join(","));
    let rows = client.query(&describe_sql(&tables, "true", u64::MAX, client.server_version())).await?;
    rows.iter()
        .map(|row| {
            let description = serde_json::from_str::<TableDescription>(text(row, 2)).map_err(|error| {
                Error::operator(format!("the catalog's description of table {} cannot be read", text(row, 0)))
                    .cause(error)
            })?;
            Ok(description.shape(generated))
        })
        .collect()
}

fn text(row: &Row, column: usize) -> &str {
    row.get(column).unwrap_or_default()
}

/// The query that describes tables: rows of OID, persistence and a [`TableDescription`] in JSON.
///
/// `tables` is an expression of type `oid[]`, `is_locked` one that says whether all of table `c` is to be printed, though
/// that may fail beside other sessions' DDL. Of the values of `attmissingval` no more than `missing_bytes_max` bytes
/// a table are in it.
pub(super) fn describe_sql(
    tables: &str,
    is_locked: &str,
    missing_bytes_max: u64,
    server_version: u32,
) -> String {
    const IN_SCHEMA: &str = "OR EXISTS (SELECT FROM pg_publication_namespace s \
        WHERE s.pnpubid = p.oid AND s.pnnspid = a.relnamespace)";
    include_str!("describe.sql")
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
        .collect::<Vec<_>>()
        .join("\n")
        .replace("{tables}", tables)
        .replace("{is_locked}", is_locked)
        .replace("{missing_bytes_max}", &missing_bytes_max.to_string())
        .replace("{in_schema}", if server_version >= 150_000 { IN_SCHEMA } else { "" })
}

/// What `describe.sql` says of a table.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct TableDescription {
    pub oid: u32,
    schema: String,
    name: String,
    /// `pg_class.relpersistence`.
    pub persistence: String,
    /// `pg_class.relreplident`.
    identity: String,
    /// Of a partition: the topmost table.
    pub root: Option<u32>,
    /// Of a partitioned table: all partitions below it, on every level.
    pub partitions: Option<Vec<u32>>,
    /// The publications that send its rows under its own name.
    pub publications: Vec<String>,
    comment: Option<String>,
    columns: Vec<ColumnDescription>,
    types: Vec<TypeDescription>,
    keys: Vec<KeyDescription>,
}

/// See `pg_attribute`.
#[derive(Clone, Debug, Deserialize)]
struct ColumnDescription {
    number: i16,
    name: String,
    #[serde(rename = "type")]
    type_oid: u32,
    modifier: i32,
    type_name: String,
    not_null: bool,
    generated: String,
    default: Option<String>,
    comment: Option<String>,
    has_default: bool,
    has_missing: bool,
    missing: Option<String>,
}

/// See `pg_type`.
#[derive(Clone, Debug, Deserialize)]
struct TypeDescription {
    oid: u32,
    name: String,
    kind: String,
    base: u32,
    modifier: i32,
    /// Of a real array: the type of its elements.
    element: Option<u32>,
    labels: Option<Vec<String>>,
}

/// An index that can identify rows.
#[derive(Clone, Debug, Deserialize)]
struct KeyDescription {
    primary: bool,
    identity: bool,
    columns: Vec<i16>,
}

/// What the catalog says of a type that is not built in.
#[derive(Debug)]
enum CatalogType {
    /// Labels in order.
    Enum(Vec<String>),
    /// Type and modifier that it stands for.
    Domain(u32, i32),
    /// Type of the elements.
    Array(u32),
    /// A type of an extension which is known by its name.
    Extension(ColumnType),
    Other,
}

type Types = BTreeMap<u32, CatalogType>;

fn read_type(described: &TypeDescription) -> CatalogType {
    match (described.kind.as_str(), described.element, described.name.as_str()) {
        ("e", ..) => CatalogType::Enum(described.labels.clone().unwrap_or_default()),
        ("d", ..) => CatalogType::Domain(described.base, described.modifier),
        (_, Some(element), _) => CatalogType::Array(element),
        ("b", None, "citext") => CatalogType::Extension(ColumnType::TEXT),
        ("b", None, "ltree") => CatalogType::Extension(ColumnType::Text { text: TextKind::Ltree }),
        _ => CatalogType::Other,
    }
}

const OTHER: ColumnType = ColumnType::Text { text: TextKind::Other };

/// The representation of a type. What the catalog does not have (dropped a moment ago) travels as text.
fn classify(types: &Types, oid: u32, modifier: i32) -> ColumnType {
    if let Some(known) = ColumnType::from_builtin(oid, modifier) {
        return known;
    }
    match types.get(&oid) {
        Some(CatalogType::Enum(labels)) => ColumnType::Text { text: TextKind::Enum(labels.clone()) },
        Some(CatalogType::Extension(known)) => known.clone(),
        // A column of a domain has no modifier: the domain does, or the domain below it.
        Some(CatalogType::Domain(base, modifier)) => classify(types, *base, *modifier),
        Some(CatalogType::Array(element)) => match classify(types, *element, modifier) {
            // An array of a domain over an array: its elements' text is that of arrays.
            ColumnType::Array { .. } => OTHER,
            element => ColumnType::Array { element: Box::new(element) },
        },
        Some(CatalogType::Other) | None => OTHER,
    }
}

impl TableDescription {
    /// The table's name.
    pub fn table_name(&self) -> TableName {
        TableName::new(self.schema.clone(), self.name.clone())
    }

    /// Whether nothing was left out of it: values of `attmissingval`, defaults.
    pub fn is_whole(&self) -> bool {
        self.columns.iter().all(|column| {
            column.has_missing == column.missing.is_some() && column.has_default == column.default.is_some()
        })
    }

    /// Whether it has columns that are generated and stored.
    pub fn has_generated(&self) -> bool {
        self.columns.iter().any(|column| column.generated == "s")
    }

    /// As a shape of version 1, with or without what is generated and stored.
    pub fn shape(&self, generated: bool) -> TableSchema {
        let identity = match self.identity.as_str() {
            "n" => ReplicaIdentity::Nothing,
            "f" => ReplicaIdentity::Full,
            "i" => ReplicaIdentity::Index,
            _ => ReplicaIdentity::Default,
        };
        let types: Types = self.types.iter().map(|described| (described.oid, read_type(described))).collect();
        // What is generated when it is read is in no WAL.
        let is_sent = |column: &&ColumnDescription| match column.generated.as_str() {
            "" => true,
            kind => generated && kind == "s",
        };
        let published: Vec<_> = self.columns.iter().filter(is_sent).collect();
        let index = match identity {
            ReplicaIdentity::Default | ReplicaIdentity::Full => self.keys.iter().find(|key| key.primary),
            ReplicaIdentity::Index => self.keys.iter().find(|key| key.identity),
            ReplicaIdentity::Nothing => None,
        };
        let place = |number: &i16| published.iter().position(|column| column.number == *number);
        // A key with a column that is not published (a generated one) is none.
        let key = index.and_then(|index| index.columns.iter().map(place).collect::<Option<Vec<_>>>());
        let columns = published.iter().map(|described| described.column(&types)).collect();
        let mut schema =
            TableSchema::new(self.table_name(), self.oid, columns, key.unwrap_or_default(), identity);
        schema.comment.clone_from(&self.comment);
        schema
    }
}

impl ColumnDescription {
    fn column(&self, types: &Types) -> Column {
        let column_type = classify(types, self.type_oid, self.modifier);
        Column {
            number: self.number,
            not_null: self.not_null,
            default: self.default.clone(),
            missing: self.missing.clone(),
            comment: self.comment.clone(),
            type_oid: self.type_oid,
            type_modifier: self.modifier,
            ..Column::new(self.name.clone(), column_type, self.type_name.clone(), !self.not_null)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_and_arrays_are_followed_to_what_they_stand_for() {
        let types = Types::from([
            (1, CatalogType::Enum(vec!["a".into()])),
            (2, CatalogType::Domain(3, -1)),
            (3, CatalogType::Domain(1700, ((12 << 16) | 2) + 4)),
            (4, CatalogType::Array(1)),
            (5, CatalogType::Array(2)),
            (6, CatalogType::Domain(1009, -1)),
            (7, CatalogType::Array(6)),
            (8, CatalogType::Array(9)),
            (9, CatalogType::Other),
        ]);
        let decimal = ColumnType::Decimal { precision: 12, scale: 2 };
        let array = |element: ColumnType| ColumnType::Array { element: Box::new(element) };
        let label = ColumnType::Text { text: TextKind::Enum(vec!["a".into()]) };
        assert_eq!(classify(&types, 2, -1), decimal);
        assert_eq!(classify(&types, 4, -1), array(label));
        assert_eq!(classify(&types, 5, -1), array(decimal));
        assert_eq!(classify(&types, 6, -1), array(ColumnType::TEXT));
        assert_eq!(classify(&types, 8, -1), array(OTHER));
        for oid in [7, 9, 10] {
            assert_eq!(classify(&types, oid, -1), OTHER, "{oid}");
        }
    }
}
