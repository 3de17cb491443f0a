//! What a publication publishes at one instant, in the terms that decide whether the stream tells all of it.
//!
//! pgoutput sends changes of rows. Some things change what a published table holds without one: partitions that are
//! attached or detached, a TRUNCATE of one partition of a table that is published as its root (`pgoutput_truncate` in
//! `src/backend/replication/pgoutput/pgoutput.c` leaves it out), another row filter or column list, a table that joins
//! or leaves the publication. They are in the catalog, and a [`Sight`] is what the catalog says.
//!
//! Whether a partition brought rows with it: one that was made as a partition never did, one that was attached did
//! unless it is empty. `pg_inherits` and `pg_attribute` tell which, by the transactions that wrote their rows, and their
//! commands: `CREATE TABLE … PARTITION OF` writes the rows of the columns before that of `pg_inherits`, and `ATTACH
//! PARTITION` writes them again with it (`MergeAttributesIntoExisting` in `src/backend/commands/tablecmds.c`). What a
//! transaction did that made and attached one by two statements is told by its rows' own `cmin`, whichever
//! subtransaction wrote them; rows that later transactions have written look the same, and cost a copy that was not
//! needed. Whoever deletes a row or is about to, also when that is rolled back, leaves another command there: such rows tell
//! nothing.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::membership::members_sql;
use super::wire::{Client, Row, quote_literal};
use crate::change::{Lsn, TableName, TableSchema};
use crate::runtime::Result;

/// A published table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// `pg_class.oid`.
    pub oid: u32,
    /// OID of what makes it a member: its entry, that of its schema, or the publication. Another one after it was taken out
    /// and put back.
    pub member: u32,
    /// Which operations are published, of `iudt`.
    pub operations: String,
    /// Whether it has partitions, and is published as their root.
    pub partitioned: bool,
    /// The publication's row filter for it.
    pub filter: Option<String>,
    /// Highest number of a column, dropped ones included.
    pub attributes: i16,
    /// Numbers of columns that are there, and not published.
    pub unpublished: Vec<i16>,
    /// Numbers of columns that were dropped.
    pub dropped: Vec<i16>,
    /// What holds its rows, by OID: itself, or its leaves.
    pub parts: BTreeMap<u32, Part>,
    /// Its owner's condition for rows that a copy takes, which no publication knows of: set by whoever copies.
    pub copied_where: Option<String>,
}

impl Published {
    /// SQL for the rows that a copy takes, as a condition: those which are published, and are wanted; none: all are.
    pub fn condition(&self) -> Option<String> {
        let outside: Vec<_> =
            self.parts.iter().filter(|(_, part)| part.file == 0).map(|(oid, _)| oid.to_string()).collect();
        let logged =
            (!outside.is_empty()).then(|| format!("tableoid <> ALL ('{{{}}}'::oid[])", outside.join(",")));
        let conditions: Vec<String> = [self.filter.as_ref(), logged.as_ref(), self.copied_where.as_ref()]
            .into_iter()
            .flatten()
            .map(|condition| format!("({condition})"))
            .collect();
        (!conditions.is_empty()).then(|| conditions.join(" AND "))
    }

    /// Of a table's whole shape what is published. A key with a column that is not is none.
    pub fn shape(&self, mut whole: TableSchema) -> TableSchema {
        let key: Vec<i16> = whole.key_columns().map(|column| column.number).collect();
        whole.columns.retain(|column| !self.unpublished.contains(&column.number));
        let place = |number: &i16| whole.columns.iter().position(|column| column.number == *number);
        whole.key = key.iter().map(place).collect::<Option<Vec<_>>>().unwrap_or_default();
        whole
    }
}

/// A table that holds rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// `pg_class.relfilenode`: another one after TRUNCATE or a rewrite. Zero where its rows are in no WAL, being unlogged
    /// or foreign.
    pub file: u32,
    /// Sum of the transactions that attached it and the partitions above it: another one after it was attached anew.
    pub joined: u64,
    /// Transaction that wrote its row of `pg_class`, such as the TRUNCATE.
    pub xid: u32,
    /// Brought no row of its own when it became a part.
    pub quiet: bool,
    /// Its file is the one with which it became a part, as far as the catalog tells.
    pub settled: bool,
}

/// All published tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// What committed below it was seen.
    pub complete_to: Lsn,
    /// What was seen committed below it.
    pub pass: Lsn,
    /// By name.
    pub tables: BTreeMap<TableName, Published>,
}

/// Parts that were looked at before, by OID and [`Part::joined`], and whether they were quiet.
pub type KnownParts = HashMap<(u32, u64), bool>;

/// How long a question about the rows of a new partition may take, milliseconds.
const PATIENCE_MS: u32 = 5_000;

/// Looks at the publication, in a transaction of one statement each. Parts that are not `known` are asked whether
/// they brought rows. Leaves the session's `statement_timeout` and `lock_timeout` as they were.
pub async fn look(client: &mut Client, publication: &str, known: &KnownParts) -> Result<Sight> {
    let complete_to = position(client, "flush").await?;
    let sql = tables_sql(client.server_version(), publication);
    let tables = load(client, &sql, Some(known)).await?;
    Ok(Sight { complete_to, pass: position(client, "insert").await?, tables })
}

