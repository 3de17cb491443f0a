//! Logical replication: reading the stream, and telling the server how far we are.
//!
//! ```text
//!   socket ── fill ──> one buffer ── next_message ──> XLogData, Keepalive (borrowed)
//!                                          │ reply requested, received LSN
//!                                          v
//!   socket <── status updates ── feedback task <── set_flushed, send_now
//! ```
//!
//! **Why the source stays safe.** A walsender ends a session which has been silent for `wal_sender_timeout`. The
//! status updates therefore come from a task of their own, which owns the write half of the socket and its own
//! timer: they go out on time also when nobody calls [`ReplicationStream::fill`] for hours because everything
//! downstream is stuck. And they arrive: a walsender whose own send is blocked, since we do not read, waits for
//! the socket to become readable *or* writable and processes replies meanwhile (`WalSndWriteData`, which calls
//! `ProcessRepliesIfAny`, in `src/backend/replication/walsender.c`). All that a stuck downstream costs the server
//! is the WAL behind the slot.
//!
//! **Why the flushed LSN is safe.** [`Feedback::set_flushed`] is the only thing that moves it, and it never goes
//! back. What was merely read is reported as written, on which no slot ever advances.
//!
//! **Why reading waits.** The walsender makes one `send` per change. Waking up for each would cost more CPU than
//! decoding it, so `fill` lets [`ReplicationStream::coalesce`] pass between two reads of the socket, unless the
//! last one brought so much that more is surely there. At low rates a message is read at once; at high rates
//! there is about one wake-up a millisecond. The pause is the thread's, not the task's: a task's pause would park
//! the thread in `epoll_wait`, where each `send` of the server wakes it all the same. So `fill` belongs on a
//! runtime of its own, with one thread, whose other tasks (feedback, appends) can wait a millisecond.
//!
//! Source: <https://www.postgresql.org/docs/current/protocol-replication.html>.

mod feedback;
mod message;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::message::frontend;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::client::{Client, quote_ident, quote_literal};
use super::connection::{Connection, Content, Frame, FrameBuffer, log_notice};
use super::error::{self, ServerError, unexpected};
use super::stream::Stream;
use crate::change::Lsn;
use crate::runtime::{Error, Result};

use feedback::Shared;

pub use feedback::Feedback;
pub use message::ReplicationMessage;

/// A read that brought this much is followed by the next one at once.
const LARGE_READ_BYTES: usize = 64 * 1024;

/// How long the end of the stream may take in [`ReplicationStream::stop`].
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What to stream, and how to report.
#[derive(Clone, Debug)]
pub struct ReplicationOptions {
    /// Slot, with the plugin pgoutput.
    pub slot: String,
    /// Where to start. The server begins at the slot's `confirmed_flush_lsn` if that is further, silently.
    pub start: Lsn,
    /// Publications.
    pub publications: Vec<String>,
    /// Whether logical messages (`pg_logical_emit_message`) are sent.
    pub messages: bool,
    /// Whether transactions in progress are sent, and with that `proto_version`.
    pub streaming: Streaming,
    /// Longest time between two status updates: at most a third of the server's `wal_sender_timeout`.
    pub status_interval: Duration,
    /// How long the server may be silent before it is asked for a sign of life; after twice that, it is gone.
    pub silence_max: Duration,
}

/// Whether transactions are sent while they are in progress, once they are larger than `logical_decoding_work_mem`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    /// The server keeps them on its own disk until they commit.
    Off,
    /// They are sent in parts, between others.
    On,
    /// The same, and aborts come with their LSN and time (16 and later; `On` before).
    Parallel,
}

impl Streaming {
    /// The highest `proto_version` that a server has for it, and the `streaming` that goes with it.
    const fn of_server(self, version: u32) -> (u32, Self) {
        match (self, version) {
            (Self::Off, _) | (_, ..140_000) => (1, Self::Off),
            (_, ..150_000) => (2, Self::On),
            (_, ..160_000) => (3, Self::On),
            _ => (4, self),
        }
    }
}

