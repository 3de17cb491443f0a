//! A session: connecting, simple queries, COPY out.
//!
//! Source: <https://www.postgresql.org/docs/current/protocol-flow.html>.

use std::fmt;
use std::ops::Range;

use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::auth::{self, Binding};
use super::connection::{Abridge, Connection, Content};
use super::error::{self, ServerError, sqlstate, unexpected};
use super::hosts::{Endpoint, Host, Refusals, SessionAttrs};
use super::options::{ConnectOptions, SslMode};
use super::stream::{Stream, connect_tcp, connect_unix};
use super::tls;
use crate::runtime::{Error, Result};

/// Settings that decide how values and names of types print, the same wherever they do, so that COPY, the stream and
/// the event trigger agree.
pub(in crate::postgres) const OUTPUT_SETTINGS: &[(&str, &str)] = &[
    ("DateStyle", "ISO"),
    ("IntervalStyle", "iso_8601"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("TimeZone", "UTC"),
    ("quote_all_identifiers", "off"),
    ("standard_conforming_strings", "on"),
];

/// Further settings of every session; no time limits, since a role's own would end a long copy.
const SETTINGS: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    // Names of types and of regclass values come out qualified, whatever the role's own path is.
    ("search_path", "pg_catalog"),
    // A warning in the stream can tell of changes that are left out.
    ("client_min_messages", "warning"),
    // Of a catalog with thousands of partitions the planner thinks so much that it would compile each question first.
    ("jit", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
];

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// SQL.
    Sql,
    /// SQL and logical replication (`replication=database`); takes one of the server's `max_wal_senders`.
    Replication,
}

/// A session. Not cancel-safe unless said otherwise: a call that is dropped half-way leaves the session in the
/// middle of a statement, and each later call says so.
pub struct Client {
    pub(super) connection: Connection,
    version: u32,
    /// The server waits for a statement.
    ready: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.connection.address).finish_non_exhaustive()
    }
}

/// A row of a simple query: every value is text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    text: String,
    cells: Vec<Option<Range<usize>>>,
}

impl Row {
    /// The value of a column, counted from 0; `None` for null and for a column that is not there.
    pub fn get(&self, column: usize) -> Option<&str> {
        let range = self.cells.get(column)?.clone()?;
        Some(&self.text[range])
    }

    /// The value of a column parsed as `T`; an error names the column.
    pub fn parse<T: std::str::FromStr>(&self, column: usize) -> Result<T> {
        let text = self.get(column).unwrap_or_default();
        text.parse().map_err(|_| {
            Error::operator(format!(
                "the server's answer has {text:?} in column {column}, which was not expected"
            ))
        })
    }

    /// Whether a boolean column is true.
    pub fn is_true(&self, column: usize) -> bool {
        self.get(column) == Some("t")
    }

    /// Reads a `DataRow`; `None` if it is cut short.
    fn parse_data(body: &[u8]) -> Option<Self> {
        let (count, mut rest) = body.split_first_chunk::<2>()?;
        let mut row = Self::default();
        for _ in 0..u16::from_be_bytes(*count) {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
                row.cells.push(None);
                rest = after;
                continue;
            };
            let (value, after) = after.split_at_checked(length)?;
            let start = row.text.len();
            // Only a database in SQL_ASCII can send what is no UTF-8.
            row.text.push_str(&String::from_utf8_lossy(value));
            row.cells.push(Some(start..row.text.len()));
            rest = after;
        }
        Some(row)
    }
}

impl Client {
    /// Opens a session with the first host that takes one and is what `target_session_attrs` asks for. An error names
    /// every host; it is of class `Retry` where time may mend it for one of them.
    pub async fn connect(options: &ConnectOptions, session: Session) -> Result<Self> {
        let mut errors = Vec::new();
        for attrs in options.session_attrs.passes() {
            errors.clear();
            for endpoint in &options.endpoints {
                match connect_to(options, endpoint, session, *attrs).await {
                    Ok(client) => return Ok(client),
                    Err(error) => errors.push(error),
                }
            }
        }
        Err(Refusals::into_error(errors))
    }

