//! Reads a message's fields one after the other; what is missing or wrong says where.

use crate::change::Lsn;

use super::{DecodeError, LEFT_OUT, POSTGRES_EPOCH_US, Tuple};

/// The bytes of one message that have not been read yet.
pub(super) struct Reader<'a> {
    tag: u8,
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A message's first byte, and a reader of what follows it.
    pub(super) fn new(bytes: &'a [u8]) -> Result<(u8, Self), DecodeError> {
        let Some((&tag, rest)) = bytes.split_first() else {
            return Err(DecodeError::Truncated { tag: '\0', at: 0, wanted: "a message" });
        };
        Ok((tag, Self { tag, whole: bytes.len(), rest }))
    }

    /// What is left.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn truncated(&self, wanted: &'static str) -> DecodeError {
        DecodeError::Truncated { tag: char::from(self.tag), at: self.whole - self.rest.len(), wanted }
    }

    pub(super) fn unexpected(&self, found: u8, wanted: &'static str) -> DecodeError {
        DecodeError::Unexpected { tag: char::from(self.tag), found, wanted }
    }

    pub(super) fn take(&mut self, count: usize, wanted: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.truncated(wanted))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, wanted: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.truncated(wanted))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self, wanted: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(wanted).map(|b| b[0])
    }

    pub(super) fn u16(&mut self, wanted: &'static str) -> Result<u16, DecodeError> {
        self.array(wanted).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, wanted: &'static str) -> Result<u32, DecodeError> {
        self.array(wanted).map(u32::from_be_bytes)
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.array("an LSN").map(|b| Lsn(u64::from_be_bytes(b)))
    }

    pub(super) fn time(&mut self) -> Result<i64, DecodeError> {
        self.array("a time").map(|b| i64::from_be_bytes(b).saturating_add(POSTGRES_EPOCH_US))
    }

    pub(super) fn marker(&mut self, wanted: u8, name: &'static str) -> Result<(), DecodeError> {
        match self.u8(name)? {
            found if found == wanted => Ok(()),
            found => Err(self.unexpected(found, name)),
        }
    }

    pub(super) fn string(&mut self, wanted: &'static str) -> Result<&'a str, DecodeError> {
        let end = memchr::memchr(0, self.rest).ok_or_else(|| self.truncated(wanted))?;
        let (text, rest) = self.rest.split_at(end);
        let text = std::str::from_utf8(text).map_err(|error| {
            let found = text.get(error.valid_up_to()).copied().unwrap_or_default();
            self.unexpected(found, "UTF-8 text")
        })?;
        self.rest = &rest[1..];
        Ok(text)
    }

    /// Checks a tuple to its end, so that [`Tuple::values`] need not.
    pub(super) fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let columns = self.u16("a number of columns")?;
        let start = self.rest;
        for _ in 0..columns {
            match self.u8("a column")? {
                b'n' | b'u' => {}
                kind @ (b't' | LEFT_OUT) => {
                    if kind == LEFT_OUT {
                        self.u32("the length of a value that was left out")?;
                    }
                    let length = self.u32("a column length")? as usize;
                    self.take(length, "a column value")?;
                }
                found => return Err(self.unexpected(found, "a column kind (n, u or t)")),
            }
        }
        Ok(Tuple { columns, body: &start[..start.len() - self.rest.len()] })
    }

    pub(super) fn end(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::Leftover { tag: char::from(self.tag), count }),
        }
    }
}
