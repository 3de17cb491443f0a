//! Chunks to part files, and part files to the store.

use arrow_array::RecordBatch;
use bytes::Bytes;
use object_store::PutPayload;
use object_store::path::Path;
use sha2::{Digest, Sha256};

use crate::batch::{FileWriter, Format, WriterOptions, large_columns};
use crate::change::Ds;
use crate::runtime::Result;

use super::super::layout::{Layout, part_name};
use super::super::manifest::PartFile;
use super::super::store::hexadecimal;
use super::blocking::Blocking;
use super::gather::Sink;
use super::key_json::key_json;
use super::shape::Shape;

/// Where and how parts are written.
#[derive(Clone, Debug)]
pub(super) struct PartOptions {
    pub(super) layout: Layout,
    pub(super) ds: Ds,
    pub(super) format: Format,
    /// A part ends after the chunk with which it reaches this size.
    pub(super) part_bytes_max: usize,
    /// Most bytes of a row group, encoded.
    pub(super) row_group_bytes: usize,
}

/// Writes parts one after the other; the bytes of one are held in memory.
pub(super) struct PartWriter {
    store: Blocking,
    options: PartOptions,
    shape: Shape,
    open: Option<OpenPart>,
    /// Parts written.
    parts: Vec<PartFile>,
    /// By column: values that stand as text.
    exact: Vec<u64>,
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
    first: Option<String>,
    last: Option<String>,
    /// Columns that are written plainly.
    plain: Vec<usize>,
}

impl PartWriter {
    pub(super) fn new(store: Blocking, options: PartOptions, shape: Shape) -> Self {
        let exact = vec![0; shape.table.columns.len()];
        Self { store, options, shape, open: None, parts: Vec::new(), exact }
    }

    /// Ends the last part. There is always at least one. Gives also, by column, the values that stand as text.
    pub(super) fn finish(mut self) -> Result<(Vec<PartFile>, Vec<u64>)> {
        if self.parts.is_empty() && self.open.is_none() {
            self.open = Some(self.begin(Vec::new())?);
        }
        self.end_part()?;
        Ok((self.parts, self.exact))
    }

    fn begin(&self, plain: Vec<usize>) -> Result<OpenPart> {
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
        })
    }

    fn end_part(&mut self) -> Result<()> {
        let Some(mut part) = self.open.take() else { return Ok(()) };
        let name = part_name(self.parts.len(), self.options.format.extension());
        let last = Bytes::from(part.writer.finish()?);
        part.hash.update(&last);
        part.pieces.push(last);
        let bytes = PutPayload::from_iter(part.pieces);
        let file = PartFile {
            path: name,
            rows: part.rows,
            bytes: bytes.content_length() as u64,
            bytes_decoded: part.bytes_decoded,
            sha256: hexadecimal(&part.hash.finalize()),
            min_key: part.first,
            max_key: part.last,
        };
        let manifest = self.options.layout.manifest(&self.shape.table.name, self.options.ds);
        self.store.put_unpublished(&self.path(&file), &bytes, &manifest)?;
        self.parts.push(file);
        Ok(())
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
            None => self.begin(plain)?,
        };
        if part.first.is_none() {
            part.first = key_json(&self.shape.table, &chunk, 0);
        }
        let rows = chunk.num_rows();
        part.last = key_json(&self.shape.table, &chunk, rows - 1);
        part.writer.write(&self.shape.written(chunk, &mut self.exact)?)?;
        let written = part.writer.take();
        if !written.is_empty() {
            let written = Bytes::from(written.into_boxed_slice());
            part.hash.update(&written);
            part.pieces.push(written);
        }
        part.rows += rows as u64;
        part.bytes_decoded += bytes;
        let full = part.writer.bytes_written() >= self.options.part_bytes_max;
        self.open = Some(part);
        if full { self.end_part() } else { Ok(()) }
    }
}
