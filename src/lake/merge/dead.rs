//! Dead letters found while merging: changes that no row can be made of.
//!
//! Each stretch collects its own; they become objects in the order of the stretches.

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

/// Bytes of one object, about; also of letters in memory.
const OBJECT_BYTES: usize = 8 << 20;

/// Letters, a line each; in a file once they are too many for memory.
#[derive(Debug)]
struct Lines {
    scratch: Arc<Scratch>,
    memory: Vec<u8>,
    /// Those before them.
    spilled: Option<(PathBuf, File)>,
}

impl Lines {
    const fn new(scratch: Arc<Scratch>) -> Self {
        Self { scratch, memory: Vec::new(), spilled: None }
    }

    const fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.spilled.is_none()
    }

    /// Adds a line, which is written by `write`.
    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        write(&mut self.memory);
        if self.memory.len() < OBJECT_BYTES {
            return Ok(());
        }
        let (path, mut file) = match self.spilled.take() {
            Some(spilled) => spilled,
            None => self.scratch.create_read_write("dead")?,
        };
        file.write_all(&self.memory).map_err(|error| failed("write", &path, error))?;
        self.memory.clear();
        self.spilled = Some((path, file));
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        self.memory.clear();
        match self.spilled.take() {
            Some((path, _)) => std::fs::remove_file(&path).map_err(|error| failed("remove", &path, error)),
            None => Ok(()),
        }
    }

    /// Hands over the lines in order, and has none any more.
    fn drain(&mut self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if let Some((path, file)) = &mut self.spilled {
            file.rewind().map_err(|error| failed("read", path, error))?;
            let (mut lines, mut line) = (BufReader::new(file), Vec::new());
            while lines.read_until(b'\n', &mut line).map_err(|error| failed("read", path, error))? > 0 {
                take(&line)?;
                line.clear();
            }
        }
        for line in self.memory.split_inclusive(|byte| *byte == b'\n') {
            take(line)?;
        }
        self.clear()
    }
}

/// The dead letters of a stretch.
#[derive(Debug)]
pub(super) struct Letters {
    version: SchemaVersion,
    lines: Lines,
    /// Letters of which it is not known yet whether they are any.
    held: Lines,
}

impl Letters {
    pub(super) fn new(scratch: &Arc<Scratch>, version: SchemaVersion) -> Self {
        let lines = || Lines::new(Arc::clone(scratch));
        Self { version, lines: lines(), held: lines() }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Adds a change.
    pub(super) fn push(&mut self, seq: Seq, key: Option<String>, reason: String) -> Result<()> {
        let letter = self.letter(seq, key, reason);
        self.lines.add(|lines| letter.write_line(lines))
    }

    /// Keeps a change until it is [confirmed](Self::confirm) or [revoked](Self::revoke).
    pub(super) fn hold(&mut self, seq: Seq, key: Option<String>, reason: String) -> Result<()> {
        let letter = self.letter(seq, key, reason);
        self.held.add(|lines| letter.write_line(lines))
    }

    /// What is held is no dead letter.
    pub(super) fn revoke(&mut self) -> Result<()> {
        self.held.clear()
    }

    /// What is held are dead letters.
    pub(super) fn confirm(&mut self) -> Result<()> {
        let Self { lines, held, .. } = self;
        held.drain(|line| lines.add(|lines| lines.extend_from_slice(line)))
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
}

/// Writes objects of a bounded size.
pub(super) struct DeadWriter {
    store: Blocking,
    layout: Layout,
    ds: Ds,
    table: TableName,
    lines: Vec<u8>,
    objects: usize,
    count: u64,
}

impl DeadWriter {
    pub(super) fn new(store: Blocking, layout: Layout, ds: Ds, schema: &TableSchema) -> Self {
        let table = schema.name.clone();
        Self { store, layout, ds, table, lines: Vec::new(), objects: 0, count: 0 }
    }

    /// Takes a stretch's.
    pub(super) fn take(&mut self, mut letters: Letters) -> Result<()> {
        letters.lines.drain(|line| {
            self.lines.extend_from_slice(line);
            self.count += 1;
            if self.lines.len() >= OBJECT_BYTES { self.write() } else { Ok(()) }
        })
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
        let manifest = self.layout.manifest(&self.table, self.ds);
        self.store.put_unpublished(&path, &bytes.into(), &manifest)?;
        self.objects += 1;
        Ok(())
    }
}
