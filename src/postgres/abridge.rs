//! Messages too large to be held: their long values are left out while they arrive. Pure.
//!
//! ```text
//!   I │ relation │ N │ 2 │ t 4 "1234" │ t 900000000 "aaaaaaaa … ──> I │ relation │ N │ 2 │ t 4 "1234" │ x 900000000 256 "aaaa…"
//!   1234 \t aaaaaaaa …                                         ──> 1234 \t \L900000000,aaaa…
//! ```
//!
//! What comes out is a message like any other, but for the mark of a value that was left out, which no server sends: `x`
//! with the value's length and its beginning, or in a row of COPY `\L` with the same. Held at a time: the values that are
//! short, and the beginnings of the others. What is not understood is passed as it is, for the decoder to refuse.

use super::pgoutput::LEFT_OUT;

/// A value of at most so many bytes is kept whole: one that may be in a key is no longer (a third of a page, in an index).
const WHOLE_BYTES: usize = 4096;

/// So much is kept of the others.
const BEGIN_BYTES: usize = 256;

/// In a row of COPY, before the length of a value that was left out.
pub(super) const LEFT_OUT_IN_COPY: &[u8] = b"\\L";

/// Messages whose content is read by this program; of others the content means nothing.
const OWN_MESSAGES: &[u8] = b"tidemark";

/// Takes the body of one `CopyData` in pieces.
#[derive(Debug)]
pub(super) enum Abridger {
    /// A message of the replication stream.
    Wal(Wal),
    /// A row of `COPY … TO STDOUT`.
    Row(CopyRow),
}

impl Abridger {
    /// For the replication stream; `in_part`: within a part of a transaction in progress, where messages bear ids.
    pub fn wal(in_part: bool) -> Self {
        Self::Wal(Wal { in_part, ..Wal::default() })
    }

    /// For rows of COPY.
    pub fn row() -> Self {
        Self::Row(CopyRow::default())
    }

    /// Takes the next piece, and appends what is left of it.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Wal(wal) => wal.feed(bytes, out),
            Self::Row(row) => row.feed(bytes, out),
        }
    }

    /// The body has ended.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Wal(wal) => out.append(&mut wal.field),
            Self::Row(row) => row.end_value(out),
        }
    }
}

/// What is expected next in a message of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    /// `w`, three numbers of eight bytes, and pgoutput's tag.
    #[default]
    Tag,
    /// The relation of a row, with the transaction's id before it within a part.
    Relation,
    /// `N`, `K` or `O`, and the number of columns.
    Tuple,
    /// A column's kind.
    Kind,
    /// A column's length.
    Length,
    /// Flags and LSN of a logical message.
    Logical,
    /// A byte of its prefix.
    Prefix,
    /// The length of its content.
    Content,
    /// Whatever there is.
    Rest,
}

#[derive(Debug, Default)]
pub(super) struct Wal {
    in_part: bool,
    expect: Expect,
    /// The field that is expected, as far as it has come.
    field: Vec<u8>,
    /// Bytes of a value to be passed on, and bytes to be left out behind them.
    pass: usize,
    leave: usize,
    tag: u8,
    marker: u8,
    columns: u16,
    prefix: Vec<u8>,
}

