//! Markers of transactions: waiting for them, and ending transactions which never got theirs.
//!
//! Kafka answers a commit once its coordinator will remember it; the markers that make it visible are written after
//! that. Until then it is a promise, and one that a broker can break: Kafka 4.3 killed in between takes, at its
//! next start, all topics for deleted which its metadata does not list yet, and leaves their markers out ("Couldn't
//! find leader endpoint for partitions … these partitions are likely deleted already"). Such records stay in a
//! transaction that nobody ends, and the next transaction of the same producer decides over them as well: when it
//! is aborted, what was confirmed is gone.
//!
//! ```text
//!   commit ── answer ──> last stable offsets beyond the markers? ── yes ──> the append is told to have happened
//!                                      └── no, though brokers answer ──> in doubt: fence
//!   fence  ── init_transactions ──> state topic open still? ── its tail ──┬─ nothing of it visible: abort all of it
//!                                                                         └─ some is: what the fence writes commits it
//! ```
//!
//! Why this is safe: nobody was told that the append has happened, so either outcome is right, as long as it is one
//! outcome for all log partitions. After `init_transactions` no marker is on its way any more, and nobody
//! else writes; what is open then stays so. To abort it, one record for each open log partition is sent in a
//! transaction of its own, which is aborted: its markers end both.
//!
//! Markers can also be missing in some log partitions only. Where the state has its own, the others' records are written
//! again ([`redo`](super::redo)). Where the state's is missing, the fence's first transaction commits it; should
//! that one fail, too, records would be visible that the state knows nothing of, and be written a second time. That
//! is the one gap left: two failures within the same second, of a broker that was killed between two markers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::producer::BaseProducer;

use super::client::Context;
use super::cursor::{Cursor, Task};
use super::offsets::Offsets;
use super::reader::Shared;
use super::state::{LastWriter, View, WRITER, writer_entry};
use super::transaction::Transaction;
use super::writer::failed;
use crate::log::{LogPartition, Offset, OffsetRange, record};
use crate::runtime::{Error, Result};

/// How long markers may be on their way while brokers answer. They take milliseconds; longer where a leader moves.
const MISSING_AFTER: Duration = Duration::from_secs(5);

/// Bytes of an open tail in one portion.
const TAIL_BYTES: usize = 4 << 20;

/// Waits until the markers behind these ends are written: then readers of what is committed see all below. Blocks, for
/// `patience` at most while brokers do not answer.
pub(super) fn wait_for(offsets: &Offsets, ends: &[(LogPartition, Offset)], patience: Duration) -> Result<()> {
    let started = Instant::now();
    let mut missing_since = None;
    let mut pause = Duration::from_micros(200);
    loop {
        match offsets.ends(ends.iter().map(|(partition, _)| partition.clone())) {
            Ok(stable) => {
                let open =
                    ends.iter().find(|(partition, end)| stable.get(partition).is_none_or(|at| at <= end));
                let Some((partition, end)) = open else { return Ok(()) };
                if missing_since.get_or_insert_with(Instant::now).elapsed() > MISSING_AFTER {
                    return Err(Error::retry(format!(
                        "the commit of an append was confirmed, and its marker is missing in {partition} at offset {end}"
                    )));
                }
            }
            Err(error) if started.elapsed() > patience => return Err(error),
            // Brokers that were away come back to transactions that are not ended yet.
            Err(_) => missing_since = None,
        }
        std::thread::sleep(pause);
        pause = (pause * 5 / 4).min(Duration::from_millis(20));
    }
}

/// What has become of an open tail of the state topic.
#[derive(Debug)]
pub(super) enum Ended {
    /// It is aborted, with all that belonged to it.
    Aborted,
    /// Readers see some of it already: this is the state with it. It is committed by the next record of the state topic,
    /// which will stand at the offset.
    Committed(View, Offset),
}

/// Ends what the former transactions of this producer have left open in the state topic beyond `stable.end`, and
/// wherever else. To be called after `init_transactions`. `high`: the end of everything. Blocks.
///
/// `Retry`: the tail is of somebody else, or it cannot be ended.
pub(super) fn end_open(
    shared: &Shared,
    producer: &BaseProducer<Context>,
    stable: OffsetRange,
    high: Offset,
) -> Result<Ended> {
    let committed = shared.read_whole_state(stable.start, stable.end)?;
    let Some(with_tail) = tail(shared, &committed, stable.end, high)? else {
        return Err(Error::retry(format!(
            "{} holds an open transaction at offset {} of {high}, of a producer with another transactional id",
            shared.state_partition(),
            stable.end
        ))
        .mend("Only one connector may write to its topics: stop the other producer; its transaction ends with its timeout."));
    };
    if any_visible(shared, &committed, &with_tail)? {
        tracing::warn!(
            offset = stable.end,
            "a commit is without its marker in the state topic, and visible elsewhere: it is committed here, too"
        );
        return Ok(Ended::Committed(with_tail, high));
    }
    let open = open_partitions(shared, &with_tail)?;
    let names: Vec<String> = open.keys().map(ToString::to_string).collect();
    tracing::warn!(
        partitions = names.join(", "),
        "a transaction whose markers the brokers have left out is aborted; what it held is written again"
    );
    abort(shared, producer, &open, committed.writer.as_ref())?;
    Ok(Ended::Aborted)
}

