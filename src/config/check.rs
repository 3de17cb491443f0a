//! Checks of single values. Each error says what was expected.

use std::net::SocketAddr;

use jiff::civil::Time;
use jiff::tz::TimeZone;

/// One of some words; `later` are known words that this version does not do.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)], later: &[&str]) -> Result<T, String> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let quoted: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let expected = match quoted.as_slice() {
        [most @ .., last] if !most.is_empty() => format!("{} or {last}", most.join(", ")),
        few => few.concat(),
    };
    if later.contains(&text) {
        return Err(format!("{expected}; \"{text}\" is known, but not in this version"));
    }
    Err(expected)
}

/// `[source] name`: the first part of topics and folders. Readers skip folders that begin with `_` or `.`.
pub(super) fn name(text: &str) -> Result<String, String> {
    let fits = text.len() <= 100
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let expected = "at most 100 letters, digits, \"_\" and \"-\", beginning with a letter or digit";
    if fits { Ok(text.to_owned()) } else { Err(expected.to_owned()) }
}

/// A name made of any database's name.
pub(super) fn name_from(database: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let mut name: String = database.chars().map(fit).take(97).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        name.insert_str(0, "db");
    }
    name
}

/// The default of slot and publication.
pub(super) fn slot_from(name: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    format!("tidemark_{name}").chars().map(fit).take(63).collect()
}

/// A replication slot's name, by Postgres's rule.
pub(super) fn slot(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if (1..=63).contains(&text.len()) && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Err("1 to 63 of a-z, 0-9 and \"_\", as Postgres wants it".to_owned())
}

/// A publication's name: any identifier that Postgres does not cut off.
pub(super) fn publication(text: &str) -> Result<String, String> {
    if (1..=63).contains(&text.len()) && !text.contains(|c: char| c.is_control()) {
        return Ok(text.to_owned());
    }
    Err("1 to 63 bytes".to_owned())
}

/// A condition in SQL; the server says whether it is one.
pub(super) fn condition(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.contains('\0') {
        return Err("a condition in SQL, such as \"created_at > now() - interval '1 year'\"".to_owned());
    }
    Ok(text.to_owned())
}

/// A path.
pub(super) fn path(text: &str) -> Result<std::path::PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("a path".to_owned());
    }
    Ok(text.into())
}

/// A time of day.
pub(super) fn time_of_day(text: &str) -> Result<Time, String> {
    let colons = text.len() >= 5 && text.as_bytes()[2] == b':';
    let parsed = if colons { text.parse::<Time>().ok() } else { None };
    let whole = parsed.filter(|time| time.subsec_nanosecond() == 0);
    whole.ok_or_else(|| "a time of day such as \"00:00\" or \"23:30\"".to_owned())
}

/// An IANA time zone.
pub(super) fn time_zone(text: &str) -> Result<TimeZone, String> {
    let zone = if text == "UTC" { Ok(TimeZone::UTC) } else { TimeZone::get(text) };
    zone.map_err(|_| {
        "the IANA name of a time zone that this machine knows (package tzdata), such as \"Asia/Dubai\""
            .to_owned()
    })
}

/// `host:port` to listen at.
pub(super) fn listen(text: &str) -> Result<String, String> {
    let host_and_port = || {
        let (host, port) = text.rsplit_once(':')?;
        let plain = !host.is_empty() && !host.contains([':', '/', ' ', '@']);
        (plain && port.parse::<u16>().is_ok()).then_some(())
    };
    if text.parse::<SocketAddr>().is_ok() || host_and_port().is_some() {
        return Ok(text.to_owned());
    }
    Err("an address and a port, such as \"127.0.0.1:8080\"".to_owned())
}
