//! Several hosts in one URL, and which of them will do: libpq's `target_session_attrs`.
//!
//! Every attempt begins with the first host and looks its name up anew, so that the primary is found wherever it is
//! after a failover. An error names each host that was tried.
//!
//! Source: <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS>, `connectOptions2` and
//! `PQconnectPoll` in `src/interfaces/libpq/fe-connect.c`.

use std::error::Error as StdError;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::client::Client;
use super::error::sqlstate;
use crate::runtime::{Class, Error, Result};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A host name or an IP address.
    Tcp(String),
    /// The directory of a Unix socket.
    Unix(PathBuf),
}

/// One host of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where the server listens.
    pub host: Host,
    /// The address to connect to instead of looking up the host's name (libpq's `hostaddr`).
    pub host_address: Option<IpAddr>,
    /// Port; also part of a Unix socket's file name.
    pub port: u16,
}

impl Endpoint {
    /// `host:port`, or the path of the Unix socket: how messages name the server.
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(host) if host.contains(':') => format!("[{host}]:{}", self.port),
            Host::Tcp(host) => format!("{host}:{}", self.port),
            Host::Unix(_) => self.socket_path().display().to_string(),
        }
    }

    /// Path of the Unix socket; for a TCP host the empty path.
    pub(super) fn socket_path(&self) -> PathBuf {
        match &self.host {
            Host::Unix(dir) => dir.join(format!(".s.PGSQL.{}", self.port)),
            Host::Tcp(_) => PathBuf::new(),
        }
    }
}

/// libpq's `target_session_attrs`: which servers will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionAttrs {
    /// Every one.
    Any,
    /// One whose sessions may write.
    ReadWrite,
    /// One whose sessions may not.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is.
    Standby,
    /// A standby, and any server where there is none.
    PreferStandby,
}

impl SessionAttrs {
    /// libpq's words.
    pub(super) const WORDS: &[(&str, Self)] = &[
        ("any", Self::Any),
        ("read-write", Self::ReadWrite),
        ("read-only", Self::ReadOnly),
        ("primary", Self::Primary),
        ("standby", Self::Standby),
        ("prefer-standby", Self::PreferStandby),
    ];

    /// One after the other: the second is asked for where no host satisfies the first.
    pub(super) const fn passes(self) -> &'static [Self] {
        match self {
            Self::Any => &[Self::Any],
            Self::ReadWrite => &[Self::ReadWrite],
            Self::ReadOnly => &[Self::ReadOnly],
            Self::Primary => &[Self::Primary],
            Self::Standby => &[Self::Standby],
            Self::PreferStandby => &[Self::Standby, Self::Any],
        }
    }

    /// Whether the server at the other end of a session will do; an error of class `Retry` says what it is instead.
    pub(super) async fn check(self, client: &mut Client) -> Result<()> {
        let unwanted = match self {
            Self::Primary if standby(client).await? => "is a standby",
            Self::Standby if !standby(client).await? => "is a primary",
            Self::ReadWrite if standby(client).await? => "is a standby, whose sessions are read-only",
            Self::ReadWrite if read_only(client).await? => "has read-only sessions",
            Self::ReadOnly if !standby(client).await? && !read_only(client).await? => {
                "has sessions that may write"
            }
            _ => return Ok(()),
        };
        let wanted = Self::WORDS.iter().find(|(_, attrs)| *attrs == self).map_or("", |(word, _)| word);
        let mend = "Name all servers of the cluster in the source URL; until one of them is what \
                    target_session_attrs asks for, they are tried again.";
        Err(Error::retry(format!("the server at {} {unwanted}", client.address()))
            .cause(Unwanted { wanted })
            .mend(mend))
    }
}

/// As the server reported it when the session began, since 14; a proxy may not.
async fn standby(client: &mut Client) -> Result<bool> {
    match client.connection.in_hot_standby {
        Some(known) => Ok(known),
        None => Ok(client.query_one("SELECT pg_catalog.pg_is_in_recovery()").await?.is_true(0)),
    }
}

async fn read_only(client: &mut Client) -> Result<bool> {
    match client.connection.default_read_only {
        Some(known) => Ok(known),
        None => Ok(client.query_one("SHOW transaction_read_only").await?.get(0) == Some("on")),
    }
}

/// A server that answers and is not what was asked for.
#[derive(Debug)]
struct Unwanted {
    wanted: &'static str,
}