/// The view with the open tail in it, if all of the tail is of our transactional id.
fn tail(shared: &Shared, committed: &View, from: Offset, high: Offset) -> Result<Option<View>> {
    let partition = shared.state_partition();
    let mut cursor = Cursor::new(&shared.options, &shared.trouble, false)?;
    let mut view = View { place: from, ..committed.clone() };
    let mut ours = false;
    while view.place < high {
        let task = Task { partition: &partition, from: view.place, end: high, bytes_max: TAIL_BYTES };
        let fetched = cursor.read(&task)?;
        for (offset, record) in fetched.offsets.iter().copied().zip(record::frames(&fetched.frames)) {
            let key = std::str::from_utf8(record.key.unwrap_or_default()).unwrap_or_default();
            if view.apply(offset, key, record.value).is_err() {
                return Ok(None);
            }
            if key == WRITER {
                ours = true;
                let id = view.writer.as_ref().map(|writer| writer.transactional_id.as_str());
                if id != Some(&shared.options.transactional_id) {
                    return Ok(None);
                }
            }
        }
        view.place = view.place.max(fetched.next);
    }
    Ok(ours.then_some(view))
}

/// Whether readers of what is committed see the last record of any log partition that the tail has moved the end of.
fn any_visible(shared: &Shared, committed: &View, with_tail: &View) -> Result<bool> {
    let moved: BTreeMap<&LogPartition, Offset> = with_tail
        .ends
        .iter()
        .filter(|(partition, end)| committed.end(partition) < **end)
        .map(|(partition, end)| (partition, *end))
        .collect();
    let stable = Offsets::new(&shared.options, &shared.trouble, true)?
        .ends(moved.keys().map(|partition| (*partition).clone()))?;
    let mut cursor = Cursor::new(&shared.options, &shared.trouble, true)?;
    for (partition, end) in moved {
        if stable.get(partition).is_none_or(|stable| *stable < end) {
            continue;
        }
        let task = Task { partition, from: end - 1, end, bytes_max: 1 };
        if !cursor.read(&task)?.offsets.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The log partitions that are open, with the ends of everything.
pub(super) fn open_partitions(shared: &Shared, view: &View) -> Result<BTreeMap<LogPartition, Offset>> {
    let everything = Offsets::new(&shared.options, &shared.trouble, false)?;
    // One that was deleted is told by the append which misses it.
    let topics = everything.existing(view.topics.keys().cloned().collect())?;
    let of = |topic: Arc<str>| {
        let partitions = view.topics.get(&topic).copied().unwrap_or(0);
        (0..partitions).map(move |partition| LogPartition { topic: Arc::clone(&topic), partition })
    };
    let mut all: BTreeSet<LogPartition> = topics.into_iter().flat_map(of).collect();
    all.insert(shared.state_partition());
    let everything = everything.ends(all.iter().cloned())?;
    let stable = Offsets::new(&shared.options, &shared.trouble, true)?.ends(all.into_iter())?;
    let open = |(partition, end): &(LogPartition, Offset)| stable.get(partition).is_some_and(|at| at < end);
    Ok(everything.into_iter().filter(open).collect())
}

/// Ends the open transactions of these log partitions, given with the ends of everything, by an abort.
pub(super) fn abort(
    shared: &Shared,
    producer: &BaseProducer<Context>,
    open: &BTreeMap<LogPartition, Offset>,
    writer: Option<&LastWriter>,
) -> Result<()> {
    let doing = "abort a transaction without markers";
    if open.is_empty() {
        return Ok(());
    }
    // Should these records be left open in turn, then they say nothing new.
    let unchanged = writer.cloned().unwrap_or_else(|| LastWriter {
        epoch: 0,
        appends: 0,
        transactional_id: shared.options.transactional_id.clone(),
    });
    let entry = writer_entry(&unchanged);
    let mut transaction = Transaction::begin(producer).map_err(|failure| failed(doing, &failure, shared))?;
    for (partition, end) in open {
        let slot = transaction.slot(partition.clone(), *end);
        transaction.send_state(slot, &entry).map_err(|failure| failed(doing, &failure, shared))?;
    }
    transaction.sent().map_err(|failure| failed(doing, &failure, shared))?;
    if !transaction.roll_back() {
        return Err(Error::retry(format!("cannot {doing}: the brokers did not answer")));
    }
    // One record and one marker later.
    let ends: Vec<_> = open.iter().map(|(partition, end)| (partition.clone(), end + 1)).collect();
    let stable = Offsets::new(&shared.options, &shared.trouble, true)?;
    wait_for(&stable, &ends, MISSING_AFTER).map_err(|error| {
        Error::retry(format!("cannot {doing}: {}", error.message())).mend(
            "Look for it with `kafka-transactions.sh … find-hanging --broker-id N`, and end it with `kafka-transactions.sh … \
             abort --topic T --partition P --start-offset O`.",
        )
    })
}
