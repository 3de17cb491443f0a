//! Making what capture needs at the source: the publication, the event triggers, then the slot, in this order.
//!
//! The order matters: pgoutput looks the publication up as the catalog was when the change was made, so that a
//! slot which is older than its publication fails at the first change in between. The triggers come before the slot,
//! so that all DDL in the stream is told.
//!
//! A table without a replica identity is never published: that would make its UPDATEs and DELETEs fail. The
//! plan is refused, and names each such table with the mend.

use std::fmt::Write as _;

use super::ddl::{self, DdlTrigger, TriggerUse};
use super::preflight::tables::{self, TableFacts};
use super::preflight::{PreflightSettings, Publication, Server};
use super::slot::slot_state;
use super::wire::{Client, quote_ident, quote_literal, sqlstate};
use crate::change::TableName;
use crate::runtime::{Error, Result};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What it is for.
    pub purpose: String,
    /// SQL, without the semicolon; one transaction.
    pub sql: String,
    /// Why it can be gone without, where the role may not do it.
    pub spare: Option<&'static str>,
}

/// What is missing at the source. Empty `statements`: nothing is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The steps, in order.
    pub statements: Vec<Statement>,
    server: Server,
    tables: Vec<TableName>,
}

/// Plans what is missing. Changes nothing.
pub async fn plan(client: &mut Client, settings: &PreflightSettings<'_>) -> Result<Plan> {
    let server = Server::load(client).await?;
    let publication = Publication::load(client, settings.publication).await?;
    let all = tables::load(client, settings.publication).await?;
    let wanted: Vec<_> = all.iter().filter(|table| is_to_publish(table, settings)).collect();
    let mut statements = Vec::new();
    statements.extend(publication_statement(publication.as_ref(), &wanted, settings, server.version)?);
    statements.extend(trigger_statement(
        DdlTrigger::load(client).await?,
        settings.ddl_trigger,
        server.version,
    ));
    if slot_state(client, settings.slot).await?.is_none() {
        // Temporary, two-phase, failover.
        let kind = if settings.failover.applies(client).await? { ", false, false, true" } else { "" };
        statements.push(Statement {
            purpose: format!(
                "The slot {}: from here on the server keeps what has not been read.",
                settings.slot
            ),
            sql: format!(
                "SELECT pg_create_logical_replication_slot({}, 'pgoutput'{kind})",
                quote_literal(settings.slot)
            ),
            spare: None,
        });
    }
    Ok(Plan { statements, server, tables: wanted.iter().map(|table| table.name.clone()).collect() })
}

/// Runs the plan's statements; each is its own transaction, since a slot cannot be made in one that has written.
/// What was made before an error stays, and the next plan begins after it. Gives what was left out, since the role may
/// not do it, and what that means.
pub async fn apply(client: &mut Client, plan: &Plan) -> Result<Vec<String>> {
    let mut left_out = Vec::new();
    for statement in &plan.statements {
        match (client.execute(&statement.sql).await, statement.spare) {
            (Ok(()), _) => {}
            // Who may create event triggers is the server's to say: managed ones let others than superusers.
            (Err(error), Some(spare)) if sqlstate(&error) == Some(INSUFFICIENT_PRIVILEGE) => {
                left_out.push(format!("{} {spare} ({})", statement.purpose, error.message()));
            }
            (Err(error), _) => return Err(error),
        }
    }
    Ok(left_out)
}

