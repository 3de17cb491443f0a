//! Where and how to connect: a URL by libpq's rules, completed from the environment.
//!
//! Source: <https://www.postgresql.org/docs/current/libpq-connect.html>, `src/interfaces/libpq/fe-connect.c`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::hosts::{self, Endpoint, SessionAttrs};
use super::pgpass;
use crate::runtime::{Error, Result};

/// How long a connection may take from the first packet to the end of authentication, unless told otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// Plain first, TLS if the server refuses that.
    Allow,
    /// TLS if the server offers it, else plain.
    Prefer,
    /// TLS; the certificate is checked only if there is a root certificate.
    Require,
    /// TLS, and the certificate's chain is checked.
    VerifyCa,
    /// TLS, and the certificate's chain and host name are checked.
    VerifyFull,
}

/// libpq's `channel_binding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBindingMode {
    /// Never.
    Disable,
    /// Where TLS and the server offer it.
    Prefer,
    /// Refuse to connect without it.
    Require,
}

/// Which root certificates are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RootCertificates {
    /// `sslrootcert=system`.
    System,
    /// A file that was named; it must exist.
    File(PathBuf),
    /// `~/.postgresql/root.crt`: used where it exists.
    DefaultFile(PathBuf),
}

/// TCP keepalive settings; `None` leaves the system's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keepalives {
    pub(super) enabled: bool,
    pub(super) idle: Option<Duration>,
    pub(super) interval: Option<Duration>,
    pub(super) count: Option<u32>,
    pub(super) user_timeout: Option<Duration>,
}

/// A password. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Password(pub(super) String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

/// Where and how to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Where servers listen; never empty. Each attempt begins with the first.
    pub endpoints: Vec<Endpoint>,
    /// Which of them will do. Where a URL names several hosts, the primary, unless it says otherwise: a standby's slots
    /// are not the primary's.
    pub session_attrs: SessionAttrs,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// Whether to use TLS, and what to check.
    pub ssl_mode: SslMode,
    /// Whether authentication must be bound to the TLS channel.
    pub channel_binding: ChannelBindingMode,
    /// Limit for the whole of connecting to one host; `None` waits as long as the system does.
    pub connect_timeout: Option<Duration>,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Server settings as command-line switches (`-c name=value`), as libpq's `options`.
    pub server_options: Option<String>,
    pub(super) change_bytes_max: Option<usize>,
    pub(super) password: Option<Password>,
    pub(super) pass_file: Option<PathBuf>,
    pub(super) root_certificates: Option<RootCertificates>,
    pub(super) client_certificate: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
    pub(super) keepalives: Keepalives,
}

impl ConnectOptions {
    /// Parses a `postgres://` or `postgresql://` URL and completes it from `env` (`PGHOST`, `PGPASSWORD`, …;
    /// `HOME` for the default files). The password file is read when a session is opened.
    ///
    /// Errors are of class `Usage`, and never quote the URL: it may hold a password.
    pub fn parse(url: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let mut settings = Settings::from_url(url)?;
        settings.complete(env);
        settings.build(env)
    }

    /// Uses this password, and neither the URL's nor a password file's.
    #[must_use]
    pub fn with_password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(Password(password.into()));
        self
    }

    /// Of a row or a change with more bytes than that, as the server sends it, long values are left out while they arrive
    /// ([`Value::LeftOut`](crate::change::Value::LeftOut)). Otherwise everything is held, up to what the protocol allows.
    #[must_use]
    pub const fn with_change_bytes_max(mut self, bytes_max: usize) -> Self {
        self.change_bytes_max = Some(bytes_max);
        self
    }

    /// The same server and role, another database.
    #[must_use]
    pub fn with_database(mut self, database: impl Into<String>) -> Self {
        self.database = database.into();
        self
    }

    /// How messages name the server, or the servers: `host:port` or the path of a Unix socket, between commas.
    pub fn address(&self) -> String {
        self.endpoints.iter().map(Endpoint::address).collect::<Vec<_>>().join(",")
    }

    /// The password: as given, or from the password file.
    pub(super) fn find_password(&self, endpoint: &Endpoint) -> Option<Password> {
        self.password.clone().or_else(|| pgpass::find(self, endpoint).map(Password))
    }
}

