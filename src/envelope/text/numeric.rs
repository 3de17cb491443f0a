//! `numeric`: decimal text to an unscaled two's-complement integer of any length, and back.
//!
//! Numbers of up to 38 digits take a path through `i128`; longer ones go through limbs, at a cost that grows
//! with the square of their length (a thousand digits: some microseconds).

use super::Malformed;

/// Digits after the point that a number may have: `NUMERIC_DSCALE_MAX` in `numeric.c`.
const SCALE_MAX: usize = 16_383;
/// Digits before the point that a number may have, by Postgres's documentation.
const WHOLE_MAX: usize = 131_072;
/// Bytes of an unscaled number of that many digits, and a little more.
const BYTES_MAX: usize = 64 * 1024;
const TOO_LONG: Malformed = Malformed("has more digits than a number can have in Postgres");
const CHUNK_DIGITS: usize = 19;
const CHUNK: u64 = 10_u64.pow(CHUNK_DIGITS as u32);

/// A `numeric` as Postgres prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number<'a> {
    /// A finite number.
    Finite(Digits<'a>),
    /// `NaN`, `Infinity` or `-Infinity`.
    Special(&'static str),
}

/// The digits of a finite number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
}

/// An integer in minimal big-endian two's complement, as Java's `BigInteger.toByteArray` gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unscaled {
    /// Up to 16 bytes: the last `1` of the array in use.
    Small([u8; 16], usize),
    /// Any length.
    Large(Vec<u8>),
}

impl Unscaled {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Small(bytes, length) => &bytes[16 - length..],
            Self::Large(bytes) => bytes,
        }
    }

    fn from_i128(value: i128) -> Self {
        let magnitude = if value < 0 { !value } else { value };
        let bits = 128 - magnitude.leading_zeros() as usize;
        Self::Small(value.to_be_bytes(), bits / 8 + 1)
    }
}

/// Reads `-?digits[.digits]` or a special value.
pub fn parse(text: &[u8]) -> Result<Number<'_>, Malformed> {
    const BAD: Malformed = Malformed("not a decimal number");
    match text {
        b"NaN" => return Ok(Number::Special("NaN")),
        b"Infinity" => return Ok(Number::Special("Infinity")),
        b"-Infinity" => return Ok(Number::Special("-Infinity")),
        _ => {}
    }
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let whole = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(whole);
    let fraction = match rest.split_first() {
        None => rest,
        Some((b'.', fraction)) if !fraction.is_empty() && fraction.iter().all(u8::is_ascii_digit) => fraction,
        Some(_) => return Err(BAD),
    };
    if whole.is_empty() {
        return Err(BAD);
    }
    if whole.len() > WHOLE_MAX || fraction.len() > SCALE_MAX {
        return Err(TOO_LONG);
    }
    Ok(Number::Finite(Digits { negative, whole, fraction }))
}

impl Digits<'_> {
    /// Digits printed after the point.
    pub const fn scale(&self) -> usize {
        self.fraction.len()
    }

    /// The number times ten to the power of `scale`. Fails when digits other than zero would be lost.
    pub fn unscaled(&self, scale: i32) -> Result<Unscaled, Malformed> {
        let printed = (self.whole.len() + self.fraction.len()) as i64;
        let kept = printed + i64::from(scale) - self.fraction.len() as i64;
        let digits = || self.whole.iter().chain(self.fraction).copied();
        let lost = (printed - kept.max(0)).max(0) as usize;
        if digits().skip(printed as usize - lost).any(|d| d != b'0') {
            return Err(Malformed("has more digits after the point than its column"));
        }
        let padded = digits().chain(std::iter::repeat(b'0')).take(kept.max(0) as usize);
        if kept <= 18 {
            let value = padded.fold(0_i64, |v, d| v * 10 + i64::from(d - b'0'));
            return Ok(Unscaled::from_i128(i128::from(if self.negative { -value } else { value })));
        }
        if kept <= 38 {
            let value = padded.fold(0_i128, |v, d| v * 10 + i128::from(d - b'0'));
            return Ok(Unscaled::from_i128(if self.negative { -value } else { value }));
        }
        Ok(Unscaled::Large(large(padded, kept as usize, self.negative)))
    }
}

