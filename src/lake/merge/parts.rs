//! Chunks to part files, in the scratch folder: what is made of one stretch. [`super::place`] brings them into the lake,
//! once it is known how many lie before them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::RecordBatch;
use sha2::{Digest, Sha256};

use crate::batch::{FileWriter, Format, WriterOptions, large_columns};
use crate::runtime::Result;

use super::super::manifest::PartFile;
use super::super::scratch::{Scratch, failed};
use super::super::store::hexadecimal;
use super::CHUNK_BYTES_MAX;
use super::blocking::Blocking;
use super::division::SMALL;
use super::gather::Sink;
use super::key_json::key_json;
use super::order::KeyOrder;
use super::shape::Shape;

/// A chunk of more bytes ends with a row of megabytes, and is the last one of its row group. Among small rows several of them
/// would not show in the average by which readers, the next merge among them, tell how many rows to read at once.
const LARGE_CHUNK_BYTES: u64 = 2 * CHUNK_BYTES_MAX as u64;

/// Where and how parts are written.
#[derive(Clone, Debug)]
pub(super) struct PartOptions {
    pub(super) scratch: Arc<Scratch>,
    pub(super) format: Format,
    /// A part ends after the chunk with which it reaches this size, or a little later where next to nothing would be left
    /// for another one before those that are taken over.
    pub(super) part_bytes_max: usize,
    /// Most bytes of a row group, encoded.
    pub(super) row_group_bytes: usize,
}

/// A part in the scratch folder.
#[derive(Clone, Debug)]
pub(super) struct LocalPart {
    pub(super) path: PathBuf,
    /// What the manifest is to say of it; it has no name yet.
    pub(super) file: PartFile,
}

/// Writes the parts of a stretch one after the other; a row group is held in memory.
pub(super) struct PartWriter {
    store: Blocking,
    options: PartOptions,
    shape: Shape,
    /// Tells the bounds of parts; none where rows have no key.
    order: Option<Arc<KeyOrder>>,
    open: Option<OpenPart>,
    /// Rows and bytes that are still to be expected before parts that are taken over; none when there is no end to see.
    rest: Option<Rest>,
    /// Parts so far.
    parts: Vec<LocalPart>,
}

/// What is left of a stretch of the day before, about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    rows: u64,
    bytes_per_row: u64,
}

impl Rest {
    /// Of a stretch that is made of these parts of the day before; others follow.
    pub(super) fn of(parts: &[PartFile]) -> Self {
        let (rows, bytes) = parts.iter().fold((0, 0), |sum, part| (sum.0 + part.rows, sum.1 + part.bytes));
        Self { rows, bytes_per_row: bytes / rows.max(1) }
    }
}

struct OpenPart {
    writer: FileWriter,
    out: Out,
    rows: u64,
    bytes_decoded: u64,
    /// Keys of the first and the last row.
    first: Option<Key>,
    last: Option<Key>,
    /// Columns that are written plainly.
    plain: Vec<usize>,
    /// By column: values that stand as text.
    exact: Vec<u64>,
}

/// A part's file, as far as it is written.
struct Out {
    path: PathBuf,
    file: File,
    bytes: u64,
    hash: Sha256,
}

impl Out {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| failed("write", &self.path, error))
    }
}

/// A row's key, as JSON and in hexadecimal as the bytes of its order.
struct Key {
    json: String,
    order: String,
}

impl PartWriter {
    pub(super) const fn new(
        store: Blocking,
        options: PartOptions,
        shape: Shape,
        order: Option<Arc<KeyOrder>>,
        rest: Option<Rest>,
    ) -> Self {
        Self { store, options, shape, order, open: None, rest, parts: Vec::new() }
    }

    /// Ends the last part.
    pub(super) fn finish(mut self) -> Result<Vec<LocalPart>> {
        self.end_part()?;
        Ok(self.parts)
    }

