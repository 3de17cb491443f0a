//! An append as the value of one record, for a log that keeps it until it can be made elsewhere. Pure.
//!
//! ```text
//!   version u8 = 2 | states u32 (key, value)* | topics u32 (name, count u32, frames)*
//!   key, value, name, frames: length u32, bytes                          all numbers little-endian
//! ```

use super::State;
use crate::log::{Append, RecordBatch};

const VERSION: u8 = 2;

/// Writes an append.
pub(super) fn write(append: &Append, out: &mut Vec<u8>) {
    out.push(VERSION);
    number(out, append.state.len());
    for (key, value) in &append.state {
        bytes(out, key.as_bytes());
        bytes(out, value);
    }
    number(out, append.records.topics().count());
    for topic in append.records.topics() {
        bytes(out, topic.topic().as_bytes());
        out.extend_from_slice(&topic.count().to_le_bytes());
        number(out, topic.bytes());
        topic.frames().for_each(|frames| out.extend_from_slice(frames));
    }
}

/// Reads one back; `None` if it is not what [`write`] writes, to the last byte.
pub(super) fn read(input: &[u8]) -> Option<Append> {
    let (mut records, mut state) = (RecordBatch::default(), State::new());
    read_behind(&mut records, &mut state, input)?;
    Some(Append { records, state: state.into_iter().collect() })
}

/// Reads one back behind others: all in one step leave the log as one after the other would. `None` as [`read`]; what has
/// been read until then is not to be used.
pub(super) fn read_behind(records: &mut RecordBatch, state: &mut State, input: &[u8]) -> Option<()> {
    let mut cursor = Cursor(input);
    if cursor.u8()? != VERSION {
        return None;
    }
    // An empty value stays: it takes away what the log may have.
    for _ in 0..cursor.u32()? {
        state.insert(cursor.text()?.to_owned(), cursor.bytes()?.to_vec());
    }
    for _ in 0..cursor.u32()? {
        let topic = cursor.text()?.into();
        let (count, frames) = (cursor.u32()?, cursor.bytes()?);
        if !records.topic(&topic).extend_frames(frames, count) {
            return None;
        }
    }
    cursor.0.is_empty().then_some(())
}

fn number(out: &mut Vec<u8>, number: usize) {
    // Appends are bounded far below 4 GiB.
    out.extend_from_slice(&(number as u32).to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len());
    out.extend_from_slice(bytes);
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*head))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::TopicRecords;
    use crate::log::conformance::numbered;

    fn all(records: &TopicRecords) -> Vec<u8> {
        records.frames().collect::<Vec<_>>().concat()
    }

    fn append() -> Append {
        let mut records = numbered("a", 0..7);
        for record in numbered("b", 3..4).topics() {
            assert!(records.topic(record.topic()).extend_frames(&all(record), record.count()));
        }
        let state = vec![("stream".to_owned(), b"x".to_vec()), ("gone".to_owned(), Vec::new())];
        Append { records, state }
    }

    #[test]
    fn an_append_reads_back_as_written_and_nothing_shorter_or_longer_does() {
        let mut written = Vec::new();
        write(&append(), &mut written);
        let found = read(&written).unwrap();
        let mut state = append().state;
        state.sort();
        assert_eq!(found.state, state);
        for (found, expected) in found.records.topics().zip(append().records.topics()) {
            assert_eq!((found.topic(), found.count()), (expected.topic(), expected.count()));
            assert_eq!(all(found), all(expected));
        }
        for length in 0..written.len() {
            assert!(read(&written[..length]).is_none(), "{length}");
        }
        written.push(0);
        assert!(read(&written).is_none());
    }

    #[test]
    fn appends_read_behind_each_other_have_all_records_in_order_and_the_last_state() {
        let both = [
            Append {
                records: numbered("a", 0..3),
                state: vec![("n".to_owned(), b"1".to_vec()), ("gone".to_owned(), b"x".to_vec())],
            },
            Append {
                records: numbered("a", 3..5),
                state: vec![("n".to_owned(), b"2".to_vec()), ("gone".to_owned(), Vec::new())],
            },
        ];
        let (mut records, mut state) = (RecordBatch::default(), State::new());
        for append in both {
            let mut written = Vec::new();
            write(&append, &mut written);
            read_behind(&mut records, &mut state, &written).unwrap();
        }
        assert_eq!(state, State::from([("gone".to_owned(), Vec::new()), ("n".to_owned(), b"2".to_vec())]));
        let expected = numbered("a", 0..5);
        let (found, expected) = (records.topics().next().unwrap(), expected.topics().next().unwrap());
        assert_eq!((found.count(), all(found)), (expected.count(), all(expected)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_append_or_none(input: Vec<u8>) {
            let _ = read(&input);
        }
    }
}
