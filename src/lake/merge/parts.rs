//! Chunks to part files, and part files to the store; between them, the parts of the day before that are taken over.
//!
//! Those are copied in the end, several at once: where they come to stand follows from how many parts lie before them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::RecordBatch;
use bytes::Bytes;
use object_store::PutPayload;
use object_store::path::Path;
use sha2::{Digest, Sha256};

use crate::batch::{FileWriter, Format, WriterOptions, large_columns};
use crate::change::Ds;
use crate::runtime::Result;

use super::super::layout::{Layout, part_name};
use super::super::manifest::{CopiedFrom, Manifest, PartFile};
use super::super::store::hexadecimal;
use super::blocking::{Blocking, Carried};
use super::division::SMALL;
use super::gather::Sink;
use super::key_json::key_json;
use super::order::KeyOrder;
use super::shape::Shape;

/// Where and how parts are written.
#[derive(Clone, Debug)]
pub(super) struct PartOptions {
    pub(super) layout: Layout,
    pub(super) ds: Ds,
    pub(super) format: Format,
    /// A part ends after the chunk with which it reaches this size, or a little later where next to nothing would be left
    /// for another one before those that are taken over.
    pub(super) part_bytes_max: usize,
    /// Most bytes of a row group, encoded.
    pub(super) row_group_bytes: usize,
}

/// Writes parts one after the other; the bytes of one are held in memory.
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
    parts: Vec<PartFile>,
}

/// What is left of a stretch of the day before, about.
#[derive(Clone, Copy, Debug)]
struct Rest {
    rows: u64,
    bytes_per_row: u64,
}

struct OpenPart {
    writer: FileWriter,
    /// The file so far, in the pieces in which the writer let go of it: one buffer that grows would at
    /// times hold three times as much.
    pieces: Vec<Bytes>,
    hash: Sha256,
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

/// A row's key, as JSON and in hexadecimal as the bytes of its order.
struct Key {
    json: String,
    order: String,
}

impl PartWriter {
    pub(super) fn new(
        store: Blocking,
        options: PartOptions,
        shape: Shape,
        order: Option<Arc<KeyOrder>>,
    ) -> Self {
        Self { store, options, shape, order, open: None, rest: None, parts: Vec::new() }
    }

    /// Begins a stretch that is made of these parts of the day before; others that are taken over follow, unless it is the
    /// `last`.
    pub(super) fn begin(&mut self, parts: &[PartFile], last: bool) -> Result<()> {
        self.end_part()?;
        let (rows, bytes) = parts.iter().fold((0, 0), |sum, part| (sum.0 + part.rows, sum.1 + part.bytes));
        self.rest = (!last).then_some(Rest { rows, bytes_per_row: bytes / rows.max(1) });
        Ok(())
    }

    /// Takes over parts of the day before.
    pub(super) fn carry(&mut self, manifest: &Manifest, parts: Range<usize>) -> Result<()> {
        self.end_part()?;
        for part in &manifest.files[parts] {
            let path = part_name(self.parts.len(), self.options.format.extension());
            let copied_from = Some(CopiedFrom { ds: manifest.ds, path: part.path.clone() });
            self.parts.push(PartFile { path, copied_from, ..part.clone() });
        }
        Ok(())
    }

    /// Ends the last part, and copies those that are taken over. There is always at least one part.
    pub(super) fn finish(mut self) -> Result<Vec<PartFile>> {
        if self.parts.is_empty() && self.open.is_none() {
            self.open = Some(self.open_part(Vec::new())?);
        }
        self.end_part()?;
        let (layout, table) = (&self.options.layout, &self.shape.table.name);
        let carried = |part: &PartFile| {
            let from = part.copied_from.as_ref()?;
            Some(Carried {
                from: layout.snapshot_object(table, from.ds, &from.path),
                to: self.path(part),
                bytes: part.bytes,
                sha256: part.sha256.clone(),
            })
        };
        let manifest = layout.manifest(table, self.options.ds);
        self.store.copy_unpublished(self.parts.iter().filter_map(carried).collect(), &manifest)?;
        Ok(self.parts)
    }

    fn open_part(&self, plain: Vec<usize>) -> Result<OpenPart> {
        let options = WriterOptions {
            row_group_bytes: self.options.row_group_bytes,
            key: self.shape.sorted_by(),
            plain: plain.clone(),
            ..WriterOptions::default()
        };
        let writer = FileWriter::new(&self.options.format, self.shape.file(), &options)?;
        Ok(OpenPart {
            writer,
            pieces: Vec::new(),
            hash: Sha256::new(),
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
        let name = part_name(self.parts.len(), self.options.format.extension());
        let last = Bytes::from(part.writer.finish()?);
        part.hash.update(&last);
        part.pieces.push(last);
        let bytes = PutPayload::from_iter(part.pieces);
        let names = self.shape.table.columns.iter().map(|column| &column.name);
        let exact = names.zip(part.exact).filter(|(_, count)| *count > 0);
        let (min_key, min_order) = part.first.map(|key| (key.json, key.order)).unzip();
        let (max_key, max_order) = part.last.map(|key| (key.json, key.order)).unzip();
        let file = PartFile {
            path: name,
            rows: part.rows,
            bytes: bytes.content_length() as u64,
            bytes_decoded: part.bytes_decoded,
            sha256: hexadecimal(&part.hash.finalize()),
            min_key,
            max_key,
            min_order,
            max_order,
            exact: exact.map(|(name, count)| (name.clone(), count)).collect::<BTreeMap<_, _>>(),
            copied_from: None,
        };
        let manifest = self.options.layout.manifest(&self.shape.table.name, self.options.ds);
        self.store.put_unpublished(&self.path(&file), &bytes, &manifest)?;
        self.parts.push(file);
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

    fn path(&self, file: &PartFile) -> Path {
        self.options.layout.snapshot_object(&self.shape.table.name, self.options.ds, &file.path)
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
        let written = part.writer.take();
        if !written.is_empty() {
            let written = Bytes::from(written.into_boxed_slice());
            part.hash.update(&written);
            part.pieces.push(written);
        }
        part.rows += rows as u64;
        part.bytes_decoded += bytes;
        let full = self.is_full(part.writer.bytes_written(), rows as u64);
        self.open = Some(part);
        if full { self.end_part() } else { Ok(()) }
    }
}
