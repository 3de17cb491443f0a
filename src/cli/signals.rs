//! Leaving when asked to.

use tokio::signal::unix::{SignalKind, signal};

use crate::runtime::{Error, Result, Shutdown};

/// From now on the first SIGTERM or Ctrl-C raises the flag, so that everything drains and leaves; the second
/// ends the process at once, with exit code 1. That is safe at any time: what is not durable is read again.
///
/// # Errors
/// Class `Operator` when the handlers cannot be set. Must be called within a runtime.
pub fn raise_on_signal(shutdown: &Shutdown) -> Result<()> {
    let handler =
        |kind| signal(kind).map_err(|error| Error::operator("cannot wait for signals").cause(error));
    let mut terminate = handler(SignalKind::terminate())?;
    let mut interrupt = handler(SignalKind::interrupt())?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "Ctrl-C",
            }
        };
        let name = next().await;
        tracing::info!("{name}: draining; again to leave at once");
        shutdown.raise();
        let name = next().await;
        tracing::warn!(
            "{name} again: leaving at once; what was not durable is read again after the next start"
        );
        std::process::exit(1);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn sigterm_raises_the_flag() {
        let shutdown = Shutdown::new();
        raise_on_signal(&shutdown).unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        tokio::time::timeout(Duration::from_secs(60), shutdown.raised()).await.unwrap();
    }
}
