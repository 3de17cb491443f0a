//! What a table was at the source when its rows were accounted for, and whether the stream has told what became of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::backfill::Reason;
use crate::postgres::published::Published;

/// What a table was at the source when all its rows were accounted for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    oid: u32,
    /// What made it a member of the publication.
    member: u32,
    /// Which operations were published.
    operations: String,
    /// The publication's row filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
    /// Highest number of a column.
    attributes: i16,
    /// Columns that were not published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unpublished: Vec<i16>,
    /// Of a table that is published as the root of its partitions, their files and when they were attached, by OID;
    /// else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parts: Option<BTreeMap<u32, (u32, u64)>>,
    /// The condition of rows which its copy took; the others are accounted for as left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copied_where: Option<String>,
}

impl From<&Published> for Standing {
    fn from(table: &Published) -> Self {
        Self {
            oid: table.oid,
            member: table.member,
            operations: table.operations.clone(),
            filter: table.filter.clone(),
            attributes: table.attributes,
            unpublished: table.unpublished.clone(),
            parts: table
                .partitioned
                .then(|| table.parts.iter().map(|(oid, part)| (*oid, (part.file, part.joined))).collect()),
            copied_where: table.copied_where.clone(),
        }
    }
}

impl Standing {
    /// The condition of rows which its copy took, if that was not all of them.
    pub fn copied_where(&self) -> Option<&str> {
        self.copied_where.as_deref()
    }

    /// What the table is at a later sight, without a copy since.
    pub fn later(&self, now: &Published) -> Self {
        Self { copied_where: self.copied_where.clone(), ..Self::from(now) }
    }

    /// Why a table that was like this needs a copy now. `truncated_by`: transactions whose TRUNCATE of the whole table
    /// was in the stream.
    pub fn lost(&self, now: &Published, truncated_by: &[u32]) -> Option<Reason> {
        if self.oid != now.oid {
            return Some(Reason::MadeAgain);
        }
        if self.member != now.member {
            return Some(Reason::Returned("it was taken out of the publication, and put back".to_owned()));
        }
        if now.operations.chars().any(|operation| !self.operations.contains(operation)) {
            return Some(Reason::Returned("the publication did not publish all operations".to_owned()));
        }
        if self.filter != now.filter {
            return Some(Reason::Filter);
        }
        if self.unpublished.iter().any(|number| !now.unpublished.contains(number)) && !self.only_dropped(now)
        {
            return Some(Reason::Columns);
        }
        let before = self.parts.as_ref()?;
        let told_by = |xids: u64| truncated_by.iter().any(|xid| u64::from(*xid) == xids);
        for (oid, part) in &now.parts {
            match before.get(oid) {
                // Attached by a transaction that comes next in the stream.
                _ if told_by(part.joined) => {}
                None if !part.quiet => return Some(Reason::Attached(*oid)),
                // Rows that were streamed, or copied, may have gone with another file. A table's first one has its OID.
                None if ![0, *oid].contains(&part.file)
                    && !part.settled
                    && !truncated_by.contains(&part.xid) =>
                {
                    return Some(Reason::Emptied(*oid));
                }
                Some((_, joined)) if *joined != part.joined => return Some(Reason::Attached(*oid)),
                Some((file, _)) if *file != part.file && !truncated_by.contains(&part.xid) => {
                    return Some(Reason::Emptied(*oid));
                }
                _ => {}
            }
        }
        before.keys().find(|oid| !now.parts.contains_key(oid)).map(|oid| Reason::Detached(*oid))
    }

    /// Whether columns that were not published and are not among such now have been dropped.
    fn only_dropped(&self, now: &Published) -> bool {
        let gone = self.unpublished.iter().filter(|number| !now.unpublished.contains(number));
        gone.clone().all(|number| now.dropped.contains(number))
    }

    /// Parts that came since an earlier one.
    pub fn parts_beyond(&self, earlier: &Self) -> Vec<u32> {
        let parts = self.parts.iter().flat_map(BTreeMap::keys).copied();
        parts.filter(|part| !earlier.has(*part)).collect()
    }

    /// Whether it has this part.
    pub fn has(&self, part: u32) -> bool {
        self.parts.as_ref().is_some_and(|parts| parts.contains_key(&part))
    }

