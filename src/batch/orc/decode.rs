//! Streams read again: chunks, bits, integers. Every byte is checked; a file that is not whole is an error, no panic.

use bytes::Bytes;

use crate::batch::format::OrcCompression as Codec;
use crate::runtime::{Error, Result};

/// What a broken file gives.
pub(super) fn broken(what: &str) -> Error {
    Error::operator(format!("the ORC file is damaged: {what}"))
}

/// Bytes of a stream, a chunk decompressed at a time.
#[derive(Debug)]
pub(super) struct Chunks {
    codec: Codec,
    left: Bytes,
    chunk: Bytes,
    chunk_bytes_max: usize,
}

impl Chunks {
    pub(super) const fn new(codec: Codec, chunk_bytes_max: usize, stream: Bytes) -> Self {
        Self { codec, left: stream, chunk: Bytes::new(), chunk_bytes_max }
    }

    /// The rest of the stream at once: a message, a dictionary.
    pub(super) fn all(mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while self.fill()? {
            all.extend_from_slice(&std::mem::take(&mut self.chunk));
        }
        Ok(all)
    }

    /// Appends so many bytes.
    pub(super) fn read(&mut self, mut bytes: usize, out: &mut Vec<u8>) -> Result<()> {
        while bytes > 0 {
            if !self.fill()? {
                return Err(broken("a stream ends too early"));
            }
            let taken = self.chunk.split_to(bytes.min(self.chunk.len()));
            bytes -= taken.len();
            out.extend_from_slice(&taken);
        }
        Ok(())
    }

    fn byte(&mut self) -> Result<u8> {
        if !self.fill()? {
            return Err(broken("a stream ends too early"));
        }
        Ok(self.chunk.split_to(1)[0])
    }

    fn varint(&mut self) -> Result<u64> {
        u64::try_from(self.varint128()?).map_err(|_| broken("a number has more than 64 bits"))
    }

    /// Seven bits a byte, the lowest first.
    pub(super) fn varint128(&mut self) -> Result<u128> {
        let mut value = 0;
        for shift in (0..128).step_by(7) {
            let byte = self.byte()?;
            value |= u128::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(broken("a number has no end"))
    }

    fn big_endian(&mut self, bytes: usize) -> Result<u64> {
        (0..bytes).try_fold(0, |value, _| Ok(value << 8 | u64::from(self.byte()?)))
    }

    /// Whether there is a byte.
    fn fill(&mut self) -> Result<bool> {
        while self.chunk.is_empty() {
            if self.left.is_empty() {
                return Ok(false);
            }
            if self.codec == Codec::None {
                self.chunk = std::mem::take(&mut self.left);
                return Ok(true);
            }
            if self.left.len() < 3 {
                return Err(broken("a chunk has no header"));
            }
            let header = self.left.split_to(3);
            let header = u32::from_le_bytes([header[0], header[1], header[2], 0]);
            let (bytes, original) = ((header >> 1) as usize, header & 1 == 1);
            if self.left.len() < bytes {
                return Err(broken("a chunk is longer than its stream"));
            }
            let chunk = self.left.split_to(bytes);
            self.chunk =
                if original { chunk } else { self.codec.decompress(&chunk, self.chunk_bytes_max)?.into() };
        }
        Ok(true)
    }
}

impl Codec {
    fn decompress(self, chunk: &[u8], bytes_max: usize) -> Result<Vec<u8>> {
        let failed = |error: std::io::Error| broken("a chunk cannot be decompressed").cause(error);
        match self {
            Self::None => Ok(chunk.to_vec()),
            Self::Zlib => {
                use std::io::Read as _;
                let mut out = Vec::new();
                let limit = bytes_max as u64 + 1;
                flate2::read::DeflateDecoder::new(chunk).take(limit).read_to_end(&mut out).map_err(failed)?;
                if out.len() > bytes_max { Err(broken("a chunk is too long")) } else { Ok(out) }
            }
            Self::Snappy => {
                let bytes =
                    snap::raw::decompress_len(chunk).map_err(|error| failed(std::io::Error::other(error)))?;
                if bytes > bytes_max {
                    return Err(broken("a chunk is too long"));
                }
                snap::raw::Decoder::new()
                    .decompress_vec(chunk)
                    .map_err(|error| failed(std::io::Error::other(error)))
            }
            Self::Zstd(_) => zstd::bulk::decompress(chunk, bytes_max).map_err(failed),
        }
    }
}

/// Bits.
#[derive(Debug)]
pub(super) struct BitsReader {
    chunks: Chunks,
    /// Bytes that a run has left: the same one again, or literals.
    run: usize,
    same: Option<u8>,
    open: u8,
    left: u8,
}

impl BitsReader {
    pub(super) const fn new(chunks: Chunks) -> Self {
        Self { chunks, run: 0, same: None, open: 0, left: 0 }
    }

