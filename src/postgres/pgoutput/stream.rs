//! Messages of protocols 2 to 4: transactions in progress, and prepared ones.
//!
//! Between a [`Control::StreamStart`] and a [`Control::StreamStop`] each message has the id of its (sub)transaction
//! behind the tag; only an origin has none. The id of a logical message is that of the transaction at the top, whichever
//! subtransaction it belongs to (`pgoutput_message` is given no other).

use crate::change::Lsn;

use super::reader::Reader;
use super::{DecodeError, decode};

/// A message about a transaction, rather than of one. Times are microseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control<'a> {
    /// `S`: what follows is a part of a transaction in progress.
    StreamStart {
        /// Transaction id.
        xid: u32,
        /// Whether it is the transaction's first part.
        first: bool,
    },
    /// `E`: the end of the part.
    StreamStop,
    /// `c`: a transaction that was streamed has committed.
    StreamCommit {
        /// Transaction id.
        xid: u32,
        /// LSN of its commit record.
        commit_lsn: Lsn,
        /// Just past the commit record.
        end_lsn: Lsn,
        /// Commit time.
        commit_us: i64,
    },
    /// `A`: a transaction that was streamed, or a subtransaction of it, has aborted.
    StreamAbort {
        /// Transaction id.
        xid: u32,
        /// The subtransaction's id, or the transaction's own.
        subxid: u32,
        /// LSN of the abort record and its time: with `streaming 'parallel'` alone.
        aborted: Option<(Lsn, i64)>,
    },
    /// `b`: what follows, up to `P`, is a transaction that is prepared.
    BeginPrepare(Prepared<'a>),
    /// `P`: the end of what was prepared.
    Prepare(Prepared<'a>),
    /// `p`: a transaction that was streamed is prepared.
    StreamPrepare(Prepared<'a>),
    /// `K`: a prepared transaction has committed.
    CommitPrepared {
        /// LSN of its commit record.
        commit_lsn: Lsn,
        /// Just past the commit record.
        end_lsn: Lsn,
        /// Commit time.
        commit_us: i64,
        /// Transaction id.
        xid: u32,
        /// Its global name.
        gid: &'a str,
    },
    /// `r`: a prepared transaction was rolled back.
    RollbackPrepared {
        /// Just past the record of its PREPARE.
        prepare_end_lsn: Lsn,
        /// Just past the record of its end.
        end_lsn: Lsn,
        /// Time of its PREPARE.
        prepare_us: i64,
        /// Time of its end.
        rollback_us: i64,
        /// Transaction id.
        xid: u32,
        /// Its global name.
        gid: &'a str,
    },
}

/// A transaction that is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared<'a> {
    /// LSN of the record of its PREPARE.
    pub prepare_lsn: Lsn,
    /// Just past it.
    pub end_lsn: Lsn,
    /// Time of the PREPARE.
    pub prepare_us: i64,
    /// Transaction id.
    pub xid: u32,
    /// Its global name.
    pub gid: &'a str,
}

impl<'a> Control<'a> {
    /// Decodes a message about a transaction; `None` when it is one of protocol 1.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<Self>, DecodeError> {
        let (tag, mut reader) = Reader::new(bytes)?;
        let control = match tag {
            b'S' => {
                let xid = reader.u32("a transaction id")?;
                let first = match reader.u8("a first-part flag")? {
                    0 => false,
                    1 => true,
                    found => return Err(reader.unexpected(found, "a first-part flag (0 or 1)")),
                };
                Self::StreamStart { xid, first }
            }
            b'E' => Self::StreamStop,
            b'c' => {
                let xid = reader.u32("a transaction id")?;
                no_flags(&mut reader)?;
                Self::StreamCommit {
                    xid,
                    commit_lsn: reader.lsn()?,
                    end_lsn: reader.lsn()?,
                    commit_us: reader.time()?,
                }
            }
            b'A' => {
                let xid = reader.u32("a transaction id")?;
                let subxid = reader.u32("a subtransaction id")?;
                let parallel = !reader.rest().is_empty();
                let aborted = if parallel { Some((reader.lsn()?, reader.time()?)) } else { None };
                Self::StreamAbort { xid, subxid, aborted }
            }
            b'b' => Self::BeginPrepare(prepared(&mut reader)?),
            b'P' | b'p' => {
                no_flags(&mut reader)?;
                let of = prepared(&mut reader)?;
                if tag == b'P' { Self::Prepare(of) } else { Self::StreamPrepare(of) }
            }
            b'K' => {
                no_flags(&mut reader)?;
                Self::CommitPrepared {
                    commit_lsn: reader.lsn()?,
                    end_lsn: reader.lsn()?,
                    commit_us: reader.time()?,
                    xid: reader.u32("a transaction id")?,
                    gid: reader.string("a global transaction id")?,
                }
            }
            b'r' => {
                no_flags(&mut reader)?;
                Self::RollbackPrepared {
                    prepare_end_lsn: reader.lsn()?,
                    end_lsn: reader.lsn()?,
                    prepare_us: reader.time()?,
                    rollback_us: reader.time()?,
                    xid: reader.u32("a transaction id")?,
                    gid: reader.string("a global transaction id")?,
                }
            }
            _ => return Ok(None),
        };
        reader.end()?;
        Ok(Some(control))
    }
}

fn no_flags(reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    match reader.u8("flags")? {
        0 => Ok(()),
        found => Err(reader.unexpected(found, "flags (0)")),
    }
}

fn prepared<'a>(reader: &mut Reader<'a>) -> Result<Prepared<'a>, DecodeError> {
    Ok(Prepared {
        prepare_lsn: reader.lsn()?,
        end_lsn: reader.lsn()?,
        prepare_us: reader.time()?,
        xid: reader.u32("a transaction id")?,
        gid: reader.string("a global transaction id")?,
    })
}

/// A message of a transaction in progress. Its body is not checked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streamed<'a> {
    /// The id behind the tag.
    pub xid: u32,
    /// The tag.
    pub tag: u8,
    /// What follows the id: with the tag before it, a message of protocol 1.
    pub body: &'a [u8],
}

/// Takes the transaction id out of a message between `S` and `E`; `None` for one which is no part of a transaction's
/// content (an origin).
pub fn streamed(bytes: &[u8]) -> Result<Option<Streamed<'_>>, DecodeError> {
    let (tag, mut reader) = Reader::new(bytes)?;
    match tag {
        b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M' => {
            let xid = reader.u32("a transaction id")?;
            Ok(Some(Streamed { xid, tag, body: reader.rest() }))
        }
        b'O' => decode(bytes).map(|_| None),
        found => Err(reader.unexpected(found, "a message of a transaction in progress")),
    }
}
