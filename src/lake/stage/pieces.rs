//! Pieces: what is written of a change file before it ends, where no reader looks.
//!
//! ```text
//!   changes/<name>/_pieces/<schema>.<table>/<log partition>-<first>-<last>-<version>-<bytes>-<bucket>.parquet
//!                                           …                                                        .jsonl   (dead letters)
//! ```
//!
//! When memory or the log's room is short, what is open has to go somewhere, long before its hour is over. A small file
//! in the hour's folder could not be put together with others later: no store takes several objects away for one at once,
//! so who lists the folder would see rows twice, or not at all. A piece is seen by nobody but who stages, and at the hour's
//! end one conditional create shows all of them as one file. Then they are removed.
//!
//! Pieces only stand in for records of the log, which may have let go of them since. They decide nothing: which
//! offsets a change file has is the sequence's to say ([`super::sequence`]). So those of two who stage at once may overlap;
//! any way through them is right, and of each, rows count that lie in the file which is made.

use std::collections::HashMap;

use bytes::Bytes;
use object_store::path::Path;

use super::super::layout::{Bucket, ChangeRange, Layout};
use super::super::store::Store;
use super::chain::{ChangeFile, walk};
use super::file::Sealed;
use crate::change::{Calendar, SchemaVersion, TableName};
use crate::runtime::{Error, Result};

const CHANGES: &str = "parquet";
const DEAD_LETTERS: &str = "jsonl";

/// Some records of a change file that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) range: ChangeRange,
    /// That of its rows; none if there are only dead letters.
    pub(super) version: Option<SchemaVersion>,
    /// Bytes of its decoded rows.
    pub(super) bytes: usize,
    /// First instant of the file's bucket, microseconds since 1970.
    bucket_us: i64,
    changes: Path,
    dead_letters: Option<Path>,
}

/// The pieces of a log partition.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    /// Those of the file that is open, in order.
    pub(super) open: Vec<Piece>,
    /// Where the file's rows belong, by the first of them.
    pub(super) bucket: Option<Bucket>,
    /// Whether there are more behind them, of another file.
    pub(super) more: bool,
}

/// The pieces which hold offsets from `first` on; those of a file that was begun, up to its end `bound`. Those which are
/// in change files, all below `first`, are removed. Cancel-safe.
pub(super) async fn find(
    (store, layout, calendar): (&Store, &Layout, &Calendar),
    table: &TableName,
    partition: u32,
    (first, bound): (u64, Option<u64>),
) -> Result<Pieces> {
    let mut found: Vec<Piece> = Vec::new();
    let mut dead_letters: HashMap<String, Path> = HashMap::new();
    let mut gone = Vec::new();
    for object in store.list(&layout.pieces(table)).await? {
        let path = object.location;
        let named = path.filename().and_then(|name| name.rsplit_once('.'));
        let Some((piece, extension)) =
            named.and_then(|(stem, extension)| Some((parse(stem, &path)?, extension)))
        else {
            continue;
        };
        if piece.range.partition != partition {
            continue;
        }
        if piece.range.next() <= first {
            gone.push(path);
        } else if extension == CHANGES {
            found.push(piece);
        } else if extension == DEAD_LETTERS {
            dead_letters.insert(stem(&path), path);
        }
    }
    remove(store, &gone).await;
    let files = found.iter().map(|piece| ChangeFile { range: piece.range, path: piece.changes.clone() });
    let way = walk(files.collect(), first, None, true).files;
    let way = way.iter().filter_map(|file| found.iter().find(|piece| piece.changes == file.path));
    let mut way: Vec<Piece> = way.cloned().collect();
    for piece in &mut way {
        piece.dead_letters = dead_letters.remove(&stem(&piece.changes));
    }
    let Some(of) = way.first().map(|piece| piece.bucket_us) else { return Ok(Pieces::default()) };
    // Of another bucket are those of somebody who divided the log otherwise.
    let belongs = |piece: &Piece| match bound {
        Some(bound) => piece.range.first < bound,
        None => piece.bucket_us == of,
    };
    let count = way.iter().take_while(|piece| belongs(piece)).count();
    let more = way.len() > count;
    way.truncate(count);
    Ok(Pieces { open: way, bucket: Some(Bucket::of(calendar, of)), more })
}

