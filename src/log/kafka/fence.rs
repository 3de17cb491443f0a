//! Becoming the writer, and coming back as it.
//!
//! ```text
//!   init_transactions      Kafka aborts what the former writer has left open, and refuses it from here on
//!   read the whole state   up to the high watermark: nothing of ours can be hidden behind an open transaction
//!   markers missing?       what they leave open is ended, and written again where the state counts on it
//!   one transaction        epoch + 1
//! ```
//!
//! The order matters. Readers of committed records see up to the first open transaction; before
//! `init_transactions`, state which is committed already may hide behind one. After it there can be an open one
//! only where the brokers have left markers out, which is mended ([`markers`]), or of somebody with another
//! transactional id, which is refused; in both cases the end that readers see differs from the high watermark.
//!
//! A producer dies with its first fatal error, also when it was alone: the broker gives up a transaction that was
//! silent for too long (a pause, brokers out of reach), and its epoch with it. [`come_back`] makes a new
//! one under the same epoch of ours. Should another writer have taken over in between, the state read *after*
//! `init_transactions` names a later epoch, and this one is fenced.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};

use super::client::{self, Context, Meaning, meaning};
use super::markers::{self, Ended};
use super::offsets::Offsets;
use super::reader::Shared;
use super::redo::redo;
use super::state::{Entry, LastWriter, View, topic_entry, writer_entry};
use super::step::Steps;
use super::topics::Topics;
use super::transaction::Failure;
use super::writer::{Refused, Standing, failed, kafka_error};
use crate::log::{Offset, OffsetRange};
use crate::runtime::{Class, Error, Result};

/// How long brokers have to answer a new writer.
pub(super) const INIT_PATIENCE: Duration = Duration::from_secs(30);

/// After `init_transactions`, what is open for so long stays open.
const SETTLED: Duration = Duration::from_secs(3);

/// Fences every former writer; gives the caller's state. Blocks.
pub(super) fn take_over(
    shared: &Shared,
    offsets: &Offsets,
    topics: &mut Topics,
) -> Result<(Standing, BTreeMap<String, Vec<u8>>)> {
    let state_topic = shared.options.state_topic();
    // What the state says of its topic can only be known after it was read.
    topics.ensure(shared, offsets, &state_topic)?;
    let producer = start_producer(shared)?;
    let Found { view, next, .. } = read_state(shared, &producer)?;
    let options = &shared.options;
    if let Some(last) = &view.writer
        && last.transactional_id != options.transactional_id
    {
        return Err(Error::operator(format!(
            "the log was written with the transactional id {:?}, and [log.kafka] transactional_id is {:?}: Kafka \
             would not fence the former writer",
            last.transactional_id, options.transactional_id
        ))
        .mend("Set the former one again."));
    }
    let (epoch, appends) = view.writer.as_ref().map_or((0, 0), |last| (last.epoch, last.appends));
    let mut standing = Standing { epoch: epoch + 1, producer: None, appends, next: BTreeMap::new() };
    let state = view.state.clone();
    *shared.view() = view;
    let mut steps = Steps { shared, offsets, producer: &producer, next };
    redo(&mut steps)?;
    announce(&mut steps, &standing).map_err(|failure| {
        let told = failed("take over the log", &failure, shared);
        // The former writer came back in the same moment: the next try fences it.
        if told.class() == Class::Fenced { Error::retry(told.message()) } else { told }
    })?;
    standing.next.insert(shared.state_partition(), steps.next);
    standing.producer = Some(producer);
    shared.trouble.clear();
    tracing::debug!(epoch = standing.epoch, "the writer of the log");
    Ok((standing, state))
}

/// A new producer for a writer whose old one has died. Fenced when another writer has come since. Blocks.
pub(super) fn come_back(shared: &Shared, standing: &mut Standing) -> Result<(), Refused> {
    let fenced = || {
        let brokers = shared.options.brokers();
        Error::fenced(format!(
            "another writer has taken over the log at {brokers} from epoch {}",
            standing.epoch
        ))
    };
    let ours = |view: &View| view.writer.as_ref().is_some_and(|last| last.epoch == standing.epoch);
    // A successor that is known already is not to be fenced in turn.
    shared.refresh()?;
    if !ours(&shared.view()) {
        return Err(fenced().into());
    }
    let producer = start_producer(shared)?;
    let Found { view, open_committed, .. } = read_state(shared, &producer)?;
    if !ours(&view) {
        return Err(fenced().into());
    }
    if open_committed {
        let error = Error::retry("an append was found that has no answer yet");
        return Err(Refused { error, in_doubt: true });
    }
    *shared.view() = view;
    standing.next.clear();
    standing.producer = Some(producer);
    tracing::info!(epoch = standing.epoch, "the producer was made anew");
    Ok(())
}

fn start_producer(shared: &Shared) -> Result<BaseProducer<Context>> {
    let doing = "become the writer of the log";
    let producer: BaseProducer<Context> = shared
        .options
        .producer()
        .create_with_context(Context::new(&shared.trouble))
        .map_err(|e| kafka_error(doing, &e, shared))?;
    let started = Instant::now();
    loop {
        producer.poll(Duration::ZERO);
        let Err(error) = producer.init_transactions(Duration::from_secs(2)) else { return Ok(producer) };
        producer.poll(Duration::ZERO);
        let retriable = match &error {
            KafkaError::Transaction(told) => told.is_retriable(),
            _ => false,
        };
        if !retriable || started.elapsed() > INIT_PATIENCE {
            let told = client::error(doing, &error, &shared.trouble);
            // Another process became the writer in the same moment: the later one of both goes on.
            return Err(if meaning(&error) == Meaning::Fenced { Error::retry(told.message()) } else { told });
        }
    }
}

/// The state as a new producer finds it.
struct Found {
    view: View,
    /// Where the next record of the state topic will stand.
    next: Offset,
    /// A transaction without markers was found, and counts as committed.
    open_committed: bool,
}

/// The whole state, which must reach the high watermark.
fn read_state(shared: &Shared, producer: &BaseProducer<Context>) -> Result<Found> {
    let partition = shared.state_partition();
    let committed = Offsets::new(&shared.options, &shared.trouble, true)?;
    let everything = Offsets::new(&shared.options, &shared.trouble, false)?;
    let mut started = Instant::now();
    loop {
        let (start, end) = committed.watermarks(&partition)?;
        let (_, high) = everything.watermarks(&partition)?;
        if end == high {
            let view = shared.read_whole_state(start, end)?;
            return Ok(Found { view, next: high, open_committed: false });
        }
        if started.elapsed() > SETTLED {
            match markers::end_open(shared, producer, OffsetRange { start, end }, high)? {
                Ended::Aborted => started = Instant::now(),
                Ended::Committed(view, next) => {
                    return Ok(Found { view, next, open_committed: true });
                }
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The transaction that makes the epoch known.
fn announce(steps: &mut Steps<'_>, standing: &Standing) -> Result<(), Failure> {
    let shared = steps.shared;
    let state = shared.state_partition();
    let mut entries: Vec<Entry> = Vec::new();
    {
        let view = shared.view();
        if !view.topics.contains_key(&state.topic) {
            entries.push(topic_entry(&state.topic, 1));
        }
    }
    entries.push(writer_entry(&LastWriter {
        epoch: standing.epoch,
        appends: standing.appends,
        transactional_id: shared.options.transactional_id.clone(),
    }));
    steps.write(&[], |_| entries)
}