impl ReplicationOptions {
    /// Protocol 1, with logical messages, a status update every 10 s, and a server silent for 30 s is asked.
    pub fn new(slot: impl Into<String>, start: Lsn, publication: impl Into<String>) -> Self {
        Self {
            slot: slot.into(),
            start,
            publications: vec![publication.into()],
            messages: true,
            streaming: Streaming::Off,
            status_interval: Duration::from_secs(10),
            silence_max: Duration::from_secs(30),
        }
    }

    fn command(&self, server_version: u32) -> String {
        let (protocol, streaming) = self.streaming.of_server(server_version);
        let publications: Vec<_> = self.publications.iter().map(|name| quote_ident(name)).collect();
        let mut options = format!(
            "proto_version '{protocol}', publication_names {}",
            replication_literal(&publications.join(","))
        );
        if self.messages {
            options.push_str(", messages 'true'");
        }
        match streaming {
            Streaming::Off => {}
            Streaming::On => options.push_str(", streaming 'on'"),
            Streaming::Parallel => options.push_str(", streaming 'parallel'"),
        }
        format!("START_REPLICATION SLOT {} LOGICAL {} ({options})", quote_ident(&self.slot), self.start)
    }
}

/// A literal for the replication grammar, which knows no `E''` and takes a backslash as it is.
fn replication_literal(text: &str) -> String {
    if text.contains('\\') { format!("'{}'", text.replace('\'', "''")) } else { quote_literal(text) }
}

impl Client {
    /// Starts streaming from a slot. The session must be [`super::Session::Replication`].
    pub async fn start_replication(mut self, options: &ReplicationOptions) -> Result<ReplicationStream> {
        self.send_query(&options.command(self.server_version())).await?;
        let frame = self.connection.next_frame().await?;
        match frame.tag {
            b'W' => Ok(ReplicationStream::new(self.connection, options)),
            b'E' => {
                let error = ServerError::parse(self.connection.body(frame));
                Err(error.into_error(format!("cannot stream from slot {:?}", options.slot)))
            }
            tag => Err(unexpected("the start of replication", tag)),
        }
    }
}

/// A running stream. Dropping it closes the connection, which releases the slot a moment later;
/// [`ReplicationStream::stop`] does it in order.
pub struct ReplicationStream {
    /// Least time between two reads of the socket, unless much is there: 1 ms; on a Unix socket none.
    pub coalesce: Duration,
    reader: ReadHalf<Stream>,
    buffer: FrameBuffer,
    shared: Arc<Shared>,
    /// The feedback task; it gives the write half back when it is told to stop.
    task: Option<JoinHandle<Option<WriteHalf<Stream>>>>,
    address: String,
    silence_max: Duration,
    last_read: Instant,
    last_read_bytes: usize,
    /// When the server was asked for a sign of life, if it has not given one since.
    asked: Option<Instant>,
}