impl Wal {
    fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.pass > 0 {
                let (part, rest) = bytes.split_at(self.pass.min(bytes.len()));
                out.extend_from_slice(part);
                (self.pass, bytes) = (self.pass - part.len(), rest);
            } else if self.leave > 0 {
                let left = self.leave.min(bytes.len());
                (self.leave, bytes) = (self.leave - left, &bytes[left..]);
            } else if self.expect == Expect::Rest {
                out.extend_from_slice(bytes);
                return;
            } else {
                let wanted = self.wanted() - self.field.len();
                let (part, rest) = bytes.split_at(wanted.min(bytes.len()));
                self.field.extend_from_slice(part);
                bytes = rest;
                if part.len() == wanted {
                    let field = std::mem::take(&mut self.field);
                    self.expect = self.take(&field, out);
                }
            }
        }
    }

    const fn wanted(&self) -> usize {
        let id = if self.in_part { 4 } else { 0 };
        match self.expect {
            Expect::Tag => 1 + 3 * 8 + 1,
            Expect::Relation => id + 4,
            Expect::Tuple => 1 + 2,
            Expect::Kind | Expect::Prefix | Expect::Rest => 1,
            Expect::Length | Expect::Content => 4,
            Expect::Logical => id + 1 + 8,
        }
    }

    /// Takes a whole field, and says what comes after it.
    fn take(&mut self, field: &[u8], out: &mut Vec<u8>) -> Expect {
        let number = |field: &[u8]| field.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        match self.expect {
            Expect::Length => {
                let length = number(field) as usize;
                if length <= WHOLE_BYTES {
                    out.push(b't');
                    self.pass = length;
                } else {
                    out.push(LEFT_OUT);
                    (self.pass, self.leave) = (BEGIN_BYTES, length - BEGIN_BYTES);
                }
                out.extend_from_slice(field);
                if self.leave > 0 {
                    out.extend_from_slice(&(BEGIN_BYTES as u32).to_be_bytes());
                }
                return self.next_column();
            }
            Expect::Content if !self.prefix.starts_with(OWN_MESSAGES) => {
                out.extend_from_slice(&0_u32.to_be_bytes());
                self.leave = number(field) as usize;
                return Expect::Rest;
            }
            // The mark of a value depends on its length.
            Expect::Kind if field == b"t" => return Expect::Length,
            _ => out.extend_from_slice(field),
        }
        match self.expect {
            Expect::Tag => {
                self.tag = field.last().copied().unwrap_or_default();
                match (field.first(), self.tag) {
                    (Some(b'w'), b'I' | b'U' | b'D') => Expect::Relation,
                    (Some(b'w'), b'M') => Expect::Logical,
                    _ => Expect::Rest,
                }
            }
            Expect::Relation => Expect::Tuple,
            Expect::Tuple => match field {
                [marker @ (b'N' | b'K' | b'O'), high, low] => {
                    self.marker = *marker;
                    self.columns = u16::from_be_bytes([*high, *low]);
                    self.next_column()
                }
                _ => Expect::Rest,
            },
            Expect::Kind if matches!(field, b"n" | b"u") => self.next_column(),
            Expect::Logical => Expect::Prefix,
            Expect::Prefix if field == b"\0" => Expect::Content,
            Expect::Prefix => {
                self.prefix.extend_from_slice(field);
                Expect::Prefix
            }
            Expect::Kind | Expect::Length | Expect::Content | Expect::Rest => Expect::Rest,
        }
    }

    fn next_column(&mut self) -> Expect {
        match self.columns.checked_sub(1) {
            Some(left) => {
                self.columns = left;
                Expect::Kind
            }
            // The new row follows the old one.
            None if self.tag == b'U' && self.marker != b'N' => Expect::Tuple,
            None => Expect::Rest,
        }
    }
}

/// A row of COPY, a value at a time.
#[derive(Debug, Default)]
pub(super) struct CopyRow {
    /// The value as it stands in the row, up to [`WHOLE_BYTES`] and the rest of an escape.
    value: Vec<u8>,
    /// Its bytes, those of an escape counted once.
    bytes: u64,
    is_long: bool,
    /// The last byte began an escape.
    in_escape: bool,
}

