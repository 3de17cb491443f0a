//! What the topic `<name>.state` holds, and the picture that follows from it.
//!
//! ```text
//!   key                        value
//!   writer                     {"epoch":3,"appends":1234,"transactional_id":"tidemark-shop"}   with every append
//!   s/<key>                    the caller's state
//!   topic/<topic>              number of partitions, when it was first written to
//!   end/<topic>/<partition>    offset just past the last record that readers may see
//!   redo/<topic>/<partition>   "100-150": offsets whose records have to be written again
//! ```
//!
//! A record without a value removes its key, for readers and for the broker's compaction alike. Applying the
//! records again, or from any earlier place, leads to the same picture.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::log::{LogPartition, Offset};
use crate::runtime::{Error, Result};

pub(super) const WRITER: &str = "writer";
const STATE: &str = "s/";
const TOPIC: &str = "topic/";
const END: &str = "end/";
const REDO: &str = "redo/";

/// Offsets `from <= offset < to`.
pub(super) type Span = (Offset, Offset);

/// Who has written last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastWriter {
    pub epoch: u64,
    pub appends: u64,
    pub transactional_id: String,
}

/// A record of the topic: key, and value unless it removes the key.
pub(super) type Entry = (String, Option<Vec<u8>>);

/// The picture.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Where to read next.
    pub place: Offset,
    pub writer: Option<LastWriter>,
    pub state: BTreeMap<String, Vec<u8>>,
    pub topics: BTreeMap<Arc<str>, u32>,
    pub ends: BTreeMap<LogPartition, Offset>,
    pub redo: BTreeMap<LogPartition, Span>,
}

impl View {
    /// Takes one record at its offset. One that lies before the place is known already.
    pub fn apply(&mut self, offset: Offset, key: &str, value: Option<&[u8]>) -> Result<()> {
        if offset < self.place {
            return Ok(());
        }
        self.place = offset + 1;
        let text = || std::str::from_utf8(value.unwrap_or_default()).unwrap_or_default();
        let unreadable = || {
            Error::operator(format!("record {offset} of the state topic, {key:?}, cannot be read")).mend(
                "It was written by another version, or by somebody else: run the version that wrote it.",
            )
        };
        if let Some(key) = key.strip_prefix(STATE) {
            match value {
                Some(value) => drop(self.state.insert(key.to_owned(), value.to_vec())),
                None => drop(self.state.remove(key)),
            }
        } else if key == WRITER {
            let writer = serde_json::from_slice(value.unwrap_or_default()).map_err(|_| unreadable())?;
            self.writer = Some(writer);
        } else if let Some(topic) = key.strip_prefix(TOPIC) {
            self.topics.insert(topic.into(), text().parse().map_err(|_| unreadable())?);
        } else if let Some(partition) = key.strip_prefix(END) {
            let partition = parse_partition(partition).ok_or_else(unreadable)?;
            self.ends.insert(partition, text().parse().map_err(|_| unreadable())?);
        } else if let Some(partition) = key.strip_prefix(REDO) {
            let partition = parse_partition(partition).ok_or_else(unreadable)?;
            match value {
                Some(_) => drop(self.redo.insert(partition, parse_span(text()).ok_or_else(unreadable)?)),
                None => drop(self.redo.remove(&partition)),
            }
        } else {
            return Err(unreadable());
        }
        Ok(())
    }

    /// The end for readers.
    pub fn end(&self, partition: &LogPartition) -> Offset {
        self.ends.get(partition).copied().unwrap_or(0)
    }
}

pub(super) fn writer_entry(writer: &LastWriter) -> Entry {
    // Numbers and a string always serialise.
    (WRITER.to_owned(), Some(serde_json::to_vec(writer).unwrap_or_default()))
}

pub(super) fn state_entry(key: &str, value: &[u8]) -> Entry {
    (format!("{STATE}{key}"), (!value.is_empty()).then(|| value.to_vec()))
}

pub(super) fn topic_entry(topic: &str, partitions: u32) -> Entry {
    (format!("{TOPIC}{topic}"), Some(partitions.to_string().into_bytes()))
}

pub(super) fn end_entry(partition: &LogPartition, end: Offset) -> Entry {
    (format!("{END}{partition}"), Some(end.to_string().into_bytes()))
}

pub(super) fn redo_entry(partition: &LogPartition, span: Option<Span>) -> Entry {
    (format!("{REDO}{partition}"), span.map(|(from, to)| format!("{from}-{to}").into_bytes()))
}

fn parse_partition(text: &str) -> Option<LogPartition> {
    let (topic, partition) = text.rsplit_once('/')?;
    Some(LogPartition { topic: topic.into(), partition: partition.parse().ok()? })
}

fn parse_span(text: &str) -> Option<Span> {
    let (from, to) = text.split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition() -> LogPartition {
        LogPartition { topic: "shop.public.t/x".into(), partition: 2 }
    }

    fn other() -> LogPartition {
        LogPartition { partition: 3, ..partition() }
    }

    fn view(entries: &[Entry]) -> View {
        let mut view = View::default();
        for (offset, (key, value)) in entries.iter().enumerate() {
            view.apply(offset as u64, key, value.as_deref()).unwrap();
        }
        view
    }

    #[test]
    fn entries_read_back_and_removals_remove() {
        let writer = LastWriter { epoch: 3, appends: 9, transactional_id: "t".into() };
        let view = view(&[
            writer_entry(&writer),
            state_entry("a", b"1"),
            state_entry("b", b"2"),
            state_entry("a", b""),
            topic_entry("shop.public.t/x", 3),
            end_entry(&partition(), 77),
            redo_entry(&partition(), Some((5, 9))),
            redo_entry(&other(), Some((1, 2))),
            redo_entry(&other(), None),
        ]);
        assert_eq!(view.writer, Some(writer));
        assert_eq!(view.state.into_iter().collect::<Vec<_>>(), [("b".to_owned(), b"2".to_vec())]);
        assert_eq!((view.topics["shop.public.t/x"], view.ends[&partition()]), (3, 77));
        assert_eq!(view.place, 9);
        assert_eq!(view.redo.into_iter().collect::<Vec<_>>(), [(partition(), (5, 9))]);
    }

    #[test]
    fn what_was_applied_is_not_applied_again() {
        let mut view = view(&[end_entry(&partition(), 5), end_entry(&partition(), 8)]);
        let (key, value) = end_entry(&partition(), 5);
        view.apply(0, &key, value.as_deref()).unwrap();
        assert_eq!(view.end(&partition()), 8);
    }

    #[test]
    fn what_is_not_ours_is_named() {
        let error = View::default().apply(7, "other", Some(b"x")).unwrap_err();
        assert!(error.to_string().contains("record 7 of the state topic, \"other\""), "{error}");
    }
}