/// The published tables as the transaction's snapshot sees them; all their parts count as quiet.
pub async fn all(client: &mut Client, publication: &str) -> Result<BTreeMap<TableName, Published>> {
    load(client, &tables_sql(client.server_version(), publication), None).await
}

/// One of them.
pub async fn table(client: &mut Client, publication: &str, name: &TableName) -> Result<Option<Published>> {
    let condition = format!(
        " AND n.nspname = {} AND c.relname = {}",
        quote_literal(&name.schema),
        quote_literal(&name.table)
    );
    let sql = tables_sql(client.server_version(), publication) + &condition;
    Ok(load(client, &sql, None).await?.remove(name))
}

async fn load(
    client: &mut Client,
    sql: &str,
    known: Option<&KnownParts>,
) -> Result<BTreeMap<TableName, Published>> {
    let (mut tables, mut roots, mut doubtful) = (BTreeMap::new(), BTreeMap::new(), HashSet::new());
    for row in client.query(sql).await? {
        let (name, table) = read(&row)?;
        if table.partitioned {
            roots.insert(table.oid, name.clone());
        }
        tables.insert(name, table);
    }
    for leaf in leaves(client, roots.keys()).await? {
        let quiet = match known {
            None => true,
            Some(known) => match known.get(&(leaf.oid, leaf.joined)) {
                Some(quiet) => *quiet,
                // One is enough for a copy of all.
                None => leaf.is_born || (!doubtful.contains(&leaf.root) && is_quiet(client, &leaf).await?),
            },
        };
        if !quiet {
            doubtful.insert(leaf.root);
        }
        let Some(table) = roots.get(&leaf.root).and_then(|name| tables.get_mut(name)) else { continue };
        table.parts.insert(leaf.oid, leaf.part(quiet));
    }
    Ok(tables)
}

/// Whether a table of that OID exists, and its name.
pub async fn name_of(client: &mut Client, oid: u32) -> Result<Option<TableName>> {
    let sql = format!(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {oid}"
    );
    let rows = client.query(&sql).await?;
    Ok(rows.first().map(|row| TableName::new(text(row, 0), text(row, 1))))
}

async fn position(client: &mut Client, which: &str) -> Result<Lsn> {
    let sql = format!(
        "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_{which}_lsn() END"
    );
    client.query_one(&sql).await?.parse(0)
}

fn tables_sql(server_version: u32, publication: &str) -> String {
    // Generated columns are never published before 18.
    let published = match server_version {
        180_000.. => {
            "(CASE WHEN p.attrs IS NOT NULL THEN a.attnum = ANY (p.attrs) \
              ELSE a.attgenerated = '' OR (a.attgenerated = 's' AND b.pubgencols = 's') END)"
        }
        _ => "((p.attrs IS NULL OR a.attnum = ANY (p.attrs)) AND a.attgenerated = '')",
    };
    let of_schema = if server_version >= 150_000 {
        "(SELECT s.oid FROM pg_publication_namespace s WHERE s.pnpubid = b.oid AND s.pnnspid = n.oid)"
    } else {
        "NULL::oid"
    };
    format!(
        "SELECT n.nspname, c.relname, c.oid, c.relkind = 'p', p.rowfilter, c.relnatts, c.relfilenode, c.xmin, \
         (SELECT string_agg(a.attnum::text, ' ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid \
         AND a.attnum > 0 AND NOT a.attisdropped AND NOT {published}), \
         (SELECT string_agg(a.attnum::text, ' ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid \
         AND a.attnum > 0 AND a.attisdropped), \
         coalesce((SELECT min(r.oid) FROM pg_publication_rel r WHERE r.prpubid = b.oid AND r.prrelid IN \
         (SELECT c.oid UNION SELECT pg_partition_ancestors(c.oid))), {of_schema}, b.oid), \
         concat(CASE WHEN b.pubinsert THEN 'i' END, CASE WHEN b.pubupdate THEN 'u' END, \
         CASE WHEN b.pubdelete THEN 'd' END, CASE WHEN b.pubtruncate THEN 't' END) \
         FROM {members} p JOIN pg_publication b ON b.oid = p.publication JOIN pg_class c ON c.oid = p.oid \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relpersistence = 'p'",
        members = members_sql(server_version, publication)
    )
}

fn text(row: &Row, column: usize) -> &str {
    row.get(column).unwrap_or_default()
}

fn read(row: &Row) -> Result<(TableName, Published)> {
    let (oid, partitioned) = (row.parse(2)?, row.is_true(3));
    let own = Part { file: row.parse(6)?, joined: 0, xid: row.parse(7)?, quiet: true, settled: true };
    let table = Published {
        oid,
        partitioned,
        filter: row.get(4).map(str::to_owned),
        attributes: row.parse(5)?,
        unpublished: numbers(text(row, 8)),
        dropped: numbers(text(row, 9)),
        member: row.parse(10)?,
        operations: text(row, 11).to_owned(),
        parts: if partitioned { BTreeMap::new() } else { BTreeMap::from([(oid, own)]) },
        copied_where: None,
    };
    Ok((TableName::new(text(row, 0), text(row, 1)), table))
}

