//! Dead letters found while merging: changes that no row can be made of.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::change::{Ds, SchemaVersion, TableName, TableSchema};
use crate::runtime::Result;

use super::super::layout::Layout;
use super::super::scratch::{Scratch, failed};
use super::super::stage::{DeadLetter, Payload};
use super::blocking::Blocking;
use super::order::Seq;

/// Bytes of one object, about; also of held letters in memory.
const OBJECT_BYTES: usize = 8 << 20;

/// Collects them and writes objects of a bounded size.
pub(super) struct DeadWriter {
    store: Blocking,
    layout: Layout,
    scratch: Arc<Scratch>,
    ds: Ds,
    table: TableName,
    version: SchemaVersion,
    lines: Vec<u8>,
    objects: usize,
    count: u64,
    /// Letters of which it is not known yet whether they are any.
    held: Vec<u8>,
    /// Those before them, once they are too many for memory.
    spilled: Option<(PathBuf, File)>,
}

impl DeadWriter {
    pub(super) fn new(
        store: Blocking,
        layout: Layout,
        scratch: Arc<Scratch>,
        ds: Ds,
        schema: &TableSchema,
    ) -> Self {
        Self {
            store,
            layout,
            scratch,
            ds,
            table: schema.name.clone(),
            version: schema.version,
            lines: Vec::new(),
            objects: 0,
            count: 0,
            held: Vec::new(),
            spilled: None,
        }
    }

    /// Adds a change.
    pub(super) fn push(&mut self, seq: Seq, key: Option<String>, reason: String) -> Result<()> {
        self.letter(seq, key, reason).write_line(&mut self.lines);
        self.pushed()
    }

    /// Keeps a change until it is [confirmed](Self::confirm) or [revoked](Self::revoke).
    pub(super) fn hold(&mut self, seq: Seq, key: Option<String>, reason: String) -> Result<()> {
        self.letter(seq, key, reason).write_line(&mut self.held);
        if self.held.len() < OBJECT_BYTES {
            return Ok(());
        }
        let (path, mut file) = match self.spilled.take() {
            Some(spilled) => spilled,
            None => self.scratch.create_read_write("dead")?,
        };
        file.write_all(&self.held).map_err(|error| failed("write", &path, error))?;
        self.held.clear();
        self.spilled = Some((path, file));
        Ok(())
    }

    /// What is held is no dead letter.
    pub(super) fn revoke(&mut self) -> Result<()> {
        self.held.clear();
        match self.spilled.take() {
            Some((path, _)) => std::fs::remove_file(&path).map_err(|error| failed("remove", &path, error)),
            None => Ok(()),
        }
    }

    /// What is held are dead letters.
    pub(super) fn confirm(&mut self) -> Result<()> {
        if self.held.is_empty() && self.spilled.is_none() {
            return Ok(());
        }
        if let Some((path, mut file)) = self.spilled.take() {
            file.rewind().map_err(|error| failed("read", &path, error))?;
            let mut lines = BufReader::new(file);
            while lines.read_until(b'\n', &mut self.lines).map_err(|error| failed("read", &path, error))? > 0
            {
                self.pushed()?;
            }
            std::fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
        }
        for line in std::mem::take(&mut self.held).split_inclusive(|byte| *byte == b'\n') {
            self.lines.extend_from_slice(line);
            self.pushed()?;
        }
        Ok(())
    }

    /// Writes the rest; gives the number of dead letters and of their objects.
    pub(super) fn finish(mut self) -> Result<(u64, usize)> {
        if !self.lines.is_empty() {
            self.write()?;
        }
        Ok((self.count, self.objects))
    }

    fn letter(&self, seq: Seq, key: Option<String>, reason: String) -> DeadLetter {
        DeadLetter {
            partition: seq.partition,
            offset: seq.offset,
            position: Some(seq.position),
            reason,
            schema_version: Some(self.version),
            key: key.map(Payload::Text),
            value: None,
        }
    }

    /// One more line is there.
    fn pushed(&mut self) -> Result<()> {
        self.count += 1;
        if self.lines.len() >= OBJECT_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let bytes = Bytes::from(std::mem::take(&mut self.lines));
        let path = self.layout.merge_dead_letters(&self.table, self.ds, self.objects);
        let manifest = self.layout.manifest(&self.table, self.ds);
        self.store.put_unpublished(&path, &bytes.into(), &manifest)?;
        self.objects += 1;
        Ok(())
    }
}
