//! Records in memory: a batch is one buffer of frames a topic, written in place and read by borrowing.
//!
//! ```text
//!   frame: len u32 | timestamp_ms i64 | key | value | headers u8 | (name len u8, name, value)*
//!   key, value: len u32 (u32::MAX: null), bytes          all numbers little-endian; len excludes itself
//! ```
//!
//! The frames of a topic are stored as they are by the embedded log, so the layout is a file format: it is
//! named by the log's schema version.

use std::collections::HashMap;
use std::sync::Arc;

use super::blob::{Packed, Piece};

const NULL: u32 = u32::MAX;

/// A record, borrowed from its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Milliseconds since 1970: the commit time of the change. 0 is none: a log may put its own.
    pub timestamp_ms: i64,
    /// Key; none for a table without one.
    pub key: Option<&'a [u8]>,
    /// Value; none for a tombstone.
    pub value: Option<&'a [u8]>,
    headers: &'a [u8],
}

impl<'a> RecordRef<'a> {
    /// Bytes of key, value and headers.
    pub fn bytes(&self) -> usize {
        self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len) + self.headers.len()
    }

    /// The headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let mut cursor = Cursor { bytes: self.headers };
        let count = cursor.u8().unwrap_or(0);
        (0..count).map_while(move |_| {
            let length = cursor.u8()? as usize;
            let name = std::str::from_utf8(cursor.take(length)?).ok()?;
            Some((name, cursor.bytes_field()??))
        })
    }

    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().find(|(n, _)| *n == name).map(|(_, value)| value)
    }
}

/// Records of one topic, in order: those that were encoded elsewhere and taken in as they are, and behind them those that
/// are written here.
#[derive(Clone, Debug)]
pub struct TopicRecords {
    topic: Arc<str>,
    /// Nothing is added to these any more.
    taken: Vec<Taken>,
    run: Run,
    /// No frame is larger, in bytes. Records that were taken back count, too.
    largest: usize,
}

/// Records that were encoded elsewhere.
#[derive(Clone, Debug)]
enum Taken {
    Run(Run),
    /// For a log that stores them so.
    Packed(Packed),
}

impl Taken {
    /// Bytes held.
    const fn bytes(&self) -> usize {
        match self {
            Self::Run(run) => run.frames.len(),
            Self::Packed(packed) => packed.stored.len(),
        }
    }

    const fn count(&self) -> u32 {
        match self {
            Self::Run(run) => run.count,
            Self::Packed(packed) => packed.blob.count,
        }
    }

    fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let (run, packed) = match self {
            Self::Run(run) => (Some(run), None),
            Self::Packed(packed) => (None, Some(Piece::Packed(packed))),
        };
        run.into_iter().flat_map(Run::whole_pieces).chain(packed)
    }
}

/// Frames in one buffer.
#[derive(Clone, Debug, Default)]
struct Run {
    frames: Vec<u8>,
    count: u32,
    /// Where [`TopicRecords::pieces`] are cut. Noted while frames are written: later their headers would have to
    /// be fetched from memory once more.
    cuts: Vec<Mark>,
}

/// Frames are cut into pieces of about this size. A larger record is a piece of its own.
const PIECE_BYTES: usize = 1 << 20;

impl TopicRecords {
    /// No records yet.
    pub const fn new(topic: Arc<str>) -> Self {
        Self::over(topic, Vec::new())
    }

    /// The same, with room for so many bytes of frames.
    pub fn with_capacity(topic: Arc<str>, bytes: usize) -> Self {
        Self::over(topic, Vec::with_capacity(bytes))
    }

    const fn over(topic: Arc<str>, frames: Vec<u8>) -> Self {
        Self { topic, taken: Vec::new(), run: Run { frames, count: 0, cuts: Vec::new() }, largest: 0 }
    }

