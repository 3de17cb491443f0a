//! What the topic `<name>.state` holds, and the picture that follows from it.
//!
//! ```text
//!   key                        value
//!   writer                     {"epoch":3,"appends":1234,"transactional_id":"tidemark-shop"}   with every append
//!   s/<key>                    the caller's state
//!   topic/<topic>              number of partitions, when it was first written to
//!   end/<topic>/<partition>    offset just past the last record that readers may see
//!   held                       1 while records lie beyond those ends for a backfill
//!   dropped/<topic>/<partition> "5-10,20-30": offsets of backfills that never came to their end
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
pub(super) const HELD: &str = "held";
const STATE: &str = "s/";
const TOPIC: &str = "topic/";
const END: &str = "end/";
const DROPPED: &str = "dropped/";
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
    pub held: bool,
    pub dropped: BTreeMap<LogPartition, Vec<Span>>,
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
        } else if key == HELD {
            self.held = value.is_some();
        } else if let Some(topic) = key.strip_prefix(TOPIC) {
            self.topics.insert(topic.into(), text().parse().map_err(|_| unreadable())?);
        } else if let Some(partition) = key.strip_prefix(END) {
            let partition = parse_partition(partition).ok_or_else(unreadable)?;
            self.ends.insert(partition, text().parse().map_err(|_| unreadable())?);
        } else if let Some(partition) = key.strip_prefix(DROPPED) {
            let partition = parse_partition(partition).ok_or_else(unreadable)?;
            self.dropped.insert(partition, parse_spans(text()).ok_or_else(unreadable)?);
        } else if let Some(partition) = key.strip_prefix(REDO) {
            let partition = parse_partition(partition).ok_or_else(unreadable)?;
            match parse_spans(text()).ok_or_else(unreadable)?.first() {
                Some(span) => drop(self.redo.insert(partition, *span)),
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

    /// What readers pass over.
    pub fn dropped(&self, partition: &LogPartition) -> &[Span] {
        self.dropped.get(partition).map_or(&[], Vec::as_slice)
    }

    /// Where readers may begin, given the first offset that the broker still has: what was dropped below it was
    /// never visible, and its absence is no gap.
    pub fn start(&self, partition: &LogPartition, low: Offset) -> Offset {
        let before = self.dropped(partition).iter().find(|(from, to)| *from < low && low <= *to);
        before.map_or(low, |(from, _)| *from).min(self.end(partition))
    }

    /// The spans with one more, touching ones joined.
    pub fn with_dropped(&self, partition: &LogPartition, span: Span) -> Vec<Span> {
        let mut spans = self.dropped(partition).to_vec();
        match spans.last_mut().filter(|last| last.1 >= span.0) {
            Some(last) => last.1 = last.1.max(span.1),
            None => spans.push(span),
        }
        spans
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

pub(super) fn held_entry(held: bool) -> Entry {
    (HELD.to_owned(), held.then(|| b"1".to_vec()))
}

pub(super) fn dropped_entry(partition: &LogPartition, spans: &[Span]) -> Entry {
    let spans: Vec<String> = spans.iter().map(|(from, to)| format!("{from}-{to}")).collect();
    (format!("{DROPPED}{partition}"), Some(spans.join(",").into_bytes()))
}

pub(super) fn redo_entry(partition: &LogPartition, span: Option<Span>) -> Entry {
    (format!("{REDO}{partition}"), span.map(|(from, to)| format!("{from}-{to}").into_bytes()))
}

fn parse_partition(text: &str) -> Option<LogPartition> {
    let (topic, partition) = text.rsplit_once('/')?;
    Some(LogPartition { topic: topic.into(), partition: partition.parse().ok()? })
}

fn parse_spans(text: &str) -> Option<Vec<Span>> {
    let span = |text: &str| {
        let (from, to) = text.split_once('-')?;
        Some((from.parse().ok()?, to.parse().ok()?))
    };
    text.split(',').filter(|part| !part.is_empty()).map(span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition() -> LogPartition {
        LogPartition { topic: "shop.public.t/x".into(), partition: 2 }
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
            dropped_entry(&partition(), &[(1, 2), (5, 9)]),
            held_entry(true),
            held_entry(false),
        ]);
        assert_eq!(view.writer, Some(writer));
        assert_eq!(view.state.into_iter().collect::<Vec<_>>(), [("b".to_owned(), b"2".to_vec())]);
        assert_eq!((view.topics["shop.public.t/x"], view.ends[&partition()]), (3, 77));
        assert_eq!((view.held, view.place), (false, 9));
        assert_eq!(view.dropped[&partition()], [(1, 2), (5, 9)]);
    }

    #[test]
    fn what_was_applied_is_not_applied_again() {
        let mut view = view(&[end_entry(&partition(), 5), end_entry(&partition(), 8)]);
        let (key, value) = end_entry(&partition(), 5);
        view.apply(0, &key, value.as_deref()).unwrap();
        assert_eq!(view.end(&partition()), 8);
    }

    #[test]
    fn what_was_dropped_below_the_first_offset_is_no_gap() {
        let end = end_entry(&partition(), 40);
        let view = view(&[end, dropped_entry(&partition(), &[(0, 10), (20, 30)])]);
        for (low, start) in
            [(0, 0), (4, 0), (10, 0), (11, 11), (20, 20), (25, 20), (30, 20), (31, 31), (50, 40)]
        {
            assert_eq!(view.start(&partition(), low), start, "low {low}");
        }
        assert_eq!(view.with_dropped(&partition(), (30, 35)), [(0, 10), (20, 35)]);
        assert_eq!(view.with_dropped(&partition(), (33, 35)), [(0, 10), (20, 30), (33, 35)]);
    }

    #[test]
    fn what_is_not_ours_is_named() {
        let error = View::default().apply(7, "other", Some(b"x")).unwrap_err();
        assert!(error.to_string().contains("record 7 of the state topic, \"other\""), "{error}");
    }
}
