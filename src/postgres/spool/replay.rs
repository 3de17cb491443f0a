//! A transaction that has committed, read from its file in the order in which protocol 1 would have sent it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::change::Lsn;

use super::transaction::{HEADER_BYTES, SpoolFile, Spooled};
use super::{Spool, table_of};
use crate::postgres::pgoutput::Message;

/// So much is read from the file at once.
const READ_BYTES: u64 = 1 << 20;

/// What comes next.
#[derive(Debug)]
pub enum Replayed<'a> {
    /// [`Replay::fill`] has to be called.
    Fill,
    /// The beginning or the end of the transaction, with the LSN that it has by protocol 1.
    Boundary(Message<'static>, Lsn),
    /// A message of protocol 1, and its own LSN.
    Message(&'a [u8], Lsn),
    /// There is nothing more.
    Done,
}

/// The transaction, and how far it is read.
#[derive(Debug)]
pub struct Replay {
    xid: u32,
    /// It was prepared, by a slot with `two_phase`: the server must not be told of anything before it is through.
    pub prepared: bool,
    commit_lsn: Lsn,
    end_lsn: Lsn,
    commit_us: i64,
    first_lsn: Lsn,
    file: SpoolFile,
    open: Option<Arc<File>>,
    /// Bytes of the file that count, and those that are in the buffer or were.
    end: u64,
    read: u64,
    buffer: Vec<u8>,
    /// Where the next frame begins in the buffer.
    at: usize,
    stage: Stage,
    /// Descriptions as they were given last.
    given: HashMap<u32, Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    Content,
    Done,
}

impl Replay {
    /// From the beginning; none when the transaction's file lacks something.
    pub(super) fn new(of: Spooled, commit_lsn: Lsn, end_lsn: Lsn, commit_us: i64) -> Option<Self> {
        let (xid, prepared) = (of.xid, of.prepared);
        let first_lsn = of.first_lsn().unwrap_or(commit_lsn);
        let (file, end) = of.into_file()?;
        Some(Self {
            xid,
            prepared,
            commit_lsn,
            end_lsn,
            commit_us,
            first_lsn,
            file,
            open: None,
            end,
            read: 0,
            buffer: Vec::new(),
            at: 0,
            stage: Stage::Begin,
            given: HashMap::new(),
        })
    }

    /// What comes next. `spool` knows what has been described meanwhile.
    pub fn next(&mut self, spool: &mut Spool) -> Replayed<'_> {
        match self.stage {
            Stage::Begin => {
                self.stage = Stage::Content;
                let (commit_lsn, commit_us, xid) = (self.commit_lsn, self.commit_us, self.xid);
                Replayed::Boundary(Message::Begin { commit_lsn, commit_us, xid }, self.first_lsn)
            }
            Stage::Content => self.content(spool),
            Stage::Done => Replayed::Done,
        }
    }

    fn content(&mut self, spool: &mut Spool) -> Replayed<'_> {
        let left = &self.buffer[self.at..];
        let Some(header) = left.first_chunk::<HEADER_BYTES>() else {
            return if self.read < self.end { Replayed::Fill } else { self.put_back(spool) };
        };
        let [a, b, c, d, lsn @ ..] = *header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if left.len() < HEADER_BYTES + length {
            return Replayed::Fill;
        }
        let begin = self.at + HEADER_BYTES;
        self.at = begin + length;
        let lsn = u64::from_be_bytes(lsn);
        let message = &self.buffer[begin..self.at];
        if message[0] != b'R' {
            return Replayed::Message(message, Lsn(lsn));
        }
        spool.descriptions.note(lsn, message);
        // As it came, also where it is known: a root's description says that the next one is of a leaf of it.
        self.given.insert(table_of(message), message.to_vec());
        Replayed::Message(message, Lsn::ZERO)
    }

    /// Descriptions that are newer than those of this transaction, one at a time; then its end.
    fn put_back(&mut self, spool: &mut Spool) -> Replayed<'_> {
        let newest = &spool.descriptions.newest;
        let newer = self.given.iter().find_map(|(table, given)| {
            let (_, newest) = newest.get(table)?;
            (newest != given).then(|| (*table, newest.clone()))
        });
        match newer {
            Some((table, newest)) => {
                let given = self.given.entry(table).insert_entry(newest).into_mut();
                Replayed::Message(given, Lsn::ZERO)
            }
            None => {
                self.stage = Stage::Done;
                spool.forget();
                let (commit_lsn, end_lsn, commit_us) = (self.commit_lsn, self.end_lsn, self.commit_us);
                Replayed::Boundary(Message::Commit { commit_lsn, end_lsn, commit_us }, end_lsn)
            }
        }
    }

    /// Reads more of the file, on a thread for it. Not cancel-safe.
    ///
    /// # Errors
    /// The reason why the transaction has to be sent again without streaming.
    pub async fn fill(&mut self) -> Result<(), String> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let (path, open) = (self.file.0.clone(), self.open.clone());
        let (at, read, end) = (self.at, self.read, self.end);
        let fill = move || {
            let file = match open {
                Some(file) => file,
                None => Arc::new(File::open(path)?),
            };
            buffer.drain(..at);
            let wanted = buffer
                .first_chunk::<4>()
                .map_or(0, |length| u64::from(u32::from_be_bytes(*length)) + HEADER_BYTES as u64);
            let more = wanted.saturating_sub(buffer.len() as u64).max(READ_BYTES).min(end - read);
            let kept = buffer.len();
            buffer.shrink_to(2 * READ_BYTES as usize);
            buffer.resize(kept + more as usize, 0);
            file.read_exact_at(&mut buffer[kept..], read)?;
            Ok((file, buffer, more))
        };
        let filled = tokio::task::spawn_blocking(fill).await.map_err(io::Error::other);
        let (file, buffer, more) = filled
            .and_then(|filled| filled)
            .map_err(|error| format!("{} cannot be read: {error}", self.file.0.display()))?;
        (self.open, self.buffer, self.at, self.read) = (Some(file), buffer, 0, self.read + more);
        Ok(())
    }
}
