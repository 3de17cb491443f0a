//! Values of an envelope as the oracle shows them: Debezium's forms taken apart by nothing of the product.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value as Json;
use serde_json::value::RawValue;

use super::source::Kind;

/// What Debezium writes for `timestamp 'infinity'` and its negative.
const INFINITIES: [(&str, &str); 2] =
    [("9223372036825200000", "infinity"), ("-9223372036832400000", "-infinity")];

/// A value of an envelope, given as its JSON, as [`Kind::text`] shows it. Panics where the JSON is of another type.
pub fn shown(kind: Kind, json: &str) -> Option<String> {
    if json == "null" {
        return None;
    }
    let value = || serde_json::from_str::<Json>(json).unwrap();
    let text = || serde_json::from_str::<String>(json).unwrap_or_else(|_| panic!("{json} is no string"));
    let whole = || json.parse::<i128>().unwrap_or_else(|_| panic!("{json} is no whole number"));
    Some(match kind {
        Kind::Int => whole().to_string(),
        Kind::Bool => {
            assert!(matches!(json, "true" | "false"), "{json} is no boolean");
            json.to_owned()
        }
        Kind::Date => match whole() {
            2_147_483_647 => "infinity".to_owned(),
            -2_147_483_648 => "-infinity".to_owned(),
            days => days.to_string(),
        },
        Kind::Text | Kind::Printed => text(),
        Kind::Wide => sha256(text().as_bytes()),
        Kind::Bytes => hexadecimal(&BASE64_STANDARD.decode(text()).unwrap()),
        Kind::Real => hexadecimal(&number::<f32>(json).to_be_bytes()),
        Kind::Double => hexadecimal(&number::<f64>(json).to_be_bytes()),
        Kind::Bits(1) => if json == "true" { "1" } else { "0" }.to_owned(),
        Kind::Bits(length) => bits(&BASE64_STANDARD.decode(text()).unwrap(), length),
        Kind::Time(precision) => (whole() * unit_us(precision)).to_string(),
        Kind::Local(precision) => match INFINITIES.iter().find(|(number, _)| *number == json) {
            Some((_, infinity)) => (*infinity).to_owned(),
            None => (whole() * unit_us(precision)).to_string(),
        },
        Kind::Instant => instant(&text()),
        Kind::Decimal(_) if json == "\"NaN\"" => text(),
        Kind::Decimal(scale) => decimal(&unscaled(&text()), scale),
        Kind::Numeric => match value().as_object() {
            None => text(),
            Some(parts) => {
                let scale = parts["scale"].as_u64().unwrap() as usize;
                decimal(&unscaled(parts["value"].as_str().unwrap()), scale)
            }
        },
        // It does not begin at 1.
        Kind::List(_) if json.starts_with('"') => text(),
        Kind::List(element) => {
            let (mut dimensions, mut elements) = (Vec::new(), Vec::new());
            flatten(json, 0, &mut dimensions, &mut elements);
            let shown: Vec<_> = elements.into_iter().map(|value| shown(*element, value)).collect();
            let many = if dimensions.len() > 1 { dimensions } else { Vec::new() };
            let many: Vec<_> = many.iter().map(|length| format!("[1:{length}]")).collect();
            many.concat() + &serde_json::to_string(&shown).unwrap()
        }
    })
}

/// The lengths of lists within lists, which are the same for all, and what is in the innermost.
fn flatten<'j>(json: &'j str, depth: usize, dimensions: &mut Vec<usize>, elements: &mut Vec<&'j str>) {
    let list: Vec<&RawValue> = serde_json::from_str(json).unwrap_or_else(|_| panic!("{json} is no list"));
    if dimensions.len() == depth {
        dimensions.push(list.len());
    }
    assert_eq!(dimensions[depth], list.len(), "a list in {json} has another length than the one before it");
    for value in list {
        if value.get().starts_with('[') {
            flatten(value.get(), depth + 1, dimensions, elements);
        } else {
            elements.push(value.get());
        }
    }
}

/// Milliseconds up to three digits after the seconds, else microseconds.
fn unit_us(precision: u8) -> i128 {
    if precision <= 3 { 1000 } else { 1 }
}

fn number<T: std::str::FromStr>(json: &str) -> T {
    let text = json.trim_matches('"');
    text.parse().unwrap_or_else(|_| panic!("{json} is no number"))
}

/// An ISO 8601 instant in UTC, with an astronomical year of any length, in microseconds since 1970.
fn instant(text: &str) -> String {
    if text.ends_with("infinity") {
        return text.to_owned();
    }
    let parsed = || {
        let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
        let (rest, day) = date.rsplit_once('-')?;
        let (year, month) = rest.rsplit_once('-')?;
        let (whole, fraction) = time.split_once('.').unwrap_or((time, ""));
        let parts: Vec<i128> = whole.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [hour, minute, second] = parts[..] else { return None };
        let micros: i128 = format!("{fraction:0<6}").parse().ok()?;
        let days = days_since_1970(year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
        Some(((days * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + micros)
    };
    parsed().unwrap_or_else(|| panic!("{text} is no instant in UTC")).to_string()
}

/// Of the proleptic Gregorian calendar: years from March on have their leap day last.
fn days_since_1970(year: i128, month: i128, day: i128) -> i128 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Little-endian bytes, where the first digit is the highest bit.
fn bits(bytes: &[u8], length: usize) -> String {
    let bit = |at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
    (0..length).rev().map(|at| if bit(at) { '1' } else { '0' }).collect()
}

/// In lower-case hexadecimal, by a library, not by the product.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hexadecimal(&sha2::Sha256::digest(bytes))
}

/// Big-endian two's complement in base64: the sign and the decimal digits.
fn unscaled(text: &str) -> (bool, String) {
    let mut bytes =
        BASE64_STANDARD.decode(text).unwrap_or_else(|error| panic!("{text} is no decimal: {error}"));
    assert!(!bytes.is_empty(), "a number without a byte");
    let negative = bytes[0] >= 0x80;
    if negative {
        for byte in &mut bytes {
            *byte = !*byte;
        }
        let carried = bytes.iter_mut().rev().any(|byte| {
            *byte = byte.wrapping_add(1);
            *byte != 0
        });
        if !carried {
            bytes.insert(0, 1);
        }
    }
    let mut digits = vec![0_u8];
    for byte in bytes {
        let mut carry = u32::from(byte);
        for digit in &mut digits {
            carry += u32::from(*digit) * 256;
            *digit = (carry % 10) as u8;
            carry /= 10;
        }
        while carry > 0 {
            digits.push((carry % 10) as u8);
            carry /= 10;
        }
    }
    (negative, digits.iter().rev().map(|digit| char::from(b'0' + digit)).collect())
}

fn decimal((negative, digits): &(bool, String), scale: usize) -> String {
    let sign = if *negative { "-" } else { "" };
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

/// Lower-case digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
