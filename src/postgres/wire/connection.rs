//! Frames: a tag, a length, a body. One buffer holds what was read; bodies are borrowed from it.
//!
//! ```text
//!   data:  [ given out ... | frame | frame | half a fra ]      <── read
//!                          ^ at
//! ```
//!
//! [`FrameBuffer::next`] only moves `at`; bytes move when more room is needed, in [`FrameBuffer::fill`]. So a
//! frame's body stays where it is until the next `fill`, and the borrow checker holds callers to that. `CopyData` beyond
//! [`Abridge::bytes_max`] is not held: what is left of it without its long values is given out in its place.
//!
//! Source: <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::super::abridge::Abridger;
use super::error::{self, ServerError};
use super::stream::Stream;
use crate::runtime::{Error, Result};

/// What one `fill` reads at most (unless a frame is longer).
pub(super) const READ_BYTES_MAX: usize = 256 * 1024;

/// Above this capacity the buffer is given back once the frame which needed it is done.
const KEEP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Tag and length.
const HEADER_BYTES: usize = 5;

/// A frame's place in the buffer, good until the next `fill`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) tag: u8,
    start: usize,
    end: usize,
    /// It is not in the buffer, but what was left of it.
    abridged: bool,
}

/// A frame whose long values are left out while it arrives.
struct Long {
    tag: u8,
    /// Bytes of its body that have not come.
    left: usize,
    abridger: Abridger,
    /// What is left of the body so far.
    body: Vec<u8>,
}

/// What the buffer does about `CopyData` that is too large to be held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abridge {
    /// Larger bodies are too large.
    pub(super) bytes_max: usize,
    /// What is in them.
    pub(super) content: Content,
}

/// What is in `CopyData`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Rows of a `COPY`.
    Rows,
    /// The replication stream.
    Wal {
        /// Within a part of a transaction in progress.
        in_part: bool,
    },
}

/// Bytes read, cut into frames.
pub(super) struct FrameBuffer {
    data: BytesMut,
    at: usize,
    /// Longest body accepted: small until the server is authenticated, then what the protocol allows.
    body_bytes_max: usize,
    /// Set: of larger `CopyData` long values are left out.
    pub(super) abridge: Option<Abridge>,
    long: Option<Long>,
    /// The body of the abridged frame that was given out last.
    abridged: Vec<u8>,
}

impl FrameBuffer {
    pub(super) fn new(body_bytes_max: usize) -> Self {
        Self { data: BytesMut::new(), at: 0, body_bytes_max, abridge: None, long: None, abridged: Vec::new() }
    }

