//! The publication: whether it is there, and what it leaves out.

use super::tables::TableFacts;
use super::{Finding, PreflightSettings, Server};
use crate::postgres::wire::{Client, quote_ident, quote_literal};
use crate::runtime::Result;

/// A row of `pg_publication`.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts, each of which is asked on its own")]
pub(in crate::postgres) struct Publication {
    pub(in crate::postgres) all_tables: bool,
    pub(super) inserts: bool,
    pub(super) updates: bool,
    pub(super) deletes: bool,
    pub(super) truncates: bool,
    pub(super) via_root: bool,
}

impl Publication {
    pub(in crate::postgres) async fn load(client: &mut Client, name: &str) -> Result<Option<Self>> {
        let sql = format!(
            "SELECT puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot FROM pg_publication \
             WHERE pubname = {}",
            quote_literal(name)
        );
        let rows = client.query(&sql).await?;
        Ok(rows.first().map(|row| Self {
            all_tables: row.is_true(0),
            inserts: row.is_true(1),
            updates: row.is_true(2),
            deletes: row.is_true(3),
            truncates: row.is_true(4),
            via_root: row.is_true(5),
        }))
    }
}

pub(super) fn findings(
    publication: Option<&Publication>,
    server: &Server,
    tables: &[TableFacts],
    settings: &PreflightSettings<'_>,
) -> Vec<Finding> {
    let subject = format!("publication {}", settings.publication);
    let name = quote_ident(settings.publication);
    let Some(publication) = publication else { return vec![missing(subject, server, tables, settings)] };
    let mut findings = Vec::new();
    let operations = [
        ("insert", publication.inserts),
        ("update", publication.updates),
        ("delete", publication.deletes),
        ("truncate", publication.truncates),
    ];
    let left_out: Vec<_> =
        operations.iter().filter(|(_, published)| !published).map(|(name, _)| *name).collect();
    if !left_out.is_empty() {
        let message =
            format!("does not publish {}: snapshots will differ from the tables", left_out.join(", "));
        findings.push(
            Finding::warn(&subject, message).mend(format!(
                "ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');"
            )),
        );
    }
    if !publication.via_root && tables.iter().any(|table| table.is_partition && table.is_published) {
        let message = "publishes partitions one by one, each as a table of its own";
        findings.push(
            Finding::warn(&subject, message)
                .mend(format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true);")),
        );
    }
    let published = tables.iter().filter(|table| table.is_published).count();
    if findings.is_empty() {
        findings.push(Finding::ok(subject, format!("publishes {published} tables")));
    }
    findings
}

fn missing(
    subject: String,
    server: &Server,
    tables: &[TableFacts],
    settings: &PreflightSettings<'_>,
) -> Finding {
    let print = "`tidemark setup --print` prints the SQL for a superuser or the tables' owner.";
    if !settings.create_missing {
        return Finding::fail(subject, "does not exist").mend(format!("Run `tidemark setup`, or {print}"));
    }
    let foreign = tables.iter().filter(|table| (settings.wanted)(&table.name)).find(|table| !table.is_owned);
    match foreign {
        _ if server.is_superuser => Finding::ok(subject, "does not exist yet, and will be created"),
        _ if !server.may_create => {
            let role = &server.role;
            let message = format!(
                "does not exist, and {role} may not create it: no CREATE right on database {}",
                server.database
            );
            Finding::fail(subject, message).mend(print)
        }
        Some(table) => {
            let message = format!(
                "does not exist, and {} may not create it: it does not own {}",
                server.role, table.name
            );
            Finding::fail(subject, message).mend(print)
        }
        None => Finding::ok(subject, "does not exist yet, and will be created"),
    }
}
