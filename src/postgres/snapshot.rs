//! Who sees what: a transaction comes in the stream when its commit record is written, and others see it a moment later,
//! when it has left the list of running ones; a synchronous standby may make that moment long. Whoever asks the catalog
//! about something in the stream has to know whether the answer is from after it.

use super::wire::Client;
use crate::runtime::{Error, Result};

/// A `pg_snapshot`, of whose transaction ids the lower 32 bits count: the stream has no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    xmax: u32,
    running: Vec<u32>,
}

impl Snapshot {
    /// The snapshot of the client's transaction, or of a moment outside of one.
    pub async fn current(client: &mut Client) -> Result<Self> {
        let row = client.query_one("SELECT pg_current_snapshot()").await?;
        Self::parse(row.get(0).unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self> {
        let wrong =
            || Error::operator(format!("pg_current_snapshot() is {text:?}; expected xmin:xmax:xip,…"));
        let xid = |text: &str| text.parse::<u64>().map(|xid| xid as u32).map_err(|_| wrong());
        let mut parts = text.splitn(3, ':');
        let (Some(_), Some(xmax), Some(running)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let running = running.split(',').filter(|xid| !xid.is_empty()).map(xid).collect::<Result<_>>()?;
        Ok(Self { xmax: xid(xmax)?, running })
    }

    /// Whether it sees what a transaction did which has committed, by `TransactionIdPrecedes` of `transam.c`: half of all ids lie before one.
    pub fn sees(&self, xid: u32) -> bool {
        (xid.wrapping_sub(self.xmax) as i32) < 0 && !self.running.contains(&xid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_ended_before_it_also_across_the_wraparound() {
        let snapshot = Snapshot::parse("90:100:90,95").unwrap();
        assert_eq!(
            [89, 90, 91, 95, 99, 100, 101].map(|xid| snapshot.sees(xid)),
            [true, false, true, false, true, false, false]
        );
        let wrapped = Snapshot::parse("4294967290:4294967300:").unwrap();
        assert_eq!([u32::MAX, 3, 4].map(|xid| wrapped.sees(xid)), [true, true, false]);
        assert!(Snapshot::parse("1:2").is_err());
    }
}