    /// `server_version_num`: 150018 for 15.18.
    pub const fn server_version(&self) -> u32 {
        self.version
    }

    /// The server's process for this session, as in `pg_stat_activity`.
    pub const fn server_process(&self) -> Option<i32> {
        self.connection.server_process
    }

    /// `host:port`, for messages.
    pub fn address(&self) -> &str {
        &self.connection.address
    }

    /// Runs one or several statements by the simple protocol. Returns the rows of the last one that has any.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let frame = match self.connection.next_frame().await {
                Ok(frame) => frame,
                // After a fatal error the server closes; the error says more than that.
                Err(error) => return Err(failed.unwrap_or(error)),
            };
            let body = self.connection.body(frame);
            match frame.tag {
                b'T' => rows.clear(),
                b'D' => rows.push(Row::parse_data(body).ok_or_else(|| unexpected("a query", b'D'))?),
                b'E' => failed = Some(statement_error(ServerError::parse(body), sql)),
                // Rows of a COPY, which are not wanted here.
                b'C' | b'I' | b'H' | b'd' | b'c' => {}
                b'G' => {
                    frontend::copy_fail("COPY FROM STDIN is not supported", &mut self.connection.out)
                        .map_err(|error| self.connection.lost(error))?;
                    self.connection.send().await?;
                }
                b'Z' => {
                    self.ready = true;
                    return failed.map_or(Ok(rows), Err);
                }
                tag => return Err(unexpected("a query", tag)),
            }
        }
    }

    /// The same, for statements whose rows are not wanted.
    pub async fn execute(&mut self, sql: &str) -> Result<()> {
        self.query(sql).await.map(drop)
    }

    /// The first row of a query, which must have one.
    pub async fn query_one(&mut self, sql: &str) -> Result<Row> {
        let rows = self.query(sql).await?;
        let row = rows.into_iter().next();
        row.ok_or_else(|| Error::operator(format!("no row came back for: {}", shorten(sql))))
    }

    /// Starts a `COPY … TO STDOUT`.
    pub async fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>> {
        self.send_query(sql).await?;
        let frame = self.connection.next_frame().await?;
        match frame.tag {
            b'H' => Ok(CopyOut { client: self }),
            b'E' => {
                let error = statement_error(ServerError::parse(self.connection.body(frame)), sql);
                self.drain().await?;
                Err(error)
            }
            tag => Err(unexpected("the start of a COPY", tag)),
        }
    }

    /// Says goodbye and closes.
    pub async fn close(mut self) {
        frontend::terminate(&mut self.connection.out);
        // Whether it still arrives is the server's concern: the session is over either way.
        let _ = self.connection.send().await;
        let _ = self.connection.stream.shutdown().await;
    }

    pub(super) async fn send_query(&mut self, sql: &str) -> Result<()> {
        if !self.ready {
            return Err(Error::retry(format!(
                "the session with {} was left in the middle of a statement",
                self.connection.address
            )));
        }
        self.ready = false;
        let written = frontend::query(sql, &mut self.connection.out);
        written.map_err(|error| Error::usage("a statement holds a zero byte").cause(error))?;
        self.connection.send().await
    }

    /// Reads up to the end of the statement.
    async fn drain(&mut self) -> Result<()> {
        while self.connection.next_frame().await?.tag != b'Z' {}
        self.ready = true;
        Ok(())
    }
}

/// Rows of a `COPY … TO STDOUT`. Dropped before its end it leaves the session in the middle of the statement.
#[derive(Debug)]
pub struct CopyOut<'a> {
    client: &'a mut Client,
}

