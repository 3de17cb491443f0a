//! The tables: rights, replica identity, and what would be missing without a word.

use super::{Finding, PreflightSettings, Publication};
use crate::change::TableName;
use crate::postgres::membership::members_sql;
use crate::postgres::wire::{Client, Row, quote_ident, quote_literal, sqlstate};
use crate::runtime::Result;

/// A table of the database, with what decides whether it can be captured.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts, each of which is asked on its own")]
pub(in crate::postgres) struct TableFacts {
    pub(in crate::postgres) name: TableName,
    pub(in crate::postgres) is_published: bool,
    /// A partition of another table.
    pub(in crate::postgres) is_partition: bool,
    pub(in crate::postgres) is_unlogged: bool,
    pub(super) is_owned: bool,
    /// The role may read the table, and reach its schema.
    pub(super) is_readable: bool,
    /// Row-level security hides rows from the role.
    pub(super) hides_rows: bool,
    /// The publication has a row filter or a column list for it.
    pub(super) is_filtered: bool,
    /// It has partitions.
    pub(super) is_partitioned: bool,
    /// A partition whose old rows do not tell the key of this table.
    pub(super) other_identity: Option<TableName>,
    /// A partition of it whose rows are in no WAL.
    pub(super) outside: Option<TableName>,
    /// The table, or one of its partitions, whose old rows cannot be identified.
    pub(in crate::postgres) without_identity: Option<TableName>,
    /// A unique index on columns that are not null, which could be the identity.
    pub(in crate::postgres) candidate_index: Option<String>,
    /// Why its identity cannot be: it has columns that are generated and not sent.
    pub(in crate::postgres) unsent: Option<Unsent>,
    /// The primary key is there, but deferrable.
    pub(in crate::postgres) deferrable_key: bool,
}

/// Generated columns in an identity, of which 18 and later refuses every UPDATE and DELETE where they are not sent
/// (`CheckCmdReplicaIdentity` in `src/backend/executor/execReplication.c`); before, they were passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::postgres) enum Unsent {
    /// Stored ones, which the publication could have.
    Stored,
    /// Those made when they are read, which no publication has.
    Virtual,
}

/// Every table of the database that could be captured or is published.
pub(in crate::postgres) async fn load(client: &mut Client, publication: &str) -> Result<Vec<TableFacts>> {
    // Row filters and column lists came with 15.
    let filtered = if client.server_version() >= 150_000 {
        "EXISTS (SELECT FROM pg_publication_rel r WHERE r.prrelid = c.oid AND r.prpubid = published.publication \
         AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL))"
    } else {
        "false"
    };
    let members = members_sql(client.server_version(), publication);
    let publication = quote_literal(publication);
    // A publication that is not there yet will have stored ones.
    let refused = if client.server_version() >= 180_000 {
        format!(
            "coalesce((SELECT max(g.attgenerated::text) FROM pg_attribute g WHERE g.attrelid = l.oid AND g.attnum > 0 \
             AND NOT g.attisdropped AND (g.attgenerated = 'v' AND l.relreplident = 'f' OR g.attgenerated = 's' \
             AND NOT coalesce((SELECT p.pubgencols = 's' FROM pg_publication p WHERE p.pubname = {publication}), true) \
             AND (l.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = l.oid \
             AND g.attnum = ANY (i.indkey::int2[]) AND CASE l.relreplident WHEN 'i' THEN i.indisreplident \
             WHEN 'd' THEN i.indisprimary ELSE false END)))), '')"
        )
    } else {
        "''::text".to_owned()
    };
    let sql = include_str!("tables.sql")
        .lines()
        .filter(|line| !line.starts_with("--"))
        .collect::<Vec<_>>()
        .join("\n")
        .replace("{filtered}", filtered)
        .replace("{refused}", &refused)
        .replace("{members}", &members);
    Ok(client.query(&sql).await?.iter().map(read).collect())
}

fn read(row: &Row) -> TableFacts {
    let text = |column: usize| row.get(column).unwrap_or_default();
    TableFacts {
        name: TableName::new(text(0), text(1)),
        is_published: row.is_true(2),
        is_partition: row.is_true(3),
        is_unlogged: row.is_true(4),
        is_owned: row.is_true(5),
        is_readable: row.is_true(6),
        hides_rows: row.is_true(7),
        is_filtered: row.is_true(8),
        without_identity: row.get(10).map(|table| TableName::new(text(9), table)),
        candidate_index: row.get(11).map(str::to_owned),
        deferrable_key: row.is_true(12),
        outside: row.get(14).map(|table| TableName::new(text(13), table)),
        is_partitioned: row.is_true(15),
        unsent: match row.get(18) {
            Some("s") => Some(Unsent::Stored),
            Some("v") => Some(Unsent::Virtual),
            _ => None,
        },
        other_identity: row.get(17).map(|table| TableName::new(text(16), table)),
    }
}

