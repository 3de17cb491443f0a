//! One start of the stream: who may have it, what the log holds, what is missing, and the slot.
//!
//! ```text
//!   claim ─> fence ─> state of the log ─> does the source fit it? ─> (first copy) ─> START_REPLICATION ─> session
//! ```
//!
//! Nothing is taken from the stream on the way, so whoever waits for a start may drop it at any place.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::change::Lsn;
use crate::envelope::avro::SchemaIds;
use crate::envelope::{SourceInfo, routing};
use crate::log::{Log, SPILL_STATE};
use crate::ops::{Command, Ops};
use crate::postgres::assemble::Assembler;
use crate::postgres::ddl::DdlTrigger;
use crate::postgres::slot::{self, Failover};
use crate::postgres::spool::Spool;
use crate::postgres::wire::{Client, ReplicationOptions, Session as SessionKind, Streaming};
use crate::runtime::{Error, Result, Shutdown};

use super::appender::{AppendLimits, Appender, Progress};
use super::backfill;
use super::cutter::Cutter;
use super::engine::Engine;
use super::occupied::{Claim, claim};
use super::polled::Polled;
use super::promoted::Standby;
use super::publication::Publication;
use super::registrar::Registrar;
use super::session::{Clock, Session};
use super::source::Source;
use super::state::{BackfillState, CaptureState, CutState, StreamState};
use super::tables::Tables;
use super::transactions::Transactions;
use super::verify::{self, Misfit};
use super::{CaptureSettings, Contact, Origin, begin, gap};

/// Whether schema changes come in the stream; what is lost without is told by `tidemark check`, and here in short.
async fn has_trigger(source: &mut Source) -> Result<bool> {
    let trigger = DdlTrigger::load(source.client().await?).await?;
    let in_use = trigger == DdlTrigger::Current;
    if in_use {
        tracing::info!("schema changes come in the stream, from the event trigger");
    } else {
        tracing::info!(
            ?trigger,
            "no event trigger in use: schema changes are seen when rows come, or in the catalog; `tidemark setup` installs it"
        );
    }
    Ok(in_use)
}

