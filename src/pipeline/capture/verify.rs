//! Before streaming: does the source still fit what the log holds? What does not is stated exactly, and
//! nothing is papered over.

use std::time::Duration;

use crate::change::Lsn;
use crate::postgres::preflight::{self, Level, PreflightSettings};
use crate::postgres::setup;
use crate::postgres::slot::{self, SlotState};
use crate::postgres::wire::{Client, Session, quote_literal};
use crate::runtime::{Error, Result};

use super::CaptureSettings;
use super::gap::{self, Gap, Seen, Verdict};
use super::state::StreamState;

/// Status updates are sent at least this often.
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// Asks a replication session's server who it is and what the slot is, and decides whether the log goes on there, which
/// holds rows of copies up to `copied`.
///
/// # Errors
/// Of class `Retry` on a standby that has no slot of its own: it may be about to be promoted. Of class `Operator` for a
/// slot that was never ours.
pub async fn examine(
    settings: &CaptureSettings,
    replication: &mut Client,
    state: &StreamState,
    copied: Lsn,
) -> Result<Verdict> {
    let identity = slot::identify_system(replication).await?;
    let slot = slot::slot_state(replication, &settings.slot).await?;
    let same_system = identity.system_identifier.to_string() == state.system_id;
    if same_system && slot.as_ref().is_none_or(|slot| slot.synced) {
        refuse_standby(settings, replication, slot.is_some()).await?;
    }
    if let Some(slot) = &slot {
        ours(settings, slot)?;
    }
    let mut switch = None;
    if same_system && identity.timeline != state.server_timeline() && identity.timeline > 1 {
        let point = slot::switch_point(replication, identity.timeline, state.server_timeline()).await;
        switch = point.map_err(|error| {
            error.context(format!("asking {} for the history of its timeline", replication.address()))
        })?;
    }
    let seen = Seen { identity: &identity, switch, copied, slot: slot.as_ref(), name: &settings.slot };
    Ok(gap::judge(state, seen))
}

/// The state from which the stream goes on: the log's, moved on to the server's timeline.
///
/// # Errors
/// That something is missing in between, and exactly what.
pub async fn still_fits(
    settings: &CaptureSettings,
    state: &StreamState,
    copied: Lsn,
) -> Result<StreamState, Misfit> {
    let mut replication = Client::connect(&settings.connect, Session::Replication).await?;
    match examine(settings, &mut replication, state, copied).await? {
        Verdict::GoesOn(now) => {
            if now.timeline != state.timeline {
                tracing::warn!(
                    server = replication.address(),
                    from = state.server_timeline(),
                    to = now.server_timeline(),
                    at = %now.flush_lsn,
                    "the source is on another timeline, after a failover or a restore: nothing is missing, and the \
                     stream goes on there"
                );
            }
            Ok(now)
        }
        Verdict::Gap(gap) => Err(Misfit::Gap(Box::new(gap))),
    }
}

/// Why a source does not fit.
#[derive(Debug)]
pub enum Misfit {
    /// Something is missing.
    Gap(Box<Gap>),
    /// It could not be found out, or no gap explains it.
    Error(Error),
}

impl From<Error> for Misfit {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The session that is to stream leads to the server which was examined, and its slot begins no later: with several
/// hosts, or a name that resolves anew, it need not be.
pub async fn is_the_same(
    settings: &CaptureSettings,
    replication: &mut Client,
    state: &StreamState,
) -> Result<()> {
    // On another timeline it is not the same anyway.
    match examine(settings, replication, state, Lsn::ZERO).await? {
        Verdict::GoesOn(now) if now == *state => Ok(()),
        _ => Err(Error::retry(format!(
            "the source changed while the stream was taken up: {} is not the server, or has not the slot, that was \
             examined before",
            replication.address()
        ))),
    }
}

/// A standby without a slot of its own, or with one that is kept like the primary's, has nothing to stream from.
async fn refuse_standby(settings: &CaptureSettings, replication: &mut Client, synced: bool) -> Result<()> {
    if !replication.query_one("SELECT pg_is_in_recovery()").await?.is_true(0) {
        return Ok(());
    }
    let has = if synced { "is synchronised from the primary" } else { "does not exist there" };
    Err(Error::retry(format!(
        "the server at {} is a standby, and replication slot {:?} {has}: waiting until it is promoted, or the source URL \
         leads to the primary",
        replication.address(),
        settings.slot
    ))
    .mend("Name all servers in [source] url: of several hosts the primary is taken. A slot that was made on a standby and \
           is gone has to be made again with `tidemark setup`; then the range that is missing is told."))
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
        copied_where: settings.copied_where.as_ref(),
        create_missing,
        ddl_trigger: settings.ddl_trigger,
        failover: settings.failover,
    }
}

/// A slot of our name is one of ours.
fn ours(settings: &CaptureSettings, slot: &SlotState) -> Result<()> {
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