    /// The length of the frame at `at` with its header, if its header is there.
    fn frame_bytes(&self) -> io::Result<Option<usize>> {
        let Some(header) = self.data.get(self.at..self.at + HEADER_BYTES) else { return Ok(None) };
        let length = i32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        match usize::try_from(length) {
            Ok(length) if length >= 4 && length - 4 <= self.body_bytes_max => Ok(Some(length + 1)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "a message of length {length} came from the server; this is not the Postgres protocol"
                ),
            )),
        }
    }

    /// The next whole frame, if one is buffered.
    pub(super) fn next(&mut self) -> io::Result<Option<Frame>> {
        if self.long.is_some() {
            return Ok(self.abridged_frame());
        }
        let Some(bytes) = self.frame_bytes()? else { return Ok(None) };
        let tag = self.data[self.at];
        if let Some(Abridge { bytes_max, content }) = self.abridge
            && tag == b'd'
            && bytes - HEADER_BYTES > bytes_max
        {
            let abridger = match content {
                Content::Rows => Abridger::row(),
                Content::Wal { in_part } => Abridger::wal(in_part),
            };
            self.long = Some(Long { tag, left: bytes - HEADER_BYTES, abridger, body: Vec::new() });
            self.at += HEADER_BYTES;
            return Ok(self.abridged_frame());
        }
        if self.data.len() - self.at < bytes {
            return Ok(None);
        }
        let frame = Frame { tag, start: self.at + HEADER_BYTES, end: self.at + bytes, abridged: false };
        self.at = frame.end;
        Ok(Some(frame))
    }

    /// Takes what has come of a frame that is abridged, and gives it when that was all.
    fn abridged_frame(&mut self) -> Option<Frame> {
        let long = self.long.as_mut()?;
        let part = long.left.min(self.data.len() - self.at);
        long.abridger.feed(&self.data[self.at..self.at + part], &mut long.body);
        self.at += part;
        long.left -= part;
        if long.left > 0 {
            return None;
        }
        let Long { tag, mut abridger, mut body, .. } = self.long.take()?;
        abridger.finish(&mut body);
        self.abridged = body;
        Some(Frame { tag, start: 0, end: self.abridged.len(), abridged: true })
    }

    /// The body of a frame given out since the last `fill`.
    pub(super) fn body(&self, frame: Frame) -> &[u8] {
        let from = if frame.abridged { &self.abridged[..] } else { &self.data[..] };
        &from[frame.start..frame.end]
    }

    /// Reads what the socket has, at most [`READ_BYTES_MAX`] or the rest of the frame that has begun; waits for
    /// the first byte only. Returns the number of bytes; 0 means that the server has closed. Cancel-safe.
    pub(super) async fn fill(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        let limit = self.make_room()?;
        let data = &mut self.data;
        let mut total = 0;
        // TLS hands out one record (16 KiB) a read: read on as long as that needs no waiting.
        poll_fn(|cx| {
            loop {
                let mut room = (&mut *data).limit(limit - total);
                match pin!(reader.read_buf(&mut room)).poll(cx) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(total)),
                    Poll::Ready(Ok(count)) => total += count,
                    // An error that follows data comes again with the next read.
                    Poll::Ready(Err(_)) | Poll::Pending if total > 0 => return Poll::Ready(Ok(total)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
                if total == limit {
                    return Poll::Ready(Ok(total));
                }
            }
        })
        .await
    }

    /// Drops what was given out and makes room; returns how much to read at most.
    fn make_room(&mut self) -> io::Result<usize> {
        self.abridged = Vec::new();
        let missing = match self.long {
            Some(_) => 0,
            None => self.frame_bytes()?.map_or(0, |bytes| bytes - (self.data.len() - self.at).min(bytes)),
        };
        let limit = missing.max(READ_BYTES_MAX);
        // Asked before `advance`, after which the room in front is no longer counted, though it is still held.
        let capacity = self.data.capacity();
        self.data.advance(self.at);
        self.at = 0;
        if capacity > KEEP_BYTES_MAX && self.data.len() + limit <= KEEP_BYTES_MAX {
            let mut smaller = BytesMut::with_capacity(self.data.len() + limit);
            smaller.extend_from_slice(&self.data);
            self.data = smaller;
        }
        self.data.reserve(limit);
        Ok(limit)
    }
}

/// A session's socket with its buffers.
pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) buffer: FrameBuffer,
    /// Messages to send.
    pub(super) out: BytesMut,
    /// How messages name the server.
    pub(super) address: String,
    /// `server_version`, as the server reports it.
    pub(super) server_version: String,
    /// The server's process for this session; none where a pooler keeps it to itself.
    pub(super) server_process: Option<i32>,
    /// `in_hot_standby` and `default_transaction_read_only`, as reported.
    pub(super) in_hot_standby: Option<bool>,
    pub(super) default_read_only: Option<bool>,
}

impl Connection {
    /// Body limit until the server has shown who it is.
    const UNTRUSTED_BODY_BYTES_MAX: usize = 1024 * 1024;

    pub(super) fn new(stream: Stream, address: String) -> Self {
        let buffer = FrameBuffer::new(Self::UNTRUSTED_BODY_BYTES_MAX);
        Self {
            stream,
            buffer,
            out: BytesMut::new(),
            address,
            server_version: String::new(),
            server_process: None,
            in_hot_standby: None,
            default_read_only: None,
        }
    }

    /// Accepts bodies of any length from now on.
    pub(super) const fn trust(&mut self) {
        self.buffer.body_bytes_max = i32::MAX as usize;
    }

    /// The connection's error for a failed read or write.
    pub(super) fn lost(&self, error: io::Error) -> Error {
        error::lost(&self.address, error)
    }

    /// Sends what `out` holds.
    pub(super) async fn send(&mut self) -> Result<()> {
        let sent = async {
            self.stream.write_all_buf(&mut self.out).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| error::lost(&self.address, error))
    }

    /// The next frame that is not a notice, a parameter or a notification.
    pub(super) async fn next_frame(&mut self) -> Result<Frame> {
        loop {
            match self.buffer.next().map_err(|error| self.lost(error))? {
                Some(frame) if matches!(frame.tag, b'N' | b'S' | b'A') => self.note(frame),
                Some(frame) => return Ok(frame),
                None => self.fill().await?,
            }
        }
    }

    async fn fill(&mut self) -> Result<()> {
        match self.buffer.fill(&mut self.stream).await {
            Ok(0) => Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(self.lost(error)),
        }
    }

