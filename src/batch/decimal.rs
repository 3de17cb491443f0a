//! Unscaled values: big-endian two's complement of any length (as `java.math.BigInteger` has it, and
//! [`Datum::Decimal`](crate::change::Datum::Decimal)) from and to `i128` and plain decimal digits.

/// Largest power of ten in a limb of 32 bits.
const LIMB_TEN: u64 = 1_000_000_000;
const LIMB_DIGITS: usize = 9;

/// The value, if 128 bits hold it. No bytes are zero.
pub(super) fn to_i128(bytes: &[u8]) -> Option<i128> {
    let negative = bytes.first().is_some_and(|b| *b >= 0x80);
    let sign = if negative { 0xFF } else { 0 };
    let (extra, low) = bytes.split_at(bytes.len().saturating_sub(16));
    let mut full = [sign; 16];
    full[16 - low.len()..].copy_from_slice(low);
    let value = i128::from_be_bytes(full);
    (extra.iter().all(|b| *b == sign) && (value < 0) == negative).then_some(value)
}

/// The shortest form of a value; zero is one byte.
pub(super) fn from_i128(value: i128) -> Vec<u8> {
    shortest(&value.to_be_bytes()).to_vec()
}

/// Drops the leading bytes that only repeat the sign.
fn shortest(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes {
        let repeats = match rest.first() {
            Some(next) => (*first == 0 && *next < 0x80) || (*first == 0xFF && *next >= 0x80),
            None => false,
        };
        if !repeats {
            break;
        }
        bytes = rest;
    }
    bytes
}

/// Appends the value as Postgres prints a numeric of that scale: plain digits, `scale` of them after the
/// point; a negative scale appends zeros. Returns how many digits the unscaled value has.
pub(super) fn write_text(bytes: &[u8], scale: i16, out: &mut Vec<u8>) -> usize {
    let (negative, digits) = digits(bytes);
    if negative {
        out.push(b'-');
    }
    let after = usize::from(scale.max(0).unsigned_abs());
    let (whole, fraction) = digits.split_at(digits.len().saturating_sub(after));
    out.extend_from_slice(if whole.is_empty() { b"0" } else { whole });
    if scale < 0 && whole != b"0" {
        out.resize(out.len() + usize::from(scale.unsigned_abs()), b'0');
    }
    if after > 0 {
        out.push(b'.');
        out.resize(out.len() + after - fraction.len(), b'0');
        out.extend_from_slice(fraction);
    }
    digits.len()
}

/// Whether it is below zero, and its digits without leading zeros (at least one).
fn digits(bytes: &[u8]) -> (bool, Vec<u8>) {
    let negative = bytes.first().is_some_and(|b| *b >= 0x80);
    let mut limbs = magnitude(bytes, negative);
    // Groups of nine digits, the lowest first.
    let mut groups = Vec::new();
    while let Some(top) = limbs.iter().rposition(|limb| *limb != 0) {
        limbs.truncate(top + 1);
        let mut rest = 0_u64;
        for limb in limbs.iter_mut().rev() {
            let value = (rest << 32) | u64::from(*limb);
            *limb = (value / LIMB_TEN) as u32;
            rest = value % LIMB_TEN;
        }
        groups.push(rest);
    }
    let mut text = Vec::with_capacity(groups.len() * LIMB_DIGITS + 1);
    for group in groups.iter().rev() {
        let mut ten = LIMB_TEN / 10;
        while ten > 0 {
            text.push(b'0' + (group / ten % 10) as u8);
            ten /= 10;
        }
    }
    let zeros = text.iter().take_while(|digit| **digit == b'0').count();
    text.drain(..zeros);
    if text.is_empty() {
        text.push(b'0');
    }
    (negative, text)
}

/// The absolute value in limbs of 32 bits, the lowest first.
fn magnitude(bytes: &[u8], negative: bool) -> Vec<u32> {
    let fill = if negative { 0xFF } else { 0 };
    let mut limbs: Vec<u32> = bytes
        .rchunks(4)
        .map(|chunk| {
            let mut full = [fill; 4];
            full[4 - chunk.len()..].copy_from_slice(chunk);
            u32::from_be_bytes(full)
        })
        .collect();
    if negative {
        negate(&mut limbs);
    }
    limbs
}

/// Two's complement negation in place; the most negative value becomes its own magnitude.
fn negate(limbs: &mut [u32]) {
    let mut carry = true;
    for limb in limbs {
        (*limb, carry) = (!*limb).overflowing_add(u32::from(carry));
    }
}

