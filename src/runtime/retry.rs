//! Waiting between tries.

use std::time::Duration;

/// Exponential waiting times with jitter: doubles from `first` up to `longest`, each wait between half and
/// the whole of its step, so that thirty-five connectors do not come back in the same instant.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
}

impl Backoff {
    /// Waits from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, tries: 0 }
    }

    /// The next waiting time.
    pub fn next_wait(&mut self) -> Duration {
        let step = self.first.saturating_mul(1 << self.tries.min(16)).min(self.longest);
        self.tries = self.tries.saturating_add(1);
        let nanos = step.as_nanos() as u64;
        Duration::from_nanos(nanos / 2 + random_u64() % (nanos / 2 + 1))
    }

    /// Starts again from `first`, after a success.
    pub const fn reset(&mut self) {
        self.tries = 0;
    }

    /// Tries since the last success.
    pub const fn tries(&self) -> u32 {
        self.tries
    }
}

/// Not for secrets: the standard library's per-instance hash seeds are random enough for jitter.
fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for step in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next_wait().as_millis();
            assert!((step / 2..=step).contains(&wait), "{wait} is not within {step}/2..={step}");
        }
        backoff.reset();
        assert!(backoff.next_wait().as_millis() <= 100);
    }
}
