//! Tables as the system catalog describes them: which are published, and their shapes.
//!
//! Three queries load any number of tables: columns, the types among them that are not built in (followed
//! through domains and arrays), and the index that is each table's replica identity.
//!
//! Why the key is what it is: the key of a [`TableSchema`] must be known for the old row of every update and
//! delete. `DEFAULT` logs the primary key, but only one that is checked at once: Postgres ignores a `DEFERRABLE`
//! one (`RelationGetIndexList` in `src/backend/utils/cache/relcache.c`), so such a table has no key here either.
//! `INDEX` logs that index's columns, `FULL` the whole row, of which the primary key is enough.

use std::collections::{BTreeMap, BTreeSet};

use super::wire::{Client, Row, quote_literal};
use crate::change::{Column, ColumnType, ReplicaIdentity, TableName, TableSchema, TextKind};
use crate::runtime::{Error, Result};

/// The tables of a publication with their OIDs, by name: partition roots or leaves as `publish_via_partition_root`
/// says. Empty when there is no such publication.
pub async fn published_tables(client: &mut Client, publication: &str) -> Result<Vec<(u32, TableName)>> {
    let sql = format!(
        "SELECT c.oid, n.nspname, c.relname FROM pg_publication_tables p \
         JOIN pg_namespace n ON n.nspname = p.schemaname \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename \
         WHERE p.pubname = {} ORDER BY 2, 3",
        quote_literal(publication)
    );
    let rows = client.query(&sql).await?;
    rows.iter().map(|row| Ok((row.parse(0)?, TableName::new(text(row, 1), text(row, 2))))).collect()
}

/// The shape of a table; `None` if there is no table of that OID.
pub async fn load_table(client: &mut Client, oid: u32) -> Result<Option<TableSchema>> {
    Ok(load_tables(client, &[oid]).await?.pop())
}

/// The shapes of tables, as version 1, by OID. Those that do not exist (any more) are left out.
///
/// Columns stand in table order, without dropped and generated ones: the latter are not published by default.
pub async fn load_tables(client: &mut Client, oids: &[u32]) -> Result<Vec<TableSchema>> {
    if oids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = client.query(&columns_sql(oids)).await?;
    let unknown: BTreeSet<u32> = rows.iter().filter_map(unknown_type).collect();
    let types = load_types(client, &unknown).await?;
    let keys = load_keys(client, oids).await?;
    let mut tables = Vec::new();
    for group in rows.chunk_by(|a, b| a.get(0) == b.get(0)) {
        tables.push(read_table(group, &types, &keys)?);
    }
    Ok(tables)
}

fn columns_sql(oids: &[u32]) -> String {
    // A table without columns still has a row, with nulls.
    format!(
        "SELECT c.oid, n.nspname, c.relname, c.relreplident, a.attnum, a.attname, a.atttypid, a.atttypmod, \
         format_type(a.atttypid, a.atttypmod), NOT a.attnotnull, pg_get_expr(d.adbin, d.adrelid), \
         CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END, \
         col_description(c.oid, a.attnum), obj_description(c.oid, 'pg_class') \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         AND a.attgenerated = '' \
         LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         WHERE c.oid = ANY ({}) AND c.relkind IN ('r', 'p') ORDER BY c.oid, a.attnum",
        oid_array(oids.iter())
    )
}

fn oid_array<'a>(oids: impl Iterator<Item = &'a u32>) -> String {
    let oids: Vec<_> = oids.map(u32::to_string).collect();
    format!("'{{{}}}'::oid[]", oids.join(","))
}

fn text(row: &Row, column: usize) -> &str {
    row.get(column).unwrap_or_default()
}