    pub(super) fn bit(&mut self) -> Result<bool> {
        if self.left == 0 {
            self.open = self.byte()?;
            self.left = 8;
        }
        self.left -= 1;
        Ok(self.open >> self.left & 1 == 1)
    }

    fn byte(&mut self) -> Result<u8> {
        if self.run == 0 {
            let control = self.chunks.byte()? as i8;
            if control < 0 {
                (self.run, self.same) = (control.unsigned_abs() as usize, None);
            } else {
                (self.run, self.same) = (control as usize + 3, Some(self.chunks.byte()?));
            }
        }
        self.run -= 1;
        self.same.map_or_else(|| self.chunks.byte(), Ok)
    }
}

/// Integers, a run at a time.
#[derive(Debug)]
pub(super) struct IntsReader {
    chunks: Chunks,
    signed: bool,
    run: Vec<i64>,
    at: usize,
}

impl IntsReader {
    pub(super) const fn new(chunks: Chunks, signed: bool) -> Self {
        Self { chunks, signed, run: Vec::new(), at: 0 }
    }

    pub(super) fn next(&mut self) -> Result<i64> {
        if self.at == self.run.len() {
            self.run.clear();
            self.at = 0;
            self.fill()?;
        }
        self.at += 1;
        Ok(self.run[self.at - 1])
    }

    fn fill(&mut self) -> Result<()> {
        let first = self.chunks.byte()?;
        if first >> 6 == 0 {
            let value = self.chunks.big_endian((first >> 3 & 7) as usize + 1)?;
            let value = self.value(value);
            self.run.extend(std::iter::repeat_n(value, (first & 7) as usize + 3));
            return Ok(());
        }
        let length = (usize::from(first & 1) << 8 | usize::from(self.chunks.byte()?)) + 1;
        let code = first >> 1 & 31;
        match first >> 6 {
            1 => {
                let packed = self.packed(length, width(code))?;
                let signed = self.signed;
                self.run.extend(packed.map(|value| if signed { unzigzag(value) } else { value as i64 }));
                Ok(())
            }
            2 => self.patched(length, width(code)),
            _ => self.delta(length, code),
        }
    }

    fn delta(&mut self, length: usize, code: u8) -> Result<()> {
        let base = self.chunks.varint()?;
        let base = self.value(base);
        let step = unzigzag(self.chunks.varint()?);
        self.run.push(base);
        if code == 0 {
            self.run.extend((1..length).scan(base, |value, _| {
                *value = value.wrapping_add(step);
                Some(*value)
            }));
            return Ok(());
        }
        let mut value = base.wrapping_add(step);
        self.run.push(value);
        for more in self.packed(length.saturating_sub(2), width(code))?.collect::<Vec<_>>() {
            value =
                if step < 0 { value.wrapping_sub_unsigned(more) } else { value.wrapping_add_unsigned(more) };
            self.run.push(value);
        }
        Ok(())
    }

