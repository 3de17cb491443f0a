//! How changes of schemas are told: by the event triggers, or without them.

use super::Finding;
use crate::postgres::ddl::{DdlTrigger, TriggerUse};
use crate::postgres::wire::Client;
use crate::runtime::Result;

const SUBJECT: &str = "event trigger";

/// What is lost without the triggers.
const LOST: &str = "a change of a table's schema is seen with the first row after it, or when the catalog is asked \
    next (schema_poll_interval_ms), without the statement's text, and several between two looks as one; rows written \
    anew under the same types (ALTER … TYPE … USING) go unseen";

/// `made_at_start`: whether the next start installs them.
pub(super) async fn finding(client: &mut Client, wanted: TriggerUse, made_at_start: bool) -> Result<Finding> {
    let found = DdlTrigger::load(client).await?;
    if wanted == TriggerUse::Off {
        return Ok(match found {
            DdlTrigger::Missing => Finding::ok(SUBJECT, format!("not used, as configured: {LOST}")),
            _ => Finding::warn(SUBJECT, "installed, though the configuration has ddl_trigger = \"off\"")
                .mend("`tidemark setup --uninstall` takes it away."),
        });
    }
    let bad = |message: &str| {
        let message = format!("{message}: {LOST}");
        if wanted == TriggerUse::On {
            Finding::fail(SUBJECT, message)
        } else {
            Finding::warn(SUBJECT, message)
        }
    };
    let setup = "Run `tidemark setup` as a superuser (Amazon RDS and Aurora: rds_superuser), or have the DBA run what \
        `tidemark setup --print` prints.";
    Ok(match found {
        DdlTrigger::Current => Finding::ok(SUBJECT, "in use: DDL comes in order with the rows"),
        DdlTrigger::Missing if made_at_start => {
            Finding::ok(SUBJECT, "does not exist yet, and will be created")
        }
        DdlTrigger::Missing => bad("not installed")
            .mend(format!("{setup} ddl_trigger = \"off\" under [source] if it is not wanted.")),
        DdlTrigger::Outdated => bad("not as this version installs it").mend(setup),
        DdlTrigger::Disabled => bad("switched off by someone").mend(
            "ALTER EVENT TRIGGER tidemark_ddl_command_end ENABLE; ALTER EVENT TRIGGER tidemark_sql_drop ENABLE; \
             ALTER EVENT TRIGGER tidemark_table_rewrite ENABLE; and, from PostgreSQL 17 on, event_triggers = on.",
        ),
        DdlTrigger::Untried => bad("does nothing on this major of PostgreSQL, which it was not tried on")
            .mend("Install a version of Tidemark that knows it."),
        DdlTrigger::Newer(version) => {
            Finding::fail(SUBJECT, format!("of version {version}, which this program cannot read"))
                .mend("Run the program that installed it, or a newer one.")
        }
    })
}
