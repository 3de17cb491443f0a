//! JSON strings, eight bytes at a time.

use crate::envelope::text::Malformed;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Flags, in the high bit of each byte, what a JSON string cannot hold as it is: `"`, `\`, control characters.
///
/// The subtractions borrow only out of a byte that is itself flagged, so the lowest flag is always true; bytes
/// of 0x80 and above are never flagged by themselves.
const fn special_flags(word: u64) -> u64 {
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let flags = quote.wrapping_sub(ONES) | backslash.wrapping_sub(ONES) | word.wrapping_sub(ONES * 0x20);
    flags & !word & HIGHS
}

/// Index of the first byte from `from` on that ends a plain run: `"`, `\` or a control character.
pub(super) fn next_special(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let flags = special_flags(u64::from_le_bytes(*chunk));
        if flags != 0 {
            return at + flags.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while at < bytes.len() && !is_special(bytes[at]) {
        at += 1;
    }
    at
}

const fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Writes a text as a JSON string, quotes included. Refuses what is not UTF-8.
pub(super) fn write(text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    if std::str::from_utf8(text).is_err() {
        return Err(Malformed("not valid UTF-8"));
    }
    out.push(b'"');
    let mut from = 0;
    loop {
        let at = next_special(text, from);
        out.extend_from_slice(&text[from..at]);
        let Some(byte) = text.get(at) else { break };
        write_escape(*byte, out);
        from = at + 1;
    }
    out.push(b'"');
    Ok(())
}

/// A text known to be UTF-8, as a JSON string.
pub(in crate::envelope) fn quoted(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    let _ = write(text.as_bytes(), &mut out);
    String::from_utf8(out).unwrap_or_default()
}

fn write_escape(byte: u8, out: &mut Vec<u8>) {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\t' => b't',
        b'\r' => b'r',
        0x08 => b'b',
        0x0C => b'f',
        _ => {
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0x0F)]];
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digits[0], digits[1]]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}