    /// The topic.
    pub const fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// The frames, in one or more runs of whole ones; without those that a log has packed for itself.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let taken = self.taken.iter().filter_map(|taken| match taken {
            Taken::Run(run) => Some(run),
            Taken::Packed(_) => None,
        });
        taken.chain([&self.run]).map(|run| &run.frames[..])
    }

    /// Bytes held of all records: of their frames, or packed.
    pub fn bytes(&self) -> usize {
        self.taken.iter().map(Taken::bytes).sum::<usize>() + self.run.frames.len()
    }

    /// Number of records.
    pub fn count(&self) -> u32 {
        self.taken.iter().map(Taken::count).sum::<u32>() + self.run.count
    }

    /// The records, taken out; the buffer stays.
    pub(super) fn take(&mut self) -> Self {
        let room = self.run.frames.capacity();
        let run =
            std::mem::replace(&mut self.run, Run { frames: Vec::with_capacity(room), ..Run::default() });
        let taken = std::mem::take(&mut self.taken);
        Self { topic: Arc::clone(&self.topic), taken, run, largest: std::mem::take(&mut self.largest) }
    }

    /// The same, with each piece packed that `pack` does not refuse.
    pub(super) fn take_packed(&mut self, mut pack: impl FnMut(&[u8], u32) -> Option<Packed>) -> Self {
        let packed: Option<Vec<_>> = self.run.pieces().map(|(frames, count)| pack(frames, count)).collect();
        let Some(packed) = packed else { return self.take() };
        let mut taken = std::mem::take(&mut self.taken);
        taken.extend(packed.into_iter().map(Taken::Packed));
        let records = Self { taken, largest: self.largest, ..Self::new(Arc::clone(&self.topic)) };
        self.clear();
        records
    }

    /// The records; without those that a log has packed for itself.
    pub fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        self.frames().flat_map(frames)
    }

    /// The frames, taken out; only of records none of which were taken in.
    pub(super) fn into_frames(self) -> Vec<u8> {
        debug_assert!(self.taken.is_empty(), "frames of several runs are taken out as one");
        self.run.frames
    }

    /// Adds one whole frame, its length field included. It may make a piece longer than others.
    pub(super) fn push_frame(&mut self, frame: &[u8]) {
        self.run.frames.extend_from_slice(frame);
        self.run.count += 1;
        self.largest = self.largest.max(frame.len());
    }

    /// Takes in records of the same topic behind those that are here, without copying them.
    pub fn take_in(&mut self, records: Self) {
        debug_assert_eq!(self.topic, records.topic, "records go to their own topic");
        if self.run.count > 0 {
            self.taken.push(Taken::Run(std::mem::take(&mut self.run)));
        }
        self.taken.extend(records.taken);
        if records.run.count > 0 {
            self.taken.push(Taken::Run(records.run));
        }
        self.largest = self.largest.max(records.largest);
    }

    /// The frames in pieces of whole frames, about a mebibyte each, with the number of records in each.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.taken.iter().flat_map(Taken::pieces).chain(self.run.whole_pieces())
    }

    /// The largest record since `mark`, in bytes of key, value and headers, if it is larger than `bytes_max`.
    pub fn too_large_since(&self, mark: Mark, bytes_max: usize) -> Option<usize> {
        let since = self.since(mark);
        if since.len() <= bytes_max {
            return None;
        }
        frames(since).map(|record| record.bytes()).max().filter(|bytes| *bytes > bytes_max)
    }

    /// The place reached, to go back to with [`TopicRecords::rewind`] until records are taken in.
    pub const fn mark(&self) -> Mark {
        self.run.end()
    }

    /// The frames written since `mark`.
    pub fn since(&self, mark: Mark) -> &[u8] {
        &self.run.frames[mark.bytes..]
    }

    /// Takes back the records written since `mark`, which must be one of these records'.
    pub fn rewind(&mut self, mark: Mark) {
        debug_assert!(mark.bytes <= self.run.frames.len(), "a mark lies before the end");
        self.run.rewind(mark);
    }

    /// Appends `count` frames as they are; false, and nothing is changed, if the bytes are not exactly those.
    pub(super) fn extend_frames(&mut self, bytes: &[u8], count: u32) -> bool {
        let mark = self.mark();
        self.run.frames.extend_from_slice(bytes);
        let mut at = mark.bytes;
        for length in frame_lengths(bytes) {
            self.run.count += 1;
            self.note_frame(at, at + length);
            at += length;
        }
        let whole = at == self.run.frames.len() && self.run.count - mark.count == count;
        if !whole {
            self.rewind(mark);
        }
        whole
    }

    /// A frame was added, and counted.
    fn note_frame(&mut self, start: usize, end: usize) {
        self.largest = self.largest.max(end - start);
        self.run.cut_before(start, end);
    }

    fn clear(&mut self) {
        self.taken.clear();
        self.rewind(Mark { bytes: 0, count: 0 });
        self.largest = 0;
    }

    /// No frame is larger, in bytes.
    pub(super) const fn largest(&self) -> usize {
        self.largest
    }

    /// Begins a record at the end: write its key, its value and its headers, in that order, then
    /// [`RecordWriter::finish`]. Dropped unfinished, it leaves no trace.
    pub fn begin(&mut self, timestamp_ms: i64) -> RecordWriter<'_> {
        let start = self.run.frames.len();
        self.run.frames.extend_from_slice(&[0; 4]);
        self.run.frames.extend_from_slice(&timestamp_ms.to_le_bytes());
        RecordWriter { records: self, start, headers_at: None, finished: false }
    }
}

