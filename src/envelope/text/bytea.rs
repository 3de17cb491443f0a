//! `bytea`: hex or escape form to base64 or to the bytes themselves (`src/backend/utils/adt/bytea.c`, `byteaout`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Malformed;

/// Raw bytes encoded at a time: a multiple of three, so that only the last piece is padded.
const PIECE: usize = 192;

/// Writes base64 with padding, without quotes.
pub fn write_base64(text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    match text.strip_prefix(b"\\x") {
        Some(hex) => write_hex(hex, append_base64, out),
        None => write_escaped(text, append_base64, out),
    }
}

/// Appends the bytes themselves.
pub fn append_raw(text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let append = |piece: &[u8], out: &mut Vec<u8>| out.extend_from_slice(piece);
    match text.strip_prefix(b"\\x") {
        Some(hex) => write_hex(hex, append, out),
        None => write_escaped(text, append, out),
    }
}

/// Appends the base64 of raw bytes.
pub fn append_base64(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]).unwrap_or(0);
    debug_assert_eq!(start + written, out.len(), "base64 comes out at its computed length");
}

fn write_hex(hex: &[u8], append: impl Fn(&[u8], &mut Vec<u8>), out: &mut Vec<u8>) -> Result<(), Malformed> {
    const BAD: Malformed = Malformed("not bytes in hexadecimal form");
    if !hex.len().is_multiple_of(2) {
        return Err(BAD);
    }
    let mut piece = [0_u8; PIECE];
    for digits in hex.chunks(PIECE * 2) {
        let mut bad = 0;
        for (byte, pair) in piece.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = [NIBBLE[pair[0] as usize], NIBBLE[pair[1] as usize]];
            bad |= high | low;
            *byte = (high << 4) | (low & 0x0F);
        }
        if bad > 0x0F {
            return Err(BAD);
        }
        append(&piece[..digits.len() / 2], out);
    }
    Ok(())
}

/// Value of a hexadecimal digit; 0xFF for any other byte.
const NIBBLE: [u8; 256] = {
    let mut table = [0xFF; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit] as usize] = digit as u8;
        table[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};

fn write_escaped(
    mut text: &[u8],
    append: impl Fn(&[u8], &mut Vec<u8>),
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    const BAD: Malformed = Malformed("not bytes in escape form");
    let mut piece = [0_u8; PIECE];
    let mut held = 0;
    while let Some((first, rest)) = text.split_first() {
        let (byte, rest) = match (first, rest) {
            (b'\\', [b'\\', rest @ ..]) => (b'\\', rest),
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..]) => {
                (((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'), rest)
            }
            (b'\\', _) => return Err(BAD),
            (byte, rest) => (*byte, rest),
        };
        piece[held] = byte;
        held += 1;
        if held == PIECE {
            append(&piece, out);
            held = 0;
        }
        text = rest;
    }
    append(&piece[..held], out);
    Ok(())
}
