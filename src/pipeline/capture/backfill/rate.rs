//! A limit on bytes a second, for several who share it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Bytes a second.
#[derive(Debug)]
pub struct Rate {
    per_second: Option<u64>,
    /// When all that was taken is within the limit.
    paid: Mutex<Instant>,
}

impl Rate {
    /// None: as many as there are.
    pub fn new(per_second: Option<u64>) -> Self {
        Self { per_second, paid: Mutex::new(Instant::now()) }
    }

    /// Waits until these bytes, which were taken, are within the limit. Cancel-safe: they count all the same.
    pub async fn took(&self, bytes: u64) {
        if let Some(paid) = self.paid(bytes, Instant::now()) {
            tokio::time::sleep_until(paid).await;
        }
    }

    fn paid(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let per_second = self.per_second?;
        // It holds one instant, which no panic leaves half written.
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(now) + Duration::from_secs_f64(bytes as f64 / per_second as f64);
        Some(*paid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_share_a_limit_together_keep_to_it() {
        let rate = Rate::new(Some(1000));
        let now = Instant::now() + Duration::from_secs(1);
        let waits: Vec<_> = (0..3).filter_map(|_| rate.paid(500, now)).map(|paid| paid - now).collect();
        assert_eq!(waits, [500, 1000, 1500].map(Duration::from_millis));
        let later = now + Duration::from_secs(60);
        assert_eq!(rate.paid(500, later), Some(later + Duration::from_millis(500)), "nothing is saved up");
        assert_eq!(Rate::new(None).paid(u64::MAX, now), None);
    }
}
