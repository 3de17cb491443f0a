//! Standby status updates, from their own task with their own timer. See the module above for why.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::message::EPOCH_US;
use crate::change::Lsn;

/// Progress is reported when the last update is this old: what the server keeps for us, it keeps no longer than
/// it must, and is not made to save its slot at every append.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// What the stream, the handles and the task share.
#[derive(Debug)]
pub(super) struct Shared {
    received: AtomicU64,
    flushed: AtomicU64,
    /// Nothing is told to be flushed.
    held: AtomicBool,
    /// The next update asks the server for a reply.
    ask: AtomicBool,
    stop: AtomicBool,
    wake: Notify,
    /// `flushed` has moved.
    progressed: Notify,
    /// Raised once the task has failed; `failure` says why.
    failed: Notify,
    has_failed: AtomicBool,
    failure: Mutex<Option<io::Error>>,
}

impl Shared {
    pub(super) fn new(start: Lsn) -> Self {
        Self {
            received: AtomicU64::new(start.0),
            flushed: AtomicU64::new(start.0),
            held: AtomicBool::new(false),
            ask: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            wake: Notify::new(),
            progressed: Notify::new(),
            failed: Notify::new(),
            has_failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// Notes what was read. Called for each message: a plain load and store, since the stream is the one writer.
    pub(super) fn received(&self, lsn: Lsn) {
        if lsn.0 > self.received.load(Ordering::Relaxed) {
            self.received.store(lsn.0, Ordering::Relaxed);
        }
    }

    pub(super) fn send_now(&self) {
        // Keeps one permit: calls before the task gets to it become one update.
        self.wake.notify_one();
    }

    pub(super) fn ask_for_reply(&self) {
        self.ask.store(true, Ordering::Release);
        self.send_now();
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.send_now();
    }

    /// Waits until the task has failed. Cancel-safe.
    pub(super) async fn failed(&self) {
        let raised = self.failed.notified();
        if !self.has_failed.load(Ordering::Acquire) {
            raised.await;
        }
    }

    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn fail(&self, error: io::Error) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.has_failed.store(true, Ordering::Release);
        self.failed.notify_waiters();
    }

    /// A `CopyData` with a standby status update.
    fn status(&self) -> [u8; 39] {
        let flushed = self.flushed.load(Ordering::Acquire);
        let written = self.received.load(Ordering::Relaxed).max(flushed);
        // Zero is no position: the slot stays where it is, and a server that stops waits for what is written.
        let flushed = if self.held.load(Ordering::Acquire) { 0 } else { flushed };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock = (now.as_micros() as i64).saturating_sub(EPOCH_US);
        let mut message = [0; 39];
        message[0] = b'd';
        message[1..5].copy_from_slice(&38_u32.to_be_bytes());
        message[5] = b'r';
        message[6..14].copy_from_slice(&written.to_be_bytes());
        message[14..22].copy_from_slice(&flushed.to_be_bytes());
        message[22..30].copy_from_slice(&flushed.to_be_bytes());
        message[30..38].copy_from_slice(&clock.to_be_bytes());
        message[38] = u8::from(self.ask.swap(false, Ordering::AcqRel));
        message
    }
}

/// Reports progress to the server. Clones share it; it outlives the stream harmlessly.
#[derive(Clone, Debug)]
pub struct Feedback {
    shared: Arc<Shared>,
}

impl Feedback {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Everything before `lsn` is durable downstream: from the next update on, the server may forget it. Must be
    /// a transaction's end, or a keepalive's position while nothing is in flight. Never goes back: a smaller
    /// LSN is ignored. Goes out soon, a tenth of a second after the update before; [`Feedback::send_now`] does
    /// not wait for it.
    pub fn set_flushed(&self, lsn: Lsn) {
        if self.shared.flushed.fetch_max(lsn.0, Ordering::AcqRel) < lsn.0 {
            self.shared.progressed.notify_one();
        }
    }

    /// While it is held, the server is told of nothing that is flushed, whatever [`Feedback::set_flushed`] says: before
    /// it there is something that the server would forget.
    pub fn hold(&self, held: bool) {
        self.shared.held.store(held, Ordering::Release);
    }

    /// What is durable.
    pub fn flushed(&self) -> Lsn {
        Lsn(self.shared.flushed.load(Ordering::Acquire))
    }