impl fmt::Debug for ReplicationStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicationStream").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ReplicationStream {
    fn new(connection: Connection, options: &ReplicationOptions) -> Self {
        let Connection { stream, buffer, address, .. } = connection;
        // A Unix socket holds some two hundred small messages whatever their size (each counts as a buffer of its
        // own), so that waiting would only stop the walsender; it also wakes us for several at a time anyway.
        let coalesce =
            if matches!(stream, Stream::Unix(_)) { Duration::ZERO } else { Duration::from_millis(1) };
        let (reader, writer) = tokio::io::split(stream);
        let shared = Arc::new(Shared::new(options.start));
        let task = tokio::spawn(feedback::run(writer, shared.clone(), options.status_interval));
        Self {
            coalesce,
            reader,
            buffer,
            shared,
            task: Some(task),
            address,
            silence_max: options.silence_max,
            last_read: Instant::now(),
            last_read_bytes: 0,
            asked: None,
        }
    }

    /// The handle that reports progress to the server.
    pub fn feedback(&self) -> Feedback {
        Feedback::new(self.shared.clone())
    }

    /// Reads from the socket into the buffer: waits for the first byte, takes what is there. Call it when
    /// [`ReplicationStream::next_message`] has nothing more. Cancel-safe: nothing that was read is lost.
    ///
    /// Fails when the connection or the feedback task has failed, or when the server stays silent although it
    /// was asked for a sign of life; all of class `Retry`.
    pub async fn fill(&mut self) -> Result<()> {
        if self.last_read_bytes < LARGE_READ_BYTES {
            let wait = self.coalesce.saturating_sub(self.last_read.elapsed());
            if !wait.is_zero() {
                // The thread sleeps, not the task: see the module's head.
                std::thread::sleep(wait);
            }
        }
        loop {
            let deadline = match self.asked {
                Some(asked) => asked + self.silence_max,
                None => self.last_read + self.silence_max,
            };
            // The read comes first, so that a server which did answer is never taken for silent.
            let read = tokio::select! {
                biased;
                read = self.buffer.fill(&mut self.reader) => Some(read),
                () = self.shared.failed() => return Err(self.feedback_error()),
                () = sleep_until(deadline) => None,
            };
            match read {
                Some(read) => return self.note_read(read),
                None => self.note_silence()?,
            }
        }
    }

    fn note_read(&mut self, read: io::Result<usize>) -> Result<()> {
        match read {
            Ok(0) => Err(error::lost(&self.address, io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                self.last_read = Instant::now();
                self.last_read_bytes = count;
                self.asked = None;
                Ok(())
            }
            Err(error) => Err(error::lost(&self.address, error)),
        }
    }

    fn note_silence(&mut self) -> Result<()> {
        if self.asked.is_some() {
            return Err(Error::retry(format!(
                "the server at {} has been silent for {} s and does not answer",
                self.address,
                self.last_read.elapsed().as_secs()
            )));
        }
        self.asked = Some(Instant::now());
        self.shared.ask_for_reply();
        Ok(())
    }

    fn feedback_error(&self) -> Error {
        let cause = self.shared.take_failure().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
        error::lost(&self.address, cause)
    }

    /// The next message in the buffer, borrowed from it; `None` when [`ReplicationStream::fill`] is needed.
    ///
    /// A keepalive that asks for a reply is answered by this very call, through the feedback task. The server's
    /// errors, and the end of the stream (class `Retry`: a server that is shut down ends it), are errors.
    pub fn next_message(&mut self) -> Result<Option<ReplicationMessage<'_>>> {
        let Some(frame) = self.next_data()? else { return Ok(None) };
        if let Some(in_part) = message::part(self.buffer.body(frame))
            && let Some(abridge) = &mut self.buffer.abridge
        {
            abridge.content = Content::Wal { in_part };
        }
        let message = ReplicationMessage::parse(self.buffer.body(frame)).ok_or_else(|| {
            Error::operator(format!(
                "the server at {} sent a replication message that is cut short or unknown",
                self.address
            ))
        })?;
        match message {
            ReplicationMessage::XLogData { wal_start, .. } => self.shared.received(wal_start),
            ReplicationMessage::Keepalive { wal_end, reply_requested, .. } => {
                self.shared.received(wal_end);
                if reply_requested {
                    self.shared.send_now();
                }
            }
        }
        Ok(Some(message))
    }

    /// The next `CopyData` frame.
    fn next_data(&mut self) -> Result<Option<Frame>> {
        loop {
            let next = self.buffer.next().map_err(|error| error::lost(&self.address, error))?;
            let Some(frame) = next else { return Ok(None) };
            match frame.tag {
                b'd' => return Ok(Some(frame)),
                b'N' => self.notice(frame)?,
                b'S' | b'A' => {}
                b'E' => {
                    let error = ServerError::parse(self.buffer.body(frame));
                    return Err(error.into_error("the server ended the replication stream"));
                }
                b'c' | b'C' | b'Z' => {
                    return Err(Error::retry(format!(
                        "the server at {} ended the replication stream",
                        self.address
                    )));
                }
                tag => return Err(unexpected("replication", tag)),
            }
        }
    }

    /// PostgreSQL 18 only warns where earlier ones end the stream: a publication does not exist where the slot has
    /// come to, and changes are passed over. Nothing after the warning may be acknowledged.
    fn notice(&self, frame: Frame) -> Result<()> {
        let body = self.buffer.body(frame);
        let notice = ServerError::parse(body);
        if notice.passes_changes_over() {
            return Err(notice.into_error("the server passes over changes that were to be streamed"));
        }
        log_notice(&self.address, body);
        Ok(())
    }

    /// Reports the flushed LSN one last time, ends the stream, and waits (at most a few seconds) for the server's
    /// goodbye, so that the slot is free when this returns. What still arrives is discarded: it was not
    /// acknowledged, and comes again.
    pub async fn stop(mut self) -> Result<()> {
        let Some(task) = self.task.take() else { return Ok(()) };
        let abort = task.abort_handle();
        self.shared.stop();
        let ended = timeout(STOP_TIMEOUT, async {
            // Reading goes on while the last status is written: else both sides could wait for each other.
            let (writer, read) = tokio::join!(task, self.discard());
            read?;
            let Ok(Some(mut writer)) = writer else { return Err(self.feedback_error()) };
            let mut goodbye = bytes::BytesMut::new();
            frontend::terminate(&mut goodbye);
            writer.write_all(&goodbye).await.map_err(|error| error::lost(&self.address, error))?;
            writer.shutdown().await.map_err(|error| error::lost(&self.address, error))
        });
        ended.await.unwrap_or_else(|_| {
            // A server that does not read must not keep the task, and with it the connection.
            abort.abort();
            Err(Error::retry(format!("the server at {} did not end the stream in time", self.address)))
        })
    }

    /// Reads up to `ReadyForQuery`.
    async fn discard(&mut self) -> Result<()> {
        loop {
            while let Some(frame) = self.buffer.next().map_err(|error| error::lost(&self.address, error))? {
                match frame.tag {
                    b'Z' => return Ok(()),
                    b'E' => {
                        let error = ServerError::parse(self.buffer.body(frame));
                        return Err(error.into_error("the server ended the replication stream"));
                    }
                    _ => {}
                }
            }
            let read = self.buffer.fill(&mut self.reader).await;
            self.note_read(read)?;
        }
    }
}

