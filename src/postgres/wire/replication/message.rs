//! The messages inside `CopyData`.

use crate::change::Lsn;

/// Microseconds from 1970-01-01 to 2000-01-01, Postgres's epoch.
pub(super) const EPOCH_US: i64 = 946_684_800_000_000;

/// A message of the replication stream, borrowed from the read buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationMessage<'a> {
    /// `w`: output of the plugin.
    XLogData {
        /// The change's LSN; for a commit, the LSN just past it. Zero for messages without one (Relation, Type).
        wal_start: Lsn,
        /// End of WAL that the server had read when it sent this.
        wal_end: Lsn,
        /// The server's clock: microseconds since 1970-01-01.
        server_time_us: i64,
        /// One pgoutput message.
        data: &'a [u8],
    },
    /// `k`: a sign of life.
    Keepalive {
        /// End of WAL that the server has decoded and sent.
        wal_end: Lsn,
        /// The server's clock: microseconds since 1970-01-01.
        server_time_us: i64,
        /// The server waits for a status update; it is on its way already.
        reply_requested: bool,
    },
}

impl<'a> ReplicationMessage<'a> {
    /// Reads the body of a `CopyData`; `None` if it is cut short, too long or of an unknown kind.
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let (kind, rest) = body.split_first()?;
        match kind {
            b'w' => {
                let (wal_start, rest) = take_u64(rest)?;
                let (wal_end, rest) = take_u64(rest)?;
                let (time, data) = take_u64(rest)?;
                Some(Self::XLogData {
                    wal_start: Lsn(wal_start),
                    wal_end: Lsn(wal_end),
                    server_time_us: unix_us(time),
                    data,
                })
            }
            b'k' => {
                let (wal_end, rest) = take_u64(rest)?;
                let (time, rest) = take_u64(rest)?;
                let [reply] = rest else { return None };
                Some(Self::Keepalive {
                    wal_end: Lsn(wal_end),
                    server_time_us: unix_us(time),
                    reply_requested: *reply != 0,
                })
            }
            _ => None,
        }
    }
}

/// Whether what follows is within a part of a transaction in progress, where this `CopyData` decides it: `S` and `E` of
/// pgoutput.
pub(super) fn part(body: &[u8]) -> Option<bool> {
    match (body.first()?, body.get(1 + 3 * 8)?) {
        (b'w', b'S') => Some(true),
        (b'w', b'E') => Some(false),
        _ => None,
    }
}

fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*head), rest))
}

const fn unix_us(postgres_us: u64) -> i64 {
    (postgres_us as i64).saturating_add(EPOCH_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_or_refused() {
        let mut data = vec![b'w'];
        for number in [1_u64, 2, 3] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        data.extend_from_slice(b"xyz");
        let wanted = ReplicationMessage::XLogData {
            wal_start: Lsn(1),
            wal_end: Lsn(2),
            server_time_us: EPOCH_US + 3,
            data: b"xyz",
        };
        assert_eq!(ReplicationMessage::parse(&data), Some(wanted));
        let mut keepalive = vec![b'k'];
        keepalive.extend_from_slice(&9_u64.to_be_bytes());
        keepalive.extend_from_slice(&0_u64.to_be_bytes());
        keepalive.push(1);
        let wanted = ReplicationMessage::Keepalive {
            wal_end: Lsn(9),
            server_time_us: EPOCH_US,
            reply_requested: true,
        };
        assert_eq!(ReplicationMessage::parse(&keepalive), Some(wanted));
        for end in 0..keepalive.len() {
            assert_eq!(ReplicationMessage::parse(&keepalive[..end]), None);
        }
        keepalive.push(0);
        assert_eq!(ReplicationMessage::parse(&keepalive), None, "leftover bytes");
        assert_eq!(ReplicationMessage::parse(b"z"), None);
    }
}
