//! URLs: only what configuration needs to know of them. The whole of libpq's syntax is `postgres::wire`'s.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::LakeUrl;

/// A connection URL. Prints without its password, also in Debug.
#[derive(Clone, PartialEq, Eq)]
pub struct SourceUrl {
    text: String,
}

const EXPECTED: &str = "a URL such as postgresql://tidemark@db.example.com:5432/shop (it is not shown, since it \
                        may hold a password)";

impl SourceUrl {
    /// Checks scheme and host.
    ///
    /// # Errors
    /// What was found, without quoting it, and what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let found = |what: &str| Err(format!("found {what}; expected {EXPECTED}"));
        let url = Self { text: text.to_owned() };
        if text.trim() != text || text.contains(|c: char| c.is_control()) {
            return found("a text with blanks around it or control characters in it");
        }
        if !matches!(text.split_once("://"), Some(("postgres" | "postgresql", _))) {
            return found("a text that does not begin with postgresql:// or postgres://");
        }
        let hosts = url.hosts();
        let named = hosts.split(',').all(|host| !host.is_empty() && !host.starts_with(':'));
        if !named && url.parameter("host").is_none() {
            return found("no host");
        }
        if url.database().is_none() {
            return found("neither a database nor a user to name it after");
        }
        Ok(url)
    }

    /// The whole URL with its password, for the one who connects.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// The database's name: the path, else `dbname`, else the user's name, as libpq has it.
    pub fn database(&self) -> Option<String> {
        let path = self.after_authority().split('?').next().unwrap_or_default().trim_start_matches('/');
        let user = || self.userinfo().map(|user| user.split(':').next().unwrap_or_default().to_owned());
        let named = Some(path.to_owned()).filter(|path| !path.is_empty());
        let named = named.or_else(|| self.parameter("dbname")).or_else(user);
        let named = named.or_else(|| self.parameter("user")).filter(|name| !name.is_empty())?;
        Some(percent_decode_str(&named).decode_utf8_lossy().into_owned())
    }

    /// Whether the URL holds a password.
    pub fn has_password(&self) -> bool {
        self.userinfo().is_some_and(|user| user.contains(':')) || self.parameter("password").is_some()
    }

    fn rest(&self) -> &str {
        self.text.split_once("://").map_or("", |(_, rest)| rest)
    }

    fn authority(&self) -> &str {
        self.rest().split(['/', '?']).next().unwrap_or_default()
    }

    fn after_authority(&self) -> &str {
        &self.rest()[self.authority().len()..]
    }

    fn userinfo(&self) -> Option<&str> {
        self.authority().rsplit_once('@').map(|(user, _)| user)
    }

    fn hosts(&self) -> &str {
        self.authority().rsplit_once('@').map_or_else(|| self.authority(), |(_, hosts)| hosts)
    }

    fn parameter(&self, name: &str) -> Option<String> {
        let (_, query) = self.text.split_once('?')?;
        let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.filter(|value| !value.is_empty()).map(str::to_owned)
    }
}

/// Without the password.
impl fmt::Display for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.text.split("://").next().unwrap_or_default();
        write!(f, "{scheme}://")?;
        if let Some(user) = self.userinfo() {
            let (name, secret) = user.split_once(':').map_or((user, ""), |(name, _)| (name, ":***"));
            write!(f, "{name}{secret}@")?;
        }
        f.write_str(self.hosts())?;
        let (path, query) = self.after_authority().split_once('?').unwrap_or((self.after_authority(), ""));
        f.write_str(path)?;
        for (index, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = if name.to_ascii_lowercase().contains("password") { "***" } else { value };
            write!(f, "{}{name}={value}", if index == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl fmt::Debug for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What stays as it is in the path of a `file://` URL.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The `file://` URL of an absolute path.
pub(super) fn file_url(path: &Path) -> String {
    format!("file://{}", utf8_percent_encode(&path.to_string_lossy(), PATH))
}

/// Checks `[lake] url`.
pub(super) fn lake(text: &str) -> Result<LakeUrl, String> {
    const EXPECTED: &str = "an absolute local folder such as file:///var/lib/tidemark/lake, or a bucket such as s3://bank-lake/tidemark";
    if let Some(bucket) = text.strip_prefix("s3://") {
        return bucket_and_prefix(bucket);
    }
    let path = text.strip_prefix("file://").filter(|path| path.starts_with('/') && path.len() > 1);
    let path = path.ok_or(EXPECTED)?;
    let path = percent_decode_str(path).decode_utf8().map_err(|_| EXPECTED)?;
    Ok(LakeUrl::Folder(PathBuf::from(path.into_owned())))
}

fn bucket_and_prefix(text: &str) -> Result<LakeUrl, String> {
    let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(plain) {
        return Err(
            "a bucket of 3 to 63 of a-z, 0-9, \"-\" and \".\", such as s3://bank-lake/tidemark".to_owned()
        );
    }
    let prefix = prefix.trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=');
    let fits = |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(plain);
    if !(prefix.is_empty() || prefix.split('/').all(fits)) {
        return Err(
            "a prefix of letters, digits, \"-\", \"_\", \".\" and \"=\" between single slashes, such as \
                    s3://bank-lake/team/tidemark"
                .to_owned(),
        );
    }
    Ok(LakeUrl::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

/// Checks `[lake.s3] endpoint_url`.
pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or_default();
    let host = rest.trim_end_matches('/');
    let plain =
        !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || matches!(c, '@' | '?' | '#' | '/'));
    if plain {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err("scheme, host and port of a store, without keys, such as https://minio.example.com:9000".to_owned())
}

/// Whether an endpoint's host is an address of numbers.
pub(super) fn is_of_an_address(endpoint: &str) -> bool {
    let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => authority,
    };
    host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

/// Checks an address of `[envelope.registry] url`. Whoever is asked is told in messages: it holds no password.
pub(super) fn registry(text: &str) -> Result<String, String> {
    const EXPECTED: &str = "found what is no address of a registry; expected URLs without user and password, between \
                            commas, such as http://registry:8081 (it is not shown, since it may hold a password)";
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).ok_or(EXPECTED)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map(|(_, port)| port);
    let plain = !text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '@'));
    let named = !authority.is_empty() && !authority.starts_with(':');
    if plain && named && port.is_none_or(|port| port.parse::<u16>().is_ok()) {
        return Ok(text.to_owned());
    }
    Err(EXPECTED.to_owned())
}
