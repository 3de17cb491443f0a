//! Which offsets of a log partition the change files cover, found by listing them.

use std::collections::BTreeMap;

use object_store::path::Path;

use crate::change::{Ds, TableName};
use crate::runtime::Result;

use super::super::layout::{ChangeRange, Layout, parse_change_file, parse_ds};
use super::super::store::Store;
use super::sequence::Sequence;

/// A change file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeFile {
    /// What it covers.
    pub range: ChangeRange,
    /// Where it is.
    pub path: Path,
    /// Its size.
    pub bytes: u64,
}

/// Change files of one log partition, each beginning where the one before ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The files in order.
    pub files: Vec<ChangeFile>,
    /// First offset that they do not cover.
    pub next: u64,
}

/// The change files of a log partition which cover the offsets from `from` on, up to `end` (none: as far as
/// they go).
///
/// Only days from the one before `since` are listed; when those do not reach `end`, or the sequence goes on in an older day,
/// all are (a server's clock may have stood wrong by days). Cancel-safe.
pub async fn chain(
    store: &Store,
    layout: &Layout,
    table: &TableName,
    partition: u32,
    range: (u64, Option<u64>),
    since: Option<Ds>,
) -> Result<Chain> {
    let (from, end) = range;
    let found = match since.and_then(|ds| ds.yesterday().ok()) {
        Some(since) => {
            let recent = walk(list_since(store, layout, table, partition, since).await?, from, end, false);
            let reached = match end {
                Some(end) => recent.next == end || end == from,
                None => {
                    let sequence = Sequence::new(store.clone(), layout.clone(), table.clone(), partition);
                    let follows = sequence.link(recent.next).await?.and_then(|link| link.place);
                    recent.next > from && follows.is_none_or(|place| place.ds >= since)
                }
            };
            if reached {
                return Ok(recent);
            }
            list(store, &layout.changes(table), partition).await?
        }
        None => list(store, &layout.changes(table), partition).await?,
    };
    Ok(walk(found, from, end, false))
}

/// Those from `from` on that are of `since`, the day before it, or later: as far as they go. Cancel-safe.
pub async fn recent(
    store: &Store,
    layout: &Layout,
    table: &TableName,
    partition: u32,
    (from, since): (u64, Ds),
) -> Result<Chain> {
    let since = since.yesterday().unwrap_or(since);
    Ok(walk(list_since(store, layout, table, partition, since).await?, from, None, false))
}

/// The change files of a log partition which hold the offsets from `from` up to `end`; the first of them may begin
/// before. Cancel-safe.
pub async fn covering(
    store: &Store,
    layout: &Layout,
    table: &TableName,
    partition: u32,
    (from, end): (u64, u64),
) -> Result<Chain> {
    Ok(walk(list(store, &layout.changes(table), partition).await?, from, Some(end), true))
}

async fn list_since(
    store: &Store,
    layout: &Layout,
    table: &TableName,
    partition: u32,
    since: Ds,
) -> Result<Vec<ChangeFile>> {
    let mut found = Vec::new();
    for folder in store.folders(&layout.changes(table)).await? {
        if parse_ds(&folder).is_some_and(|ds| ds >= since) {
            found.extend(list(store, &folder, partition).await?);
        }
    }
    Ok(found)
}

async fn list(store: &Store, folder: &Path, partition: u32) -> Result<Vec<ChangeFile>> {
    let objects = store.list(folder).await?;
    let files = objects.into_iter().filter_map(|object| {
        let range = parse_change_file(&object.location)?;
        (range.partition == partition).then_some(ChangeFile {
            range,
            path: object.location,
            bytes: object.size,
        })
    });
    Ok(files.collect())
}

/// The path through the files that starts at `from` and goes furthest, yet not past `end`.
///
/// Files of a lake from before there was a sequence may divide the same offsets differently; each file is right, so
/// any path is, and a way around one that leads nowhere is found. `within`: it may also start within a file.
pub(super) fn walk(mut files: Vec<ChangeFile>, from: u64, end: Option<u64>, within: bool) -> Chain {
    files.retain(|file| {
        let begins = file.range.first >= from || (within && file.range.next() > from);
        begins && end.is_none_or(|end| file.range.next() <= end)
    });
    files.sort_by(|a, b| (a.range, &a.path).cmp(&(b.range, &b.path)));
    // For each offset that can be reached, the file which ends just below it.
    let mut reached: BTreeMap<u64, usize> = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        if file.range.first == from
            || (within && file.range.first < from)
            || reached.contains_key(&file.range.first)
        {
            reached.entry(file.range.next()).or_insert(index);
        }
    }
    let next = reached.last_key_value().map_or(from, |(next, _)| *next);
    let mut path = Vec::new();
    let mut at = next;
    while at > from
        && let Some(index) = reached.get(&at)
    {
        path.push(files[*index].clone());
        at = files[*index].range.first;
    }
    path.reverse();
    Chain { files: path, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(first: u64, last: u64) -> ChangeFile {
        let range = ChangeRange { partition: 0, first, last };
        ChangeFile { range, path: Path::from(format!("0-{first}-{last}.parquet")), bytes: 1 }
    }

    fn ranges(chain: &Chain) -> Vec<(u64, u64)> {
        chain.files.iter().map(|f| (f.range.first, f.range.last)).collect()
    }

    #[test]
    fn a_chain_stops_at_the_first_gap() {
        let files = vec![file(10, 19), file(0, 4), file(5, 9), file(21, 30)];
        let found = walk(files.clone(), 0, None, false);
        assert_eq!((ranges(&found), found.next), (vec![(0, 4), (5, 9), (10, 19)], 20));
        let found = walk(files.clone(), 5, Some(10), false);
        assert_eq!((ranges(&found), found.next), (vec![(5, 9)], 10));
        assert_eq!(walk(files.clone(), 3, None, false).next, 3);
        let found = walk(files.clone(), 3, Some(20), true);
        assert_eq!((ranges(&found), found.next), (vec![(0, 4), (5, 9), (10, 19)], 20), "from within a file");
        assert_eq!(walk(files, 20, Some(31), true).next, 20, "the gap is none of its");
    }

    #[test]
    fn files_divided_in_two_ways_cover_each_offset_once() {
        let files = vec![file(0, 4), file(0, 9), file(5, 7), file(10, 12), file(8, 9)];
        let found = walk(files, 0, Some(13), false);
        assert_eq!(found.next, 13);
        let mut at = 0;
        for file in found.files {
            assert_eq!(file.range.first, at);
            at = file.range.next();
        }
    }
}