impl CopyOut<'_> {
    /// The next piece of the copy, borrowed from the read buffer; `None` at its end, after which the session
    /// takes statements again. `COPY TO STDOUT` sends one row a piece, though the protocol does not promise it.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<&[u8]>> {
        if self.client.ready {
            return Ok(None);
        }
        loop {
            let frame = self.client.connection.next_frame().await?;
            match frame.tag {
                b'd' => return Ok(Some(self.client.connection.body(frame))),
                b'c' | b'C' => {}
                b'Z' => {
                    self.client.ready = true;
                    return Ok(None);
                }
                b'E' => {
                    let error = ServerError::parse(self.client.connection.body(frame));
                    // A server that is going down closes without more ado.
                    let _ = self.client.drain().await;
                    return Err(error.into_error("COPY failed"));
                }
                tag => return Err(unexpected("COPY", tag)),
            }
        }
    }
}

fn statement_error(error: ServerError, sql: &str) -> Error {
    error.of_statement(format!("the server refused {:?}", shorten(sql)))
}

/// The beginning of a statement, for messages.
fn shorten(sql: &str) -> String {
    let words: Vec<_> = sql.split_whitespace().collect();
    let text = words.join(" ");
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text,
    }
}

/// How an attempt treats TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TlsUse {
    Never,
    IfOffered,
    Always,
}

/// Opens a session with one host, in the time that one may take.
async fn connect_to(
    options: &ConnectOptions,
    endpoint: &Endpoint,
    session: Session,
    attrs: SessionAttrs,
) -> Result<Client> {
    let opened = async {
        let mut client = open(options, endpoint, session).await?;
        attrs.check(&mut client).await?;
        Ok(client)
    };
    let Some(limit) = options.connect_timeout else { return opened.await };
    tokio::time::timeout(limit, opened).await.unwrap_or_else(|_| {
        let seconds = limit.as_secs();
        Err(Error::retry(format!("connecting to {} took longer than {seconds} s", endpoint.address()))
            .mend("Check host and port, firewalls, and connect_timeout."))
    })
}

async fn open(options: &ConnectOptions, endpoint: &Endpoint, session: Session) -> Result<Client> {
    if matches!(endpoint.host, Host::Unix(_)) {
        return attempt(options, endpoint, session, TlsUse::Never).await;
    }
    let (first, second) = match options.ssl_mode {
        SslMode::Disable => (TlsUse::Never, None),
        SslMode::Allow => (TlsUse::Never, Some(TlsUse::Always)),
        SslMode::Prefer => (TlsUse::IfOffered, Some(TlsUse::Never)),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (TlsUse::Always, None),
    };
    let error = match (attempt(options, endpoint, session, first).await, second) {
        (Ok(client), _) => return Ok(client),
        (Err(error), None) => return Err(error),
        (Err(error), Some(_)) => error,
    };
    // The other way helps only where this one was refused for being what it was: by pg_hba.conf, or in the handshake.
    let by_hba = sqlstate(&error) == Some("28000");
    let in_handshake = sqlstate(&error).is_none() && error.class() == crate::runtime::Class::Operator;
    match second {
        Some(second) if by_hba || (in_handshake && first == TlsUse::IfOffered) => {
            attempt(options, endpoint, session, second).await.map_err(|other| {
                // Both ways were refused; the first was the preferred one.
                if sqlstate(&other) == Some("28000") { error } else { other }
            })
        }
        _ => Err(error),
    }
}

async fn attempt(
    options: &ConnectOptions,
    endpoint: &Endpoint,
    session: Session,
    tls_use: TlsUse,
) -> Result<Client> {
    let connect_tcp = || connect_tcp(endpoint, &options.keepalives);
    let (stream, binding) = match (&endpoint.host, tls_use) {
        (Host::Unix(_), _) => (connect_unix(endpoint).await?, Binding::Plain),
        (Host::Tcp(_), TlsUse::Never) => (Stream::Tcp(connect_tcp().await?), Binding::Plain),
        (Host::Tcp(_), _) => {
            let config = tls::client_config(options)?;
            let mut tcp = connect_tcp().await?;
            if ask_for_tls(&mut tcp, endpoint).await? {
                let secured = tls::secure(tcp, options, endpoint, config).await?;
                (Stream::Tls(Box::new(secured.stream)), Binding::Tls(secured.end_point))
            } else if tls_use == TlsUse::Always {
                return Err(Error::operator(format!(
                    "the server at {} does not offer TLS",
                    endpoint.address()
                ))
                .mend("Set ssl = on at the server, or sslmode=disable if the network is trusted."));
            } else {
                (Stream::Tcp(tcp), Binding::Plain)
            }
        }
    };
    log_in(stream, binding, options, endpoint, session).await
}