    pub(super) fn body(&self, frame: Frame) -> &[u8] {
        self.buffer.body(frame)
    }

    fn note(&mut self, frame: Frame) {
        match frame.tag {
            b'S' => {
                let mut parts = self.buffer.body(frame).split(|byte| *byte == 0);
                let (name, value) = (parts.next(), parts.next().unwrap_or_default());
                match name {
                    Some(b"server_version") => {
                        self.server_version = String::from_utf8_lossy(value).into_owned();
                    }
                    Some(b"in_hot_standby") => self.in_hot_standby = Some(value == b"on"),
                    Some(b"default_transaction_read_only") => self.default_read_only = Some(value == b"on"),
                    _ => {}
                }
            }
            b'N' => log_notice(&self.address, self.buffer.body(frame)),
            _ => {}
        }
    }
}

/// Logs a `NoticeResponse`.
pub(super) fn log_notice(address: &str, body: &[u8]) {
    let notice = ServerError::parse(body);
    tracing::debug!(server = address, severity = notice.severity, "{notice}");
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fill_from(buffer: &mut FrameBuffer, mut bytes: &[u8]) -> usize {
        buffer.fill(&mut bytes).await.unwrap()
    }

    #[tokio::test]
    async fn frames_come_out_whole_however_the_bytes_arrive() {
        let wire = b"Z\0\0\0\x05Id\0\0\0\x07abcD\0\0\0\x04";
        for cut in 0..=wire.len() {
            let mut buffer = FrameBuffer::new(100);
            let mut frames = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                fill_from(&mut buffer, part).await;
                while let Some(frame) = buffer.next().unwrap() {
                    frames.push((frame.tag, buffer.body(frame).to_vec()));
                }
            }
            let wanted = [(b'Z', b"I".to_vec()), (b'd', b"abc".to_vec()), (b'D', Vec::new())];
            assert_eq!(frames, wanted, "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn lengths_out_of_bounds_are_refused() {
        for wire in [b"d\0\0\0\x03abc", b"d\xff\xff\xff\xffabc", b"d\0\0\x01\0abc"] {
            let mut buffer = FrameBuffer::new(100);
            fill_from(&mut buffer, wire).await;
            assert!(buffer.next().is_err());
        }
    }

    #[tokio::test]
    async fn copy_data_that_is_too_large_is_never_held_and_what_is_left_of_it_comes_in_its_place() {
        let row = [b"1\t", &vec![b'x'; 10 * READ_BYTES_MAX][..], b"\n"].concat();
        let mut wire = Vec::new();
        for body in [&b"0\t\n"[..], &row, b"2\t\n", &row] {
            wire.push(b'd');
            wire.extend_from_slice(&(body.len() as i32 + 4).to_be_bytes());
            wire.extend_from_slice(body);
        }
        let mut reader = wire.as_slice();
        let mut buffer = FrameBuffer::new(row.len());
        buffer.abridge = Some(Abridge { bytes_max: READ_BYTES_MAX, content: Content::Rows });
        let (mut bodies, mut capacity) = (Vec::new(), 0);
        while bodies.len() < 4 {
            match buffer.next().unwrap() {
                Some(frame) => bodies.push(buffer.body(frame).to_vec()),
                None => assert!(buffer.fill(&mut reader).await.unwrap() > 0),
            }
            capacity = capacity.max(buffer.data.capacity());
        }
        let left = [b"1\t\\L2621440,", &[b'x'; 256][..], b"\n"].concat();
        assert_eq!(bodies, [&b"0\t\n"[..], &left, b"2\t\n", &left]);
        assert!(capacity < row.len() / 2, "{capacity}");
    }

    #[tokio::test]
    async fn the_buffer_grows_for_a_long_frame_and_shrinks_back() {
        let body = vec![7; 3 * KEEP_BYTES_MAX];
        let mut wire = vec![b'd'];
        wire.extend_from_slice(&(body.len() as i32 + 4).to_be_bytes());
        wire.extend_from_slice(&body);
        wire.extend_from_slice(b"Z\0\0\0\x05I");
        let mut reader = wire.as_slice();
        let mut buffer = FrameBuffer::new(body.len());
        let frame = loop {
            match buffer.next().unwrap() {
                Some(frame) => break frame,
                None => assert!(buffer.fill(&mut reader).await.unwrap() > 0),
            }
        };
        assert!(buffer.body(frame) == body);
        while buffer.next().unwrap().is_none() {
            buffer.fill(&mut reader).await.unwrap();
        }
        assert!(buffer.data.capacity() < KEEP_BYTES_MAX, "{}", buffer.data.capacity());
    }
}