impl Run {
    const fn end(&self) -> Mark {
        Mark { bytes: self.frames.len(), count: self.count }
    }

    fn whole_pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.pieces().map(|(frames, count)| Piece::Frames(frames, count))
    }

    fn pieces(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let mut from = Mark { bytes: 0, count: 0 };
        let cuts = self.cuts.iter().copied().chain((self.count > 0).then(|| self.end()));
        cuts.map(move |to| {
            let piece = (&self.frames[from.bytes..to.bytes], to.count - from.count);
            from = to;
            piece
        })
    }

    /// Cuts a piece before a frame which makes it too long. `count` has the frame already.
    fn cut_before(&mut self, start: usize, end: usize) {
        let piece_start = self.cuts.last().map_or(0, |cut| cut.bytes);
        if start > piece_start && end - piece_start > PIECE_BYTES {
            self.cuts.push(Mark { bytes: start, count: self.count - 1 });
        }
    }

    fn rewind(&mut self, mark: Mark) {
        self.frames.truncate(mark.bytes);
        self.count = mark.count;
        while self.cuts.last().is_some_and(|cut| cut.count >= mark.count) {
            self.cuts.pop();
        }
    }
}

/// A place between two records of a [`TopicRecords`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    bytes: usize,
    count: u32,
}

/// Writes one record in place; see [`TopicRecords::begin`].
#[derive(Debug)]
pub struct RecordWriter<'a> {
    records: &'a mut TopicRecords,
    start: usize,
    headers_at: Option<usize>,
    finished: bool,
}

impl RecordWriter<'_> {
    /// A null key or value.
    pub fn null(&mut self) {
        self.records.run.frames.extend_from_slice(&NULL.to_le_bytes());
    }

    /// A key or value, appended to the buffer by `write`, which must only append.
    pub fn field<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let buffer = &mut self.records.run.frames;
        let at = buffer.len();
        buffer.extend_from_slice(&[0; 4]);
        let result = write(buffer);
        let length = (buffer.len() - at - 4) as u32;
        buffer[at..at + 4].copy_from_slice(&length.to_le_bytes());
        result
    }

    /// A header; `name` is at most 255 bytes. Only after key and value.
    pub fn header(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        debug_assert!(name.len() <= 255, "header name too long: {name}");
        let at = self.headers_at();
        self.records.run.frames[at] += 1;
        self.records.run.frames.push(name.len() as u8);
        self.records.run.frames.extend_from_slice(name.as_bytes());
        self.field(write);
    }

    /// Ends the record and gives its frame's size in bytes.
    pub fn finish(mut self) -> usize {
        self.headers_at();
        let length = self.records.run.frames.len() - self.start - 4;
        let records = &mut *self.records;
        records.run.frames[self.start..self.start + 4].copy_from_slice(&(length as u32).to_le_bytes());
        records.run.count += 1;
        records.note_frame(self.start, records.run.frames.len());
        self.finished = true;
        length + 4
    }

    fn headers_at(&mut self) -> usize {
        *self.headers_at.get_or_insert_with(|| {
            self.records.run.frames.push(0);
            self.records.run.frames.len() - 1
        })
    }
}

