//! Decoder of the `pgoutput` plugin's messages: bytes in, borrowed messages out. Pure.
//!
//! Every message of protocol 1, and logical decoding messages (`messages 'true'`, Postgres 14+). A message
//! is either understood to its last byte or refused: missing bytes, leftover bytes and unknown tags are
//! errors, and no input panics (`fuzz/` and the property tests show it). A [`Tuple`] is checked whole when
//! it is decoded, so walking its columns afterwards cannot fail and costs no allocation.
//!
//! Source: PostgreSQL documentation, "Logical Replication Message Formats";
//! `src/backend/replication/logical/proto.c`.

use crate::change::{Lsn, Value};

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
                b't' => {
                    let (length, rest) = body.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
                    let (text, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
                    body = rest;
                    Value::Text(text)
                }
                _ => Value::Null,
            }
        })
    }
}

/// Decodes one message.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let Some((&tag, body)) = bytes.split_first() else {
        return Err(DecodeError::Truncated { tag: '\0', at: 0, wanted: "a message" });
    };
    let mut reader = Reader { tag, whole: bytes.len(), rest: body };
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
    let mut columns = Vec::with_capacity(usize::from(count).min(reader.rest.len()));
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

struct Reader<'a> {
    tag: u8,
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn truncated(&self, wanted: &'static str) -> DecodeError {
        DecodeError::Truncated { tag: char::from(self.tag), at: self.whole - self.rest.len(), wanted }
    }

    fn unexpected(&self, found: u8, wanted: &'static str) -> DecodeError {
        DecodeError::Unexpected { tag: char::from(self.tag), found, wanted }
    }

    fn take(&mut self, count: usize, wanted: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.truncated(wanted))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, wanted: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.truncated(wanted))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self, wanted: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(wanted).map(|b| b[0])
    }

    fn u16(&mut self, wanted: &'static str) -> Result<u16, DecodeError> {
        self.array(wanted).map(u16::from_be_bytes)
    }

    fn u32(&mut self, wanted: &'static str) -> Result<u32, DecodeError> {
        self.array(wanted).map(u32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.array("an LSN").map(|b| Lsn(u64::from_be_bytes(b)))
    }

    fn time(&mut self) -> Result<i64, DecodeError> {
        self.array("a time").map(|b| i64::from_be_bytes(b).saturating_add(POSTGRES_EPOCH_US))
    }

    fn marker(&mut self, wanted: u8, name: &'static str) -> Result<(), DecodeError> {
        match self.u8(name)? {
            found if found == wanted => Ok(()),
            found => Err(self.unexpected(found, name)),
        }
    }

    fn string(&mut self, wanted: &'static str) -> Result<&'a str, DecodeError> {
        let end = memchr::memchr(0, self.rest).ok_or_else(|| self.truncated(wanted))?;
        let (text, rest) = self.rest.split_at(end);
        let text = std::str::from_utf8(text).map_err(|error| {
            let found = text.get(error.valid_up_to()).copied().unwrap_or_default();
            self.unexpected(found, "UTF-8 text")
        })?;
        self.rest = &rest[1..];
        Ok(text)
    }

    /// Checks a tuple to its end, so that [`Tuple::values`] need not.
    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let columns = self.u16("a number of columns")?;
        let start = self.rest;
        for _ in 0..columns {
            match self.u8("a column")? {
                b'n' | b'u' => {}
                b't' => {
                    let length = self.u32("a column length")? as usize;
                    self.take(length, "a column value")?;
                }
                found => return Err(self.unexpected(found, "a column kind (n, u or t)")),
            }
        }
        Ok(Tuple { columns, body: &start[..start.len() - self.rest.len()] })
    }

    fn end(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::Leftover { tag: char::from(self.tag), count }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    /// One valid message of each kind, built from the documentation's tables.
    fn samples() -> Vec<Vec<u8>> {
        let lsn = &0x16_B374_D848_u64.to_be_bytes()[..];
        let end = &0x16_B374_D878_u64.to_be_bytes()[..];
        let time = &1_000_000_i64.to_be_bytes()[..];
        let oid = &16_384_u32.to_be_bytes()[..];
        let tuple = b"\0\x04nut\0\0\0\x03abct\0\0\0\0";
        vec![
            message(&[b"B", lsn, time, &7_u32.to_be_bytes()]),
            message(&[b"C\0", lsn, end, time]),
            message(&[b"O", lsn, b"upstream\0"]),
            message(&[
                b"R",
                oid,
                b"public\0t\0d\0\x02",
                b"\x01id\0",
                oid,
                b"\xff\xff\xff\xff",
                b"\0v\0",
                oid,
                b"\0\0\0\x08",
            ]),
            message(&[b"Y", oid, b"public\0mood\0"]),
            message(&[b"I", oid, b"N", tuple]),
            message(&[b"U", oid, b"N", tuple]),
            message(&[b"U", oid, b"K", tuple, b"N", tuple]),
            message(&[b"U", oid, b"O", tuple, b"N", tuple]),
            message(&[b"D", oid, b"K", tuple]),
            message(&[b"D", oid, b"O", tuple]),
            message(&[b"T", &2_u32.to_be_bytes(), b"\x03", oid, oid]),
            message(&[b"M\x01", lsn, b"prefix\0", &3_u32.to_be_bytes(), b"\0\xff1"]),
        ]
    }

    #[test]
    fn tuples_give_null_unchanged_and_text() {
        let bytes = &samples()[5];
        let Ok(Message::Insert { relation: 16_384, new }) = decode(bytes) else {
            panic!("{:?}", decode(bytes))
        };
        let values: Vec<_> = new.values().collect();
        assert_eq!(values, [Value::Null, Value::Unchanged, Value::Text(b"abc"), Value::Text(b"")]);
    }

    #[test]
    fn commit_and_truncate_and_messages_keep_their_fields() {
        let samples = samples();
        let commit = Message::Commit {
            commit_lsn: Lsn(0x16_B374_D848),
            end_lsn: Lsn(0x16_B374_D878),
            commit_us: POSTGRES_EPOCH_US + 1_000_000,
        };
        assert_eq!(decode(&samples[1]), Ok(commit));
        let truncate =
            Message::Truncate { cascade: true, restart_identity: true, relations: vec![16_384; 2] };
        assert_eq!(decode(&samples[11]), Ok(truncate));
        let lsn = Lsn(0x16_B374_D848);
        let logical = Message::Logical { transactional: true, lsn, prefix: "prefix", content: b"\0\xff1" };
        assert_eq!(decode(&samples[12]), Ok(logical));
    }

    #[test]
    fn every_shortened_or_lengthened_message_is_refused() {
        for bytes in samples() {
            assert!(decode(&bytes).is_ok(), "{bytes:?}");
            for length in 0..bytes.len() {
                assert!(decode(&bytes[..length]).is_err(), "{:?} was taken", &bytes[..length]);
            }
            let longer = [&bytes[..], b"x"].concat();
            assert!(matches!(decode(&longer), Err(DecodeError::Leftover { count: 1, .. })), "{longer:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tag in prop::sample::select(b"BCORYIUDTMSEcApP".to_vec()), body in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [&[tag][..], &body].concat();
            if let Ok(Message::Insert { new, .. } | Message::Update { new, .. }) = decode(&bytes) {
                prop_assert_eq!(new.values().count(), new.len());
            }
        }

        #[test]
        fn no_changed_byte_makes_it_panic(which in 0..13_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = samples().swap_remove(which);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(Message::Insert { new, .. } | Message::Update { new, .. }) = decode(&bytes) {
                prop_assert_eq!(new.values().count(), new.len());
            }
        }
    }
}