/// One start: fence, restore, check, backfill if nothing is there, start to stream. Notes in `contact` how far it came.
pub async fn open<'a>(
    settings: &CaptureSettings,
    log: &Arc<dyn Log>,
    ops: &Ops,
    commands: &'a mut mpsc::Receiver<Command>,
    shutdown: &Shutdown,
    contact: &mut Contact,
) -> Result<Session<'a>> {
    // Before the fence, so that a second process takes nothing from the first; and before a long copy.
    let claim = claim(settings, contact, ops, shutdown).await?;
    let mut source = Source::new(settings.connect.clone());
    source.client().await?;
    let fenced = log.fence().await.inspect_err(|error| ops.component("log").failed(error))?;
    ops.component("log").ok();
    let state = CaptureState::read(&fenced.state)?;
    let sql = source.client().await?;
    let mut tables = known_tables(settings, log, &state, ops).await?;
    let registrar = Registrar::new(settings.registry.clone(), ops, shutdown);
    // Before a long copy: whatever is refused is told at once.
    let transactions = transactions(settings, &registrar).await?;
    let limits = AppendLimits { bytes_max: settings.append_bytes_max, linger: settings.linger };
    let appender = |durable| {
        let component = ops.component("log");
        Appender::new(Arc::clone(log), fenced.epoch, limits, durable, component, shutdown.clone())
    };

    let registered = (&mut tables, &registrar);
    let (mut stream_state, cut_state, state) =
        begin_or_go_on(settings, state, sql, registered, ops, appender).await?;
    let (position, flush_lsn) = (stream_state.position, stream_state.flush_lsn);
    let slot = slot::slot_state(source.client().await?, &settings.slot).await?;
    let held = slot.as_ref().is_some_and(|slot| slot.two_phase);
    stream_state.streams_by(&settings.publication);
    let expected = gap::expected(&stream_state, slot.as_ref());
    let durable = Progress { position, flush_lsn, commit_us: 0, held };
    let (streaming, spool) = spool(settings, flush_lsn, held, contact);
    let cutter = Cutter::new(settings.calendar.clone(), cut_state);
    ops.source().durable(durable.flush_lsn, None);
    ops.days().cut_due(cutter.boundary_us() / 1000);
    let origin = Some(Origin::of(&stream_state));
    let of_copies = CaptureSettings { origin, ..settings.clone() };
    let mut backfills = backfill::Backfills::new(&of_copies, state.backfills, &mut tables, ops);
    let given_up = stream_state.given_up.take();
    let assembler = Assembler::new(stream_state.timeline, stream_state.passed());
    let dead_letters = routing::dead_letters_topic(&settings.name).into();
    let mut engine =
        Engine::new(tables, appender(durable), cutter, assembler, spool, settings.slot.clone(), dead_letters);
    engine.transactions = transactions;
    engine.last_end_lsn = stream_state.last_end_lsn;
    (engine.witness, engine.expected) = (stream_state.witness, expected);
    if fenced.state.contains_key(SPILL_STATE) {
        // A spill that is not in use here: whoever keeps it must not bring the rest of it behind what comes now.
        engine.appender.set((SPILL_STATE.to_owned(), Vec::new()));
    }
    // A stream that began at its slot has its first day in the log with its first record: from then on it has begun.
    engine.appender.set(cut_state.entry());
    if let Some(reason) = given_up {
        // With the same append the state forgets it.
        engine.appender.set(stream_state.entry());
        backfills.given_up(&reason, &engine.tables, &mut engine.appender);
    }
    let server_us = backfill::now_us(source.client().await?).await?;
    let clock = Clock::new(server_us);
    let polled = Polled::new(settings.schema_poll_interval, has_trigger(&mut source).await?);
    if let Some(gap::Expected { witness, confirmed }) = expected {
        tracing::info!(slot = settings.slot, %confirmed, commit_lsn = %witness.commit_lsn, xid = witness.xid,
            "the slot stands before the end of the log, as after a crash of the server: the log's last transaction has to \
             be sent again first");
    }
    // With prepared transactions before it, the slot stands further back, and begins there; after a crash of the server, too.
    let from = if held || expected.is_some() { Lsn::ZERO } else { flush_lsn };
    let (stream, standby) =
        start(settings, &mut source, &stream_state, from, streaming, contact, claim).await?;
    contact.streamed = true;
    ops.component("source").ok();
    tracing::info!(slot = settings.slot, from = %flush_lsn, ?streaming, "streaming");
    let name = settings.name.clone();
    let known = (&mut engine.tables, &registrar);
    let sql = source.client().await?;
    backfill::describe_unknown(&of_copies, sql, &backfills, position, known, &mut engine.appender).await?;
    Ok(Session {
        stream,
        engine,
        state: stream_state,
        source,
        standby,
        registrar,
        backfills,
        published: Publication::watch(settings, state.published, state.leaves, contact.routes.clone()),
        polled,
        clock,
        heartbeat_interval: settings.heartbeat_interval,
        commands,
        ops: ops.clone(),
        name,
        publication: settings.publication.clone(),
        shutdown: shutdown.clone(),
        in_parts: streaming != Streaming::Off,
        again: None,
    })
}

/// Where the stream stands, and when the next day is cut, with the rest of the state: of the log, where the source fits it;
/// of the slot; or of a first copy, which is made here.
async fn begin_or_go_on(
    settings: &CaptureSettings,
    state: CaptureState,
    sql: &mut Client,
    (tables, registrar): (&mut Tables, &Registrar),
    ops: &Ops,
    appender: impl Fn(Progress) -> Appender,
) -> Result<(StreamState, CutState, CaptureState)> {
    // Rows of a first copy belong into the tables' own topics as long as there is nothing yet.
    let first_copy = begin::begins_anew(settings, &state).await?;
    match (&state.stream, state.cut) {
        (Some(stream), Some(cut)) if !first_copy => {
            let copied = tables.whole_from(stream.timeline);
            let now = fit(settings, stream, copied, appender).await?;
            verify::preflight(settings, sql, false).await?;
            Ok((now, cut, state))
        }
        _ if !settings.backfill => {
            verify::preflight(settings, sql, false).await?;
            let (stream, cut) = begin::at_slot(settings, sql).await?;
            Ok((stream, cut, CaptureState::default()))
        }
        _ => {
            verify::preflight(settings, sql, true).await?;
            verify::make_missing(settings, sql).await?;
            let mut appender = appender(Progress::default());
            // Of tables that are not published any more nobody else would take them away.
            state.backfills.keys().for_each(|topic| appender.set(BackfillState::no_entry(topic)));
            let copied = backfill::run(settings, sql, tables, &mut appender, registrar, ops).await?;
            let (backfills, published) = (copied.backfills, copied.standings);
            Ok((copied.stream, copied.cut, CaptureState { backfills, published, ..CaptureState::default() }))
        }
    }
}