impl fmt::Display for Unwanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target_session_attrs={} asks for another", self.wanted)
    }
}

impl StdError for Unwanted {}

/// Why each host of a URL failed.
#[derive(Debug)]
pub(super) struct Refusals(Vec<Error>);

impl Refusals {
    /// The first SQLSTATE among them.
    pub(super) fn sqlstate(&self) -> Option<&str> {
        self.0.iter().find_map(sqlstate)
    }

    /// The error of a URL whose hosts failed in this way; of one host it is the host's own.
    pub(super) fn into_error(mut errors: Vec<Error>) -> Error {
        if errors.len() == 1 {
            return errors.remove(0);
        }
        // A host that time may mend is worth waiting for, whatever the others are.
        let first = errors.first().map_or(Class::Usage, Error::class);
        let class =
            if errors.iter().any(|error| error.class() == Class::Retry) { Class::Retry } else { first };
        let mut mends: Vec<&str> = errors.iter().filter_map(Error::mend_text).collect();
        mends.dedup();
        let mend = mends.join(" ");
        let error = Error::new(class, "none of the hosts in the source URL can be used");
        error.mend(mend).cause(Self(errors))
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages: Vec<_> = self.0.iter().map(Error::message).collect();
        f.write_str(&messages.join("; "))
    }
}

impl StdError for Refusals {}

/// Whether a server has answered, be it with a refusal: it is there, and not a wrong address.
pub fn answered(error: &Error) -> bool {
    let cause = error.source();
    let refusals = cause.and_then(|cause| cause.downcast_ref::<Refusals>());
    sqlstate(error).is_some()
        || cause.is_some_and(<dyn StdError>::is::<Unwanted>)
        || refusals.is_some_and(|refusals| refusals.0.iter().any(answered))
}

/// The endpoints of lists that commas divide. A single port is every host's.
pub(super) fn endpoints(
    hosts: Option<&str>,
    addresses: Option<&str>,
    ports: Option<&str>,
) -> Result<Vec<Endpoint>> {
    let split = |list: Option<&str>| -> Vec<String> {
        list.map(|list| list.split(',').map(|item| item.trim().to_owned()).collect()).unwrap_or_default()
    };
    let (hosts, addresses, ports) = (split(hosts), split(addresses), split(ports));
    let count = hosts.len().max(addresses.len()).max(1);
    let fits = |list: &[String], what: &str, may_be_one: bool| {
        let fits = list.is_empty() || list.len() == count || (may_be_one && list.len() == 1);
        fits.then_some(()).ok_or_else(|| {
            Error::usage(format!("the source URL has {} {what} for {count} hosts", list.len()))
                .mend("Give as many as there are hosts, divided by commas; one port may stand for all.")
        })
    };
    fits(&hosts, "names (host)", false)?;
    fits(&addresses, "addresses (hostaddr)", false)?;
    fits(&ports, "ports", true)?;
    let at = |list: &[String], index: usize| -> Option<String> {
        let item = if list.len() == 1 { list.first() } else { list.get(index) };
        item.filter(|item| !item.is_empty()).cloned()
    };
    (0..count)
        .map(|index| {
            let address = at(&addresses, index);
            Ok(Endpoint {
                host: host(at(&hosts, index), address.as_deref()),
                host_address: address.map(|text| parse_address(&text)).transpose()?,
                port: at(&ports, index).map_or(Ok(5432), |text| parse_port(&text))?,
            })
        })
        .collect()
}

fn host(name: Option<String>, address: Option<&str>) -> Host {
    match (name, address) {
        (Some(name), _) if name.starts_with('/') => Host::Unix(PathBuf::from(name)),
        (Some(name), _) => Host::Tcp(name),
        (None, Some(address)) => Host::Tcp(address.to_owned()),
        (None, None) => Host::Unix(default_socket_dir()),
    }
}

fn parse_address(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| {
        Error::usage(format!("the connection setting hostaddr is {text:?}; expected an IP address"))
    })
}

fn parse_port(text: &str) -> Result<u16> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        Error::usage(format!("the connection setting port is {text:?}; expected a number from 1 to 65535"))
    })
}

fn default_socket_dir() -> PathBuf {
    let debian = Path::new("/var/run/postgresql");
    if debian.is_dir() { debian.to_owned() } else { PathBuf::from("/tmp") }
}

