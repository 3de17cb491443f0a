//! Rows of `COPY … TO STDOUT` in text format. Pure.
//!
//! Tabs separate columns and a backslash begins an escape; data never holds a bare tab or newline, so a row
//! splits at its tabs. A column without a backslash, nearly every one, is borrowed from the row.
//!
//! Source: PostgreSQL documentation, "COPY", section "Text Format"; `CopyAttributeOutText` in
//! `src/backend/commands/copyto.c`.

use std::ops::Range;

use crate::change::Value;

use super::abridge::LEFT_OUT_IN_COPY;

/// A row that is not of the form which COPY writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// A wrong number of columns.
    #[error("the row has {found} columns where {expected} were expected")]
    Columns {
        /// In the row.
        found: usize,
        /// In the table.
        expected: usize,
    },
    /// A backslash at the end of a column.
    #[error("column {0} ends in the middle of an escape")]
    Escape(usize),
}

#[derive(Clone, Debug)]
enum Field {
    Null,
    /// As it stands in the row.
    Plain(Range<usize>),
    /// Unescaped, in the scratch buffer.
    Unescaped(Range<usize>),
    /// Left out but for its beginning, which is unescaped in the scratch buffer.
    LeftOut(u64, Range<usize>),
}

/// Splits rows, one after the other, with buffers that are used again.
#[derive(Clone, Debug, Default)]
pub struct CopyText {
    fields: Vec<Field>,
    scratch: Vec<u8>,
}

impl CopyText {
    /// Splits a row, with or without its newline.
    pub fn split(&mut self, row: &[u8], columns: usize) -> Result<(), CopyError> {
        let row = row.strip_suffix(b"\n").unwrap_or(row);
        self.fields.clear();
        self.scratch.clear();
        // A table without columns has rows without bytes.
        if columns == 0 && row.is_empty() {
            return Ok(());
        }
        let mut start = 0;
        loop {
            let found = memchr::memchr2(b'\t', b'\\', &row[start..]).map_or(row.len(), |at| start + at);
            if row.get(found) == Some(&b'\\') {
                start = self.escaped(row, start, found)?;
            } else {
                self.fields.push(Field::Plain(start..found));
                start = found;
            }
            if start == row.len() {
                break;
            }
            start += 1;
        }
        match self.fields.len() {
            found if found == columns => Ok(()),
            found => Err(CopyError::Columns { found, expected: columns }),
        }
    }

    /// The columns of the row that was split last, which must be given again.
    pub fn values<'a>(&'a self, row: &'a [u8]) -> impl ExactSizeIterator<Item = Value<'a>> {
        self.fields.iter().map(move |field| match field {
            Field::Null => Value::Null,
            Field::Plain(range) => Value::Text(&row[range.clone()]),
            Field::Unescaped(range) => Value::Text(&self.scratch[range.clone()]),
            Field::LeftOut(bytes, range) => {
                Value::LeftOut { bytes: *bytes, begins: &self.scratch[range.clone()] }
            }
        })
    }

    /// A column whose first backslash is at `at`; gives the place of the tab after it, or the row's end.
    fn escaped(&mut self, row: &[u8], start: usize, at: usize) -> Result<usize, CopyError> {
        let end = memchr::memchr(b'\t', &row[at..]).map_or(row.len(), |tab| at + tab);
        if &row[start..end] == b"\\N" {
            self.fields.push(Field::Null);
            return Ok(end);
        }
        let from = self.scratch.len();
        let mut rest = &row[start..end];
        let left_out = rest.strip_prefix(LEFT_OUT_IN_COPY).and_then(left_out);
        if let Some((_, begins)) = left_out {
            rest = begins;
        }
        while let Some(at) = memchr::memchr(b'\\', rest) {
            self.scratch.extend_from_slice(&rest[..at]);
            let escaped = rest.get(at + 1).ok_or(CopyError::Escape(self.fields.len()))?;
            self.scratch.push(match escaped {
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 11,
                other => *other,
            });
            rest = &rest[at + 2..];
        }
        self.scratch.extend_from_slice(rest);
        let range = from..self.scratch.len();
        self.fields.push(match left_out {
            Some((bytes, _)) => Field::LeftOut(bytes, range),
            None => Field::Unescaped(range),
        });
        Ok(end)
    }
}

/// The length of a value that was left out, and its beginning.
fn left_out(text: &[u8]) -> Option<(u64, &[u8])> {
    let comma = memchr::memchr(b',', text)?;
    let bytes = std::str::from_utf8(&text[..comma]).ok()?.parse().ok()?;
    Some((bytes, &text[comma + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(row: &[u8], columns: usize) -> Vec<Option<Vec<u8>>> {
        let mut copy = CopyText::default();
        copy.split(row, columns).unwrap();
        let own = |value| if let Value::Text(text) = value { Some(text.to_vec()) } else { None };
        copy.values(row).map(own).collect()
    }

    /// What Postgres writes: `CopyAttributeOutText`, spelled out anew.
    fn written(values: &[Option<Vec<u8>>]) -> Vec<u8> {
        let column = |value: &Option<Vec<u8>>| match value {
            None => b"\\N".to_vec(),
            Some(bytes) => bytes
                .iter()
                .flat_map(|byte| match byte {
                    8 => b"\\b".to_vec(),
                    9 => b"\\t".to_vec(),
                    10 => b"\\n".to_vec(),
                    11 => b"\\v".to_vec(),
                    12 => b"\\f".to_vec(),
                    13 => b"\\r".to_vec(),
                    b'\\' => b"\\\\".to_vec(),
                    other => vec![*other],
                })
                .collect(),
        };
        let mut row = values.iter().map(column).collect::<Vec<_>>().join(&b'\t');
        row.push(b'\n');
        row
    }

    #[test]
    fn nulls_empty_texts_and_escapes_are_told_apart() {
        let row = b"1\t\\N\t\ta\\tb\\\\N\t\\\\N\n";
        let expected = [Some(&b"1"[..]), None, Some(b""), Some(b"a\tb\\N"), Some(b"\\N")];
        assert_eq!(split(row, 5), expected.map(|v| v.map(<[u8]>::to_vec)));
    }

    #[test]
    fn a_wrong_number_of_columns_is_refused() {
        let mut copy = CopyText::default();
        assert_eq!(copy.split(b"1\t2\n", 3), Err(CopyError::Columns { found: 2, expected: 3 }));
        assert_eq!(copy.split(b"1\t2\\\n", 2), Err(CopyError::Escape(1)));
        assert_eq!(copy.split(b"\n", 0), Ok(()));
    }

    proptest! {
        #[test]
        fn what_postgres_writes_reads_back(values in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..20)), 1..6)) {
            prop_assert_eq!(split(&written(&values), values.len()), values);
        }

        #[test]
        fn no_row_makes_it_panic(row in prop::collection::vec(prop::sample::select(b"\\N\t\nab".to_vec()), 0..40), columns in 0..5_usize) {
            let mut copy = CopyText::default();
            if copy.split(&row, columns).is_ok() {
                prop_assert_eq!(copy.values(&row).count(), columns);
            }
        }
    }
}
