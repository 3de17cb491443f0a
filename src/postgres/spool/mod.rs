//! Transactions in progress, and prepared ones, kept on disk until they commit.
//!
//! ```text
//!   B … C              ─────────────────────────────────────────────────────> taken as they come
//!   S(7) … E  S(9) … E ──> 0.spool, 1.spool (frames) ── c(9) ──> Begin … Commit of 9, as by protocol 1
//!   A(7, 8)            ──> 0.spool is cut back to where subtransaction 8 began
//!   b … P              ──> 2.spool ─────────────────── K ─────> Begin … Commit
//! ```
//!
//! Pure but for [`Spool::flush`] and [`Replay::fill`], which write and read files of their own threads. Memory: one
//! block's buffer, one of the replay, 30 bytes for each subtransaction (there is a limit), and the description of each
//! table that came meanwhile.
//!
//! **Why a transaction comes out as protocol 1 would have sent it.** The server streams a transaction in the order of
//! its WAL, as it sends it whole; both drop what the publication does not have. A subtransaction that aborts has
//! everything after its first change, up to its abort: so the spool is cut back to there, and what comes later is
//! appended. What is left is what protocol 1 sends, so that ordinals are the same, also when the server sends the
//! transaction again by another protocol. One thing is not on the wire: a logical message bears the id of the
//! transaction at the top, whichever subtransaction it is of. When one stands directly before the place where a
//! subtransaction is cut off, nobody can say whether it goes with it. If such a transaction commits, it is refused,
//! and has to be sent again without streaming.
//!
//! **Why tables' shapes are right.** A description (Relation) within a block holds for its transaction, and for all
//! others when that one has committed (`schema_sent`, `streamed_txns` in `pgoutput.c`); after an abort, the server sends
//! it again. So it stays among the rows of its transaction. A replay may describe a table as it was before a later
//! description that came outside: that one is put back at its end. Within `b … P` the server counts a description as
//! known to all, and leaves out what is known: it is taken at once, and again with its rows; one that came before is put
//! before them.
//!
//! **Why nothing is lost.** The spool is scratch: what it holds has not been acknowledged. The server's position in a
//! keepalive is behind what it has decoded and sent; a transaction that is still in progress here commits beyond it.
//! Acknowledging it passes changes of that transaction, yet never its commit, and what is sent after a restart is
//! decided by the commit: the slot's `restart_lsn` stays before the oldest transaction whose end has not been decoded
//! (`SnapBuildProcessRunningXacts`), and `SnapBuildXactNeedsSkip` asks for the place of the commit record. For a
//! prepared transaction of a slot with `two_phase` it asks for the place of the PREPARE. So while one is kept here
//! ([`Spool::holds_prepared`]), nothing is acknowledged.

mod replay;
#[cfg(test)]
mod tests;
mod transaction;

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::change::Lsn;

use super::pgoutput::{Control, DecodeError, streamed};

pub use replay::{Replay, Replayed};
use transaction::Spooled;

/// A buffer of this size is written.
const BUFFER_BYTES: usize = 256 << 10;

/// Subtransactions that are remembered, of all transactions together: some 30 MB.
const SUBTRANSACTIONS_MAX: usize = 1 << 20;

/// What is left free on the disk, for the log and others: this much, or a tenth of a smaller disk.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// What became of a message.
#[derive(Debug)]
pub enum Taken {
    /// It is one of protocol 1, to be decoded and taken as it stands.
    Now,
    /// It is kept, or there is nothing to do.
    Kept,
    /// [`Spool::flush`] has to come before the next message.
    Flush,
    /// A transaction has committed, and has to be replayed before the next message.
    Committed(Box<Replay>),
    /// It cannot be kept, and why: the stream has to be taken up again without streaming. Nothing is lost by it.
    Refused(String),
}

/// The stream contradicts itself, or what it means is not here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    /// No message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A message in the wrong place.
    #[error("{what} of transaction {xid} arrived {found}")]
    Unexpected {
        /// What arrived.
        what: &'static str,
        /// Transaction id, of what arrived or of the part that is open.
        xid: u32,
        /// Where.
        found: &'static str,
    },
    /// A prepared transaction committed whose content was acknowledged by someone else.
    #[error(
        "prepared transaction {gid:?} (id {xid}) committed at {commit_lsn}, and what it did was sent before this slot's \
         position: someone else has read from the slot"
    )]
    Unknown {
        /// Transaction id.
        xid: u32,
        /// Global name.
        gid: String,
        /// LSN of its commit record.
        commit_lsn: Lsn,
    },
}