    fn patched(&mut self, length: usize, width: u32) -> Result<()> {
        let (third, fourth) = (self.chunks.byte()?, self.chunks.byte()?);
        let base_bytes = (third >> 5) as usize + 1;
        let (patch_width, gap_width) = (self::width(third & 31), u32::from(fourth >> 5) + 1);
        if patch_width + gap_width > 64 {
            return Err(broken("a list of patches is too wide"));
        }
        let base = self.chunks.big_endian(base_bytes)?;
        let sign = 1 << (base_bytes * 8 - 1);
        let base = if base & sign == 0 { base as i64 } else { ((base & !sign) as i64).wrapping_neg() };
        let mut above: Vec<u64> = self.packed(length, width)?.collect();
        let mut at = 0;
        for entry in self.packed((fourth & 31) as usize, super::ints::width_for(patch_width + gap_width))? {
            at += (entry >> patch_width) as usize;
            let patch = entry & ((1 << patch_width) - 1);
            let value = above.get_mut(at).ok_or_else(|| broken("a patch lies beyond its run"))?;
            *value |= patch.checked_shl(width).unwrap_or(0);
        }
        self.run.extend(above.into_iter().map(|above| base.wrapping_add_unsigned(above)));
        Ok(())
    }

    fn packed(&mut self, values: usize, width: u32) -> Result<impl Iterator<Item = u64> + use<>> {
        let mut bytes = Vec::new();
        self.chunks.read((values * width as usize).div_ceil(8), &mut bytes)?;
        let (mut bytes, mut open, mut filled) = (bytes.into_iter(), 0_u128, 0);
        Ok((0..values).map(move |_| {
            while filled < width {
                open = open << 8 | u128::from(bytes.next().unwrap_or_default());
                filled += 8;
            }
            filled -= width;
            let value = (open >> filled) as u64;
            open &= (1 << filled) - 1;
            value
        }))
    }

    const fn value(&self, plain: u64) -> i64 {
        if self.signed { unzigzag(plain) } else { plain as i64 }
    }
}

/// The inverse of zigzag.
const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

const fn width(code: u8) -> u32 {
    match code as u32 {
        code @ 0..=23 => code + 1,
        code @ 24..=27 => code * 2 - 22,
        code => code * 8 - 184,
    }
}

/// Fields of a message.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

/// A field's value.
#[derive(Clone, Copy, Debug)]
pub(super) enum FieldValue<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl FieldValue<'_> {
    pub(super) fn number(self) -> Result<u64> {
        if let Self::Number(number) = self {
            Ok(number)
        } else {
            Err(broken("a number was expected in a message"))
        }
    }
}

impl<'a> FieldValue<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8]> {
        if let Self::Bytes(bytes) = self {
            Ok(bytes)
        } else {
            Err(broken("bytes were expected in a message"))
        }
    }
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or_else(|| broken("a message ends too early"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(value);
            }
        }
        Err(broken("a number in a message has no end"))
    }

    fn take(&mut self, bytes: u64) -> Result<&'a [u8]> {
        let taken = usize::try_from(bytes).ok().and_then(|bytes| self.0.split_at_checked(bytes));
        let (taken, rest) = taken.ok_or_else(|| broken("a message ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// The numbers of a packed field.
    pub(super) fn packed(bytes: &'a [u8]) -> Result<Vec<u64>> {
        let mut fields = Self(bytes);
        let mut numbers = Vec::new();
        while !fields.0.is_empty() {
            numbers.push(fields.varint()?);
        }
        Ok(numbers)
    }

    fn field(&mut self) -> Result<(u64, FieldValue<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => FieldValue::Number(self.varint()?),
            1 => FieldValue::Bytes(self.take(8)?),
            2 => {
                let bytes = self.varint()?;
                FieldValue::Bytes(self.take(bytes)?)
            }
            5 => FieldValue::Bytes(self.take(4)?),
            _ => return Err(broken("a message has a field of an unknown kind")),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, FieldValue<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}
