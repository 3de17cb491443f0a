//! Installing the triggers, and what is installed.

use super::SERVER_VERSIONS;
use super::message::VERSION;
use crate::postgres::catalog::describe_sql;
use crate::postgres::wire::{Client, OUTPUT_SETTINGS};
use crate::runtime::Result;

/// Bytes of existing rows' values of one table in a message; Postgres limits one value to about 2 MB and has 1,600 of
/// them at most.
const MISSING_BYTES_MAX: u64 = 16 << 20;

const IS_LOCKED: &str = "coalesce(c.oid = ANY (locked), false)";

const EMIT: &str = "pg_logical_emit_message(true, 'tidemark.ddl', convert_to(
                concat(head, ',\"created\":', created, ',\"dropped\":', dropped, ',\"rewritten\":', rewritten, ',\"tables\":[', part, ']}'),
                CASE WHEN getdatabaseencoding() IN ('SQL_ASCII', 'MULE_INTERNAL') THEN getdatabaseencoding() ELSE 'UTF8' END))";

/// Whether the triggers are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TriggerUse {
    /// Where the role may install them.
    #[default]
    Auto,
    /// Nothing goes without.
    On,
    /// They are not.
    Off,
}

/// The statements that install the triggers, or put this version in the place of an older one; together, in one
/// transaction. It takes a superuser, or what a managed service has instead. `server_version` is that of
/// [`Client::server_version`]: one that is upgraded from 14 needs them again.
pub fn install_sql(server_version: u32) -> String {
    // Values print as they do in the sessions of capture, whatever the user's session has set.
    // Plans are made once a session: that takes longer than the whole rest.
    let settings =
        [("search_path", "pg_catalog, pg_temp"), ("jit", "off"), ("plan_cache_mode", "force_generic_plan")];
    let settings = settings.iter().map(|(name, value)| format!("SET {name} TO {value}"));
    let output = OUTPUT_SETTINGS.iter().map(|(name, value)| format!("SET {name} TO '{value}'"));
    include_str!("trigger.sql")
        .replace("{settings}", &settings.chain(output).collect::<Vec<_>>().join("\n"))
        .replace("{describe}", &describe_sql("concerned", IS_LOCKED, MISSING_BYTES_MAX, server_version))
        .replace("{emit}", EMIT)
        .replace("{version}", &VERSION.to_string())
        .replace("{server_min}", &SERVER_VERSIONS.start.to_string())
        .replace("{server_max}", &(SERVER_VERSIONS.end - 1).to_string())
}

/// The statements that take away what [`install_sql`] made, and nothing else; together, in one transaction. A schema in
/// which somebody else has put something stays.
pub const UNINSTALL_SQL: &str = "DROP EVENT TRIGGER IF EXISTS tidemark_ddl_command_end;
DROP EVENT TRIGGER IF EXISTS tidemark_sql_drop;
DROP EVENT TRIGGER IF EXISTS tidemark_table_rewrite;
DROP FUNCTION IF EXISTS tidemark.ddl();
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_namespace n ON n.oid = d.refobjid
        WHERE d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND n.nspname = 'tidemark')
    THEN DROP SCHEMA IF EXISTS tidemark; END IF;
END $$";

/// What of the triggers is in a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DdlTrigger {
    /// Nothing.
    Missing,
    /// All of it, in use.
    Current,
    /// A part is missing, was changed, or is of an older version: `setup` mends it.
    Outdated,
    /// Installed, and switched off by someone, at least in part: `ALTER EVENT TRIGGER … DISABLE`, or the setting
    /// `event_triggers` (17 and later).
    Disabled,
    /// Installed on a server of a major that they do nothing on.
    Untried,
    /// Of a newer version of the program, which this one cannot read.
    Newer(u32),
}

impl DdlTrigger {
    /// Looks into the session's database.
    pub async fn load(client: &mut Client) -> Result<Self> {
        let sql = "SELECT p.prosrc, p.prosecdef AND p.prorettype = 'event_trigger'::regtype, \
             (SELECT count(*) FROM pg_event_trigger e WHERE e.evtfoid = p.oid AND (e.evtname, e.evtevent) IN \
             (('tidemark_ddl_command_end', 'ddl_command_end'), ('tidemark_sql_drop', 'sql_drop'), \
             ('tidemark_table_rewrite', 'table_rewrite'))), \
             (SELECT count(*) FROM pg_event_trigger e WHERE e.evtfoid = p.oid AND e.evtenabled NOT IN ('O', 'A')), \
             array_to_string(p.proconfig, E'\\n'), coalesce(current_setting('event_triggers', true), 'on') \
             FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
             WHERE n.nspname = 'tidemark' AND p.proname = 'ddl' AND p.pronargs = 0";
        let rows = client.query(sql).await?;
        let Some(row) = rows.first() else { return Ok(Self::Missing) };
        let text = |column| row.get(column).unwrap_or_default();
        if let Some(newer) = version_of(text(0)).filter(|version| *version > VERSION) {
            return Ok(Self::Newer(newer));
        }
        let wanted = install_sql(client.server_version());
        let same = wanted.contains(text(0))
            && OUTPUT_SETTINGS.iter().all(|(name, value)| text(4).contains(&format!("{name}={value}")))
            && row.is_true(1);
        if !SERVER_VERSIONS.contains(&client.server_version()) {
            return Ok(Self::Untried);
        }
        Ok(match (same, text(2), text(3)) {
            (true, "3", "0") if text(5) == "on" => Self::Current,
            (true, "3", _) => Self::Disabled,
            _ => Self::Outdated,
        })
    }
}

/// The version that stands at the head of a function's source.
fn version_of(source: &str) -> Option<u32> {
    source.trim_start().strip_prefix("-- version ")?.lines().next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sql_has_all_its_parts() {
        let sql = install_sql(180_000);
        for mark in [
            "{settings}",
            "{describe}",
            "{emit}",
            "{version}",
            "{tables}",
            "{missing_bytes_max}",
            "{in_schema}",
            "{is_locked}",
        ] {
            assert!(!sql.contains(mark), "{mark}");
        }
        assert!(
            sql.contains("pg_publication_namespace")
                && !install_sql(140_023).contains("pg_publication_namespace")
        );
        let (_, body) = sql.split_once("$tidemark$").unwrap();
        assert_eq!(version_of(body), Some(VERSION));
        assert_eq!(version_of("BEGIN END"), None);
    }
}