/// The tables as the log has them.
pub async fn known_tables(
    settings: &CaptureSettings,
    log: &Arc<dyn Log>,
    state: &CaptureState,
    ops: &Ops,
) -> Result<Tables> {
    let info = SourceInfo {
        name: settings.name.clone(),
        database: settings.connect.database.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut tables = Tables::new(info, settings.envelope, Arc::clone(&settings.filter), ops.clone());
    tables.restore(log.as_ref(), &state.counts).await?;
    Ok(tables)
}

/// The state from which the stream goes on. A source that was found to have been set back is remembered: once it has grown
/// past the log nothing else would show it.
async fn fit(
    settings: &CaptureSettings,
    state: &StreamState,
    copied: Lsn,
    appender: impl FnOnce(Progress) -> Appender,
) -> Result<StreamState> {
    let gap = match verify::still_fits(settings, state, copied).await {
        Ok(now) => return Ok(now),
        Err(Misfit::Error(error)) => return Err(error),
        Err(Misfit::Gap(gap)) => gap,
    };
    if gap.set_back.is_some() && gap.set_back != state.set_back {
        let (position, flush_lsn) = (state.position, state.flush_lsn);
        let progress = Progress { position, flush_lsn, commit_us: 0, held: false };
        let mut appender = appender(progress);
        appender.set(StreamState { set_back: gap.set_back, ..state.clone() }.entry());
        appender.submit(progress).await?;
        appender.settle().await?;
    }
    Err(Error::operator(gap.what.clone()).mend(gap.mend()))
}

/// Whether transactions in progress are taken this time, and where they are kept.
fn spool(
    settings: &CaptureSettings,
    flush_lsn: Lsn,
    two_phase: bool,
    contact: &mut Contact,
) -> (Streaming, Spool) {
    contact.whole_below.take_if(|below| flush_lsn >= *below);
    let (folder, mut bytes_max) = (settings.spool.0.as_path(), settings.spool.1);
    let mut streaming = settings.streaming;
    if let Err(error) = Spool::clear(folder) {
        tracing::warn!(folder = %folder.display(), %error,
            "the folder for transactions in progress cannot be emptied: they are left with the server");
        streaming = Streaming::Off;
    }
    if contact.whole_below.is_some() {
        streaming = Streaming::Off;
    }
    if streaming == Streaming::Off {
        // What comes now, prepared transactions of a slot with two_phase, nobody else keeps.
        bytes_max = u64::MAX;
    }
    (streaming, Spool::new(folder, bytes_max, flush_lsn, two_phase))
}

/// What numbers records within transactions, with its schemas registered; none where it is not wanted.
async fn transactions(settings: &CaptureSettings, registrar: &Registrar) -> Result<Option<Transactions>> {
    if !settings.transaction_metadata {
        return Ok(None);
    }
    let ids = match settings.envelope.transaction_to_register() {
        Some(schemas) => registrar.register_transactions(&settings.name, &schemas).await?,
        None => SchemaIds::default(),
    };
    Ok(Some(Transactions::new(&settings.name, settings.envelope, ids)))
}

/// Starts replication on the slot; from then on the slot itself keeps others away, and the claim is given back.
async fn start(
    settings: &CaptureSettings,
    source: &mut Source,
    state: &StreamState,
    from: Lsn,
    streaming: Streaming,
    contact: &mut Contact,
    claim: Claim,
) -> Result<(crate::postgres::wire::ReplicationStream, Option<Standby>)> {
    let interval = verify::status_interval(source.client().await?).await?;
    let mut client = Client::connect(&settings.connect, SessionKind::Replication).await?;
    if settings.failover == Failover::On {
        make_failover(settings, &mut client).await?;
    }
    let options = ReplicationOptions {
        messages: true,
        streaming,
        status_interval: interval,
        ..ReplicationOptions::new(&settings.slot, from, &settings.publication)
    };
    contact.walsender = client.server_process();
    let standby = Standby::watch(settings, client.address()).await?;
    // What the slot was compared with is of before that: a promotion in between is found by the next start.
    verify::is_the_same(settings, &mut client, state).await?;
    let stream = client.start_replication(&options).await?;
    drop(claim);
    Ok((stream, standby))
}

/// Has a slot synchronised to standbys that was made without.
async fn make_failover(settings: &CaptureSettings, replication: &mut Client) -> Result<()> {
    let slot = slot::slot_state(replication, &settings.slot).await?;
    if slot.is_none_or(|slot| slot.failover) || !settings.failover.applies(replication).await? {
        return Ok(());
    }
    tracing::info!(slot = settings.slot, "the slot is synchronised to standbys from now on");
    slot::set_failover(replication, &settings.slot).await
}