fn numbers(text: &str) -> Vec<i16> {
    text.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

struct Leaf {
    root: u32,
    oid: u32,
    name: TableName,
    file: u32,
    joined: u64,
    xid: u32,
    /// It was made as a partition, and so was all above it.
    is_born: bool,
    settled: bool,
    /// The command that attached it, or what is above it, where that transaction made it, too: in between it may have
    /// got rows.
    attached_by: Option<u32>,
}

impl Leaf {
    const fn part(&self, quiet: bool) -> Part {
        Part { file: self.file, joined: self.joined, xid: self.xid, quiet, settled: self.settled }
    }
}

async fn leaves<'a>(client: &mut Client, roots: impl Iterator<Item = &'a u32>) -> Result<Vec<Leaf>> {
    let roots: Vec<String> = roots.map(u32::to_string).collect();
    if roots.is_empty() {
        return Ok(Vec::new());
    }
    // The row of a system column is written when its table is made, and never again; that of any other column, and that of
    // the table, also when it is attached. In the (sub)transaction that has made a table TRUNCATE keeps its file.
    let sql = format!(
        "WITH RECURSIVE tree(root, oid, made, born, xid, command, joined, own_made, own_command) AS ( \
           SELECT oid, oid, true, true, NULL::xid, 0::bigint, 0::bigint, true, 0::bigint \
             FROM pg_class WHERE oid = ANY ('{{{}}}'::oid[]) \
           UNION ALL SELECT t.root, i.inhrelid, t.made AND told.made, t.born AND told.made AND EXISTS ( \
               SELECT FROM pg_attribute own WHERE own.attrelid = i.inhrelid AND own.attnum > 0 AND NOT own.attisdropped \
               AND own.xmax::text = '0' AND own.xmin = a.xmin AND own.cmin::text::bigint < told.command), i.xmin, \
             greatest(told.command, CASE WHEN t.xid = i.xmin THEN t.command END), \
             t.joined + i.xmin::text::bigint, told.made, told.command FROM tree t \
             JOIN pg_class u ON u.oid = t.oid AND u.relkind = 'p' JOIN pg_inherits i ON i.inhparent = t.oid \
             AND NOT i.inhdetachpending JOIN pg_attribute a ON a.attrelid = i.inhrelid AND a.attname = 'tableoid' \
             CROSS JOIN LATERAL (SELECT a.xmin = i.xmin AND a.xmax::text = '0' AND i.xmax::text = '0', \
               i.cmin::text::bigint) told(made, command)) \
         SELECT t.root, c.oid, n.nspname, c.relname, \
         CASE WHEN c.relkind = 'r' AND c.relpersistence = 'p' THEN c.relfilenode ELSE 0 END, c.xmin, t.born, \
         CASE WHEN t.made THEN t.command END, t.joined, \
         c.xmin = t.xid AND c.xmax::text = '0' AND (t.own_made OR c.cmin::text::bigint <= t.own_command) \
         FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind <> 'p'",
        roots.join(",")
    );
    let rows = client.query(&sql).await?;
    rows.iter()
        .map(|row| {
            let attached_by = match row.get(7) {
                Some(_) => Some(row.parse(7)?),
                None => None,
            };
            Ok(Leaf {
                root: row.parse(0)?,
                oid: row.parse(1)?,
                name: TableName::new(text(row, 2), text(row, 3)),
                file: row.parse(4)?,
                joined: row.parse(8)?,
                xid: row.parse(5)?,
                is_born: row.is_true(6),
                settled: row.is_true(9),
                attached_by,
            })
        })
        .collect()
}

/// Whether a part that was attached held nothing then, as far as can be told in a while.
async fn is_quiet(client: &mut Client, leaf: &Leaf) -> Result<bool> {
    // Its changes may not come until the stream is taken up again (`capture/publication/routes.rs`).
    if client.server_version() < 150_000 {
        return Ok(false);
    }
    client.execute(&format!("SET statement_timeout = {PATIENCE_MS}; SET lock_timeout = 1000")).await?;
    let quiet = asked_quiet(client, leaf).await;
    client.execute("RESET statement_timeout; RESET lock_timeout").await?;
    // Not allowed to look, or not in time.
    Ok(quiet.unwrap_or(false))
}

async fn asked_quiet(client: &mut Client, leaf: &Leaf) -> Result<bool> {
    let size: i64 =
        client.query_one(&format!("SELECT coalesce(pg_relation_size({}), 0)", leaf.oid)).await?.parse(0)?;
    let Some(command) = leaf.attached_by.filter(|_| size > 0) else { return Ok(size == 0) };
    let sql = format!(
        "SELECT NOT EXISTS (SELECT FROM ONLY {} WHERE cmin::text::bigint < {command} OR xmax::text <> '0')",
        leaf.name.quoted()
    );
    Ok(client.query_one(&sql).await?.is_true(0))
}
