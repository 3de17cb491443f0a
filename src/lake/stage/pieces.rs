//! Pieces: what is written of a change file before it ends, where no reader looks.
//!
//! ```text
//!   changes/<name>/_pieces/<schema>.<table>/<log partition>-<first>-<last>-<version>-<bytes>-<bucket>-<0 or 1>.parquet
//!                                           …                                                        -1.jsonl   (dead letters)
//! ```
//!
//! When memory or the log's room is short, or a day is made before it ends ([`super::super::premerge`] reads pieces), what is
//! open has to go somewhere, long before its hour is over. A small file
//! in the hour's folder could not be put together with others later: no store takes several objects away for one at once,
//! so who lists the folder would see rows twice, or not at all. A piece is seen by nobody but who stages or premerges, and at the hour's
//! end one conditional create shows all of them as one file. Then they are removed.
//!
//! Pieces only stand in for records of the log, which may have let go of them since. They decide nothing: which
//! offsets a change file has is the sequence's to say ([`super::sequence`]). So those of two who stage at once may overlap;
//! any way through them is right, and of each, rows count that lie in the file which is made.

use std::collections::HashSet;

use bytes::Bytes;
use object_store::ObjectMeta;
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

/// The pieces of a log partition that are there.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    found: Vec<(Piece, ObjectMeta)>,
}

/// Those of the file that is open.
#[derive(Clone, Debug, Default)]
pub(super) struct Open {
    /// In order.
    pub(super) pieces: Vec<Piece>,
    /// Where the file's rows belong, by the first of them.
    pub(super) bucket: Option<Bucket>,
    /// Whether there are more behind them, of another file.
    pub(super) more: bool,
}

/// Lists the pieces of a log partition. Cancel-safe.
pub(super) async fn list(
    (store, layout): (&Store, &Layout),
    (table, partition): (&TableName, u32),
) -> Result<Pieces> {
    let parsed = |object: ObjectMeta| {
        let (stem, _) = object.location.filename()?.rsplit_once('.')?;
        let piece = parse((layout, table), stem).filter(|piece| piece.range.partition == partition)?;
        Some((piece, object))
    };
    let objects = store.list(&layout.pieces(table)).await?;
    Ok(Pieces { found: objects.into_iter().filter_map(parsed).collect() })
}

/// What was written early of a log partition's changes from `first` on, which no change file holds. Cancel-safe.
pub(in crate::lake) async fn early(
    of: (&Store, &Layout),
    table: (&TableName, u32),
    first: u64,
) -> Result<Vec<ChangeFile>> {
    Ok(list(of, table).await?.since(first))
}

/// Whether it was written early, and goes when its change file is there.
pub(in crate::lake) fn is_early(path: &Path) -> bool {
    path.as_ref().contains("/_pieces/")
}

impl Pieces {
    /// The objects of those below `first`: they are in change files, or in a range that is told as lost.
    pub(super) fn made(&self, first: u64) -> Vec<Path> {
        let made = self.found.iter().filter(|(piece, _)| piece.range.next() <= first);
        made.map(|(_, object)| object.location.clone()).collect()
    }

    /// Those which hold offsets from `first` on, as files of changes: as far as they go.
    pub(super) fn since(&self, first: u64) -> Vec<ChangeFile> {
        let there: HashSet<&Path> = self.found.iter().map(|(_, object)| &object.location).collect();
        let held = self.found.iter().filter(|(piece, object)| {
            // One without its dead letters stands in for nothing.
            piece.changes == object.location && piece.dead_letters.iter().all(|path| there.contains(path))
        });
        let files = held.map(|(piece, object)| ChangeFile {
            range: piece.range,
            path: piece.changes.clone(),
            bytes: object.size,
        });
        walk(files.filter(|file| file.range.next() > first).collect(), first, None, true).files
    }

