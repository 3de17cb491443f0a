//! Decoder of the `pgoutput` plugin's messages: bytes in, borrowed messages out. Pure.
//!
//! ```text
//!   decode             protocol 1: transactions that have committed, one after the other; logical messages (14+)
//!   Control::decode    protocols 2 to 4: where parts of transactions in progress begin, end, commit and abort;
//!                      transactions that are prepared
//!   streamed           a message of such a part: with the transaction id taken out it is one of protocol 1
//! ```
//!
//! A message is either understood to its last byte or refused: missing bytes, leftover bytes and unknown tags are
//! errors, and no input panics (`fuzz/` and the property tests show it). A [`Tuple`] is checked whole when
//! it is decoded, so walking its columns afterwards cannot fail and costs no allocation.
//!
//! Source: PostgreSQL documentation, "Logical Replication Message Formats";
//! `src/backend/replication/logical/proto.c`.

mod reader;
mod stream;
#[cfg(test)]
mod tests;

use crate::change::{Lsn, Value};

use reader::Reader;
pub use stream::{Control, Prepared, Streamed, streamed};

/// The kind of a column whose value was left out before the message came here: its length, and its beginning as of `t`.
/// No server sends it.
pub(super) const LEFT_OUT: u8 = b'x';

/// Microseconds between the epochs of Unix (1970) and Postgres (2000).
pub const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends too early.
    #[error("pgoutput message {tag:?} ends at byte {at} where {wanted} was expected")]
    Truncated {
        /// First byte of the message.
        tag: char,
        /// Bytes read so far.
        at: usize,
        /// What should have come.
        wanted: &'static str,
    },
    /// Bytes are left after the message.
    #[error("pgoutput message {tag:?} has {count} bytes left over")]
    Leftover {
        /// First byte of the message.
        tag: char,
        /// How many.
        count: usize,
    },
    /// A byte that has no meaning in its place.
    #[error("pgoutput message {tag:?} has {found:#04x} where {wanted} was expected")]
    Unexpected {
        /// First byte of the message.
        tag: char,
        /// The byte.
        found: u8,
        /// What should have come.
        wanted: &'static str,
    },
}

/// A message of the stream. Times are microseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub enum Message<'a> {
    /// `B`: a transaction begins. With protocol 1 it has already committed.
    Begin {
        /// LSN of its commit record.
        commit_lsn: Lsn,
        /// Commit time.
        commit_us: i64,
        /// Transaction id, 32 bits wide.
        xid: u32,
    },
    /// `C`: it ends.
    Commit {
        /// LSN of its commit record.
        commit_lsn: Lsn,
        /// Just past the commit record.
        end_lsn: Lsn,
        /// Commit time.
        commit_us: i64,
    },
    /// `O`: where a replicated transaction came from.
    Origin {
        /// Commit LSN on the origin server.
        lsn: Lsn,
        /// Name of the origin.
        name: &'a str,
    },
    /// `R`: the shape of a table, before its first change and after each change of shape.
    Relation(Relation),
    /// `Y`: a type that is not built in, before the relation that uses it.
    Type {
        /// `pg_type.oid`.
        oid: u32,
        /// Namespace.
        schema: &'a str,
        /// Name.
        name: &'a str,
    },
    /// `I`.
    Insert {
        /// The table's OID.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// `U`.
    Update {
        /// The table's OID.
        relation: u32,
        /// The old key or the old row, where the identity has the server send it.
        old: Option<OldTuple<'a>>,
        /// The row.
        new: Tuple<'a>,
    },
    /// `D`.
    Delete {
        /// The table's OID.
        relation: u32,
        /// The old key or the old row.
        old: OldTuple<'a>,
    },
    /// `T`: one or more tables were truncated together.
    Truncate {
        /// `TRUNCATE ... CASCADE`.
        cascade: bool,
        /// `TRUNCATE ... RESTART IDENTITY`.
        restart_identity: bool,
        /// The tables' OIDs.
        relations: Vec<u32>,
    },
    /// `M`: `pg_logical_emit_message`.
    Logical {
        /// Whether it belongs to the transaction around it.
        transactional: bool,
        /// Its own LSN.
        lsn: Lsn,
        /// Prefix.
        prefix: &'a str,
        /// Content.
        content: &'a [u8],
    },
}

impl Message<'_> {
    /// OIDs of the tables that it changes.
    pub fn relations(&self) -> &[u32] {
        match self {
            Self::Insert { relation, .. } | Self::Update { relation, .. } | Self::Delete { relation, .. } => {
                std::slice::from_ref(relation)
            }
            Self::Truncate { relations, .. } => relations,
            _ => &[],
        }
    }
}

/// A table as the wire describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Namespace; empty on the wire for `pg_catalog`.
    pub schema: String,
    /// Name.
    pub table: String,
    /// `pg_class.relreplident`: `d`, `n`, `f` or `i`.
    pub identity: u8,
    /// Columns in the order of the tuples.
    pub columns: Vec<RelationColumn>,
}

