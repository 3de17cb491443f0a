//! The snapshot of the day before, part after part, with a cursor that finds keys in its sorted rows.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_row::Rows;
use arrow_schema::SchemaRef;

use crate::batch::{FileReader, Format, Origin, ReaderOptions};
use crate::runtime::Result;

use super::super::layout::Layout;
use super::super::manifest::{Manifest, PartFile};
use super::super::scratch::{Scratch, failed};
use super::super::shapes::Shapes;
use super::blocking::Blocking;
use super::gather::{Gather, RowRef, Sink};
use super::order::KeyOrder;
use super::shape::Shape;

/// Bytes of a batch that is read, about.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_ROWS: u64 = 8192;

/// Batches of a published snapshot, in the shape of a later day.
pub(super) struct Base {
    store: Blocking,
    layout: Layout,
    scratch: Arc<Scratch>,
    format: Format,
    shape: Shape,
    /// What its rows hold in each of the table's columns.
    origins: Vec<Origin>,
    manifest: Arc<Manifest>,
    /// Of its parts, those that are still to be read, by their numbers.
    parts: VecDeque<usize>,
    reader: Option<FileReader>,
}

impl Base {
    /// `parts` are numbers of the manifest's.
    pub(super) fn new(
        store: Blocking,
        layout: Layout,
        scratch: Arc<Scratch>,
        (shapes, shape): (&Shapes, Shape),
        (manifest, format): (Arc<Manifest>, Format),
        parts: impl IntoIterator<Item = usize>,
    ) -> Result<Self> {
        let origins = shapes.origins(manifest.schema.version)?;
        let parts = parts.into_iter().collect();
        Ok(Self { store, layout, scratch, format, shape, origins, manifest, parts, reader: None })
    }

    /// The next batch that has rows.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(reader) = &mut self.reader {
                match reader.next().transpose()? {
                    Some(batch) if batch.num_rows() > 0 => {
                        return self.shape.read(batch, &self.origins).map(Some);
                    }
                    Some(_) => continue,
                    None => self.reader = None,
                }
            }
            let next = self.parts.pop_front();
            let Some(part) = next.and_then(|part| self.manifest.files.get(part)) else { return Ok(None) };
            self.reader = Some(self.open(part)?);
        }
    }

    /// Copies a part to the scratch folder, comparing its checksum, and opens it there: no more of it than
    /// a batch and its pages is held in memory.
    fn open(&self, part: &PartFile) -> Result<FileReader> {
        let path = self.layout.snapshot_object(&self.manifest.table, self.manifest.ds, &part.path);
        let (local, mut file) = self.scratch.create("base")?;
        let sha256 = self.store.download(&path, &mut file, &local)?;
        if sha256 != part.sha256 {
            return Err(self.store.store().altered(&path));
        }
        let open = || {
            let file = File::open(&local)?;
            // Freed when the reader is dropped.
            std::fs::remove_file(&local)?;
            Ok(file)
        };
        let file = open().map_err(|error| failed("read", &local, error))?;
        let batch_rows = BATCH_BYTES.checked_div(part.bytes_decoded / part.rows.max(1)).unwrap_or(BATCH_ROWS);
        let options = ReaderOptions {
            batch_rows: batch_rows.clamp(1, BATCH_ROWS) as usize,
            origins: Some(self.shape.origins_in_file(&self.origins)),
            ..ReaderOptions::default()
        };
        FileReader::open(&self.format, &self.shape.file(), file, &options)
            .map_err(|error| error.context(self.store.store().show(&path)))
    }
}

/// A cursor over sorted rows.
pub(super) struct BaseCursor {
    base: Option<Base>,
    order: Arc<KeyOrder>,
    batch: Arc<RecordBatch>,
    /// Key bytes of all rows of the batch, made when they are needed.
    keys: Option<Rows>,
    /// Key bytes of its last row.
    last: Option<Rows>,
    at: usize,
}

impl BaseCursor {
    pub(super) fn new(base: Option<Base>, order: Arc<KeyOrder>, schema: SchemaRef) -> Self {
        let batch = Arc::new(RecordBatch::new_empty(schema));
        Self { base, order, batch, keys: None, last: None, at: 0 }
    }

    /// Loads the next batch when this one is used up; `false` at the end.
    pub(super) fn fill(&mut self) -> Result<bool> {
        if self.at < self.batch.num_rows() {
            return Ok(true);
        }
        let Some(base) = &mut self.base else { return Ok(false) };
        let Some(batch) = base.next()? else {
            self.base = None;
            return Ok(false);
        };
        self.batch = Arc::new(batch);
        self.at = 0;
        self.keys = None;
        self.last = None;
        Ok(true)
    }

    /// Copies the rows below `key` (none: all).
    pub(super) fn copy_below<S: Sink>(&mut self, key: Option<&[u8]>, out: &mut Gather<S>) -> Result<()> {
        while self.fill()? {
            let end = match key {
                Some(key) => self.first_not_below(key)?,
                None => self.batch.num_rows(),
            };
            if end > self.at {
                out.slice(&self.batch, 0, self.at, end - self.at)?;
                self.at = end;
            }
            if end < self.batch.num_rows() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Steps over the rows below `key`.
    pub(super) fn skip_below(&mut self, key: &[u8]) -> Result<()> {
        while self.fill()? {
            self.at = self.first_not_below(key)?;
            if self.at < self.batch.num_rows() {
                break;
            }
        }
        Ok(())
    }

    /// Steps over the current row if it has that key, and gives it.
    pub(super) fn take(&mut self, key: &[u8]) -> Result<Option<RowRef>> {
        if !self.fill()? || self.key_at(self.at)? != key {
            return Ok(None);
        }
        self.at += 1;
        Ok(Some(RowRef { batch: Arc::clone(&self.batch), skip: 0, row: self.at - 1 }))
    }

    fn first_not_below(&mut self, key: &[u8]) -> Result<usize> {
        let rows = self.batch.num_rows();
        if self.keys.is_none() {
            // Most batches have no change at all: one look at the last row settles it.
            let last = match self.last.take() {
                Some(last) => last,
                None => self.order.rows(&self.batch, 0, rows - 1, 1)?,
            };
            let below = last.row(0).data() < key;
            self.last = Some(last);
            if below {
                return Ok(rows);
            }
        }
        self.key_at(self.at)?;
        let Some(keys) = &self.keys else { return Ok(rows) };
        // Gallop: changes are often close together.
        let (mut low, mut step) = (self.at, 1);
        while low + step < rows && keys.row(low + step).data() < key {
            low += step;
            step *= 2;
        }
        let (mut from, mut to) = (low, rows.min(low + step));
        while from < to {
            let middle = usize::midpoint(from, to);
            if keys.row(middle).data() < key { from = middle + 1 } else { to = middle }
        }
        Ok(from)
    }

    fn key_at(&mut self, row: usize) -> Result<&[u8]> {
        let keys = match self.keys.take() {
            Some(keys) => keys,
            None => self.order.rows(&self.batch, 0, 0, self.batch.num_rows())?,
        };
        Ok(self.keys.insert(keys).row(row).data())
    }
}