/// Writes a part of the file of a bucket. Not cancel-safe in that it may be there afterwards.
pub(super) async fn put(
    (store, layout): (&Store, &Layout),
    (table, partition): (&TableName, u32),
    bucket: &Bucket,
    part: &Sealed,
) -> Result<Piece> {
    let (first, last) = part.offsets;
    let version = part.version.map_or(0, |version| version.0);
    let (bytes, bucket_us) = (part.bytes, bucket.start_us);
    let stem = format!("{partition}-{first}-{last}-{version}-{bytes}-{:x}", bucket_us.cast_unsigned());
    let changes = layout.piece(table, &format!("{stem}.{CHANGES}"));
    let mut dead_letters = None;
    if let Some(bytes) = &part.dead_letters {
        let path = layout.piece(table, &format!("{stem}.{DEAD_LETTERS}"));
        // Others may have written the same rows into other bytes: they are the same.
        store.put_once(&path, Bytes::clone(bytes)).await?;
        dead_letters = Some(path);
    }
    store.put_once(&changes, Bytes::clone(&part.changes)).await?;
    let range = ChangeRange { partition, first, last };
    Ok(Piece { range, version: part.version, bytes, bucket_us, changes, dead_letters })
}

/// Reads a piece. Cancel-safe.
///
/// # Errors
/// `Fenced`: it is gone, since another process has made the change file.
pub(super) async fn load(store: &Store, piece: &Piece) -> Result<Sealed> {
    let gone = |path: &Path| {
        Error::fenced(format!("another process has put {} into its change file", store.show(path)))
    };
    let changes = store.get(&piece.changes).await?.ok_or_else(|| gone(&piece.changes))?;
    let dead_letters = match &piece.dead_letters {
        Some(path) => Some(store.get(path).await?.ok_or_else(|| gone(path))?),
        None => None,
    };
    let offsets = (piece.range.first, piece.range.last);
    Ok(Sealed { offsets, version: piece.version, bytes: piece.bytes, changes, dead_letters })
}

/// The objects of some pieces.
pub(super) fn objects<'a>(pieces: impl Iterator<Item = &'a Piece>) -> Vec<Path> {
    pieces.flat_map(|piece| piece.dead_letters.iter().chain([&piece.changes])).cloned().collect()
}

/// Removes objects of pieces whose change file is there; what cannot be removed is in nobody's way. Not cancel-safe.
pub(super) async fn remove(store: &Store, objects: &[Path]) {
    if objects.is_empty() {
        return;
    }
    if let Err(error) = store.delete_all(objects).await {
        tracing::warn!(%error, "what was written of a change file early is not removed; no reader sees it");
    }
}

fn stem(path: &Path) -> String {
    let stem = path.filename().and_then(|name| name.rsplit_once('.'));
    stem.map_or_else(String::new, |(stem, _)| stem.to_owned())
}

fn parse(stem: &str, path: &Path) -> Option<Piece> {
    let mut words = stem.split('-');
    let partition = words.next()?.parse().ok()?;
    let (first, last) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let version = SchemaVersion(words.next()?.parse().ok()?);
    let bytes = words.next()?.parse().ok()?;
    let bucket_us = u64::from_str_radix(words.next()?, 16).ok()?.cast_signed();
    (words.next().is_none() && first <= last).then(|| Piece {
        range: ChangeRange { partition, first, last },
        version: (version.0 > 0).then_some(version),
        bytes,
        bucket_us,
        changes: path.clone(),
        dead_letters: None,
    })
}
