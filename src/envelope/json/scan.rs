//! A pull parser for JSON text: takes any valid document, borrows what it can, refuses everything else.
//!
//! Written by hand because a row is read field by field into datums of known types, straight from the record,
//! without a tree between. Malformed input is an error, never a panic; nesting is bounded.

use std::borrow::Cow;

use super::string::next_special;
use crate::envelope::text::Malformed;

/// Nesting at which a value is refused. Envelopes nest less than ten deep.
const DEPTH_MAX: usize = 128;
const BAD: Malformed = Malformed("not valid JSON");

/// A place in a JSON text.
#[derive(Clone, Debug)]
pub(in crate::envelope) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(in crate::envelope) const fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// A scanner of `text` at a place that another one gave by [`Scanner::at`].
    pub(in crate::envelope) const fn resume(text: &'a str, at: usize) -> Self {
        Self { text, at }
    }

    /// Index of the next byte to be read.
    pub(in crate::envelope) const fn at(&self) -> usize {
        self.at
    }

    /// The next byte that is not white space; it is not consumed.
    pub(in crate::envelope) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.as_bytes().get(self.at) {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                other => return other.copied(),
            }
        }
    }

    /// Consumes the next byte that is not white space, if it is the expected one.
    fn take(&mut self, expected: u8) -> bool {
        let found = self.peek() == Some(expected);
        self.at += usize::from(found);
        found
    }

    /// Consumes exactly these bytes, if they come next: a shortcut past what the other methods would read.
    pub(in crate::envelope) fn take_verbatim(&mut self, expected: &[u8]) -> bool {
        let found = self.text.as_bytes()[self.at..].starts_with(expected);
        self.at += if found { expected.len() } else { 0 };
        found
    }

    /// Refuses anything but white space from here on.
    pub(in crate::envelope) fn end(&mut self) -> Result<(), Malformed> {
        if self.peek().is_none() { Ok(()) } else { Err(BAD) }
    }

    /// `true`, `false` or `null`.
    pub(in crate::envelope) fn literal(&mut self, word: &str) -> Result<(), Malformed> {
        if self.take_verbatim(word.as_bytes()) { Ok(()) } else { Err(BAD) }
    }

    /// A number, as it is written.
    pub(in crate::envelope) fn number(&mut self) -> Result<&'a str, Malformed> {
        self.peek();
        let length = number_length(&self.text.as_bytes()[self.at..]).ok_or(Malformed("expected a number"))?;
        let start = self.at;
        self.at += length;
        self.text.get(start..self.at).ok_or(BAD)
    }

    /// A string, borrowed unless it holds escapes.
    pub(in crate::envelope) fn string(&mut self) -> Result<Cow<'a, str>, Malformed> {
        if !self.take(b'"') {
            return Err(Malformed("expected a string"));
        }
        let bytes = self.text.as_bytes();
        let start = self.at;
        self.at = next_special(bytes, start);
        if bytes.get(self.at) == Some(&b'"') {
            let plain = self.text.get(start..self.at).ok_or(BAD)?;
            self.at += 1;
            return Ok(Cow::Borrowed(plain));
        }
        // The end is found first: one allocation, since no escape is shorter than what it stands for.
        let first = self.at;
        self.end_string()?;
        let past = std::mem::replace(&mut self.at, first);
        let mut text = String::with_capacity(past - start);
        text.push_str(self.text.get(start..first).ok_or(BAD)?);
        while self.at + 1 < past {
            text.push(self.escape()?);
            let plain = self.at;
            self.at = next_special(bytes, plain);
            text.push_str(self.text.get(plain..self.at).ok_or(BAD)?);
        }
        self.at = past;
        Ok(Cow::Owned(text))
    }

    /// One escape, from its backslash on.
    fn escape(&mut self) -> Result<char, Malformed> {
        let letter = *self.text.as_bytes().get(self.at + 1).ok_or(BAD)?;
        self.at += 2;
        Ok(match letter {
            b'"' | b'\\' | b'/' => letter as char,
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => return Err(BAD),
        })
    }

    /// The rest of `\uXXXX`, with the second half of a surrogate pair where it begins one.
    fn unicode_escape(&mut self) -> Result<char, Malformed> {
        let first = self.four_digits()?;
        let code = if (0xD800..0xDC00).contains(&first) {
            if !self.take_verbatim(b"\\u") {
                return Err(BAD);
            }
            let second = self.four_digits()?;
            if !(0xDC00..0xE000).contains(&second) {
                return Err(BAD);
            }
            0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00)
        } else {
            first
        };
        char::from_u32(code).ok_or(BAD)
    }

    fn four_digits(&mut self) -> Result<u32, Malformed> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).ok_or(BAD)?;
        self.at += 4;
        digits.iter().try_fold(0, |value, digit| {
            (*digit as char).to_digit(16).map(|digit| value * 16 + digit).ok_or(BAD)
        })
    }

    /// An object: calls `field` at each value, with its name. `field` must read the value.
    pub(in crate::envelope) fn fields(
        &mut self,
        mut field: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if !self.take(b'{') {
            return Err(Malformed("expected an object"));
        }
        let mut more = !self.take(b'}');
        while more {
            let name = self.name()?;
            field(self, name)?;
            more = self.more(b'}')?;
        }
        Ok(())
    }

    /// A field's name and its colon.
    pub(in crate::envelope) fn name(&mut self) -> Result<Cow<'a, str>, Malformed> {
        let name = self.string()?;
        if self.take(b':') { Ok(name) } else { Err(BAD) }
    }

    /// Begins an object; whether it has a field.
    pub(in crate::envelope) fn open_object(&mut self) -> Result<bool, Malformed> {
        if self.take(b'{') { Ok(!self.take(b'}')) } else { Err(Malformed("expected an object")) }
    }

    /// After a field or an element: true past a comma, false past the closing byte.
    pub(in crate::envelope) fn more(&mut self, close: u8) -> Result<bool, Malformed> {
        if self.take(b',') {
            Ok(true)
        } else if self.take(close) {
            Ok(false)
        } else {
            Err(BAD)
        }
    }

    /// An array: calls `element` at each element, which it must read.
    pub(in crate::envelope) fn elements(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if !self.take(b'[') {
            return Err(Malformed("expected an array"));
        }
        let mut more = !self.take(b']');
        while more {
            element(self)?;
            more = self.more(b']')?;
        }
        Ok(())
    }

    /// Any value, checked but not kept.
    pub(in crate::envelope) fn skip(&mut self) -> Result<(), Malformed> {
        self.skip_at(0)
    }

    fn skip_at(&mut self, depth: usize) -> Result<(), Malformed> {
        if depth > DEPTH_MAX {
            return Err(Malformed("JSON nested too deep"));
        }
        match self.peek() {
            Some(b'"') => self.skip_string(),
            Some(b'{') => self.fields(|scan, _| scan.skip_at(depth + 1)),
            Some(b'[') => self.elements(|scan| scan.skip_at(depth + 1)),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            _ => self.number().map(|_| ()),
        }
    }

    fn skip_string(&mut self) -> Result<(), Malformed> {
        self.at = next_special(self.text.as_bytes(), self.at + 1);
        self.end_string()
    }

    /// Goes past the end of a string, from its first byte that is not plain on.
    fn end_string(&mut self) -> Result<(), Malformed> {
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => _ = self.escape()?,
                _ => return Err(BAD),
            }
            self.at = next_special(bytes, self.at);
        }
    }
}

/// Length of the JSON number at the start of a text; none where there is no number.
pub(in crate::envelope) fn number_length(bytes: &[u8]) -> Option<usize> {
    let digits = |from: usize| {
        let mut to = from;
        while bytes.get(to).is_some_and(u8::is_ascii_digit) {
            to += 1;
        }
        to - from
    };
    let mut at = usize::from(bytes.first() == Some(&b'-'));
    let whole = digits(at);
    if whole == 0 || (whole > 1 && bytes[at] == b'0') {
        return None;
    }
    at += whole;
    if bytes.get(at) == Some(&b'.') {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        at += 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(at);
        if exponent == 0 {
            return None;
        }
        at += exponent;
    }
    Some(at)
}
