//! A change file being filled: its parts so far, in the order of the log, and the rows in memory behind them.
//!
//! ```text
//!   records of an hour ── push ──> rows in memory ──(another shape, or early)──> parts ──(early)──> pieces in the lake
//!                                       └──────────────── the hour's end ──────────┴────────────────────┴──> Build
//! ```
//!
//! All rows of a part are of one version of the table. Parts are read again when the file is made, as is what was
//! written of it early: which of its rows were where does not change its bytes ([`super::build`]).

use arrow_array::RecordBatch;
use bytes::Bytes;

use crate::batch::{Compression, FileWriter, Format, WriterOptions, large_columns};
use crate::change::SchemaVersion;
use crate::runtime::Result;

use super::super::layout::Bucket;
use super::pieces::Piece;
use super::rows::{TableRows, change_schema};
use super::{DeadLetter, Payload, StageLimits, StagedChange};

/// How change files are stored, whatever the snapshots' format.
pub(in crate::lake) const FORMAT: Format = Format::Parquet { compression: Compression::Zstd(1) };

/// A change file that takes rows.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) bucket: Bucket,
    /// The last offset handed in.
    pub(super) last_offset: u64,
    parts: Vec<Part>,
    /// Bytes of their rows, as [`StageLimits::bytes_max`] counts.
    parts_bytes: usize,
    rows: Rows,
}

/// Some of its records, one after the other in the log.
#[derive(Debug)]
pub(super) enum Part {
    /// Read back when the file is made.
    Memory(Sealed),
    /// In the lake.
    Piece(Piece),
}

/// Rows of one version, encoded, and dead letters.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    /// Offsets, first and last.
    pub(super) offsets: (u64, u64),
    /// That of the rows; none if there are only dead letters.
    pub(super) version: Option<SchemaVersion>,
    /// As [`StageLimits::bytes_max`] counts.
    pub(super) bytes: usize,
    /// In [`FORMAT`], in the order of the log.
    pub(super) changes: Bytes,
    pub(super) dead_letters: Option<Bytes>,
}

impl OpenFile {
    pub(super) fn new(bucket: Bucket) -> Self {
        Self { bucket, last_offset: 0, parts: Vec::new(), parts_bytes: 0, rows: Rows::default() }
    }

    /// What was written of it early.
    pub(super) fn of_pieces(bucket: Bucket, pieces: Vec<Piece>) -> Self {
        let last_offset = pieces.last().map_or(0, |piece| piece.range.last);
        let parts_bytes = pieces.iter().map(|piece| piece.bytes).sum();
        let parts = pieces.into_iter().map(Part::Piece).collect();
        Self { bucket, last_offset, parts, parts_bytes, rows: Rows::default() }
    }

    pub(super) fn seal(&mut self, part: Sealed) {
        self.parts_bytes += part.bytes;
        self.parts.push(Part::Memory(part));
    }

    pub(super) fn parts_mut(&mut self) -> &mut [Part] {
        &mut self.parts
    }

    pub(super) fn into_parts(self) -> Vec<Part> {
        self.parts
    }

    /// Bytes of its rows that are not in the lake.
    pub(super) fn memory(&self) -> usize {
        let sealed = self.parts.iter().map(|part| match part {
            Part::Memory(sealed) => sealed.changes.len() + sealed.dead_letters.as_ref().map_or(0, Bytes::len),
            Part::Piece(_) => 0,
        });
        self.rows.memory() + sealed.sum::<usize>()
    }

    pub(super) fn is_full(&self, limits: StageLimits) -> bool {
        self.rows.count >= limits.rows_max || self.parts_bytes + self.rows.memory() >= limits.bytes_max
    }

    /// The version of its last rows.
    pub(super) fn version(&self) -> Option<SchemaVersion> {
        let mut parts = self.parts.iter().rev();
        self.rows.version().or_else(|| parts.find_map(Part::version))
    }

    /// Whether rows of that version go into memory beside those that are there.
    pub(super) fn takes(&self, version: SchemaVersion) -> bool {
        self.rows.version().is_none_or(|held| held == version)
    }

    /// Adds the rows of a change; an error is the reason why it is a dead letter.
    pub(super) fn push(&mut self, change: &StagedChange<'_>) -> Result<(), String> {
        self.rows.push(change)
    }