    /// The furthest LSN that has been read from the stream.
    pub fn received(&self) -> Lsn {
        Lsn(self.shared.received.load(Ordering::Relaxed))
    }

    /// Sends an update now. Calls in quick succession become one.
    pub fn send_now(&self) {
        self.shared.send_now();
    }
}

/// Sends an update every `every`, soon after progress, and whenever woken, until told to stop (then also
/// `CopyDone`; the write half comes back) or a write fails (then `None`, and the failure is left in `shared`).
pub(super) async fn run<W: AsyncWrite + Unpin>(
    mut writer: W,
    shared: Arc<Shared>,
    every: Duration,
) -> Option<W> {
    let mut timer = interval(every.max(Duration::from_millis(10)));
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent_at = Instant::now();
    loop {
        // Whichever comes first, the update tells all progress so far: nothing is missed where this is dropped.
        let progress = async {
            shared.progressed.notified().await;
            sleep_until(sent_at + PROGRESS_PAUSE).await;
        };
        tokio::select! {
            _ = timer.tick() => {}
            () = shared.wake.notified() => {}
            () = progress => {}
        }
        sent_at = Instant::now();
        let stop = shared.stop.load(Ordering::Acquire);
        let mut message = shared.status().to_vec();
        if stop {
            // CopyDone.
            message.extend_from_slice(b"c\0\0\0\x04");
        }
        let sent = async {
            writer.write_all(&message).await?;
            writer.flush().await
        };
        match sent.await {
            Ok(()) if stop => return Some(writer),
            Ok(()) => {}
            Err(error) => {
                shared.fail(error);
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn the_flushed_lsn_never_goes_back() {
        let feedback = Feedback::new(Arc::new(Shared::new(Lsn(5))));
        feedback.set_flushed(Lsn(9));
        feedback.set_flushed(Lsn(7));
        assert_eq!(feedback.flushed(), Lsn(9));
    }

    #[test]
    fn a_status_update_has_the_protocols_layout() {
        let shared = Shared::new(Lsn(1));
        shared.received(Lsn(3));
        shared.flushed.store(2, Ordering::Release);
        shared.ask.store(true, Ordering::Release);
        let message = shared.status();
        let number = |at: usize| u64::from_be_bytes(message[at..at + 8].try_into().unwrap());
        assert_eq!((message[0], message[4], message[5]), (b'd', 38, b'r'));
        assert_eq!((number(6), number(14), number(22), message[38]), (3, 2, 2, 1));
        assert_eq!(shared.status()[38], 0, "a reply is asked for once");
    }

    #[test]
    fn a_held_update_tells_of_nothing_that_is_flushed() {
        let shared = Arc::new(Shared::new(Lsn(1)));
        let feedback = Feedback::new(shared.clone());
        feedback.hold(true);
        feedback.set_flushed(Lsn(9));
        let number =
            |message: [u8; 39], at: usize| u64::from_be_bytes(message[at..at + 8].try_into().unwrap());
        let held = shared.status();
        assert_eq!((number(held, 6), number(held, 14)), (9, 0));
        feedback.hold(false);
        assert_eq!(number(shared.status(), 14), 9);
    }

    #[tokio::test]
    async fn progress_is_reported_long_before_the_timer() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let shared = Arc::new(Shared::new(Lsn(1)));
        let feedback = Feedback::new(shared.clone());
        let task = tokio::spawn(run(ours, shared, Duration::from_secs(3600)));
        let mut update = [0; 39];
        // The timer's first tick is at once.
        theirs.read_exact(&mut update).await.unwrap();
        feedback.set_flushed(Lsn(7));
        tokio::time::timeout(Duration::from_secs(60), theirs.read_exact(&mut update)).await.unwrap().unwrap();
        assert_eq!(u64::from_be_bytes(update[14..22].try_into().unwrap()), 7);
        task.abort();
    }

    #[tokio::test]
    async fn a_failed_write_is_kept_for_the_reader() {
        let (ours, theirs) = tokio::io::duplex(8);
        drop(theirs);
        let shared = Arc::new(Shared::new(Lsn(0)));
        assert!(run(ours, shared.clone(), Duration::from_secs(1)).await.is_none());
        shared.failed().await;
        assert!(shared.take_failure().is_some());
    }
}