    /// Those which hold offsets from `first` on; of a file that was begun, up to its end `bound`.
    pub(super) fn open(&self, calendar: &Calendar, first: u64, bound: Option<u64>) -> Open {
        let piece = |file: &ChangeFile| {
            let mut found = self.found.iter().map(|(piece, _)| piece);
            found.find(|piece| piece.changes == file.path).cloned()
        };
        let mut way: Vec<Piece> = self.since(first).iter().filter_map(piece).collect();
        let Some(of) = way.first().map(|piece| piece.bucket_us) else { return Open::default() };
        // Of another bucket are those of somebody who divided the log otherwise.
        let belongs = |piece: &Piece| match bound {
            Some(bound) => piece.range.first < bound,
            None => piece.bucket_us == of,
        };
        let count = way.iter().take_while(|piece| belongs(piece)).count();
        let more = way.len() > count;
        way.truncate(count);
        Open { pieces: way, bucket: Some(Bucket::of(calendar, of)), more }
    }
}

/// Writes a part of the file of a bucket. Not cancel-safe in that it may be there afterwards.
///
/// # Errors
/// `Fenced`: another process has put it into its change file meanwhile, as far as the store tells.
pub(super) async fn put(
    (store, layout): (&Store, &Layout),
    (table, partition): (&TableName, u32),
    bucket: &Bucket,
    part: &Sealed,
) -> Result<Piece> {
    let (first, last) = part.offsets;
    let piece = Piece::new(
        (layout, table),
        ChangeRange { partition, first, last },
        (part.version, part.bytes, bucket.start_us, part.dead_letters.is_some()),
    );
    // Others may have written the same rows into other bytes: they are the same, and may be gone since into a change file.
    let dead_letters = piece.dead_letters.as_ref().zip(part.dead_letters.as_ref());
    for (path, bytes) in dead_letters.into_iter().chain([(&piece.changes, &part.changes)]) {
        if !store.put_unless_taken(path, Bytes::clone(bytes)).await? {
            let path = store.show(path);
            return Err(Error::fenced(format!("{path} was refused as existing, and is not there")));
        }
    }
    Ok(piece)
}

/// Reads a piece. Cancel-safe.
///
/// # Errors
/// `Fenced`: it is gone. Another process has made the change file, unless somebody has removed it.
pub(super) async fn load(store: &Store, piece: &Piece) -> Result<Sealed> {
    let gone = |path: &Path| {
        let path = store.show(path);
        Error::fenced(format!("{path} is gone, into its change file if it was not removed by hand"))
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

impl Piece {
    /// Its objects' names say all of it, so that no second listing is needed for what the first one lacked.
    fn new(
        (layout, table): (&Layout, &TableName),
        range: ChangeRange,
        (version, bytes, bucket_us, has_dead_letters): (Option<SchemaVersion>, usize, i64, bool),
    ) -> Self {
        let ChangeRange { partition, first, last } = range;
        let number = version.map_or(0, |version| version.0);
        let (bucket, dead) = (bucket_us.cast_unsigned(), u8::from(has_dead_letters));
        let stem = format!("{partition}-{first}-{last}-{number}-{bytes}-{bucket:x}-{dead}");
        let object = |extension: &str| layout.piece(table, &format!("{stem}.{extension}"));
        let dead_letters = has_dead_letters.then(|| object(DEAD_LETTERS));
        Self { range, version, bytes, bucket_us, changes: object(CHANGES), dead_letters }
    }
}

fn parse(of: (&Layout, &TableName), stem: &str) -> Option<Piece> {
    let mut words = stem.split('-');
    let partition = words.next()?.parse().ok()?;
    let (first, last) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let version = SchemaVersion(words.next()?.parse().ok()?);
    let bytes = words.next()?.parse().ok()?;
    let bucket_us = u64::from_str_radix(words.next()?, 16).ok()?.cast_signed();
    let dead: u8 = words.next()?.parse().ok()?;
    (words.next().is_none() && first <= last).then(|| {
        let version = (version.0 > 0).then_some(version);
        Piece::new(of, ChangeRange { partition, first, last }, (version, bytes, bucket_us, dead > 0))
    })
}
