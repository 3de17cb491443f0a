//! `bit(n)`: as many binary digits, to what Debezium makes of them and back: a boolean of one, bytes of more.
//!
//! The bytes are those of the number which the digits spell, the lowest first, without zeros at its high end. The length
//! that is lost so is the type's.

use super::Malformed;

const BAD: Malformed = Malformed("not as many bits as the column has");

/// The one digit of a `bit(1)`.
pub fn is_set(text: &[u8]) -> Result<bool, Malformed> {
    match text {
        b"1" => Ok(true),
        b"0" => Ok(false),
        _ => Err(BAD),
    }
}

/// The reverse of [`is_set`].
pub const fn one(is_set: bool) -> &'static str {
    if is_set { "1" } else { "0" }
}

/// Appends the bytes of `length` binary digits.
pub fn append_bytes(length: u32, text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    if text.len() != length as usize || !text.iter().all(|digit| matches!(digit, b'0' | b'1')) {
        return Err(BAD);
    }
    let start = out.len();
    // Eight digits a byte, from the last one on.
    out.extend(text.rchunks(8).map(|digits| digits.iter().fold(0, |byte, digit| byte << 1 | (digit & 1))));
    let zeros = out[start..].iter().rev().take_while(|byte| **byte == 0).count();
    out.truncate(out.len() - zeros);
    Ok(())
}

/// The `length` binary digits of such bytes.
pub fn to_text(length: u32, bytes: &[u8]) -> Result<String, Malformed> {
    let length = length as usize;
    let is_set = |bit: usize| bytes.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1);
    if (length..bytes.len() * 8).any(is_set) {
        return Err(BAD);
    }
    Ok((0..length).rev().map(|bit| if is_set(bit) { '1' } else { '0' }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        let mut out = vec![7];
        append_bytes(text.len() as u32, text.as_bytes(), &mut out).unwrap();
        out.split_off(1)
    }

    #[test]
    fn the_lowest_bits_come_first_and_zeros_at_the_high_end_not_at_all() {
        assert_eq!(bytes("10101010"), [0b1010_1010]);
        assert_eq!(bytes("000100000010"), [2, 1]);
        assert_eq!(bytes("0000000000000101"), [5]);
        assert!(bytes("000").is_empty());
    }

    #[test]
    fn they_come_back_with_the_types_length() {
        for text in ["10", "000", "000100000010", "1111111111111111", "0000000000000101", "101010101"] {
            assert_eq!(to_text(text.len() as u32, &bytes(text)).unwrap(), text);
        }
        assert_eq!(to_text(3, &[8]), Err(BAD));
        assert_eq!(append_bytes(3, b"10", &mut Vec::new()), Err(BAD));
        assert_eq!(append_bytes(2, b"12", &mut Vec::new()), Err(BAD));
    }
}