/// Sends `SSLRequest`; whether the server agrees. Exactly one byte is read, so that nothing which someone put
/// behind it in plain text is taken for part of the encrypted session (CVE-2021-23222).
async fn ask_for_tls(tcp: &mut TcpStream, endpoint: &Endpoint) -> Result<bool> {
    let lost = |error| error::lost(&endpoint.address(), error);
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    tcp.write_all(&request).await.map_err(lost)?;
    match tcp.read_u8().await.map_err(lost)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // A server that cannot even fork answers in plain text.
        tag => Err(unexpected(&format!("the request for TLS at {}", endpoint.address()), tag)),
    }
}

async fn log_in(
    stream: Stream,
    binding: Binding,
    options: &ConnectOptions,
    endpoint: &Endpoint,
    session: Session,
) -> Result<Client> {
    let mut parameters = vec![
        ("user", options.user.as_str()),
        ("database", options.database.as_str()),
        ("application_name", options.application_name.as_str()),
    ];
    if session == Session::Replication {
        parameters.push(("replication", "database"));
    }
    if let Some(server_options) = &options.server_options {
        parameters.push(("options", server_options));
    }
    parameters.extend_from_slice(SETTINGS);
    parameters.extend_from_slice(OUTPUT_SETTINGS);
    let mut connection = Connection::new(stream, endpoint.address());
    auth::start(&mut connection, options, endpoint, &parameters, binding).await?;
    let content = match session {
        Session::Replication => Content::Wal { in_part: false },
        Session::Sql => Content::Rows,
    };
    connection.buffer.abridge = options.change_bytes_max.map(|bytes_max| Abridge { bytes_max, content });
    let version = version_number(&connection.server_version);
    let mut client = Client { connection, version, ready: true };
    if version >= 170_000 {
        // Newer than the servers that would refuse it in the startup message.
        client.execute("SET transaction_timeout = 0").await?;
    }
    Ok(client)
}

/// `server_version_num` of a `server_version` such as `15.18 (Debian 15.18-0+deb12u1)`, `18beta1` or `17devel`.
fn version_number(text: &str) -> u32 {
    let digits = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse::<u32>().unwrap_or(0)
    };
    let minor = text.split_once('.').map_or(0, |(_, minor)| digits(minor));
    digits(text).saturating_mul(10_000).saturating_add(minor)
}

/// `text` as an SQL literal, safe under every `standard_conforming_strings`.
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

/// `name` as an SQL identifier, always quoted.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_versions_become_numbers() {
        for (text, number) in
            [("15.18 (Debian 15.18-0+deb12u1)", 150_018), ("18beta1", 180_000), ("17devel", 170_000), ("", 0)]
        {
            assert_eq!(version_number(text), number, "{text}");
        }
    }

    #[test]
    fn literals_and_names_are_quoted() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\'b"), r"E'a\\''b'");
        assert_eq!(quote_ident("a\"b"), "\"a\"\"b\"");
    }

    #[test]
    fn rows_cut_short_are_refused() {
        let whole = b"\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\x02bc";
        let row = Row::parse_data(whole).unwrap();
        assert_eq!((row.get(0), row.get(1), row.get(2), row.get(3)), (Some("a"), None, Some("bc"), None));
        for end in 0..whole.len() {
            assert_eq!(Row::parse_data(&whole[..end]), None, "cut at {end}");
        }
    }
}
