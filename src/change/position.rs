//! The order of changes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Lsn;

/// A server timeline: grows by one at each promotion or point-in-time restore.
pub type Timeline = u32;

/// Where a change stands among all changes of its database.
///
/// `ordinal` counts, from 1, every row change, truncate and logical message of the transaction in the
/// order of the wire and before any filter, so that it comes out the same each time the server decodes
/// the transaction. Change LSNs of concurrent transactions interleave and are therefore no order.
///
/// Rows of a backfill stand one byte before the consistent point of their snapshot: WAL records begin at
/// multiples of eight, so no commit record can share that LSN, and every streamed transaction follows.
///
/// Text form: `timeline/commit_lsn/ordinal`, as in `1/0/16B3748/12`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Timeline on which the transaction committed.
    pub timeline: Timeline,
    /// LSN of the transaction's commit record (not the position just past it).
    pub commit_lsn: Lsn,
    /// Place within the transaction, from 1.
    pub ordinal: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.timeline, self.commit_lsn, self.ordinal)
    }
}

/// Text that is not a [`Position`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a position; expected timeline/commit_lsn/ordinal such as 1/0/16B3748/12")]
pub struct ParsePositionError(pub String);

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (timeline, rest) = text.split_once('/')?;
            let (commit_lsn, ordinal) = rest.rsplit_once('/')?;
            Some(Self {
                timeline: timeline.parse().ok()?,
                commit_lsn: commit_lsn.parse().ok()?,
                ordinal: ordinal.parse().ok()?,
            })
        };
        parse().ok_or_else(|| ParsePositionError(text.to_owned()))
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_by_timeline_then_commit_then_ordinal() {
        let at = |timeline, lsn, ordinal| Position { timeline, commit_lsn: Lsn(lsn), ordinal };
        let sorted = [at(1, 5, 9), at(1, 6, 1), at(1, 6, 2), at(2, 1, 1)];
        assert!(sorted.is_sorted());
    }

    #[test]
    fn text_form_round_trips() {
        let position = Position { timeline: 3, commit_lsn: Lsn(0x16_B374_D848), ordinal: 12 };
        assert_eq!(position.to_string(), "3/16/B374D848/12");
        assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        assert!("3/16/12".parse::<Position>().is_err());
    }
}
