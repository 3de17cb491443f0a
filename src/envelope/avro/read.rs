//! Avro's primitives, read from bytes. Takes any bytes: what is not Avro is an error, never a panic.

use crate::envelope::text::Malformed;

const SHORT: Malformed = Malformed("ends too early");

/// A place in a record.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Index of the next byte to be read.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    /// Refuses leftover bytes.
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(Malformed("bytes are left over")) }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(SHORT)?;
        self.at += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| SHORT)
    }

    pub(super) fn boolean(&mut self) -> Result<bool, Malformed> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Malformed("not a boolean")),
        }
    }

    pub(super) fn long(&mut self) -> Result<i64, Malformed> {
        const BAD: Malformed = Malformed("a number of more than 64 bits");
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return Err(BAD);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(BAD)
    }

    /// A number within the bounds of a smaller type.
    pub(super) fn within<N: TryFrom<i64>>(&mut self) -> Result<N, Malformed> {
        N::try_from(self.long()?).map_err(|_| Malformed("not an integer of the column's size"))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.long()?).map_err(|_| Malformed("a negative length"))?;
        self.take(length)
    }

    pub(super) fn string(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed("not valid UTF-8"))
    }

    /// The branch of a union whose first one is null.
    pub(super) fn is_null(&mut self) -> Result<bool, Malformed> {
        match self.long()? {
            0 => Ok(true),
            1 => Ok(false),
            _ => Err(Malformed("not a branch of the union")),
        }
    }

    /// Passes over an optional value.
    pub(super) fn skip_optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<(), Malformed> {
        if !self.is_null()? {
            read(self)?;
        }
        Ok(())
    }
}