/// The reverse of [`write_text`]: the unscaled value of plain digits, in its shortest form; `None` when the
/// text is not a number or has digits that the scale cannot hold. A fraction may be shorter than the scale.
pub(super) fn parse(text: &[u8], scale: i16) -> Option<Vec<u8>> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let point = text.iter().position(|b| *b == b'.').unwrap_or(text.len());
    let (whole, fraction) = (&text[..point], text.get(point + 1..).unwrap_or_default());
    if !whole.iter().chain(fraction).all(u8::is_ascii_digit) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let after = usize::from(scale.max(0).unsigned_abs());
    let zeros = after.checked_sub(fraction.len())?;
    let mut unscaled = [whole, fraction].concat();
    unscaled.resize(unscaled.len() + zeros, b'0');
    if scale < 0 && unscaled.iter().any(|digit| *digit != b'0') {
        let kept = unscaled.len().checked_sub(usize::from(scale.unsigned_abs()))?;
        if unscaled[kept..].iter().any(|digit| *digit != b'0') {
            return None;
        }
        unscaled.truncate(kept);
    }
    Some(from_digits(&unscaled, negative))
}

fn from_digits(digits: &[u8], negative: bool) -> Vec<u8> {
    let mut limbs: Vec<u32> = Vec::with_capacity(digits.len() / LIMB_DIGITS + 2);
    for group in digits.chunks(LIMB_DIGITS) {
        let mut carry = group.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
        let ten = 10_u64.pow(group.len() as u32);
        for limb in &mut limbs {
            let value = u64::from(*limb) * ten + carry;
            *limb = value as u32;
            carry = value >> 32;
        }
        if carry > 0 {
            limbs.push(carry as u32);
        }
    }
    // A limb on top keeps the sign bit free.
    limbs.push(0);
    if negative {
        negate(&mut limbs);
    }
    let bytes: Vec<u8> = limbs.iter().rev().flat_map(|limb| limb.to_be_bytes()).collect();
    shortest(&bytes).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8], scale: i16) -> String {
        let mut out = Vec::new();
        write_text(bytes, scale, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn bytes_of_any_length_give_the_value_or_nothing() {
        assert_eq!(to_i128(&[]), Some(0));
        assert_eq!(to_i128(&[0xFF; 40]), Some(-1));
        assert_eq!(to_i128(&[&[0; 24][..], &[5]].concat()), Some(5));
        assert_eq!(to_i128(&[&[0][..], &[0xFF; 16]].concat()), None, "just above");
        assert_eq!(to_i128(&[&[0xFF][..], &[0x7F; 16]].concat()), None, "just below");
        for value in [0, 1, -1, 127, 128, -128, -129, i128::MAX, i128::MIN, 10_i128.pow(38) - 1] {
            let bytes = from_i128(value);
            assert_eq!(to_i128(&bytes), Some(value));
            assert_eq!(text(&bytes, 0), value.to_string());
            assert_eq!(parse(value.to_string().as_bytes(), 0), Some(bytes));
        }
    }

    #[test]
    fn digits_stand_as_postgres_prints_them() {
        let of = |value: i128, scale| text(&from_i128(value), scale);
        assert_eq!(of(12345, 2), "123.45");
        assert_eq!(of(-5, 3), "-0.005");
        assert_eq!(of(0, 2), "0.00");
        assert_eq!(of(-12, -3), "-12000");
        assert_eq!(of(0, -3), "0");
    }

    #[test]
    fn a_thousand_digits_round_trip() {
        for digits in [1, 9, 10, 38, 39, 77, 500, 1000] {
            for scale in [0_i16, 1, 7, 999] {
                for sign in ["", "-"] {
                    let number: String = (0..digits).map(|i| char::from(b'1' + (i % 9) as u8)).collect();
                    let scale_usize = scale.unsigned_abs() as usize;
                    let padded = format!("{number:0>width$}", width = scale_usize + 1);
                    let (whole, fraction) = padded.split_at(padded.len() - scale_usize);
                    let point = if scale > 0 { "." } else { "" };
                    let plain = format!("{sign}{whole}{point}{fraction}");
                    assert_eq!(text(&parse(plain.as_bytes(), scale).unwrap(), scale), plain);
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_of_that_scale_is_refused() {
        for (bad, scale) in [("", 0), ("-", 0), (".", 1), ("1.23", 1), ("1e5", 0), ("NaN", 0), ("1234", -3)] {
            assert_eq!(parse(bad.as_bytes(), scale), None, "{bad:?} was taken");
        }
        assert_eq!(parse(b"1.5", 3), Some(from_i128(1500)), "a shorter fraction is the same number");
        assert_eq!(parse(b"0", -3), Some(vec![0]));
    }
}