impl TableFacts {
    /// How the table could get an identity; for the table that has none, which may be a partition of this one.
    pub(in crate::postgres) fn identity_mend(&self, bad: &TableName, publication: &str) -> String {
        let table = bad.quoted();
        if self.unsent == Some(Unsent::Stored) {
            return format!(
                "ALTER PUBLICATION {} SET (publish_generated_columns = stored);",
                quote_ident(publication)
            );
        }
        let quick = match &self.candidate_index {
            Some(index) if *bad == self.name => {
                format!("ALTER TABLE {table} REPLICA IDENTITY USING INDEX {};", quote_ident(index))
            }
            _ => format!("ALTER TABLE {table} ADD PRIMARY KEY (…);"),
        };
        format!(
            "{quick} Or, where no columns are unique: ALTER TABLE {table} REPLICA IDENTITY FULL; \
             Or leave {} out by `exclude` in the configuration.",
            self.name
        )
    }

    /// Why there is no identity.
    pub(in crate::postgres) fn identity_lack(&self, bad: &TableName) -> String {
        if let Some(unsent) = self.unsent {
            let whose = if *bad == self.name {
                "its replica identity".to_owned()
            } else {
                format!("that of its partition {bad}")
            };
            match unsent {
                Unsent::Stored => {
                    format!("{whose} has generated columns, which the publication does not send")
                }
                Unsent::Virtual => {
                    format!("{whose} has virtual generated columns, which no publication sends")
                }
            }
        } else if self.deferrable_key && *bad == self.name {
            "its primary key is DEFERRABLE, which is no replica identity".to_owned()
        } else if *bad == self.name {
            "it has no primary key and no other replica identity".to_owned()
        } else {
            format!("its partition {bad} has no primary key and no other replica identity")
        }
    }
}

pub(super) fn findings(
    publication: Option<&Publication>,
    tables: &[TableFacts],
    settings: &PreflightSettings<'_>,
    role: &str,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut good = 0;
    for table in tables {
        let wanted = (settings.wanted)(&table.name);
        let before = findings.len();
        identity(publication, table, wanted, settings.publication, &mut findings);
        if wanted {
            reading(table, role, &mut findings);
        }
        membership(publication, table, wanted, settings.publication, &mut findings);
        good += usize::from(wanted && findings.len() == before);
    }
    if !tables.iter().any(|table| (settings.wanted)(&table.name)) {
        let message = format!("none of the database's {} tables is to be captured", tables.len());
        findings.push(
            Finding::fail("tables", message).mend("Check `tables` and `exclude` in the configuration."),
        );
    } else if good > 0 {
        findings.push(Finding::ok("tables", format!("{good} tables can be captured as they are")));
    }
    findings
}

/// Asks the server to plan each condition for rows that copies take; no row is read.
pub(super) async fn conditions(
    client: &mut Client,
    tables: &[TableFacts],
    settings: &PreflightSettings<'_>,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    client.execute("SET lock_timeout = '2s'").await?;
    for table in tables.iter().filter(|table| table.is_readable && (settings.wanted)(&table.name)) {
        let Some(condition) = (settings.copied_where)(&table.name) else { continue };
        let subject = format!("table {}", table.name);
        let only = if table.is_partitioned { "" } else { "ONLY " };
        let query = format!("SELECT FROM {only}{} WHERE ({condition}) LIMIT 0", table.name.quoted());
        match client.query(&query).await {
            Ok(_) => findings.push(Finding::ok(
                subject,
                format!("its copies take rows with {condition}; the others are not in log and lake until they change"),
            )),
            Err(error) if sqlstate(&error) == Some("55P03") => findings.push(Finding::warn(
                subject,
                format!("[[table]] backfill_where = {condition:?} was not looked at: somebody has the table locked"),
            )),
            Err(error) if sqlstate(&error).is_some() => findings.push(
                Finding::fail(subject, format!("[[table]] backfill_where = {condition:?} is no condition on it: {error}"))
                    .mend("Give a condition in SQL on the table's columns, as behind WHERE."),
            ),
            Err(error) => return Err(error),
        }
    }
    client.execute("RESET lock_timeout").await?;
    Ok(findings)
}

