//! Records that the state counts as committed, in a transaction without its marker: written again.
//!
//! A broker can be killed between the markers of one commit: the state topic has its own then, and a table's log
//! partition has not (see [`markers`]). The append has happened as far as the state goes, and must not be lost,
//! whatever the next transaction of this producer comes to.
//!
//! ```text
//!   1  state: redo/<log partition> = 100-150              from here on the records are owed
//!   2  a transaction that is aborted ends the open one    offsets 100 to 149 are aborted
//!   3  the records, read as they are, written once more, at 153 say; state: end = 203, redo removed
//! ```
//!
//! Why this is safe at any point it may end: before 1 nothing has changed; from 1 to 3 the next fence finds what is owed
//! in the state, and an aborted record can still be read; 3 is one transaction. Readers go by the end, which lies
//! before the records until then, and consumers of what is committed see them once.

use std::collections::BTreeMap;

use super::cursor::{Cursor, Task};
use super::markers;
use super::offsets::Offsets;
use super::reader::Shared;
use super::state::{Entry, Span, end_entry, redo_entry};
use super::step::{Again, Steps};
use super::writer::failed;
use crate::log::LogPartition;
use crate::runtime::{Error, Result};

const DOING: &str = "write records again whose commit has lost its marker";

/// Bytes of records in one portion.
const READ_BYTES: usize = 4 << 20;

/// Writes again what the state counts as committed and readers do not see. To be called after the state is known,
/// with nothing of the state topic open but what the next commit stands for. Blocks.
pub(super) fn redo(steps: &mut Steps<'_>) -> Result<()> {
    let shared = steps.shared;
    let open = markers::open_partitions(shared, &shared.view())?;
    let stable = Offsets::new(&shared.options, &shared.trouble, true)?.ends(open.keys().cloned())?;
    let mut owed = shared.view().redo.clone();
    let mut new = Vec::new();
    for (partition, from) in &stable {
        let end = shared.view().end(partition);
        if *from < end && *partition != shared.state_partition() && !owed.contains_key(partition) {
            owed.insert(partition.clone(), (*from, end));
            new.push(redo_entry(partition, Some((*from, end))));
        }
    }
    if owed.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = owed.iter().map(|(p, (from, to))| format!("{p} {from}-{to}")).collect();
    tracing::warn!(
        offsets = names.join(", "),
        "a commit is without its markers here: the records are written again at the end"
    );
    if !new.is_empty() {
        steps.write(&[], |_| new).map_err(|failure| failed(DOING, &failure, shared))?;
    }
    let of_data = |(partition, _): &(LogPartition, _)| owed.contains_key(partition);
    let open: BTreeMap<_, _> = open.into_iter().filter(of_data).collect();
    let writer = shared.view().writer.clone();
    markers::abort(shared, steps.producer, &open, writer.as_ref())?;
    let again = read(shared, &owed)?;
    let entries = |ends: &[(LogPartition, u64)]| -> Vec<Entry> {
        ends.iter()
            .flat_map(|(partition, end)| [end_entry(partition, *end), redo_entry(partition, None)])
            .collect()
    };
    steps.write(&again, entries).map_err(|failure| failed(DOING, &failure, shared))
}

/// The records that are owed, from wherever they are, committed or not.
fn read(shared: &Shared, owed: &BTreeMap<LogPartition, Span>) -> Result<Vec<Again>> {
    let everything = Offsets::new(&shared.options, &shared.trouble, false)?;
    let ends = everything.ends(owed.keys().cloned())?;
    let mut cursor = Cursor::new(&shared.options, &shared.trouble, false)?;
    let mut again = Vec::new();
    for (partition, (from, to)) in owed {
        let (mut place, mut frames) = (*from, Vec::new());
        while place < *to {
            let task = Task { partition, from: place, end: *to, bytes_max: READ_BYTES };
            let fetched = cursor.read(&task)?;
            frames.extend_from_slice(&fetched.frames);
            place = fetched.next;
        }
        let Some(next) = ends.get(partition) else {
            return Err(Error::retry(format!("the brokers gave no end of {partition}")));
        };
        again.push((partition.clone(), *next, frames));
    }
    Ok(again)
}
