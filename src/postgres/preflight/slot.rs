//! The slot: whether it is there, ours, and still of use.

use super::{Finding, PreflightSettings, Server};
use crate::postgres::slot::{SlotState, WalStatus, slot_state};
use crate::postgres::wire::{Client, quote_literal};
use crate::runtime::Result;

pub(super) async fn findings(
    client: &mut Client,
    server: &Server,
    settings: &PreflightSettings<'_>,
) -> Result<Vec<Finding>> {
    let state = slot_state(client, settings.slot).await?;
    let mut findings = vec![server.slot_room(state.is_some())];
    let subject = format!("slot {}", settings.slot);
    let made = state.as_ref().map(|state| state.failover);
    if !is_slot_name(settings.slot) {
        findings.push(Finding::fail(
            &subject,
            "a slot's name has 1 to 63 lower-case letters, digits and underscores",
        ));
    } else if let Some(state) = state {
        findings.extend(existing(&subject, &state, server, settings.slot));
    } else if settings.create_missing {
        findings.push(Finding::ok(subject, "does not exist yet, and will be created"));
    } else {
        findings.push(Finding::fail(subject, "does not exist").mend(format!(
            "SELECT pg_create_logical_replication_slot({}, 'pgoutput'); (after the publication)",
            quote_literal(settings.slot)
        )));
    }
    findings.extend(server.failover(settings.failover, made));
    Ok(findings)
}

fn is_slot_name(name: &str) -> bool {
    (1..64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn existing(subject: &str, state: &SlotState, server: &Server, name: &str) -> Vec<Finding> {
    let another = "Choose another name for `slot` in the configuration.";
    let mut findings = Vec::new();
    if state.plugin.as_deref() != Some("pgoutput") {
        let plugin = state.plugin.as_deref().unwrap_or("no plugin: it is a physical slot");
        findings.push(Finding::fail(subject, format!("belongs to something else ({plugin})")).mend(another));
    } else if state.database.as_deref() != Some(&server.database) {
        let database = state.database.as_deref().unwrap_or_default();
        findings.push(Finding::fail(subject, format!("belongs to the database {database}")).mend(another));
    }
    if state.temporary {
        findings.push(
            Finding::fail(subject, "is temporary: it goes with the session that made it").mend(another),
        );
    }
    if let Some(reason) = &state.invalidation_reason {
        let again = format!("SELECT pg_drop_replication_slot({});", quote_literal(name));
        findings.push(
            Finding::fail(
                subject,
                format!("was invalidated ({reason}): changes are lost, and only a new copy mends that"),
            )
            .mend(format!("{again} Then run `tidemark setup`, and copy the tables again.")),
        );
    } else if state.wal_status == Some(WalStatus::Unreserved) {
        findings.push(
            Finding::warn(subject, "is about to lose WAL that it needs")
                .mend("Let Tidemark catch up now, and raise max_slot_wal_keep_size."),
        );
    }
    if let Some(pid) = state.active_pid {
        findings.push(
            Finding::warn(
                subject,
                format!("is in use by the server process {pid}; only one can stream from it"),
            )
            .mend("Nothing to do if that is the running Tidemark."),
        );
    }
    if findings.is_empty() {
        let kept = state.retained_bytes.unwrap_or_default() / 1_048_576;
        findings.push(Finding::ok(subject, format!("ready; {kept} MB of WAL are kept for it")));
    }
    findings
}
