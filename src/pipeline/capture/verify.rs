//! Before streaming: does the source still fit what the log holds? What does not is stated exactly, and
//! nothing is papered over.

use std::time::Duration;

use crate::postgres::preflight::{self, Level, PreflightSettings};
use crate::postgres::setup;
use crate::postgres::slot::{self, SlotState, WalStatus};
use crate::postgres::wire::{Client, Session, quote_literal};
use crate::runtime::{Error, Result};

use super::CaptureSettings;
use super::state::StreamState;

/// Status updates are sent at least this often.
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// Checks system identifier, timeline and slot against where the log stands.
pub async fn still_fits(settings: &CaptureSettings, sql: &mut Client, state: &StreamState) -> Result<()> {
    let mut replication = Client::connect(&settings.connect, Session::Replication).await?;
    let identity = slot::identify_system(&mut replication).await?;
    let anew = format!(
        "To go on without those changes, move the log's file ([log.embedded] path, with -wal and -shm) and the \
         lake's folders of this source (snapshots/{name}, changes/{name}, cuts/{name}, dead_letters/{name}) aside, \
         and start again: a new backfill is made.",
        name = settings.name
    );
    // Changes that are written from now on are lost, too, until there is a slot again.
    let gap = format!("changes from {} up to {} (now) and on", state.flush_lsn, identity.current_lsn);
    if identity.system_identifier.to_string() != state.system_id {
        return Err(Error::operator(format!(
            "the source is another database system: its identifier is {}, the log holds changes of {} up to {}",
            identity.system_identifier, state.system_id, state.position
        ))
        .mend("Point [source] url at the former server, or give this source a [source] name and [state] dir of its own."));
    }
    if identity.timeline != state.timeline {
        return Err(Error::operator(format!(
            "the source is on timeline {}, the log holds changes of timeline {} up to {}: after a failover or a \
             restore, changes from {} on may be missing or different",
            identity.timeline, state.timeline, state.position, state.flush_lsn
        ))
        .mend(anew));
    }
    if identity.current_lsn < state.flush_lsn {
        return Err(Error::operator(format!(
            "the source was set back: its WAL ends at {}, the log holds changes up to {}; what the log holds beyond \
             that never happened there, and what is written there now may be taken for known",
            identity.current_lsn, state.flush_lsn
        ))
        .mend(anew));
    }
    let Some(slot) = slot::slot_state(sql, &settings.slot).await? else {
        return Err(Error::operator(format!(
            "replication slot {:?} does not exist any more: {gap} cannot be had",
            settings.slot
        ))
        .mend(anew));
    };
    usable(settings, &slot, &format!("{gap} cannot be had"), &anew)?;
    match slot.confirmed_flush_lsn {
        Some(confirmed) if confirmed > state.flush_lsn => Err(Error::operator(format!(
            "replication slot {:?} was moved on by someone else: it stands at {confirmed}, the log at {}: the changes \
             between them cannot be had",
            settings.slot, state.flush_lsn
        ))
        .mend(anew)),
        _ => Ok(()),
    }
}

/// Makes what a first start lacks: the publication, and the slot with it. A publication that exists is the
/// DBA's and stays as it is.
pub async fn make_missing(settings: &CaptureSettings, sql: &mut Client) -> Result<()> {
    let publication = quote_literal(&settings.publication);
    let exists =
        sql.query(&format!("SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = {publication}")).await?;
    if exists.is_empty() {
        let plan = setup::plan(sql, &preflight_settings(settings, true)).await?;
        for statement in &plan.statements {
            tracing::info!(sql = statement.sql, "{}", statement.purpose);
        }
        // Of the event triggers, preflight has told.
        setup::apply(sql, &plan).await?;
    }
    Ok(())
}

/// Asks everything that could fail later. What fails is one error, with all the mends; what could be better is
/// logged. A first copy needs every table; later a table that fails is logged and does not keep the others from
/// being captured. The event triggers are put in first: whether they are there is one of the questions.
pub async fn preflight(settings: &CaptureSettings, sql: &mut Client, first_copy: bool) -> Result<()> {
    if let Some(installed) = setup::install_trigger(sql, settings.ddl_trigger).await? {
        tracing::info!("{}", installed.purpose);
    }
    let findings = preflight::check(sql, &preflight_settings(settings, first_copy)).await?;
    let mut failures = Vec::new();
    let mut mends = Vec::new();
    for finding in findings {
        let line = format!("{}: {}", finding.subject, finding.message);
        match finding.level {
            Level::Fail if !first_copy && finding.subject.starts_with("table ") => {
                tracing::error!(mend = finding.mend, "{line}");
            }
            Level::Fail => {
                failures.push(line);
                mends.extend(finding.mend);
            }
            Level::Warn => tracing::warn!(mend = finding.mend, "{line}"),
            Level::Ok => {}
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    let listed =
        if failures.len() == 1 { failures.concat() } else { format!("\n  {}", failures.join("\n  ")) };
    mends.dedup();
    Err(Error::operator(format!("the source is not ready: {listed}")).mend(mends.join("\n")))
}

/// What is to be captured, in preflight's words.
pub fn preflight_settings(settings: &CaptureSettings, create_missing: bool) -> PreflightSettings<'_> {
    PreflightSettings {
        slot: &settings.slot,
        publication: &settings.publication,
        wanted: settings.filter.as_ref(),
        create_missing,
        ddl_trigger: settings.ddl_trigger,
    }
}

fn usable(settings: &CaptureSettings, slot: &SlotState, consequence: &str, mend: &str) -> Result<()> {
    let name = &settings.slot;
    let plugin = slot.plugin.as_deref().unwrap_or("none, being physical");
    if plugin != "pgoutput" {
        return Err(Error::operator(format!(
            "replication slot {name:?} uses the plugin {plugin}, not pgoutput"
        ))
        .mend("Give this connector a slot of its own under [source] slot."));
    }
    let database = slot.database.as_deref().unwrap_or_default();
    if database != settings.connect.database {
        return Err(Error::operator(format!("replication slot {name:?} belongs to database {database:?}"))
            .mend("Give this connector a slot of its own under [source] slot."));
    }
    if slot.wal_status == Some(WalStatus::Lost) || slot.invalidation_reason.is_some() {
        let reason = slot.invalidation_reason.as_deref().unwrap_or("its WAL was removed");
        return Err(Error::operator(format!(
            "replication slot {name:?} has been invalidated ({reason}): {consequence}"
        ))
        .mend(format!(
            "{mend} Drop the slot first: SELECT pg_drop_replication_slot({}); and raise max_slot_wal_keep_size if \
             WAL was removed too early.",
            quote_literal(name)
        )));
    }
    Ok(())
}

/// A third of the server's patience, ten seconds at most.
pub async fn status_interval(sql: &mut Client) -> Result<Duration> {
    let timeout = wal_sender_timeout(sql).await?;
    Ok(timeout.map_or(STATUS_INTERVAL_MAX, |timeout| (timeout / 3).min(STATUS_INTERVAL_MAX)))
}

/// How long the server keeps a connection that is silent; none: for ever.
pub async fn wal_sender_timeout(sql: &mut Client) -> Result<Option<Duration>> {
    let rows =
        sql.query("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'").await?;
    let millis: Option<u64> = rows.first().and_then(|row| row.get(0)).and_then(|text| text.parse().ok());
    Ok(millis.filter(|millis| *millis > 0).map(Duration::from_millis))
}
