//! The server's settings and the role's rights.

use std::collections::BTreeMap;

use super::Finding;
use crate::postgres::slot::Failover;
use crate::postgres::wire::{Client, quote_ident};
use crate::runtime::Result;

/// Facts about the server and the session's role.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts, each of which is asked on its own")]
pub(in crate::postgres) struct Server {
    pub(in crate::postgres) version: u32,
    pub(in crate::postgres) version_text: String,
    pub(in crate::postgres) database: String,
    pub(in crate::postgres) role: String,
    pub(in crate::postgres) is_superuser: bool,
    pub(in crate::postgres) may_replicate: bool,
    /// Whether the role may create objects in the database.
    pub(in crate::postgres) may_create: bool,
    /// Versions of `pg_logical_emit_message` for text that it may not call.
    no_messages: Option<String>,
    in_recovery: bool,
    slots: i64,
    walsenders: i64,
    encoding: String,
    /// Names of the physical slots, quoted: what standbys stream from.
    physical_slots: String,
    settings: BTreeMap<String, String>,
}

impl Server {
    pub(in crate::postgres) async fn load(client: &mut Client) -> Result<Self> {
        let row = client
            .query_one(
                "SELECT current_database(), current_user, r.rolsuper, \
                 r.rolreplication OR r.rolsuper OR coalesce((SELECT pg_has_role(current_user, g.oid, 'MEMBER') \
                 FROM pg_roles g WHERE g.rolname = 'rds_replication'), false), \
                 has_database_privilege(current_database(), 'CREATE'), pg_is_in_recovery(), \
                 (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_stat_replication), \
                 current_setting('server_encoding'), current_setting('server_version'), \
                 (SELECT string_agg(p.oid::regprocedure::text, ', ') FROM pg_proc p \
                 WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = 'pg_logical_emit_message' \
                 AND p.proargtypes[2] = 'text'::regtype AND NOT has_function_privilege(p.oid, 'EXECUTE')), \
                 (SELECT string_agg(quote_literal(slot_name), ', ') FROM pg_replication_slots WHERE slot_type = 'physical') \
                 FROM pg_roles r WHERE r.rolname = current_user",
            )
            .await?;
        let text = |column: usize| row.get(column).unwrap_or_default().to_owned();
        let settings = client
            .query(
                "SELECT name, setting FROM pg_settings WHERE name IN ('wal_level', 'max_replication_slots', \
                 'max_wal_senders', 'max_slot_wal_keep_size', 'wal_sender_timeout', 'idle_replication_slot_timeout', \
                 'synchronous_standby_names', 'synchronized_standby_slots')",
            )
            .await?;
        let settings =
            settings.iter().filter_map(|row| Some((row.get(0)?.to_owned(), row.get(1)?.to_owned())));
        Ok(Self {
            version: client.server_version(),
            version_text: text(9),
            database: text(0),
            role: text(1),
            is_superuser: row.is_true(2),
            may_replicate: row.is_true(3),
            may_create: row.is_true(4),
            no_messages: row.get(10).map(str::to_owned),
            in_recovery: row.is_true(5),
            slots: row.parse(6)?,
            walsenders: row.parse(7)?,
            encoding: text(8),
            physical_slots: text(11),
            settings: settings.collect(),
        })
    }

    /// Whether the rest of the questions can be asked.
    pub(super) const fn is_supported(&self) -> bool {
        self.version >= 140_000
    }