    pub(super) fn push_dead(&mut self, letter: DeadLetter) {
        self.rows.push_dead(letter);
    }

    /// First offset that is in no part; none while there are no parts.
    pub(super) fn after_parts(&self) -> Option<u64> {
        self.parts.last().map(|part| part.offsets().1 + 1)
    }

    /// The rows in memory, which are no longer in it.
    pub(super) fn take_rows(&mut self) -> Rows {
        std::mem::take(&mut self.rows)
    }
}

impl Part {
    pub(super) const fn offsets(&self) -> (u64, u64) {
        match self {
            Self::Memory(sealed) => sealed.offsets,
            Self::Piece(piece) => (piece.range.first, piece.range.last),
        }
    }

    pub(super) const fn piece(&self) -> Option<&Piece> {
        match self {
            Self::Memory(_) => None,
            Self::Piece(piece) => Some(piece),
        }
    }

    fn version(&self) -> Option<SchemaVersion> {
        match self {
            Self::Memory(sealed) => sealed.version,
            Self::Piece(piece) => piece.version,
        }
    }
}

/// Rows in memory, of one version, and dead letters.
#[derive(Debug, Default)]
pub(super) struct Rows {
    table: Option<TableRows>,
    batches: Vec<RecordBatch>,
    count: usize,
    bytes: usize,
    dead: Vec<DeadLetter>,
    dead_bytes: usize,
}

impl Rows {
    const fn memory(&self) -> usize {
        self.bytes + self.dead_bytes
    }

    pub(super) fn version(&self) -> Option<SchemaVersion> {
        self.table.as_ref().map(|table| table.schema.version)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_none() && self.dead.is_empty()
    }

    fn push(&mut self, change: &StagedChange<'_>) -> Result<(), String> {
        let table = self.table.get_or_insert_with(|| TableRows::new(change.schema));
        let before = table.bytes();
        self.count += table.push(change)?;
        // About what the columns about the change take.
        self.bytes += table.bytes() - before + 64;
        if table.is_full() {
            self.batches.push(table.finish().map_err(|error| error.to_string())?);
        }
        Ok(())
    }

    fn push_dead(&mut self, letter: DeadLetter) {
        let payload = |p: &Option<Payload>| {
            p.as_ref().map_or(0, |p| match p {
                Payload::Text(text) => text.len(),
                Payload::Binary { base64 } => base64.len(),
            })
        };
        self.dead_bytes += 128 + letter.reason.len() + payload(&letter.key) + payload(&letter.value);
        self.dead.push(letter);
    }

    /// Its batches and the lines of its dead letters, if there are any.
    pub(super) fn finish(mut self) -> Result<(Vec<RecordBatch>, Option<Vec<u8>>)> {
        if let Some(table) = self.table.as_mut().filter(|table| !table.is_empty()) {
            self.batches.push(table.finish()?);
        }
        let mut dead = Vec::new();
        for letter in &self.dead {
            letter.write_line(&mut dead);
        }
        Ok((self.batches, (!dead.is_empty()).then_some(dead)))
    }

    /// Encodes them. Takes a while: not on an async thread.
    pub(super) fn seal(self, offsets: (u64, u64)) -> Result<Sealed> {
        let (version, bytes) = (self.version(), self.memory());
        let columns = self.table.as_ref().map(|table| table.schema.columns.clone()).unwrap_or_default();
        let (batches, dead) = self.finish()?;
        let changes = encode(&change_schema(&columns), &batches)?;
        Ok(Sealed { offsets, version, bytes, changes, dead_letters: dead.map(Bytes::from) })
    }
}

/// A file of those batches.
pub(super) fn encode(schema: &arrow_schema::SchemaRef, batches: &[RecordBatch]) -> Result<Bytes> {
    let mut plain: Vec<usize> = batches.iter().flat_map(large_columns).collect();
    plain.sort_unstable();
    plain.dedup();
    let options = WriterOptions { plain, ..WriterOptions::default() };
    let mut writer = FileWriter::new(&FORMAT, arrow_schema::SchemaRef::clone(schema), &options)?;
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(writer.finish()?.into())
}
