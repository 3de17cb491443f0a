//! What is known of a transaction whose content is in a file.
//!
//! A frame is the length of a message (4 bytes), its LSN (8 bytes; for a description of a table the number of its
//! arrival, since it has no LSN), and the message in the form of protocol 1.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::change::Lsn;

/// Bytes before the message.
pub(super) const HEADER_BYTES: usize = 12;

/// A transaction that has not come to its end.
#[derive(Debug)]
pub(super) struct Spooled {
    /// Transaction id.
    pub xid: u32,
    /// Whether it is prepared, by a slot with `two_phase`.
    pub prepared: bool,
    /// Bytes of the file that count; what lies beyond was cut off.
    pub written: u64,
    /// Where the next frame goes: `written` and what is in the buffer.
    end: u64,
    file: SpoolFile,
    /// LSN of the first change, and where it stands.
    first: Option<(u64, Lsn)>,
    /// Subtransactions with something in the file, in the order of their first frames.
    subtransactions: Vec<(u32, u64)>,
    /// The same, to be looked up.
    begins: HashMap<u32, u64>,
    /// Whose the last frame was: it need not be looked up again.
    last: u32,
    /// Ends of logical messages with something else behind them, or nothing.
    messages: Vec<u64>,
    /// A logical message may belong to a subtransaction that was cut off.
    doubtful: Option<u64>,
}

/// A file that is removed with its last owner.
#[derive(Debug)]
pub(super) struct SpoolFile(pub PathBuf);

impl Drop for SpoolFile {
    fn drop(&mut self) {
        // It may never have been written; what is left is removed at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Spooled {
    /// Nothing yet, for the file at `path`.
    pub fn new(xid: u32, path: PathBuf) -> Self {
        Self {
            xid,
            prepared: false,
            written: 0,
            end: 0,
            file: SpoolFile(path),
            first: None,
            subtransactions: Vec::new(),
            begins: HashMap::new(),
            last: xid,
            messages: Vec::new(),
            doubtful: None,
        }
    }

    /// Its file, which may not exist yet.
    pub fn path(&self) -> &Path {
        &self.file.0
    }

    /// Bytes of its content.
    pub const fn bytes(&self) -> u64 {
        self.end
    }

    /// Number of subtransactions that are remembered.
    pub const fn subtransactions(&self) -> usize {
        self.subtransactions.len()
    }

    /// LSN of its first change; none when it has no change.
    pub fn first_lsn(&self) -> Option<Lsn> {
        self.first.map(|(_, lsn)| lsn)
    }

    /// Whether a logical message in it may belong to a subtransaction that was cut off.
    pub const fn is_doubtful(&self) -> bool {
        self.doubtful.is_some()
    }

    /// Its file, and the bytes of it that count; none when some of them are still in the buffer.
    pub fn into_file(self) -> Option<(SpoolFile, u64)> {
        (self.written == self.end).then_some((self.file, self.end))
    }

    /// Adds a message of subtransaction `of` to the buffer.
    pub fn append(&mut self, buffer: &mut Vec<u8>, of: u32, lsn: Lsn, tag: u8, body: &[u8]) {
        let begin = self.end;
        if of != self.last {
            self.last = of;
            if of != self.xid && !self.begins.contains_key(&of) {
                self.begins.insert(of, begin);
                self.subtransactions.push((of, begin));
            }
        }
        buffer.reserve(HEADER_BYTES + 1 + body.len());
        buffer.extend_from_slice(&(1 + body.len() as u32).to_be_bytes());
        buffer.extend_from_slice(&lsn.0.to_be_bytes());
        buffer.push(tag);
        buffer.extend_from_slice(body);
        self.end += (HEADER_BYTES + 1 + body.len()) as u64;
        if tag != b'R' && self.first.is_none() {
            self.first = Some((begin, lsn));
        }
        if tag == b'M' {
            self.messages.pop_if(|end| *end == begin);
            self.messages.push(self.end);
        }
    }

    /// A subtransaction has aborted: what came from its first frame on is its own, and that of its own
    /// subtransactions, which aborted with it.
    pub fn abort(&mut self, subxid: u32) {
        if let Some(begin) = self.begins.get(&subxid).copied() {
            self.cut_off(begin);
        }
        if self.messages.last() == Some(&self.end) {
            self.doubtful.get_or_insert(self.end);
        }
    }

    fn cut_off(&mut self, begin: u64) {
        self.end = begin;
        self.written = self.written.min(begin);
        self.last = self.xid;
        while let Some((of, _)) = self.subtransactions.pop_if(|(_, at)| *at >= begin) {
            self.begins.remove(&of);
        }
        while self.messages.pop_if(|end| *end > begin).is_some() {}
        self.first.take_if(|(at, _)| *at >= begin);
        // What was doubtful is gone.
        self.doubtful.take_if(|end| *end > begin);
    }
}