/// The transactions that are kept.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    bytes_max: u64,
    /// Prepared transactions that committed up to here may have been forgotten.
    known: Lsn,
    files: u64,
    transactions: HashMap<u32, Spooled>,
    block: Option<Block>,
    buffer: Buffer,
    prepared: usize,
    descriptions: Descriptions,
    /// Tables that are described in the block `b … P`.
    described: HashSet<u32>,
}

/// Frames of a transaction which are not in its file yet.
#[derive(Debug, Default)]
struct Buffer {
    xid: u32,
    frames: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Block {
    /// `S … E`: messages bear ids.
    Streamed(u32),
    /// `b … P`: they do not.
    Prepared(u32),
}

/// The newest description of each table, while there are transactions which may hold older ones.
#[derive(Debug, Default)]
struct Descriptions {
    /// With `two_phase`: what is prepared relies on descriptions that came before it.
    always: bool,
    arrived: u64,
    newest: HashMap<u32, (u64, Vec<u8>)>,
}

impl Descriptions {
    fn number(&mut self) -> u64 {
        self.arrived += 1;
        self.arrived
    }

    /// Takes a description that holds for all transactions, unless there is a newer one.
    fn note(&mut self, number: u64, bytes: &[u8]) {
        let table = table_of(bytes);
        if self.newest.get(&table).is_none_or(|(newest, _)| *newest <= number) {
            self.newest.insert(table, (number, bytes.to_vec()));
        }
    }
}

impl Spool {
    /// Removes what a former process has left in its folder.
    ///
    /// # Errors
    /// The folder cannot be removed.
    pub fn clear(folder: &Path) -> io::Result<()> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps at most `bytes_max` bytes in `folder`, which is made when there is something to keep. `known`: the log has
    /// everything that committed up to there. `two_phase`: whether the slot sends transactions that are prepared.
    pub fn new(folder: &Path, bytes_max: u64, known: Lsn, two_phase: bool) -> Self {
        Self {
            folder: folder.to_owned(),
            bytes_max,
            known,
            files: 0,
            transactions: HashMap::new(),
            block: None,
            buffer: Buffer::default(),
            prepared: 0,
            descriptions: Descriptions { always: two_phase, ..Descriptions::default() },
            described: HashSet::new(),
        }
    }