    /// What holds its rows, and when that was attached.
    pub fn routes(&self) -> impl Iterator<Item = (u32, u64)> {
        let own = self.parts.is_none().then_some((self.oid, 0));
        self.parts.iter().flatten().map(|(oid, (_, joined))| (*oid, *joined)).chain(own)
    }

    /// Parts which need not be looked at.
    pub fn known(&self) -> impl Iterator<Item = ((u32, u64), bool)> {
        self.parts.iter().flatten().map(|(oid, (_, joined))| ((*oid, *joined), true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::published::Part;

    fn table(parts: &[(u32, u32, u32, bool)]) -> Published {
        Published {
            oid: 1,
            member: 2,
            operations: "iudt".into(),
            partitioned: true,
            filter: None,
            attributes: 3,
            unpublished: vec![],
            dropped: vec![],
            copied_where: None,
            parts: parts
                .iter()
                .map(|(oid, file, xid, quiet)| {
                    (*oid, Part { file: *file, joined: 4, xid: *xid, quiet: *quiet, settled: *xid == 4 })
                })
                .collect(),
        }
    }

    #[test]
    fn what_happens_to_partitions_is_a_loss_unless_the_stream_told_it() {
        let before = table(&[(10, 100, 5, true), (11, 101, 5, true)]);
        let standing = Standing::from(&before);
        assert_eq!(standing.lost(&before, &[]), None);
        let grown = |file, quiet| table(&[(10, 100, 5, true), (11, 101, 5, true), (12, file, 6, quiet)]);
        assert_eq!(standing.lost(&grown(12, true), &[]), None, "made as a partition, or empty");
        assert_eq!(standing.lost(&grown(12, false), &[]), Some(Reason::Attached(12)));
        assert_eq!(
            standing.lost(&grown(102, true), &[]),
            Some(Reason::Emptied(12)),
            "made, filled and truncated"
        );
        assert_eq!(standing.lost(&grown(102, true), &[6]), None, "by the root's TRUNCATE");
        assert_eq!(standing.lost(&grown(0, true), &[]), None, "it has no file");
        let moved = table(&[(10, 100, 5, true), (11, 101, 5, true), (12, 102, 4, true)]);
        assert_eq!(standing.lost(&moved, &[]), None, "written anew before it was attached, and empty");
        let mut again = before.clone();
        again.parts.entry(11).and_modify(|part| part.joined = 9);
        assert_eq!(
            standing.lost(&again, &[]),
            Some(Reason::Attached(11)),
            "gone and back between two sights"
        );
        assert_eq!(standing.lost(&table(&[(10, 100, 5, true)]), &[]), Some(Reason::Detached(11)));
        let emptied = table(&[(10, 100, 5, true), (11, 201, 7, true)]);
        assert_eq!(standing.lost(&emptied, &[8]), Some(Reason::Emptied(11)));
        assert_eq!(standing.lost(&emptied, &[8, 7]), None, "the root's TRUNCATE was in the stream");
    }

    #[test]
    fn a_filter_or_columns_that_were_left_out_are_a_loss_and_new_columns_are_none() {
        let mut now = table(&[]);
        now.unpublished = vec![2, 3];
        let standing = Standing::from(&now);
        now.attributes = 4;
        assert_eq!(standing.lost(&now, &[]), None, "a column that is new");
        now.unpublished = vec![2];
        assert_eq!(standing.lost(&now, &[]), Some(Reason::Columns));
        now.dropped = vec![3];
        assert_eq!(standing.lost(&now, &[]), None, "a column that was dropped");
        now.filter = Some("(id > 5)".into());
        assert_eq!(standing.lost(&now, &[]), Some(Reason::Filter));
        now.operations = "i".into();
        let standing = Standing::from(&now);
        now.operations = "iudt".into();
        assert!(matches!(standing.lost(&now, &[]), Some(Reason::Returned(_))), "updates that were not sent");
        now.member = 3;
        assert!(
            matches!(standing.lost(&now, &[]), Some(Reason::Returned(_))),
            "out and back between two sights"
        );
        now.oid = 2;
        assert_eq!(standing.lost(&now, &[]), Some(Reason::MadeAgain));
    }
}
