//! What the server says went wrong, and whether trying again can help.
//!
//! Source: <https://www.postgresql.org/docs/current/protocol-error-fields.html>, `src/backend/utils/errcodes.txt`.

use std::error::Error as _;
use std::fmt;
use std::io;

use super::hosts::Refusals;
use crate::runtime::{Class, Error};

/// An `ErrorResponse`, with the fields that help. It is the cause of the [`Error`] made from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`.
    pub severity: String,
    /// Five characters.
    pub sqlstate: String,
    /// What went wrong.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
}

/// What to do about a publication that does not exist at a place in the WAL.
const PUBLICATION_GONE: &str = "The server looks a publication up as it was when the change was made. Run `tidemark setup` if it is missing. If it \
     was dropped and made again, changes from before the publication was made again cannot be read: to go on without \
     them, drop the slot (pg_drop_replication_slot) and start again. The range that is missing then is told, with the \
     command that gives it up and has every table copied anew.";

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, " (hint: {hint})")?;
        }
        write!(f, " [SQLSTATE {}]", self.sqlstate)
    }
}

impl std::error::Error for ServerError {}

impl ServerError {
    /// Reads the body of an `ErrorResponse` or `NoticeResponse`: fields of a letter and a C string, ended by a
    /// zero. Fields that are missing stay empty: this runs on what a failing server says.
    pub(super) fn parse(mut body: &[u8]) -> Self {
        let mut error = Self { sqlstate: "XX000".into(), ..Self::default() };
        while let Some((kind, rest)) = body.split_first() {
            let Some(end) = memchr::memchr(0, rest) else { break };
            let text = String::from_utf8_lossy(&rest[..end]).into_owned();
            body = &rest[end + 1..];
            match kind {
                // `V` is never translated and comes after `S`.
                b'S' | b'V' => error.severity = text,
                b'C' => error.sqlstate = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
        error
    }

    /// Whether this notice says that the server leaves changes out (`skipped loading publication`, in the server's
    /// own language, so that the state has to tell).
    pub(super) fn passes_changes_over(&self) -> bool {
        self.severity == "WARNING" && self.sqlstate == "55000"
    }

    /// Whether a row is larger than what the server holds in one piece (`MaxAllocSize`). The words are those of every
    /// version and never translated where the state is that of an internal error.
    pub fn is_too_large_for_server(&self) -> bool {
        self.sqlstate == "54000" || (self.sqlstate == "XX000" && self.message.contains("alloc request size"))
    }

    /// Whether the server failed by what it sends, rather than by what it was asked for.
    pub fn is_of_its_own(&self) -> bool {
        self.sqlstate.starts_with("XX") || self.sqlstate == "54000"
    }

    /// Whether what was asked about has been dropped by another session while the server looked it up: asked again, it
    /// answers. Internal errors are never translated.
    fn is_beside_ddl(&self) -> bool {
        const WORDS: [&str; 2] = ["cache lookup failed for", "could not open relation with OID"];
        self.sqlstate == "XX000" && WORDS.iter().any(|words| self.message.starts_with(words))
    }

    /// The product's error for a statement that failed; `doing` says which.
    pub(super) fn of_statement(self, doing: impl fmt::Display) -> Error {
        if self.is_beside_ddl() {
            return Error::retry(doing.to_string()).cause(self);
        }
        self.into_error(doing)
    }

    /// Whether time may mend it.
    fn class(&self) -> Class {
        match self.sqlstate.as_str() {
            // 53400 is a configured limit, such as "all replication slots are in use".
            "53400" => Class::Operator,
            // In use (most likely by the session that we have just lost); shut down, crashed or still starting (but
            // not 57P04, a dropped database); a cancelled statement; a lock not had in time; a system or I/O error
            // of the server's machine (but not 58P01, a missing file).
            "55006" | "57P01" | "57P02" | "57P03" | "57P05" | "57014" | "55P03" | "58000" | "58030" => {
                Class::Retry
            }
            state if ["08", "40", "53"].iter().any(|class| state.starts_with(class)) => Class::Retry,
            _ => Class::Operator,
        }
    }

    /// What the operator can do, where the state tells.
    fn mend(&self) -> Option<&'static str> {
        Some(match self.sqlstate.as_str() {
            "28P01" => "Check user and password (URL, password file, PGPASSWORD or .pgpass).",
            "28000" if self.message.contains("pg_hba.conf") => {
                "Let this host, user and database in by a line in the server's pg_hba.conf, and check sslmode."
            }
            "28000" => "Check that the role exists, may log in, and presents what pg_hba.conf asks of it.",
            "3D000" => "Check the database's name in the source URL.",
            "53300" => "Raise max_connections or max_wal_senders on the server, or close other sessions.",
            "53400" => "Raise max_replication_slots on the server, or drop a slot that is not used.",
            "55006" => "Another process streams from the slot: see active_pid in pg_replication_slots.",
            "42704" if self.message.starts_with("publication") => PUBLICATION_GONE,
            "55000" if self.passes_changes_over() => PUBLICATION_GONE,
            "42501" => "Give the role the right that is named; `tidemark setup --print` prints the SQL.",
            "55000" if self.message.contains("wal_level") => {
                "Set wal_level = logical on the server and restart it (rds.logical_replication = 1 on RDS)."
            }
            _ => return None,
        })
    }

    /// The product's error for it. `doing` says what was being done.
    pub(super) fn into_error(self, doing: impl fmt::Display) -> Error {
        let error = Error::new(self.class(), doing.to_string());
        let error = match self.mend() {
            Some(mend) => error.mend(mend),
            None => error,
        };
        error.cause(self)
    }
}

/// The SQLSTATE of an error that came from the server.
pub fn sqlstate(error: &Error) -> Option<&str> {
    let of_hosts = || error.source()?.downcast_ref::<Refusals>().and_then(Refusals::sqlstate);
    server_error(error).map(|e| e.sqlstate.as_str()).or_else(of_hosts)
}

/// Whether a session was refused for its role, password or database, or for what `pg_hba.conf` says of them.
pub fn is_not_let_in(error: &Error) -> bool {
    matches!(sqlstate(error), Some("28P01" | "28000" | "3D000" | "57P04"))
}

/// What the server said, of an error that came from it.
pub fn server_error(error: &Error) -> Option<&ServerError> {
    error.source()?.downcast_ref()
}

/// The connection broke: worth trying again.
pub(super) fn lost(address: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Error::retry(format!("the server at {address} closed the connection"));
    }
    Error::retry(format!("the connection to {address} broke")).cause(error)
}