impl Drop for RecordWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.records.run.frames.truncate(self.start);
        }
    }
}

/// Records for several topics; the unit of an append. Emptying it keeps its buffers.
#[derive(Clone, Debug, Default)]
pub struct RecordBatch {
    topics: Vec<TopicRecords>,
    index: HashMap<Arc<str>, usize>,
}

impl RecordBatch {
    /// The records of a topic, to add to.
    pub fn topic(&mut self, topic: &Arc<str>) -> &mut TopicRecords {
        let at = match self.index.get(topic) {
            Some(at) => *at,
            None => {
                self.topics.push(TopicRecords::new(Arc::clone(topic)));
                self.index.insert(Arc::clone(topic), self.topics.len() - 1);
                self.topics.len() - 1
            }
        };
        &mut self.topics[at]
    }

    /// Topics with at least one record.
    pub fn topics(&self) -> impl Iterator<Item = &TopicRecords> {
        self.topics.iter().filter(|t| t.count() > 0)
    }

    /// Bytes held of all records.
    pub fn bytes(&self) -> usize {
        self.topics.iter().map(TopicRecords::bytes).sum()
    }

    /// Number of records.
    pub fn count(&self) -> u64 {
        self.topics.iter().map(|t| u64::from(t.count())).sum()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.topics.iter().all(|t| t.count() == 0)
    }

    /// Forgets the records and keeps up to `keep_bytes` of buffers for the next ones.
    pub fn clear(&mut self, keep_bytes: usize) {
        let held: usize = self.topics.iter().map(|t| t.run.frames.capacity()).sum();
        if held > keep_bytes {
            *self = Self::default();
        } else {
            for topic in &mut self.topics {
                topic.clear();
            }
        }
    }
}

/// The records in a run of frames. Stops at the first frame that is not whole.
pub(super) fn frames(bytes: &[u8]) -> impl Iterator<Item = RecordRef<'_>> {
    let mut cursor = Cursor { bytes };
    std::iter::from_fn(move || {
        let length = cursor.u32()? as usize;
        let mut frame = Cursor { bytes: cursor.take(length)? };
        let timestamp_ms = i64::from_le_bytes(frame.take(8)?.try_into().ok()?);
        let key = frame.bytes_field()?;
        let value = frame.bytes_field()?;
        Some(RecordRef { timestamp_ms, key, value, headers: frame.bytes })
    })
}

/// Bytes of each whole frame in a run, its length field included.
pub(super) fn frame_lengths(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let mut cursor = Cursor { bytes };
    std::iter::from_fn(move || {
        let length = cursor.u32()? as usize;
        cursor.take(length).map(|_| length + 4)
    })
}

struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn bytes_field(&mut self) -> Option<Option<&'a [u8]>> {
        match self.u32()? {
            NULL => Some(None),
            length => self.take(length as usize).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(records: &TopicRecords) -> Vec<u8> {
        records.frames().collect::<Vec<_>>().concat()
    }

    fn frame_pieces(records: &TopicRecords) -> impl Iterator<Item = (&[u8], u32)> {
        records.pieces().map(|piece| match piece {
            Piece::Frames(frames, count) => (frames, count),
            Piece::Packed(_) => panic!("nothing was packed"),
        })
    }

    fn numbered(number: i64) -> TopicRecords {
        let mut records = TopicRecords::new("t".into());
        let mut record = records.begin(number);
        record.null();
        record.null();
        record.finish();
        records
    }

    #[test]
    fn records_taken_in_stand_between_those_before_and_those_behind() {
        let mut records = numbered(1);
        let mut two = numbered(2);
        two.take_in(numbered(3));
        records.take_in(two);
        records.take_in(TopicRecords::new("t".into()));
        let mut record = records.begin(4);
        record.null();
        record.null();
        record.finish();
        let (mark, kept) = (records.mark(), all(&records));
        drop(records.begin(5));
        let mut record = records.begin(6);
        record.null();
        record.null();
        record.finish();
        records.rewind(mark);
        let numbers: Vec<_> = records.iter().map(|record| record.timestamp_ms).collect();
        assert_eq!((numbers, records.count()), (vec![1, 2, 3, 4], 4));
        let pieces: Vec<_> = frame_pieces(&records).map(|(piece, _)| piece).collect();
        assert_eq!((pieces.concat(), records.bytes()), (kept.clone(), kept.len()));
        records.clear();
        assert_eq!((records.count(), records.bytes(), records.pieces().count()), (0, 0, 0));
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let mut batch = RecordBatch::default();
        let topic: Arc<str> = "t".into();
        let mut record = batch.topic(&topic).begin(42);
        record.field(|b| b.extend_from_slice(b"key"));
        record.null();
        record.header("a", |b| b.extend_from_slice(b"1"));
        record.header("b", |_| ());
        record.finish();
        let mut record = batch.topic(&topic).begin(-1);
        record.null();
        record.field(|b| b.extend_from_slice(b"value"));
        record.finish();

        let records: Vec<_> = batch.topics().next().unwrap().iter().collect();
        assert_eq!(records.len(), 2);
        assert_eq!(
            (records[0].timestamp_ms, records[0].key, records[0].value),
            (42, Some(&b"key"[..]), None)
        );
        let headers: Vec<_> = records[0].headers().collect();
        assert_eq!(headers, [("a", &b"1"[..]), ("b", &b""[..])]);
        assert_eq!((records[1].key, records[1].value), (None, Some(&b"value"[..])));
        assert_eq!(records[1].headers().count(), 0);
    }

    #[test]
    fn an_unfinished_record_leaves_no_trace() {
        let mut records = TopicRecords::new("t".into());
        let mut record = records.begin(1);
        record.field(|b| b.extend_from_slice(b"half"));
        drop(record);
        assert_eq!((records.count(), records.bytes()), (0, 0));
    }

    #[test]
    fn rewinding_takes_back_all_records_since_the_mark_and_no_other() {
        let mut records = TopicRecords::new("t".into());
        let write = |records: &mut TopicRecords, timestamp_ms| {
            let mut record = records.begin(timestamp_ms);
            record.null();
            record.null();
            record.finish()
        };
        write(&mut records, 1);
        let (mark, frames) = (records.mark(), all(&records));
        write(&mut records, 2);
        write(&mut records, 3);
        records.rewind(mark);
        assert_eq!((records.count(), all(&records)), (1, frames));
    }

    #[test]
    fn pieces_hold_whole_frames_of_about_a_mebibyte_and_all_of_them() {
        let mut records = TopicRecords::new("t".into());
        let write = |records: &mut TopicRecords, bytes: usize| {
            let mut record = records.begin(1);
            record.null();
            record.field(|buffer| buffer.resize(buffer.len() + bytes, 7));
            record.finish();
        };
        let sizes = [10, 400_000, 700_000, 3 << 20, 5, 5, 900_000, 200_000];
        for (index, bytes) in sizes.into_iter().enumerate() {
            // What is taken back leaves no cut behind, wherever it began.
            let mark = records.mark();
            write(&mut records, [2 << 20, 20][index % 2]);
            write(&mut records, 2 << 20);
            records.rewind(mark);
            write(&mut records, bytes);
        }
        let counts: Vec<_> =
            frame_pieces(&records).map(|(frames, count)| (count, super::frames(frames).count())).collect();
        assert_eq!(counts, [(2, 2), (1, 1), (1, 1), (3, 3), (1, 1)]);
        assert_eq!(
            frame_pieces(&records).map(|(frames, _)| frames).collect::<Vec<_>>().concat(),
            all(&records)
        );
        records.clear();
        assert_eq!(records.pieces().count(), 0);
    }

    #[test]
    fn a_cut_off_frame_ends_the_iteration() {
        let mut records = TopicRecords::new("t".into());
        let mut record = records.begin(1);
        record.null();
        record.null();
        record.finish();
        let whole = all(&records);
        for length in 0..whole.len() {
            assert_eq!(frames(&whole[..length]).count(), 0);
        }
    }
}