/// The settings by libpq's names, before they are checked. Order of insertion: the URL, then the environment;
/// the first one stays.
#[derive(Default)]
struct Settings {
    values: Vec<(&'static str, String)>,
}

/// Settings that a URL may carry, with the environment variable that completes each.
const KNOWN: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("dbname", "PGDATABASE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("application_name", "PGAPPNAME"),
    ("options", "PGOPTIONS"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("gssencmode", ""),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
];

impl Settings {
    fn from_url(url: &str) -> Result<Self> {
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| Error::usage("the source URL must begin with postgres:// or postgresql://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, server) = match authority.rsplit_once('@') {
            Some((credentials, server)) => (Some(credentials), server),
            None => (None, authority),
        };
        let mut settings = Self::default();
        // Query parameters win over the same setting in the URL's body, as the last one does in libpq.
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            settings.add_parameter(pair)?;
        }
        if let Some(credentials) = credentials {
            let (user, password) = match credentials.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (credentials, None),
            };
            settings.add("user", &decode("user", user)?);
            settings.add("password", &decode("password", password.unwrap_or_default())?);
        }
        let (hosts, ports) = hosts::split_hosts(server)?;
        settings.add("host", &decode("host", &hosts)?);
        settings.add("port", &decode("port", &ports)?);
        settings.add("dbname", &decode("dbname", database)?);
        Ok(settings)
    }

