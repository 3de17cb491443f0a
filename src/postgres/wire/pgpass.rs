//! libpq's password file.
//!
//! Lines of `host:port:database:user:password`; `*` matches all, `\` escapes a colon or itself, the first line
//! that matches wins.
//!
//! Source: <https://www.postgresql.org/docs/current/libpq-pgpass.html>, `passwordFromFile` in `fe-connect.c`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::hosts::{Endpoint, Host};
use super::options::ConnectOptions;

/// The password for this host, if the file has one. As in libpq, a file that others may read, or that is no
/// plain file, is ignored with a warning, and one that is not there without.
pub(super) fn find(options: &ConnectOptions, endpoint: &Endpoint) -> Option<String> {
    let path = options.pass_file.as_deref()?;
    let host = match &endpoint.host {
        // libpq looks for "localhost" when the socket's directory is the default one, else for the directory.
        Host::Unix(dir) => dir.to_str()?,
        Host::Tcp(host) => host,
    };
    let text = read(path)?;
    let hosts: &[&str] = if host.starts_with('/') { &[host, "localhost"] } else { &[host] };
    hosts.iter().find_map(|host| {
        let wanted = [*host, &endpoint.port.to_string(), &options.database, &options.user];
        text.lines().find_map(|line| password_of(line, wanted))
    })
}

fn read(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() {
        tracing::warn!(path = %path.display(), "the password file is ignored: it is not a plain file");
        return None;
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the password file is ignored: others may read it (chmod 0600 mends that)");
        return None;
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the password file cannot be read");
            None
        }
    }
}

/// The password of a line whose first four fields match.
fn password_of(line: &str, wanted: [&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    for value in wanted {
        let (field, after) = split_field(rest)?;
        if field != "*" && unescape(field) != value {
            return None;
        }
        rest = after;
    }
    // What follows an unescaped colon after the password is ignored.
    let password = split_field(rest).map_or(rest, |(password, _)| password);
    (!password.is_empty()).then(|| unescape(password))
}

/// Splits at the first colon that is not escaped.
fn split_field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        // A backslash at the very end stands for itself.
        plain.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_match_with_wildcards_and_escapes() {
        let wanted = ["h", "5432", "d:b", "u"];
        assert_eq!(password_of(r"h:5432:d\:b:u:p\:w\\x", wanted).as_deref(), Some(r"p:w\x"));
        assert_eq!(password_of("*:*:*:*:any", wanted).as_deref(), Some("any"));
        assert_eq!(password_of("h:5433:*:u:other", wanted), None);
        assert_eq!(password_of("#*:*:*:*:comment", wanted), None);
        assert_eq!(password_of("h:5432:*:u", wanted), None);
        assert_eq!(password_of(r"\*:*:*:*:literal star", wanted), None);
    }
}