/// The type of a column that [`ColumnType::from_builtin`] does not know.
fn unknown_type(row: &Row) -> Option<u32> {
    let oid = row.get(6)?.parse().ok()?;
    ColumnType::from_builtin(oid, -1).is_none().then_some(oid)
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

async fn load_types(client: &mut Client, oids: &BTreeSet<u32>) -> Result<Types> {
    if oids.is_empty() {
        return Ok(Types::new());
    }
    // A real array is the one which its element names as its array; others (point, int2vector) only have parts.
    let sql = format!(
        "WITH RECURSIVE wanted(oid) AS (SELECT unnest({}) UNION \
         SELECT u.oid FROM wanted w JOIN pg_type t ON t.oid = w.oid, \
         LATERAL (VALUES (t.typbasetype), (t.typelem)) AS u(oid) WHERE u.oid <> 0) \
         SELECT t.oid, t.typtype, t.typbasetype, t.typtypmod, \
         CASE WHEN e.typarray = t.oid AND e.typdelim = ',' THEN e.oid END, t.typname, \
         (SELECT json_agg(l.enumlabel ORDER BY l.enumsortorder) FROM pg_enum l WHERE l.enumtypid = t.oid) \
         FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem WHERE t.oid IN (SELECT oid FROM wanted)",
        oid_array(oids.iter())
    );
    let rows = client.query(&sql).await?;
    rows.iter().map(|row| Ok((row.parse(0)?, read_type(row)?))).collect()
}

fn read_type(row: &Row) -> Result<CatalogType> {
    Ok(match (text(row, 1), row.get(4)) {
        ("e", _) => {
            let labels = serde_json::from_str(row.get(6).unwrap_or("[]"));
            CatalogType::Enum(labels.map_err(|error| {
                Error::operator(format!("the labels of enum {:?} cannot be read", text(row, 5))).cause(error)
            })?)
        }
        ("d", _) => CatalogType::Domain(row.parse(2)?, row.parse(3)?),
        (_, Some(_)) => CatalogType::Array(row.parse(4)?),
        ("b", None) if text(row, 5) == "citext" => CatalogType::Extension(ColumnType::TEXT),
        ("b", None) if text(row, 5) == "ltree" => {
            CatalogType::Extension(ColumnType::Text { text: TextKind::Ltree })
        }
        _ => CatalogType::Other,
    })
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

/// Column numbers of the indexes that can identify a table's rows.
#[derive(Debug, Default)]
struct Keys {
    primary: Option<Vec<i16>>,
    identity: Option<Vec<i16>>,
}

async fn load_keys(client: &mut Client, oids: &[u32]) -> Result<BTreeMap<u32, Keys>> {
    let sql = format!(
        "SELECT indrelid, indisprimary, indisreplident, indkey, indnkeyatts FROM pg_index \
         WHERE indrelid = ANY ({}) AND (indisprimary OR indisreplident) \
         AND indisvalid AND indisunique AND indimmediate AND indpred IS NULL AND indexprs IS NULL",
        oid_array(oids.iter())
    );
    let mut keys: BTreeMap<u32, Keys> = BTreeMap::new();
    for row in client.query(&sql).await? {
        let columns = text(&row, 3).split_whitespace().map(str::parse).collect::<Result<Vec<i16>, _>>();
        let mut columns =
            columns.map_err(|error| Error::operator("pg_index.indkey cannot be read").cause(error))?;
        columns.truncate(row.parse(4)?);
        let table = keys.entry(row.parse(0)?).or_default();
        if row.is_true(2) {
            table.identity = Some(columns.clone());
        }
        if row.is_true(1) {
            table.primary = Some(columns);
        }
    }
    Ok(keys)
}

/// A table from the rows of its columns.
fn read_table(rows: &[Row], types: &Types, keys: &BTreeMap<u32, Keys>) -> Result<TableSchema> {
    let Some(first) = rows.first() else {
        return Err(Error::operator("a table without a row in the catalog"));
    };
    let oid = first.parse(0)?;
    let identity = match text(first, 3) {
        "n" => ReplicaIdentity::Nothing,
        "f" => ReplicaIdentity::Full,
        "i" => ReplicaIdentity::Index,
        _ => ReplicaIdentity::Default,
    };
    let (mut columns, mut numbers) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
    for row in rows.iter().filter(|row| row.get(4).is_some()) {
        numbers.push(row.parse::<i16>(4)?);
        let column_type = classify(types, row.parse(6)?, row.parse(7)?);
        let nullable = row.is_true(9);
        columns.push(Column {
            number: row.parse(4)?,
            not_null: !nullable,
            default: row.get(10).map(str::to_owned),
            missing: row.get(11).map(str::to_owned),
            comment: row.get(12).map(str::to_owned),
            ..Column::new(text(row, 5), column_type, text(row, 8), nullable)
        });
    }
    let index = keys.get(&oid).and_then(|keys| match identity {
        ReplicaIdentity::Default | ReplicaIdentity::Full => keys.primary.as_ref(),
        ReplicaIdentity::Index => keys.identity.as_ref(),
        ReplicaIdentity::Nothing => None,
    });
    let place = |number: &i16| numbers.iter().position(|n| n == number);
    // A key with a column that is not published (a generated one) is none.
    let key = index.and_then(|index| index.iter().map(place).collect::<Option<Vec<_>>>()).unwrap_or_default();
    let name = TableName::new(text(first, 1), text(first, 2));
    let mut table = TableSchema::new(name, oid, columns, key, identity);
    table.comment = first.get(13).map(str::to_owned);
    Ok(table)
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
