//! Telling every task to drain and leave.

use tokio::sync::watch;

/// A flag that is raised once. Clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown {
    raised: watch::Sender<bool>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A flag that is down.
    pub fn new() -> Self {
        Self { raised: watch::Sender::new(false) }
    }

    /// Raises the flag; more than once does no harm.
    pub fn raise(&self) {
        self.raised.send_replace(true);
    }

    /// Whether the flag is up.
    pub fn is_raised(&self) -> bool {
        *self.raised.borrow()
    }

    /// Waits until the flag is up. Cancel-safe.
    pub async fn raised(&self) {
        let mut receiver = self.raised.subscribe();
        // Only fails when every sender is gone, and `self` is one.
        let _ = receiver.wait_for(|raised| *raised).await;
    }
}