    fn add_parameter(&mut self, pair: &str) -> Result<()> {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            Error::usage(format!(
                "the URL parameter {:?} has no value; expected name=value",
                plain_name(pair)
            ))
        })?;
        let name = decode("parameter name", name)?;
        let value = decode(&name, value)?;
        // JDBC's spelling, which libpq takes in URLs too.
        if name == "ssl" && value == "true" {
            self.replace("sslmode", "require");
            return Ok(());
        }
        let Some((known, _)) = KNOWN.iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = KNOWN.iter().map(|(known, _)| *known).collect();
            return Err(Error::usage(format!("unknown URL parameter {:?}", plain_name(&name)))
                .mend(format!("Known parameters: {}.", known.join(", "))));
        };
        self.replace(known, &value);
        Ok(())
    }

    fn complete(&mut self, env: &dyn Fn(&str) -> Option<String>) {
        for (name, variable) in KNOWN {
            if !variable.is_empty()
                && let Some(value) = env(variable)
            {
                self.add(name, &value);
            }
        }
    }

    /// Sets what is not set yet. An empty value means "not given", as in libpq.
    fn add(&mut self, name: &'static str, value: &str) {
        if !value.is_empty() && self.get(name).is_none() {
            self.values.push((name, value.to_owned()));
        }
    }

    fn replace(&mut self, name: &'static str, value: &str) {
        self.values.retain(|(known, _)| *known != name);
        self.add(name, value);
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    fn number(&self, name: &str) -> Result<Option<i64>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = text.trim().parse();
        number.map(Some).map_err(|_| {
            Error::usage(format!("the connection setting {name} is {text:?}; expected a whole number"))
        })
    }

    /// A number of seconds; zero or less means "not set", as in libpq.
    fn seconds(&self, name: &str) -> Result<Option<Duration>> {
        let number = self.number(name)?.filter(|seconds| *seconds > 0);
        Ok(number.map(|seconds| Duration::from_secs(seconds as u64)))
    }

    /// One of several words.
    fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)], default: T) -> Result<T> {
        let Some(text) = self.get(name) else { return Ok(default) };
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            Error::usage(format!(
                "the connection setting {name} is {text:?}; expected one of {}",
                words.join(", ")
            ))
        })
    }

    fn build(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<ConnectOptions> {
        let home = env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let default_file = |name: &str| home.as_ref().map(|home| home.join(".postgresql").join(name));
        let user = self
            .get("user")
            .map(str::to_owned)
            .or_else(|| env("USER").or_else(|| env("LOGNAME")).filter(|user| !user.is_empty()))
            .ok_or_else(|| {
                Error::usage("no user in the source URL").mend("Put it in: postgres://user@host/db.")
            })?;
        // Only offer the gss mode that changes nothing: this client does not speak GSSAPI.
        self.choice("gssencmode", &[("disable", ()), ("prefer", ())], ())?;
        let root_certificates = self.root_certificates(default_file("root.crt"));
        let passfile = self.path("passfile").or_else(|| home.as_ref().map(|home| home.join(".pgpass")));
        let endpoints = hosts::endpoints(self.get("host"), self.get("hostaddr"), self.get("port"))?;
        let session_attrs = if endpoints.len() > 1 { SessionAttrs::Primary } else { SessionAttrs::Any };
        Ok(ConnectOptions {
            endpoints,
            session_attrs: self.choice("target_session_attrs", SessionAttrs::WORDS, session_attrs)?,
            database: self.get("dbname").unwrap_or(&user).to_owned(),
            user,
            ssl_mode: self.ssl_mode(root_certificates.as_ref())?,
            channel_binding: self.channel_binding()?,
            connect_timeout: self.connect_timeout()?,
            application_name: self.get("application_name").unwrap_or("tidemark").to_owned(),
            server_options: self.get("options").map(str::to_owned),
            change_bytes_max: None,
            password: self.get("password").map(|text| Password(text.to_owned())),
            pass_file: passfile,
            root_certificates,
            client_certificate: self
                .path("sslcert")
                .or_else(|| default_file("postgresql.crt").filter(|p| p.exists())),
            client_key: self.path("sslkey").or_else(|| default_file("postgresql.key").filter(|p| p.exists())),
            keepalives: self.keepalives()?,
        })
    }

    fn ssl_mode(&self, roots: Option<&RootCertificates>) -> Result<SslMode> {
        let system = roots == Some(&RootCertificates::System);
        let default = if system { SslMode::VerifyFull } else { SslMode::Prefer };
        let choices = [
            ("disable", SslMode::Disable),
            ("allow", SslMode::Allow),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::VerifyCa),
            ("verify-full", SslMode::VerifyFull),
        ];
        let mode = self.choice("sslmode", &choices, default)?;
        // Anybody can have a certificate from a public authority: without the host name it proves nothing.
        if system && mode != SslMode::VerifyFull {
            return Err(Error::usage("sslrootcert=system needs sslmode=verify-full"));
        }
        Ok(mode)
    }

    fn channel_binding(&self) -> Result<ChannelBindingMode> {
        let choices = [
            ("disable", ChannelBindingMode::Disable),
            ("prefer", ChannelBindingMode::Prefer),
            ("require", ChannelBindingMode::Require),
        ];
        self.choice("channel_binding", &choices, ChannelBindingMode::Prefer)
    }

    fn root_certificates(&self, default: Option<PathBuf>) -> Option<RootCertificates> {
        match self.get("sslrootcert") {
            Some("system") => Some(RootCertificates::System),
            Some(path) => Some(RootCertificates::File(PathBuf::from(path))),
            None => default.map(RootCertificates::DefaultFile),
        }
    }

    fn connect_timeout(&self) -> Result<Option<Duration>> {
        match self.get("connect_timeout") {
            // libpq reads 1 as 2; zero waits for ever.
            Some(_) => Ok(self.seconds("connect_timeout")?.map(|time| time.max(Duration::from_secs(2)))),
            None => Ok(Some(CONNECT_TIMEOUT)),
        }
    }

    fn keepalives(&self) -> Result<Keepalives> {
        // libpq leaves idle time and interval to the system (two hours on Linux). A capture that waits two
        // hours for a server that is gone keeps nobody informed, so the defaults are shorter.
        let or =
            |name: &str, seconds| Ok::<_, Error>(self.seconds(name)?.or(Some(Duration::from_secs(seconds))));
        Ok(Keepalives {
            enabled: self.number("keepalives")? != Some(0),
            idle: or("keepalives_idle", 60)?,
            interval: or("keepalives_interval", 10)?,
            count: self
                .number("keepalives_count")?
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| *n > 0)
                .or(Some(6)),
            user_timeout: self
                .number("tcp_user_timeout")?
                .and_then(|ms| u64::try_from(ms).ok())
                .filter(|ms| *ms > 0)
                .map(Duration::from_millis),
        })
    }
}

/// Percent-decodes a part of the URL. The error names the part, not its text.
fn decode(part: &str, text: &str) -> Result<String> {
    let bytes = text.as_bytes();
    let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let broken = bytes.iter().enumerate().any(|(at, b)| *b == b'%' && !(is_hex(at + 1) && is_hex(at + 2)));
    let decoded = percent_decode_str(text).decode_utf8().ok().filter(|text| !broken && !text.contains('\0'));
    decoded.map(std::borrow::Cow::into_owned).ok_or_else(|| {
        Error::usage(format!("the {part} in the source URL is not valid percent-encoded UTF-8"))
            .mend("Write a literal % as %25.")
    })
}