    /// A part without rows.
    pub(super) fn finish_empty(mut self) -> Result<Vec<LocalPart>> {
        self.open = Some(self.open_part(Vec::new())?);
        self.finish()
    }

    fn open_part(&self, plain: Vec<usize>) -> Result<OpenPart> {
        let options = WriterOptions {
            row_group_bytes: self.options.row_group_bytes,
            key: self.shape.sorted_by(),
            plain: plain.clone(),
            ..WriterOptions::default()
        };
        let writer = FileWriter::new(&self.options.format, self.shape.file(), &options)?;
        let (path, file) = self.options.scratch.create("part")?;
        Ok(OpenPart {
            writer,
            out: Out { path, file, bytes: 0, hash: Sha256::new() },
            rows: 0,
            bytes_decoded: 0,
            first: None,
            last: None,
            plain,
            exact: vec![0; self.shape.table.columns.len()],
        })
    }

    fn end_part(&mut self) -> Result<()> {
        let Some(mut part) = self.open.take() else { return Ok(()) };
        part.out.append(&part.writer.finish()?)?;
        let Out { path, bytes, hash, .. } = part.out;
        let names = self.shape.table.columns.iter().map(|column| &column.name);
        let exact = names.zip(part.exact).filter(|(_, count)| *count > 0);
        let (min_key, min_order) = part.first.map(|key| (key.json, key.order)).unzip();
        let (max_key, max_order) = part.last.map(|key| (key.json, key.order)).unzip();
        let file = PartFile {
            path: String::new(),
            rows: part.rows,
            bytes,
            bytes_decoded: part.bytes_decoded,
            sha256: hexadecimal(&hash.finalize()),
            min_key,
            max_key,
            min_order,
            max_order,
            exact: exact.map(|(name, count)| (name.clone(), count)).collect::<BTreeMap<_, _>>(),
            copied_from: None,
            as_of: None,
        };
        self.parts.push(LocalPart { path, file });
        Ok(())
    }

    /// Whether a part of that size ends, after some more rows.
    fn is_full(&mut self, bytes: usize, rows: u64) -> bool {
        let (max, small) = (self.options.part_bytes_max, self.options.part_bytes_max / SMALL as usize);
        let nearly_done = self.rest.as_mut().is_some_and(|rest| {
            rest.rows = rest.rows.saturating_sub(rows);
            rest.rows * rest.bytes_per_row < small as u64
        });
        bytes >= if nearly_done { max + small } else { max }
    }

    fn key(&self, chunk: &RecordBatch, row: usize) -> Result<Option<Key>> {
        let Some(order) = &self.order else { return Ok(None) };
        let Some(json) = key_json(&self.shape.table, chunk, row) else { return Ok(None) };
        let bytes = order.rows(chunk, 0, row, 1)?;
        Ok(Some(Key { json, order: hexadecimal(bytes.row(0).data()) }))
    }
}

impl Sink for PartWriter {
    fn chunk(&mut self, chunk: RecordBatch, bytes: u64) -> Result<()> {
        self.store.check()?;
        let plain = large_columns(&chunk);
        if self.open.as_ref().is_some_and(|part| part.plain != plain) {
            self.end_part()?;
        }
        let mut part = match self.open.take() {
            Some(part) => part,
            None => self.open_part(plain)?,
        };
        if part.first.is_none() {
            part.first = self.key(&chunk, 0)?;
        }
        let rows = chunk.num_rows();
        part.last = self.key(&chunk, rows - 1)?;
        part.writer.write(&self.shape.written(chunk, &mut part.exact)?)?;
        if bytes > LARGE_CHUNK_BYTES {
            part.writer.end_row_group()?;
        }
        part.out.append(&part.writer.take())?;
        part.rows += rows as u64;
        part.bytes_decoded += bytes;
        let full = self.is_full(part.writer.bytes_written(), rows as u64);
        self.open = Some(part);
        if full { self.end_part() } else { Ok(()) }
    }
}