/// Splits `host:port`, `[v6]:port` or `host`, each of several between commas, into a list of hosts and one of ports.
pub(super) fn split_hosts(server: &str) -> Result<(String, String)> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for one in server.split(',') {
        let (host, port) = split_host_port(one)?;
        hosts.push(host);
        ports.push(port);
    }
    let given = ports.iter().any(|port| !port.is_empty());
    Ok((hosts.join(","), if given { ports.join(",") } else { String::new() }))
}

fn split_host_port(server: &str) -> Result<(&str, &str)> {
    if let Some(rest) = server.strip_prefix('[') {
        let (host, rest) =
            rest.split_once(']').ok_or_else(|| Error::usage("the source URL has [ without ] in its host"))?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, port)),
            None if rest.is_empty() => Ok((host, "")),
            None => Err(Error::usage("the source URL has text between ] and the port")),
        };
    }
    match server.split_once(':') {
        Some((_, port)) if port.contains(':') => {
            Err(Error::usage("the source URL has several colons in its host")
                .mend("Put an IPv6 address in brackets."))
        }
        Some((host, port)) => Ok((host, port)),
        None => Ok((server, "")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ConnectOptions;
    use super::*;

    fn parse(url: &str) -> Result<ConnectOptions> {
        ConnectOptions::parse(url, &|name| (name == "USER").then(|| "op".to_owned()))
    }

    fn addresses(url: &str) -> Vec<String> {
        parse(url).unwrap().endpoints.iter().map(Endpoint::address).collect()
    }

    #[test]
    fn hosts_and_ports_go_together_as_in_libpq() {
        for (url, expected) in [
            ("postgres://a:1,b:2/d", ["a:1", "b:2"]),
            ("postgres://u:p,w@a,b:2/d", ["a:5432", "b:2"]),
            ("postgres://[::1]:1,[fe80::1]/d", ["[::1]:1", "[fe80::1]:5432"]),
            ("postgres:///d?host=a,b&port=7", ["a:7", "b:7"]),
            ("postgres:///d?host=a,/run/pg&port=7,8", ["a:7", "/run/pg/.s.PGSQL.8"]),
            ("postgres:///d?hostaddr=127.0.0.1,127.0.0.2", ["127.0.0.1:5432", "127.0.0.2:5432"]),
        ] {
            assert_eq!(addresses(url), expected, "{url}");
        }
        let o = parse("postgres://a,b/d?hostaddr=127.0.0.1,127.0.0.2").unwrap();
        assert_eq!(o.endpoints[1].host, Host::Tcp("b".into()), "the name that a certificate has to hold");
        assert_eq!(o.endpoints[1].host_address, Some("127.0.0.2".parse().unwrap()));
    }

    #[test]
    fn lists_that_do_not_fit_are_refused_by_name() {
        for (url, part) in [
            ("postgres:///d?host=a,b,c&port=1,2", "2 ports for 3 hosts"),
            ("postgres://a,b/d?hostaddr=127.0.0.1", "1 addresses (hostaddr) for 2 hosts"),
            ("postgres://a:1,b:x/d", "port is \"x\""),
            ("postgres://a,b/d?target_session_attrs=master", "read-write"),
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(error.contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn of_several_hosts_the_primary_is_wanted_unless_the_url_says_otherwise() {
        for (url, expected) in [
            ("postgres://a/d", SessionAttrs::Any),
            ("postgres://a,b/d", SessionAttrs::Primary),
            ("postgres://a,b/d?target_session_attrs=any", SessionAttrs::Any),
            ("postgres://a/d?target_session_attrs=prefer-standby", SessionAttrs::PreferStandby),
        ] {
            assert_eq!(parse(url).unwrap().session_attrs, expected, "{url}");
        }
    }

    #[test]
    fn an_error_names_every_host_and_waits_if_one_is_worth_it() {
        let error = Refusals::into_error(vec![
            Error::operator("a:1 refuses the password").mend("Check it."),
            Error::retry("b:2 is a standby").cause(Unwanted { wanted: "primary" }),
        ]);
        assert_eq!(error.class(), Class::Retry);
        assert!(answered(&error) && !answered(&Error::retry("no route")));
        assert_eq!(
            error.to_string(),
            "none of the hosts in the source URL can be used: a:1 refuses the password; b:2 is a standby: \
             target_session_attrs=primary asks for another. Check it."
        );
    }
}