fn identity(
    publication: Option<&Publication>,
    table: &TableFacts,
    wanted: bool,
    publication_name: &str,
    findings: &mut Vec<Finding>,
) {
    let carries_old_rows = publication.is_none_or(|publication| publication.updates || publication.deletes);
    if !carries_old_rows || table.is_unlogged {
        return;
    }
    let subject = format!("table {}", table.name);
    let Some(bad) = &table.without_identity else {
        let by_root = publication.is_none_or(|publication| publication.via_root);
        if let Some(partition) = table.other_identity.as_ref().filter(|_| wanted && by_root) {
            let message = format!(
                "is published as the root of its partitions, and has no key that the replica identity of {partition} tells: \
                 its updates and deletes could not be followed"
            );
            let mend = format!(
                "ALTER TABLE {} REPLICA IDENTITY FULL; for each such partition, or give {} a primary key.",
                partition.quoted(),
                table.name
            );
            findings.push(Finding::fail(subject, message).mend(mend));
        }
        return;
    };
    let lack = table.identity_lack(bad);
    let mend = table.identity_mend(bad, publication_name);
    if table.is_published {
        findings.push(
            Finding::fail(
                subject,
                format!("is published, but {lack}: every UPDATE and DELETE on it fails at the source"),
            )
            .mend(mend),
        );
    } else if wanted && publication.is_none_or(|publication| !publication.all_tables) {
        findings.push(Finding::fail(subject, format!("cannot be published: {lack}")).mend(mend));
    }
}

fn reading(table: &TableFacts, role: &str, findings: &mut Vec<Finding>) {
    let subject = format!("table {}", table.name);
    let role_name = quote_ident(role);
    if table.is_unlogged {
        findings.push(
            Finding::warn(&subject, "is unlogged: its changes are in no WAL, and it is left out")
                .mend(format!("ALTER TABLE {} SET LOGGED;", table.name.quoted())),
        );
        return;
    }
    if !table.is_readable {
        let schema = quote_ident(&table.name.schema);
        findings.push(
            Finding::fail(&subject, format!("{role} may not read it, so it cannot be copied")).mend(format!(
                "GRANT USAGE ON SCHEMA {schema} TO {role_name}; GRANT SELECT ON {} TO {role_name};",
                table.name.quoted()
            )),
        );
    }
    if table.hides_rows {
        findings.push(
            Finding::fail(
                &subject,
                format!("row-level security hides rows from {role}: a copy would lack them"),
            )
            .mend(format!("ALTER ROLE {role_name} BYPASSRLS;")),
        );
    }
    if table.is_filtered {
        findings.push(
            Finding::warn(
                &subject,
                "is published with a row filter or a column list: log and lake hold those rows and columns only",
            )
            .mend("Where that is not meant, publish it whole in a publication of Tidemark's own."),
        );
    }
    if let Some(partition) = &table.outside {
        findings.push(
            Finding::warn(
                &subject,
                format!("its partition {partition} is foreign or unlogged: its rows are in no WAL, and are left out"),
            )
            .mend(format!("Where it is unlogged: ALTER TABLE {} SET LOGGED;", partition.quoted())),
        );
    }
}

fn membership(
    publication: Option<&Publication>,
    table: &TableFacts,
    wanted: bool,
    publication_name: &str,
    findings: &mut Vec<Finding>,
) {
    let subject = format!("table {}", table.name);
    let (table_name, publication_name) = (table.name.quoted(), quote_ident(publication_name));
    match publication {
        // Its partitions are published instead.
        Some(publication) if table.is_partitioned && !publication.via_root && !table.is_published => {}
        Some(_) if wanted && !table.is_published && !table.is_unlogged => findings.push(
            Finding::warn(subject, "is to be captured, but is not in the publication")
                .mend(format!("ALTER PUBLICATION {publication_name} ADD TABLE {table_name};")),
        ),
        Some(publication) if !wanted && table.is_published && !publication.all_tables => findings.push(
            Finding::warn(
                subject,
                "is in the publication, but excluded here: its changes are sent and thrown away",
            )
            .mend(format!("ALTER PUBLICATION {publication_name} DROP TABLE {table_name};")),
        ),
        _ => {}
    }
}