/// Decimal digits to two's complement.
fn large(mut digits: impl Iterator<Item = u8>, count: usize, negative: bool) -> Vec<u8> {
    let mut limbs: Vec<u64> = Vec::with_capacity(count / CHUNK_DIGITS + 1);
    let mut left = count;
    while left > 0 {
        // The first chunk takes the odd digits, so that all later ones are whole.
        let length = if left.is_multiple_of(CHUNK_DIGITS) { CHUNK_DIGITS } else { left % CHUNK_DIGITS };
        let mut carry = digits.by_ref().take(length).fold(0_u64, |v, d| v * 10 + u64::from(d - b'0'));
        for limb in &mut limbs {
            let product = u128::from(*limb) * u128::from(CHUNK) + u128::from(carry);
            *limb = product as u64;
            carry = (product >> 64) as u64;
        }
        if carry > 0 {
            limbs.push(carry);
        }
        left -= length;
    }
    let mut bytes = vec![0];
    bytes.extend(limbs.iter().rev().flat_map(|limb| limb.to_be_bytes()));
    if negative {
        negate(&mut bytes);
    }
    let redundant = |pair: &[u8]| (pair[0] == 0 && pair[1] < 0x80) || (pair[0] == 0xFF && pair[1] >= 0x80);
    let spare = bytes.windows(2).take_while(|pair| redundant(pair)).count();
    bytes.drain(..spare);
    bytes
}

/// Two's complement in place, big-endian.
fn negate(bytes: &mut [u8]) {
    let mut carry = true;
    for byte in bytes.iter_mut().rev() {
        let (value, overflow) = (!*byte).overflowing_add(u8::from(carry));
        *byte = value;
        carry = overflow;
    }
}

/// The decimal text of an unscaled integer, as Postgres prints it: with `scale` digits after the point.
pub fn to_text(bytes: &[u8], scale: i64) -> Result<String, Malformed> {
    let scale = usize::try_from(scale).ok().filter(|scale| *scale <= SCALE_MAX);
    let scale = scale.ok_or(Malformed("has a scale that Postgres cannot have"))?;
    if bytes.len() > BYTES_MAX {
        return Err(TOO_LONG);
    }
    let negative = bytes.first().ok_or(Malformed("an unscaled number without bytes"))? & 0x80 != 0;
    let mut digits = String::new();
    if bytes.len() <= 16 {
        let mut wide = [if negative { 0xFF } else { 0 }; 16];
        wide[16 - bytes.len()..].copy_from_slice(bytes);
        digits.push_str(itoa::Buffer::new().format(i128::from_be_bytes(wide).unsigned_abs()));
    } else {
        large_digits(bytes, negative, &mut digits);
    }
    let mut text = String::with_capacity(digits.len().max(scale) + 3);
    if negative {
        text.push('-');
    }
    let whole = digits.len().saturating_sub(scale);
    text.push_str(if whole == 0 { "0" } else { &digits[..whole] });
    if scale > 0 {
        text.push('.');
        text.extend(std::iter::repeat_n('0', scale.saturating_sub(digits.len())));
        text.push_str(&digits[whole..]);
    }
    Ok(text)
}

fn large_digits(bytes: &[u8], negative: bool, digits: &mut String) {
    let mut magnitude = bytes.to_vec();
    if negative {
        negate(&mut magnitude);
    }
    let chunk = |part: &[u8]| part.iter().fold(0_u64, |v, b| (v << 8) | u64::from(*b));
    let mut limbs: Vec<u64> = magnitude.rchunks(8).rev().map(chunk).collect();
    let mut chunks = Vec::new();
    let mut top = 0;
    while top < limbs.len() {
        let mut remainder = 0_u64;
        for limb in &mut limbs[top..] {
            let dividend = (u128::from(remainder) << 64) | u128::from(*limb);
            *limb = (dividend / u128::from(CHUNK)) as u64;
            remainder = (dividend % u128::from(CHUNK)) as u64;
        }
        chunks.push(remainder);
        while top < limbs.len() && limbs[top] == 0 {
            top += 1;
        }
    }
    for (index, chunk) in chunks.iter().rev().enumerate() {
        let mut buffer = itoa::Buffer::new();
        let part = buffer.format(*chunk);
        if index > 0 {
            digits.extend(std::iter::repeat_n('0', CHUNK_DIGITS - part.len()));
        }
        digits.push_str(part);
    }
}