/// A column as the wire describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Part of the replica identity.
    pub identity: bool,
    /// Name.
    pub name: String,
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`, -1 for none.
    pub type_modifier: i32,
}

/// What is known of an old row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OldTuple<'a> {
    /// `K`: the columns of the identity; the others are null and mean nothing.
    Key(Tuple<'a>),
    /// `O`: the whole row (`REPLICA IDENTITY FULL`).
    Full(Tuple<'a>),
}

/// The columns of a row, checked and not yet split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuple<'a> {
    columns: u16,
    body: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// Number of columns.
    pub const fn len(&self) -> usize {
        self.columns as usize
    }

    /// Whether there is no column.
    pub const fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The columns in order, borrowed. The bytes were checked when the tuple was decoded.
    pub fn values(&self) -> impl ExactSizeIterator<Item = Value<'a>> + use<'a> {
        let mut body = self.body;
        (0..self.columns).map(move |_| {
            let (kind, rest) = body.split_first().unwrap_or((&b'n', &[]));
            body = rest;
            match kind {
                b'u' => Value::Unchanged,
                b't' => Value::Text(text(&mut body)),
                &LEFT_OUT => {
                    let (bytes, rest) = body.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
                    body = rest;
                    Value::LeftOut { bytes: u32::from_be_bytes(*bytes).into(), begins: text(&mut body) }
                }
                _ => Value::Null,
            }
        })
    }
}

/// A length and so many bytes, which were checked.
fn text<'a>(body: &mut &'a [u8]) -> &'a [u8] {
    let (length, rest) = body.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
    let (text, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
    *body = rest;
    text
}

/// Decodes one message.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let (tag, mut reader) = Reader::new(bytes)?;
    let message = match tag {
        b'B' => Message::Begin {
            commit_lsn: reader.lsn()?,
            commit_us: reader.time()?,
            xid: reader.u32("a transaction id")?,
        },
        b'C' => commit(&mut reader)?,
        b'O' => Message::Origin { lsn: reader.lsn()?, name: reader.string("an origin name")? },
        b'R' => Message::Relation(relation(&mut reader)?),
        b'Y' => Message::Type {
            oid: reader.u32("a type OID")?,
            schema: reader.string("a namespace")?,
            name: reader.string("a type name")?,
        },
        b'I' => {
            let relation = reader.u32("a relation OID")?;
            reader.marker(b'N', "a new tuple ('N')")?;
            Message::Insert { relation, new: reader.tuple()? }
        }
        b'U' => update(&mut reader)?,
        b'D' => {
            let relation = reader.u32("a relation OID")?;
            let old = match reader.u8("an old tuple")? {
                b'K' => OldTuple::Key(reader.tuple()?),
                b'O' => OldTuple::Full(reader.tuple()?),
                found => return Err(reader.unexpected(found, "an old tuple ('K' or 'O')")),
            };
            Message::Delete { relation, old }
        }
        b'T' => truncate(&mut reader)?,
        b'M' => logical(&mut reader)?,
        found => return Err(reader.unexpected(found, "the tag of a message of protocol 1")),
    };
    reader.end()?;
    Ok(message)
}

fn commit<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    match reader.u8("commit flags")? {
        0 => Ok(Message::Commit {
            commit_lsn: reader.lsn()?,
            end_lsn: reader.lsn()?,
            commit_us: reader.time()?,
        }),
        found => Err(reader.unexpected(found, "commit flags (0)")),
    }
}

fn update<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = reader.u32("a relation OID")?;
    let mut old = None;
    let mut kind = reader.u8("a tuple")?;
    if matches!(kind, b'K' | b'O') {
        let tuple = reader.tuple()?;
        old = Some(if kind == b'K' { OldTuple::Key(tuple) } else { OldTuple::Full(tuple) });
        kind = reader.u8("a new tuple")?;
    }
    match kind {
        b'N' => Ok(Message::Update { relation, old, new: reader.tuple()? }),
        found => Err(reader.unexpected(found, "a new tuple ('N')")),
    }
}

fn truncate<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let count = reader.u32("a number of relations")?;
    let flags = reader.u8("truncate options")?;
    if flags & !3 != 0 {
        return Err(reader.unexpected(flags, "truncate options (bits 1 and 2)"));
    }
    let oids = reader.take(count as usize * 4, "relation OIDs")?;
    let relations = oids.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok(Message::Truncate { cascade: flags & 1 != 0, restart_identity: flags & 2 != 0, relations })
}

fn logical<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let transactional = match reader.u8("message flags")? {
        0 => false,
        1 => true,
        found => return Err(reader.unexpected(found, "message flags (0 or 1)")),
    };
    let lsn = reader.lsn()?;
    let prefix = reader.string("a prefix")?;
    let length = reader.u32("a content length")? as usize;
    Ok(Message::Logical { transactional, lsn, prefix, content: reader.take(length, "content")? })
}

fn relation(reader: &mut Reader<'_>) -> Result<Relation, DecodeError> {
    let oid = reader.u32("a relation OID")?;
    let schema = reader.string("a namespace")?.to_owned();
    let table = reader.string("a relation name")?.to_owned();
    let identity = reader.u8("a replica identity")?;
    if !matches!(identity, b'd' | b'n' | b'f' | b'i') {
        return Err(reader.unexpected(identity, "a replica identity (d, n, f or i)"));
    }
    let count = reader.u16("a number of columns")?;
    let mut columns = Vec::with_capacity(usize::from(count).min(reader.rest().len()));
    for _ in 0..count {
        let flags = reader.u8("column flags")?;
        if flags & !1 != 0 {
            return Err(reader.unexpected(flags, "column flags (bit 1)"));
        }
        columns.push(RelationColumn {
            identity: flags == 1,
            name: reader.string("a column name")?.to_owned(),
            type_oid: reader.u32("a type OID")?,
            type_modifier: reader.u32("a type modifier")? as i32,
        });
    }
    Ok(Relation { oid, schema, table, identity, columns })
}