/// Puts the event triggers in where nothing may go without, or in the place of older ones; gives the step, if there was
/// one to take. Otherwise they come with the publication: where that is the DBA's, so are they. A standby has what
/// its primary has.
///
/// # Errors
/// That they could not be, where nothing may go without.
pub async fn install_trigger(client: &mut Client, wanted: TriggerUse) -> Result<Option<Statement>> {
    let found = DdlTrigger::load(client).await?;
    if found == DdlTrigger::Missing && wanted != TriggerUse::On {
        return Ok(None);
    }
    let Some(statement) = trigger_statement(found, wanted, client.server_version()) else { return Ok(None) };
    if client.query_one("SELECT pg_is_in_recovery()").await?.is_true(0) {
        return Ok(None);
    }
    match client.execute(&statement.sql).await {
        Ok(()) => Ok(Some(statement)),
        Err(error) if statement.spare.is_some() && sqlstate(&error) == Some(INSUFFICIENT_PRIVILEGE) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Takes the event triggers away, and all that came with them. Slot and publication stay.
pub async fn uninstall(client: &mut Client) -> Result<()> {
    client.execute(ddl::UNINSTALL_SQL).await
}

const INSUFFICIENT_PRIVILEGE: &str = "42501";

fn trigger_statement(found: DdlTrigger, wanted: TriggerUse, server_version: u32) -> Option<Statement> {
    // One that is switched off is somebody's decision, and a newer one somebody else's.
    let install = wanted != TriggerUse::Off
        && ddl::SERVER_VERSIONS.contains(&server_version)
        && matches!(found, DdlTrigger::Missing | DdlTrigger::Outdated);
    install.then(|| Statement {
        purpose: "The event triggers: DDL leaves a message in the WAL, in order with the rows.".to_owned(),
        sql: ddl::install_sql(server_version),
        spare: (wanted == TriggerUse::Auto)
            .then_some("Left out: it takes a superuser (Amazon RDS and Aurora: rds_superuser). `tidemark check` says what is lost without."),
    })
}

fn is_to_publish(table: &TableFacts, settings: &PreflightSettings<'_>) -> bool {
    (settings.wanted)(&table.name) && !table.is_partition && !table.is_unlogged
}

fn publication_statement(
    publication: Option<&Publication>,
    wanted: &[&TableFacts],
    settings: &PreflightSettings<'_>,
    server_version: u32,
) -> Result<Option<Statement>> {
    let missing: Vec<_> = wanted.iter().filter(|table| !table.is_published).copied().collect();
    if publication.is_some_and(|publication| publication.all_tables)
        || (publication.is_some() && missing.is_empty())
    {
        return Ok(None);
    }
    if wanted.is_empty() {
        return Err(Error::usage("none of the database's tables is to be captured")
            .mend("Check `tables` and `exclude` in the configuration."));
    }
    refuse_without_identity(&missing, settings.publication)?;
    let names: Vec<_> = missing.iter().map(|table| table.name.quoted()).collect();
    let (name, list) = (quote_ident(settings.publication), names.join(",\n    "));
    Ok(Some(if publication.is_some() {
        Statement {
            purpose: "Tables that the publication lacks.".to_owned(),
            sql: format!("ALTER PUBLICATION {name} ADD TABLE\n    {list}"),
            spare: None,
        }
    } else {
        // 18 can, and refuses changes of whole rows that have such columns where it does not.
        let generated = if server_version >= 180_000 { ", publish_generated_columns = stored" } else { "" };
        Statement {
            purpose: "The publication: which tables are streamed; partitions come as their root.".to_owned(),
            sql: format!(
                "CREATE PUBLICATION {name} FOR TABLE\n    {list}\n    WITH (publish_via_partition_root = true{generated})"
            ),
            spare: None,
        }
    }))
}

fn refuse_without_identity(tables: &[&TableFacts], publication: &str) -> Result<()> {
    let (mut names, mut mends) = (Vec::new(), Vec::new());
    for table in tables {
        if let Some(bad) = &table.without_identity {
            names.push(format!("{} ({})", table.name, table.identity_lack(bad)));
            mends.push(table.identity_mend(bad, publication));
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let message = format!(
        "published as they are, these tables would refuse every UPDATE and DELETE: {}",
        names.join("; ")
    );
    Err(Error::operator(message).mend(mends.join(" ")))
}

impl Plan {
    /// The plan as a script for a DBA, for psql: a role with the least rights, then the statements. Running it
    /// twice does no harm up to the first statement that was done.
    pub fn script(&self) -> String {
        let mut script = String::new();
        // A superuser would be more than it takes: propose a role.
        let role = if self.server.is_superuser { "tidemark" } else { &self.server.role };
        let _ = writeln!(
            script,
            "-- Prepares the database {} (PostgreSQL {}) for Tidemark.\n\
             -- Run it in that database as a superuser, or as the tables' owner:  psql -d {} -f this-file\n\n\
             \\set ON_ERROR_STOP on\n\
             SET client_min_messages = warning;\n",
            self.server.database.escape_debug(),
            self.server.version_text,
            self.server.database.escape_debug()
        );
        self.write_role(&mut script, role);
        for statement in &self.statements {
            let _ = writeln!(script, "-- {}\n{};\n", statement.purpose, statement.sql);
        }
        if self.statements.is_empty() {
            let _ = writeln!(script, "-- Publication, event triggers and slot are as they should be.");
        }
        script
    }

    fn write_role(&self, script: &mut String, role: &str) {
        let (name, literal) = (quote_ident(role), quote_literal(role));
        let _ = writeln!(
            script,
            "-- A role that may replicate and read the tables, and nothing else. Give it a password: \\password {name}\n\
             -- Amazon RDS and Aurora: CREATE ROLE {name} LOGIN; GRANT rds_replication TO {name};\n\
             SELECT 'CREATE ROLE {name} LOGIN REPLICATION' WHERE NOT EXISTS\n    \
             (SELECT FROM pg_roles WHERE rolname = {literal}) \\gexec",
            name = name.replace('\'', "''"),
        );
        if !self.server.is_superuser && !self.server.may_replicate {
            let _ = writeln!(script, "ALTER ROLE {name} REPLICATION;");
        }
        let database = quote_ident(&self.server.database);
        let _ = writeln!(script, "GRANT CONNECT ON DATABASE {database} TO {name};");
        let mut schemas: Vec<_> = self.tables.iter().map(|table| quote_ident(&table.schema)).collect();
        schemas.dedup();
        if !schemas.is_empty() {
            let tables: Vec<_> = self.tables.iter().map(TableName::quoted).collect();
            let _ = writeln!(script, "GRANT USAGE ON SCHEMA {} TO {name};", schemas.join(", "));
            let _ = writeln!(script, "GRANT SELECT ON\n    {}\n    TO {name};", tables.join(",\n    "));
        }
        script.push('\n');
    }
}