impl Drop for ReplicationStream {
    fn drop(&mut self) {
        // Else the task would keep the connection, and with it the slot, for ever.
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_quotes_slot_and_publications() {
        let mut options = ReplicationOptions::new("s", Lsn(0x16_0000_0001), "it's\"p");
        options.publications.push("q".into());
        assert_eq!(
            options.command(150_000),
            "START_REPLICATION SLOT \"s\" LOGICAL 16/1 (proto_version '1', publication_names '\"it''s\"\"p\",\"q\"', \
             messages 'true')"
        );
    }

    #[test]
    fn the_command_asks_for_what_the_server_has() {
        let ends = |streaming, version| {
            let options = ReplicationOptions { streaming, ..ReplicationOptions::new("s", Lsn(0), "p") };
            let command = options.command(version);
            let (_, asked) = command.split_once("proto_version ").unwrap();
            asked.replace(", publication_names '\"p\"', messages 'true'", "")
        };
        for version in [130_000, 140_011, 150_005, 160_000, 180_001] {
            assert_eq!(ends(Streaming::Off, version), "'1')");
        }
        assert_eq!(ends(Streaming::On, 130_020), "'1')");
        assert_eq!(ends(Streaming::On, 140_011), "'2', streaming 'on')");
        assert_eq!(ends(Streaming::Parallel, 150_005), "'3', streaming 'on')");
        assert_eq!(ends(Streaming::On, 160_000), "'4', streaming 'on')");
        assert_eq!(ends(Streaming::Parallel, 180_001), "'4', streaming 'parallel')");
    }
}
