//! Dead letters found while merging: changes that no row can be made of.

use bytes::Bytes;

use crate::change::{SchemaVersion, TableSchema};
use crate::runtime::Result;

use super::super::layout::Layout;
use super::super::stage::{DeadLetter, Payload};
use super::blocking::Blocking;
use super::order::Seq;

/// Bytes of one object, about.
const OBJECT_BYTES: usize = 8 << 20;

/// Collects them and writes objects of a bounded size.
pub(super) struct DeadWriter {
    store: Blocking,
    layout: Layout,
    ds: crate::change::Ds,
    table: crate::change::TableName,
    version: SchemaVersion,
    lines: Vec<u8>,
    objects: usize,
    count: u64,
}

impl DeadWriter {
    pub(super) fn new(store: Blocking, layout: Layout, ds: crate::change::Ds, schema: &TableSchema) -> Self {
        Self {
            store,
            layout,
            ds,
            table: schema.name.clone(),
            version: schema.version,
            lines: Vec::new(),
            objects: 0,
            count: 0,
        }
    }

    /// Adds a change.
    pub(super) fn push(&mut self, seq: Seq, key: Option<String>, reason: String) -> Result<()> {
        let letter = DeadLetter {
            partition: seq.partition,
            offset: seq.offset,
            position: Some(seq.position),
            reason,
            schema_version: Some(self.version),
            key: key.map(Payload::Text),
            value: None,
        };
        letter.write_line(&mut self.lines);
        self.count += 1;
        if self.lines.len() >= OBJECT_BYTES { self.write() } else { Ok(()) }
    }

    /// Writes the rest; gives the number of dead letters and of their objects.
    pub(super) fn finish(mut self) -> Result<(u64, usize)> {
        if !self.lines.is_empty() {
            self.write()?;
        }
        Ok((self.count, self.objects))
    }

    fn write(&mut self) -> Result<()> {
        let bytes = Bytes::from(std::mem::take(&mut self.lines));
        let path = self.layout.merge_dead_letters(&self.table, self.ds, self.objects);
        self.store.put_unpublished(&path, &bytes.into())?;
        self.objects += 1;
        Ok(())
    }
}
