//! Durations as people type them.

use std::time::Duration;

/// `45s`, `30m`, `2h`, `1d`, `1h30m`.
///
/// # Errors
/// What was expected.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let expected = || "expected a duration such as 45s, 30m, 2h or 1h30m".to_owned();
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
        let number: u64 = rest[..unit_at].parse().map_err(|_| expected())?;
        let unit = match rest.as_bytes()[unit_at] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => return Err(expected()),
        };
        let part = number.checked_mul(unit).ok_or_else(expected)?;
        seconds = seconds.checked_add(part).ok_or_else(expected)?;
        rest = &rest[unit_at + 1..];
    }
    if text.is_empty() { Err(expected()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn durations_have_units() {
        for (text, seconds) in
            [("45s", 45), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1d", 86_400), ("0s", 0)]
        {
            assert_eq!(parse(text).map(|d| d.as_secs()), Ok(seconds), "{text}");
        }
        for text in [
            "",
            "2",
            "h",
            "2 h",
            "-1s",
            "1.5h",
            "2hours",
            "99999999999999999999s",
            "9999999999999999999d",
            "2é",
        ] {
            assert!(parse(text).is_err(), "{text:?} was taken");
        }
    }
}