/// The name of a parameter for an error message, cut short lest a mistyped URL spills a password.
fn plain_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::super::hosts::Host;
    use super::*;

    fn parse(url: &str) -> Result<ConnectOptions> {
        with_env(url, &[("USER", "op")])
    }

    fn with_env(url: &str, env: &[(&str, &str)]) -> Result<ConnectOptions> {
        let find =
            |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        ConnectOptions::parse(url, &find)
    }

    #[test]
    fn a_full_url_is_taken_apart_and_decoded() {
        let o = parse(
            "postgresql://ann%40x:p%2Fw%3A@db.example:6000/my%20db?sslmode=verify-full&connect_timeout=7",
        )
        .unwrap();
        assert_eq!(o.endpoints[0].host, Host::Tcp("db.example".into()));
        assert_eq!((o.endpoints[0].port, o.user.as_str(), o.database.as_str()), (6000, "ann@x", "my db"));
        assert_eq!(o.password, Some(Password("p/w:".into())));
        assert_eq!((o.ssl_mode, o.connect_timeout), (SslMode::VerifyFull, Some(Duration::from_secs(7))));
        assert_eq!((o.application_name.as_str(), o.address().as_str()), ("tidemark", "db.example:6000"));
    }

    #[test]
    fn an_empty_url_is_completed_from_the_environment() {
        let env = [
            ("PGUSER", "u"),
            ("PGPASSWORD", "secret"),
            ("PGHOST", "h"),
            ("PGPORT", "1"),
            ("PGSSLMODE", "disable"),
            ("PGAPPNAME", "a"),
            ("HOME", "/home/u"),
        ];
        let o = with_env("postgres://", &env).unwrap();
        assert_eq!((o.user.as_str(), o.database.as_str(), o.address().as_str()), ("u", "u", "h:1"));
        assert_eq!(o.ssl_mode, SslMode::Disable);
        assert_eq!(o.password, Some(Password("secret".into())));
        assert_eq!(o.pass_file, Some(PathBuf::from("/home/u/.pgpass")));
        let o = with_env("postgres://me@there/d", &env).unwrap();
        assert_eq!((o.user.as_str(), o.address().as_str()), ("me", "there:1"), "the URL wins");
    }

    #[test]
    fn unix_sockets_come_by_parameter_or_encoded_host() {
        for url in ["postgres:///d?host=/run/pg&port=7", "postgres://%2Frun%2Fpg:7/d"] {
            let o = parse(url).unwrap();
            assert_eq!(o.endpoints[0].host, Host::Unix("/run/pg".into()), "{url}");
            assert_eq!(o.address(), "/run/pg/.s.PGSQL.7");
        }
        assert!(matches!(parse("postgres:///d").unwrap().endpoints[0].host, Host::Unix(_)));
    }

    #[test]
    fn ipv6_hosts_stand_in_brackets() {
        let o = parse("postgres://[::1]:5433/d").unwrap();
        assert_eq!(o.endpoints[0].host, Host::Tcp("::1".into()));
        assert_eq!(o.address(), "[::1]:5433");
        assert!(parse("postgres://::1/d").is_err());
    }

    #[test]
    fn wrong_urls_are_refused_by_name_and_never_quoted() {
        for (url, part) in [
            ("mysql://u:hunter2@h/d", "postgres://"),
            ("postgres://u:hunter2@h/d?nosuch=1", "nosuch"),
            ("postgres://u:hunter2@h:0/d", "port"),
            ("postgres://u:hunter2%@h/d", "password"),
            ("postgres://u:hunter2@h/d?sslmode=yes", "sslmode"),
            ("postgres://u:hunter2@h/d?sslrootcert=system&sslmode=require", "verify-full"),
            ("postgres://u:hunter2@h/d?connect_timeout=soon", "connect_timeout"),
            ("postgres://u:hunter2@h/d?gssencmode=require", "gssencmode"),
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn debug_hides_the_password() {
        let o = parse("postgres://u:hunter2@h/d").unwrap().with_password("hunter3");
        assert!(!format!("{o:?}").contains("hunter"));
    }

    #[test]
    fn system_roots_mean_verify_full() {
        assert_eq!(parse("postgres://h/d?sslrootcert=system").unwrap().ssl_mode, SslMode::VerifyFull);
        assert_eq!(parse("postgres://h/d?ssl=true").unwrap().ssl_mode, SslMode::Require);
    }
}