impl CopyRow {
    fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let plain = match memchr::memchr3(b'\t', b'\n', b'\\', bytes) {
                _ if self.in_escape => 1,
                Some(0) => 0,
                found => found.unwrap_or(bytes.len()),
            };
            if plain > 0 {
                self.keep(&bytes[..plain]);
                // The first byte of an escape was counted.
                self.bytes += if self.in_escape { 0 } else { plain as u64 };
                self.in_escape = false;
                bytes = &bytes[plain..];
                continue;
            }
            if bytes[0] == b'\\' {
                self.keep(b"\\");
                self.bytes += 1;
                self.in_escape = true;
            } else {
                self.end_value(out);
                out.push(bytes[0]);
            }
            bytes = &bytes[1..];
        }
    }

    fn keep(&mut self, part: &[u8]) {
        let room = WHOLE_BYTES - self.value.len();
        self.value.extend_from_slice(&part[..part.len().min(room)]);
        self.is_long |= part.len() > room;
    }

    fn end_value(&mut self, out: &mut Vec<u8>) {
        if self.is_long {
            let begin = &self.value[..BEGIN_BYTES];
            let slashes = begin.iter().rev().take_while(|byte| **byte == b'\\').count();
            out.extend_from_slice(LEFT_OUT_IN_COPY);
            out.extend_from_slice(self.bytes.to_string().as_bytes());
            out.push(b',');
            // An escape is not cut in two.
            out.extend_from_slice(&begin[..BEGIN_BYTES - slashes % 2]);
        } else {
            out.extend_from_slice(&self.value);
        }
        self.value.clear();
        (self.bytes, self.is_long, self.in_escape) = (0, false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::copy::CopyText;
    use super::super::pgoutput::{self, Message, OldTuple};
    use super::*;
    use crate::change::Value;

    /// The same whatever the pieces.
    fn abridged(new: impl Fn() -> Abridger, body: &[u8]) -> Vec<u8> {
        let in_pieces = |size: usize| {
            let (mut abridger, mut out) = (new(), Vec::new());
            body.chunks(size).for_each(|piece| abridger.feed(piece, &mut out));
            abridger.finish(&mut out);
            out
        };
        let whole = in_pieces(body.len().max(1));
        for size in [1, 3, 7, 255, 4096, 4097] {
            assert!(in_pieces(size) == whole, "pieces of {size}");
        }
        whole
    }

    fn text(bytes: &[u8]) -> Vec<u8> {
        [b"t", &(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    fn tuple(values: &[Vec<u8>]) -> Vec<u8> {
        [&(values.len() as u16).to_be_bytes()[..], &values.concat()].concat()
    }

    fn wal(parts: &[&[u8]]) -> Vec<u8> {
        [b"w", &[7; 24][..], &parts.concat()].concat()
    }

    fn long(byte: u8) -> Vec<u8> {
        vec![byte; WHOLE_BYTES + 1]
    }

    #[test]
    fn long_values_of_a_change_are_left_out_and_all_else_stays() {
        let old = tuple(&[text(b"1"), text(&long(b'o')), b"n".to_vec()]);
        let new = tuple(&[text(&long(b'n')), b"u".to_vec(), text(&[b'k'; WHOLE_BYTES])]);
        for in_part in [false, true] {
            let id: &[u8] = if in_part { b"\0\0\0\x09" } else { b"" };
            let body = wal(&[b"U", id, b"\0\0\0\x05", b"O", &old, b"N", &new]);
            let out = abridged(|| Abridger::wal(in_part), &body);
            assert!(out.starts_with(&body[..26]));
            let message = [&out[25..26], &out[26 + id.len()..]].concat();
            let Ok(Message::Update { relation: 5, old: Some(OldTuple::Full(old)), new }) =
                pgoutput::decode(&message)
            else {
                panic!("{message:?}")
            };
            let begins = [[b'o'; BEGIN_BYTES], [b'n'; BEGIN_BYTES]];
            let [o, n] = &begins;
            let left = |begins| Value::LeftOut { bytes: WHOLE_BYTES as u64 + 1, begins };
            assert_eq!(old.values().collect::<Vec<_>>(), [Value::Text(b"1"), left(o), Value::Null]);
            assert_eq!(
                new.values().collect::<Vec<_>>(),
                [left(n), Value::Unchanged, Value::Text(&[b'k'; WHOLE_BYTES])]
            );
        }
    }

    #[test]
    fn messages_of_others_lose_their_content_and_our_own_do_not() {
        let content = long(b'c');
        let message = |prefix: &[u8]| {
            wal(&[b"M\x01", &[0; 8], prefix, b"\0", &(content.len() as u32).to_be_bytes(), &content])
        };
        let own = message(b"tidemark.ddl");
        assert!(abridged(|| Abridger::wal(false), &own) == own);
        let others = abridged(|| Abridger::wal(false), &message(b"other"));
        let Ok(Message::Logical { prefix: "other", content: b"", .. }) = pgoutput::decode(&others[25..])
        else {
            panic!("{others:?}")
        };
    }

    #[test]
    fn what_is_no_message_goes_on_as_it_is() {
        for body in
            [&b"k"[..], b"w", &wal(&[b"I\0\0\0\x05", b"X\0\x01t"]), &wal(&[b"I\0\0\0\x05", b"N\0\x02zt"])]
        {
            assert_eq!(abridged(|| Abridger::wal(false), body), body);
        }
    }

    #[test]
    fn long_values_of_a_copied_row_are_left_out_and_no_escape_is_cut_in_two() {
        // Each escape is one byte of the value; the beginning would end within one.
        let escapes = b"x".iter().copied().chain(b"\\n".iter().copied().cycle().take(2 * WHOLE_BYTES));
        let escapes: Vec<u8> = escapes.collect();
        let row = [b"7\t", &escapes[..], b"\t\\N\ta\\\\b\t", &long(b'l'), b"\n"].concat();
        let out = abridged(Abridger::row, &row);
        let mut split = CopyText::default();
        split.split(&out, 5).unwrap();
        let begins = [b"x", &[b'\n'; BEGIN_BYTES / 2 - 1][..]].concat();
        let expected = [
            Value::Text(b"7"),
            Value::LeftOut { bytes: WHOLE_BYTES as u64 + 1, begins: &begins },
            Value::Null,
            Value::Text(b"a\\b"),
            Value::LeftOut { bytes: WHOLE_BYTES as u64 + 1, begins: &[b'l'; BEGIN_BYTES] },
        ];
        assert_eq!(split.values(&out).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_row_without_long_values_is_as_it_was() {
        for row in [&b""[..], b"\n", b"\\N\t\t\\\\\n", b"a\tb"] {
            assert_eq!(abridged(Abridger::row, row), row);
        }
    }
}
