//! Arrays: `{1,NULL,"a \"b\""}` to its parts (`src/backend/utils/adt/arrayfuncs.c`, `array_out`).
//!
//! Arrays of more dimensions nest. An array with a lower bound other than 1 is printed with a prefix
//! (`[2:4]={…}`), for which lists have no place: such an array travels as that text ([`has_bounds`]), not renumbered.
//! The delimiter is a comma: `box[]`, the one type with another, must not be classified as an array.

use super::Malformed;

/// Dimensions that Postgres allows: `MAXDIM` in `c.h`.
const DEPTH_MAX: usize = 6;

/// One part of an array's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// An array begins.
    Open,
    /// The innermost open array ends.
    Close,
    /// A null element.
    Null,
    /// An element, with quotes and escapes taken off.
    Element(&'a [u8]),
}

const BAD: Malformed = Malformed("not an array in Postgres's text form");

/// Whether the text is that of an array with a lower bound other than 1.
pub fn has_bounds(text: &[u8]) -> bool {
    text.first() == Some(&b'[')
}

/// Calls `visit` for each part, in order. `scratch` holds an element while its escapes are taken off.
pub fn parts<E: From<Malformed>>(
    text: &[u8],
    scratch: &mut Vec<u8>,
    mut visit: impl FnMut(Part<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = text;
    let mut depth = 0_usize;
    // Whether an element may stand here: after an opening brace or a comma.
    let mut wanted = true;
    let mut just_opened = false;
    loop {
        let Some((first, after)) = rest.split_first() else { return Err(BAD.into()) };
        match first {
            b'{' if wanted && depth < DEPTH_MAX => {
                visit(Part::Open)?;
                (depth, rest, just_opened) = (depth + 1, after, true);
                continue;
            }
            b'}' if depth > 0 && (!wanted || just_opened) => {
                visit(Part::Close)?;
                (depth, rest, wanted) = (depth - 1, after, false);
                if depth == 0 {
                    return if rest.is_empty() { Ok(()) } else { Err(BAD.into()) };
                }
            }
            b',' if depth > 0 && !wanted => (rest, wanted) = (after, true),
            b'"' if depth > 0 && wanted => {
                rest = quoted(after, scratch, &mut visit)?;
                wanted = false;
            }
            _ if depth > 0 && wanted => {
                rest = bare(rest, &mut visit)?;
                wanted = false;
            }
            _ => return Err(BAD.into()),
        }
        just_opened = false;
    }
}

/// An element from after its opening quote; gives what follows the closing one.
fn quoted<'a, E: From<Malformed>>(
    text: &'a [u8],
    scratch: &mut Vec<u8>,
    visit: &mut impl FnMut(Part<'_>) -> Result<(), E>,
) -> Result<&'a [u8], E> {
    scratch.clear();
    let mut rest = text;
    loop {
        let at = memchr::memchr2(b'"', b'\\', rest).ok_or(BAD)?;
        let (plain, tail) = rest.split_at(at);
        if let [b'"', after @ ..] = tail {
            if scratch.is_empty() {
                visit(Part::Element(plain))?;
            } else {
                scratch.extend_from_slice(plain);
                visit(Part::Element(scratch))?;
            }
            return Ok(after);
        }
        let [_, escaped, after @ ..] = tail else { return Err(BAD.into()) };
        scratch.extend_from_slice(plain);
        scratch.push(*escaped);
        rest = after;
    }
}

/// An element without quotes; gives what follows it. Postgres quotes whatever holds a brace, quote,
/// backslash, comma or white space, and an empty string.
fn bare<'a, E: From<Malformed>>(
    text: &'a [u8],
    visit: &mut impl FnMut(Part<'_>) -> Result<(), E>,
) -> Result<&'a [u8], E> {
    let end = memchr::memchr3(b',', b'}', b'{', text).ok_or(BAD)?;
    let (element, rest) = text.split_at(end);
    if element.is_empty() || element.iter().any(|b| matches!(b, b'"' | b'\\')) {
        return Err(BAD.into());
    }
    visit(if element.eq_ignore_ascii_case(b"NULL") { Part::Null } else { Part::Element(element) })?;
    Ok(rest)
}