    fn number(&self, name: &str) -> i64 {
        self.settings.get(name).and_then(|text| text.parse().ok()).unwrap_or(-1)
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.version(), self.recovery(), self.wal_level(), self.rights()];
        findings.extend(self.messages());
        findings.push(self.room("max_wal_senders", self.walsenders, "replication sessions"));
        findings.push(self.wal_kept());
        findings.push(self.sender_timeout());
        if self.number("idle_replication_slot_timeout") > 0 {
            findings.push(
                Finding::warn(
                    "idle_replication_slot_timeout",
                    "a slot that nobody reads for that long is invalidated, and the tables have to be copied again",
                )
                .mend("ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();"),
            );
        }
        let synchronous = self.settings.get("synchronous_standby_names").map_or("", String::as_str);
        if synchronous.contains('*') {
            findings.push(
                Finding::fail(
                    "synchronous_standby_names",
                    format!("{synchronous:?} takes any replication session for a standby: commits would wait for Tidemark"),
                )
                .mend("Name the standbys: ALTER SYSTEM SET synchronous_standby_names = 'standby1'; SELECT pg_reload_conf();"),
            );
        }
        if self.encoding == "SQL_ASCII" {
            findings.push(Finding::warn(
                "encoding",
                "the database is in SQL_ASCII: text that is not UTF-8 goes to the dead letters",
            ));
        }
        findings
    }

    fn version(&self) -> Finding {
        let message = format!("PostgreSQL {}", self.version_text);
        match self.version {
            140_000..190_000 => Finding::ok("server", message),
            190_000.. => {
                Finding::warn("server", format!("{message} is newer than what was tested (14 to 18)"))
            }
            _ => Finding::fail("server", format!("{message} is too old; 14 to 18 are supported"))
                .mend("Upgrade the server."),
        }
    }

    fn recovery(&self) -> Finding {
        match (self.in_recovery, self.version) {
            (false, _) => Finding::ok("recovery", "the server is a primary"),
            (true, 160_000..) => Finding::warn(
                "recovery",
                "the server is a standby: the publication must be made on the primary, and a new slot waits for it",
            ),
            (true, _) => {
                Finding::fail("recovery", "the server is a standby, which before 16 has no logical slots")
                    .mend("Connect to the primary.")
            }
        }
    }

    fn wal_level(&self) -> Finding {
        let level = self.settings.get("wal_level").map_or("unknown", String::as_str);
        if level == "logical" {
            return Finding::ok("wal_level", "logical");
        }
        Finding::fail("wal_level", format!("wal_level is {level}; changes can only be streamed with logical"))
            .mend(
                "ALTER SYSTEM SET wal_level = logical; then restart the server. On Amazon RDS and Aurora: \
             rds.logical_replication = 1 in the parameter group, then reboot.",
            )
    }

    fn rights(&self) -> Finding {
        if self.may_replicate {
            return Finding::ok("role", format!("{} may replicate", self.role));
        }
        let role = quote_ident(&self.role);
        Finding::fail("role", format!("the role {} may not replicate", self.role)).mend(format!(
            "ALTER ROLE {role} REPLICATION; On Amazon RDS and Aurora: GRANT rds_replication TO {role};"
        ))
    }

    fn messages(&self) -> Option<Finding> {
        let functions = self.no_messages.as_ref()?;
        let message = format!(
            "{} may not leave messages in the WAL: at the end of a day, and at `tidemark cut`, an idle database is not cut \
             before its next commit, and there are no heartbeats",
            self.role
        );
        let mend = format!("GRANT EXECUTE ON FUNCTION {functions} TO {};", quote_ident(&self.role));
        Some(Finding::warn("messages", message).mend(mend))
    }

    /// Room for one more, and for the second one that a first copy takes.
    fn room(&self, setting: &str, used: i64, what: &str) -> Finding {
        let limit = self.number(setting);
        let message = format!("{used} of {limit} {what} are in use");
        let mend = format!("ALTER SYSTEM SET {setting} = {}; then restart the server.", limit.max(used) + 10);
        match limit - used {
            ..=0 => Finding::fail(setting, message).mend(mend),
            1 => Finding::warn(setting, format!("{message}; a first copy needs two")).mend(mend),
            _ => Finding::ok(setting, message),
        }
    }

    /// Room for slots; when ours is there already, only a first copy needs another.
    pub(super) fn slot_room(&self, exists: bool) -> Finding {
        let room = self.room("max_replication_slots", self.slots, "slots");
        if exists && room.level == super::Level::Fail {
            return Finding {
                level: super::Level::Warn,
                message: format!("{}; a copy needs one more", room.message),
                ..room
            };
        }
        room
    }

    /// Whether the stream can go on at a standby that is promoted. `made`: whether the slot that is there is synchronised.
    pub(super) fn failover(&self, wanted: Failover, made: Option<bool>) -> Option<Finding> {
        const NAME: &str = "failover";
        if wanted == Failover::Off || self.in_recovery {
            return None;
        }
        if self.version < 170_000 {
            let message = "before PostgreSQL 17 a slot does not go over to a standby that is promoted: after a failover \
                           every table is copied anew";
            return Some(match wanted {
                Failover::On => Finding::fail(NAME, message).mend("Set [source] failover = \"auto\"."),
                _ => Finding::ok(NAME, message),
            });
        }
        if made == Some(false) && wanted == Failover::Auto {
            return Some(
                Finding::warn(NAME, "the slot is not synchronised to standbys: after a failover every table is copied anew")
                    .mend("Set [source] failover = \"on\": the next start changes the slot. With \"off\" it is not told."),
            );
        }
        let names = self.settings.get("synchronized_standby_slots").map_or("", String::as_str);
        if self.physical_slots.is_empty() {
            return Some(Finding::ok(
                NAME,
                "the slot is to be synchronised; no standby has a physical slot here yet (primary_slot_name)",
            ));
        }
        if names.is_empty() {
            return Some(
                Finding::warn(
                    NAME,
                    "changes may be sent before a standby has them: one that is promoted may lack what the log holds",
                )
                .mend(format!(
                    "ALTER SYSTEM SET synchronized_standby_slots = {}; SELECT pg_reload_conf(); On each standby: \
                     sync_replication_slots = on, hot_standby_feedback = on, primary_slot_name, and a dbname in \
                     primary_conninfo.",
                    self.physical_slots
                )),
            );
        }
        Some(Finding::ok(NAME, format!("the slot is synchronised; changes wait for the standbys of {names}")))
    }

    fn wal_kept(&self) -> Finding {
        let limit = self.number("max_slot_wal_keep_size");
        if limit >= 0 {
            return Finding::ok("max_slot_wal_keep_size", format!("a slot keeps at most {limit} MB of WAL"));
        }
        Finding::warn(
            "max_slot_wal_keep_size",
            "without a limit, WAL kept for a slot that nobody reads fills the server's disk",
        )
        .mend("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf(); (less than the disk has to spare)")
    }

    fn sender_timeout(&self) -> Finding {
        const NAME: &str = "wal_sender_timeout";
        match self.number(NAME) {
            0 => Finding::warn(NAME, "switched off: a connection that broke silently keeps the slot busy")
                .mend("ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();"),
            1..5_000 => Finding::warn(NAME, "less than 5 s: a short pause of the network ends the stream")
                .mend("ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();"),
            ms => Finding::ok(NAME, format!("{} s", ms / 1000)),
        }
    }
}
