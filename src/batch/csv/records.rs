//! Bytes to records and fields, as RFC 4180 has them. Strict: it reads what `write` writes, and whatever
//! else differs is an error with its line.

use std::io::BufRead;

use memchr::{memchr, memchr3};

use crate::runtime::{Error, Result};

/// A quote that is never closed must not read the whole file into memory: no row of Postgres is longer.
const RECORD_BYTES_MAX: usize = 3 << 30;

/// One field of a record.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) text: &'a [u8],
    pub(super) quoted: bool,
}

/// Reads records one by one into a buffer that is used again.
pub(super) struct Records<R> {
    input: R,
    /// Text of the record's fields, without quotes.
    text: Vec<u8>,
    /// End of each field in `text`, and whether it was quoted.
    ends: Vec<(usize, bool)>,
    /// Lines read so far.
    lines: u64,
    /// Line on which the record begins, from 1.
    line: u64,
}

/// What ended a field.
enum End {
    Comma,
    Record,
}

impl<R: BufRead> Records<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, text: Vec::new(), ends: Vec::new(), lines: 0, line: 0 }
    }

    /// Line on which the current record begins, from 1.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// Reads the next record; false at the end of the file.
    pub(super) fn advance(&mut self) -> Result<bool> {
        self.text.clear();
        self.ends.clear();
        self.line = self.lines + 1;
        if self.peek()?.is_none() {
            return Ok(false);
        }
        loop {
            let quoted = self.peek()? == Some(b'"');
            let end = if quoted { self.quoted_field()? } else { self.bare_field()? };
            self.ends.push((self.text.len(), quoted));
            if matches!(end, End::Record) {
                return Ok(true);
            }
        }
    }

    /// The fields of the current record.
    pub(super) fn fields(&self) -> impl ExactSizeIterator<Item = Field<'_>> {
        let mut start = 0;
        self.ends.iter().map(move |(end, quoted)| {
            let text = &self.text[start..*end];
            start = *end;
            Field { text, quoted: *quoted }
        })
    }

    fn bare_field(&mut self) -> Result<End> {
        loop {
            let buffer = self.input.fill_buf().map_err(|error| unreadable(self.line, error))?;
            if buffer.is_empty() {
                return Err(self.wrong("the file ends within a line"));
            }
            let Some(at) = memchr3(b',', b'\n', b'"', buffer) else {
                let len = buffer.len();
                self.keep(len, 0)?;
                continue;
            };
            let found = buffer[at];
            self.keep(at, 1)?;
            match found {
                b',' => return Ok(End::Comma),
                b'\n' => {
                    self.lines += 1;
                    return Ok(End::Record);
                }
                _ => return Err(self.wrong("a quote within a field that is not quoted")),
            }
        }
    }

    fn quoted_field(&mut self) -> Result<End> {
        self.input.consume(1);
        loop {
            let buffer = self.input.fill_buf().map_err(|error| unreadable(self.line, error))?;
            if buffer.is_empty() {
                return Err(self.wrong("the file ends within a quoted field"));
            }
            let Some(at) = memchr(b'"', buffer) else {
                let len = buffer.len();
                self.keep(len, 0)?;
                continue;
            };
            self.keep(at, 1)?;
            match self.peek()? {
                Some(b'"') => {
                    self.text.push(b'"');
                    self.input.consume(1);
                }
                Some(b',') => {
                    self.input.consume(1);
                    return Ok(End::Comma);
                }
                Some(b'\n') => {
                    self.input.consume(1);
                    self.lines += 1;
                    return Ok(End::Record);
                }
                _ => return Err(self.wrong("something else than a comma or the line's end after a quote")),
            }
        }
    }

    /// Moves `len` bytes of the input into the record, and skips `skip` more.
    fn keep(&mut self, len: usize, skip: usize) -> Result<()> {
        let buffer = self.input.fill_buf().map_err(|error| unreadable(self.line, error))?;
        if self.text.len() + len > RECORD_BYTES_MAX {
            return Err(self.wrong("a record of more than 3 GiB"));
        }
        let kept = &buffer[..len];
        self.lines += memchr::memchr_iter(b'\n', kept).count() as u64;
        self.text.extend_from_slice(kept);
        self.input.consume(len + skip);
        Ok(())
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        let line = self.line;
        Ok(self.input.fill_buf().map_err(|error| unreadable(line, error))?.first().copied())
    }

    fn wrong(&self, what: &str) -> Error {
        Error::operator(format!("line {}: {what}", self.line))
    }
}

fn unreadable(line: u64, error: std::io::Error) -> Error {
    Error::operator(format!("line {line}: cannot read gzip")).cause(error)
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    /// All records, read through a buffer of `size` bytes.
    fn read(text: &str, size: usize) -> Result<Vec<Vec<(String, bool)>>> {
        let mut records = Records::new(BufReader::with_capacity(size, text.as_bytes()));
        let mut all = Vec::new();
        while records.advance()? {
            let own = |field: Field<'_>| (String::from_utf8(field.text.to_vec()).unwrap(), field.quoted);
            all.push(records.fields().map(own).collect());
        }
        Ok(all)
    }

    #[test]
    fn fields_are_the_same_wherever_the_buffer_ends() {
        let text = "a,\"\",\n\"x\"\"\ny,\",z\n\n";
        let bare = |text: &str| (text.to_owned(), false);
        let quoted = |text: &str| (text.to_owned(), true);
        let expected =
            vec![vec![bare("a"), quoted(""), bare("")], vec![quoted("x\"\ny,"), bare("z")], vec![bare("")]];
        for size in 1..20 {
            assert_eq!(read(text, size).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_malformed_is_refused_with_its_line() {
        for (text, message) in [
            ("a\nb", "line 2: the file ends within a line"),
            ("\"a\nb", "line 1: the file ends within a quoted field"),
            ("\"1\n2\"\nab\"c\n", "line 3: a quote within a field that is not quoted"),
            ("\"a\"b\n", "line 1: something else than a comma or the line's end after a quote"),
        ] {
            assert_eq!(read(text, 3).unwrap_err().to_string(), message);
        }
    }
}