/// The server sent what the protocol does not allow here.
pub(super) fn unexpected(what: &str, tag: u8) -> Error {
    Error::retry(format!("the server sent message {:?} during {what}", char::from(tag)))
        .mend("Check that the URL names a PostgreSQL server, or a proxy that passes replication through.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sqlstate: &str, message: &str) -> ServerError {
        ServerError { sqlstate: sqlstate.into(), message: message.into(), ..ServerError::default() }
    }

    #[test]
    fn the_sqlstate_says_who_can_mend_it() {
        for state in ["08006", "57P01", "57P02", "57P03", "53300", "53100", "55006", "40001"] {
            assert_eq!(of(state, "").class(), Class::Retry, "{state}");
        }
        for state in ["28P01", "28000", "3D000", "42501", "42704", "55000", "58P01", "53400", "XX000"] {
            assert_eq!(of(state, "").class(), Class::Operator, "{state}");
        }
    }

    #[test]
    fn what_another_session_dropped_meanwhile_is_asked_for_again_in_statements_alone() {
        for message in ["cache lookup failed for type 16384", "could not open relation with OID 16385"] {
            assert_eq!(of("XX000", message).of_statement("asking").class(), Class::Retry, "{message}");
            assert_eq!(of("XX000", message).class(), Class::Operator, "a walsender looks at the past");
        }
        assert_eq!(of("XX000", "could not read block").of_statement("asking").class(), Class::Operator);
    }

    #[test]
    fn a_row_that_is_too_large_for_the_server_is_told_from_other_failures() {
        for (state, message, too_large) in [
            ("XX000", "invalid memory alloc request size 1080000003", true),
            ("54000", "out of memory", true),
            ("XX000", "could not map filenode", false),
            ("53200", "out of memory", false),
        ] {
            assert_eq!(of(state, message).is_too_large_for_server(), too_large, "{state} {message}");
        }
    }

    #[test]
    fn fields_are_parsed_and_all_of_them_printed() {
        let error = ServerError::parse(b"SFEHLER\0VERROR\0C42704\0Mno slot\0Dgone\0Hmake one\0F\0\0");
        assert_eq!(error.severity, "ERROR");
        let error = error.into_error("reading");
        assert_eq!(error.to_string(), "reading: no slot (gone) (hint: make one) [SQLSTATE 42704]");
        assert_eq!(sqlstate(&error), Some("42704"));
    }

    #[test]
    fn a_body_cut_short_gives_what_is_there() {
        assert_eq!(ServerError::parse(b"Mhalf").message, "");
        assert_eq!(ServerError::parse(b"Mwhole\0Mha").message, "whole");
    }
}