    /// Whether a prepared transaction is kept: the server must not be told of anything.
    pub const fn holds_prepared(&self) -> bool {
        self.prepared > 0
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> u64 {
        self.transactions.values().map(Spooled::bytes).sum()
    }

    /// Takes the next message of the stream; `lsn` is its own.
    ///
    /// # Errors
    /// It contradicts those before it.
    pub fn take(&mut self, bytes: &[u8], lsn: Lsn) -> Result<Taken, SpoolError> {
        if self.block.is_none() && !self.buffer.frames.is_empty() {
            return Err(unexpected("a message", self.buffer.xid, "before the part that ended was written"));
        }
        if let Some(control) = Control::decode(bytes)? {
            return self.control(control);
        }
        match self.block {
            None => {
                if bytes[0] == b'R' && (self.descriptions.always || !self.transactions.is_empty()) {
                    let number = self.descriptions.number();
                    self.descriptions.note(number, bytes);
                }
                Ok(Taken::Now)
            }
            Some(Block::Streamed(xid)) => {
                let Some(part) = streamed(bytes)? else { return Ok(Taken::Kept) };
                let place = if part.tag == b'R' { Lsn(self.descriptions.number()) } else { lsn };
                self.append(xid, part.xid, place, part.tag, part.body)
            }
            Some(Block::Prepared(xid)) => self.prepared_part(xid, bytes, lsn),
        }
    }

    /// A message between `b` and `P`. A description of a table is small: what has to be written is with the next row.
    fn prepared_part(&mut self, xid: u32, bytes: &[u8], lsn: Lsn) -> Result<Taken, SpoolError> {
        match bytes[0] {
            b'O' => return Ok(Taken::Kept),
            b'R' => {
                let number = self.descriptions.number();
                self.descriptions.note(number, bytes);
                self.described.insert(table_of(bytes));
                self.append(xid, xid, Lsn(number), b'R', &bytes[1..])?;
                return Ok(Taken::Now);
            }
            b'I' | b'U' | b'D' if self.described.insert(table_of(bytes)) => {
                // It was described before, and may be described anew before this transaction commits.
                if let Some((number, known)) = self.descriptions.newest.get(&table_of(bytes)).cloned() {
                    self.append(xid, xid, Lsn(number), b'R', &known[1..])?;
                }
            }
            _ => {}
        }
        self.append(xid, xid, lsn, bytes[0], &bytes[1..])
    }

    fn append(&mut self, xid: u32, of: u32, lsn: Lsn, tag: u8, body: &[u8]) -> Result<Taken, SpoolError> {
        // Types are told by the catalog.
        if tag == b'Y' {
            return Ok(Taken::Kept);
        }
        let Some(transaction) = self.transactions.get_mut(&xid) else {
            return Err(unexpected("a part", xid, "before its beginning"));
        };
        self.buffer.xid = xid;
        transaction.append(&mut self.buffer.frames, of, lsn, tag, body);
        Ok(if self.buffer.frames.len() >= BUFFER_BYTES { Taken::Flush } else { Taken::Kept })
    }

    fn control(&mut self, control: Control<'_>) -> Result<Taken, SpoolError> {
        match (control, self.block) {
            (Control::StreamStop, Some(Block::Streamed(_))) => Ok(self.end_block()),
            (Control::Prepare(of), Some(Block::Prepared(xid))) if of.xid == xid => {
                self.prepare(xid)?;
                Ok(self.end_block())
            }
            (_, Some(Block::Streamed(xid) | Block::Prepared(xid))) => {
                Err(unexpected("a part", xid, "and did not end before the next"))
            }
            (Control::StreamStart { xid, first }, None) => {
                if first == self.transactions.contains_key(&xid) {
                    return Err(unexpected(
                        "a part",
                        xid,
                        "as its first, or as a later one, which it is not",
                    ));
                }
                Ok(self.begin_block(Block::Streamed(xid), xid))
            }
            (Control::BeginPrepare(of), None) => {
                if self.transactions.contains_key(&of.xid) {
                    return Err(unexpected("the beginning", of.xid, "a second time"));
                }
                self.described.clear();
                Ok(self.begin_block(Block::Prepared(of.xid), of.xid))
            }
            (Control::StreamCommit { xid, commit_lsn, end_lsn, commit_us }, None) => {
                let Some(transaction) = self.remove(xid) else {
                    return Err(unexpected("the commit", xid, "without its content"));
                };
                commit(transaction, commit_lsn, end_lsn, commit_us)
            }
            (Control::CommitPrepared { commit_lsn, end_lsn, commit_us, xid, gid }, None) => {
                match self.remove(xid) {
                    Some(transaction) => commit(transaction, commit_lsn, end_lsn, commit_us),
                    None if end_lsn <= self.known => Ok(Taken::Kept),
                    None => Err(SpoolError::Unknown { xid, gid: gid.to_owned(), commit_lsn }),
                }
            }
            (Control::StreamAbort { xid, subxid, .. }, None) if subxid != xid => {
                if let Some(transaction) = self.transactions.get_mut(&xid) {
                    transaction.abort(subxid);
                }
                Ok(Taken::Kept)
            }
            (Control::StreamAbort { xid, .. } | Control::RollbackPrepared { xid, .. }, None) => {
                self.remove(xid);
                self.forget();
                Ok(Taken::Kept)
            }
            (Control::StreamPrepare(of), None) => {
                self.prepare(of.xid)?;
                Ok(Taken::Kept)
            }
            (Control::StreamStop, None) => Err(unexpected("the end of a part", 0, "without its beginning")),
            (Control::Prepare(of), None) => Err(unexpected("PREPARE", of.xid, "without its beginning")),
        }
    }

    fn begin_block(&mut self, block: Block, xid: u32) -> Taken {
        let remembered: usize = self.transactions.values().map(Spooled::subtransactions).sum();
        if remembered >= SUBTRANSACTIONS_MAX {
            return Taken::Refused(format!(
                "transactions in progress have {remembered} subtransactions, more than are kept in memory"
            ));
        }
        let (folder, files) = (&self.folder, &mut self.files);
        self.transactions.entry(xid).or_insert_with(|| {
            *files += 1;
            Spooled::new(xid, folder.join(format!("{files}.spool")))
        });
        self.block = Some(block);
        Taken::Kept
    }

    fn end_block(&mut self) -> Taken {
        self.block = None;
        if self.buffer.frames.is_empty() { Taken::Kept } else { Taken::Flush }
    }

    fn prepare(&mut self, xid: u32) -> Result<(), SpoolError> {
        match self.transactions.get_mut(&xid).filter(|transaction| !transaction.prepared) {
            Some(transaction) => {
                transaction.prepared = true;
                self.prepared += 1;
                Ok(())
            }
            None => Err(unexpected("PREPARE", xid, "without its content, or a second time")),
        }
    }

    fn remove(&mut self, xid: u32) -> Option<Spooled> {
        let transaction = self.transactions.remove(&xid)?;
        self.prepared -= usize::from(transaction.prepared);
        Some(transaction)
    }

    /// Without transactions there is no older description than the one in use.
    fn forget(&mut self) {
        if self.transactions.is_empty() && !self.descriptions.always {
            self.descriptions.newest.clear();
        }
    }

    /// Writes what is in the buffer, on a thread for it. Not cancel-safe.
    ///
    /// # Errors
    /// The reason why it cannot be kept, as of [`Taken::Refused`].
    pub async fn flush(&mut self) -> Result<(), String> {
        let buffer = std::mem::take(&mut self.buffer);
        let kept = self.bytes();
        let Some(transaction) = self.transactions.get_mut(&buffer.xid).filter(|_| !buffer.frames.is_empty())
        else {
            return Ok(());
        };
        if kept > self.bytes_max {
            return Err(format!(
                "transactions in progress have {kept} bytes, more than [source] stream_spool_bytes_max = {}",
                self.bytes_max
            ));
        }
        let (path, at) = (transaction.path().to_owned(), transaction.written);
        let folder = self.folder.clone();
        let write = move || write(&folder, &path, at, &buffer.frames).map(|()| buffer);
        let written = tokio::task::spawn_blocking(write).await.map_err(io::Error::other);
        match written.and_then(|written| written) {
            Ok(mut buffer) => {
                transaction.written += buffer.frames.len() as u64;
                buffer.frames.clear();
                buffer.frames.shrink_to(2 * BUFFER_BYTES);
                self.buffer = buffer;
                Ok(())
            }
            Err(error) => Err(format!("{} cannot be written: {error}", self.folder.display())),
        }
    }
}

/// Writes into a file that is made when it is missing, and looks whether enough of the disk is left then.
fn write(folder: &Path, path: &Path, at: u64, frames: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(frames, at)?;
    let disk = rustix::fs::statvfs(folder)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let whole = disk.f_blocks.saturating_mul(disk.f_frsize);
    if free < FREE_BYTES_MIN.min(whole / 10) {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("{free} bytes are left on the disk, and the log needs room, too"),
        ));
    }
    Ok(())
}

/// The table that a description or a row is of: the OID after its tag.
fn table_of(message: &[u8]) -> u32 {
    message.get(1..5).and_then(|oid| oid.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn commit(transaction: Spooled, commit_lsn: Lsn, end_lsn: Lsn, commit_us: i64) -> Result<Taken, SpoolError> {
    if transaction.is_doubtful() {
        return Ok(Taken::Refused(format!(
            "transaction {} has a logical message of which the server does not say whether it belongs to a \
             subtransaction that was rolled back",
            transaction.xid
        )));
    }
    let xid = transaction.xid;
    match Replay::new(transaction, commit_lsn, end_lsn, commit_us) {
        Some(replay) => Ok(Taken::Committed(Box::new(replay))),
        None => Err(unexpected("the commit", xid, "before its last part was written")),
    }
}

fn unexpected(what: &'static str, xid: u32, found: &'static str) -> SpoolError {
    SpoolError::Unexpected { what, xid, found }
}
