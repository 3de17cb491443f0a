//! A sorted run on disk, as an Arrow IPC stream, with its checksum: it may lie there for hours, and a stream that ends early
//! would look whole.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, SchemaRef};
use crc32fast::Hasher;

use super::super::scratch::{Scratch, failed};
use super::arrow_error;
use crate::runtime::{Error, Result};

/// A finished run. The file goes with the scratch folder.
#[derive(Clone, Debug)]
pub struct Run {
    path: PathBuf,
    /// Of the file: its bytes and their CRC-32.
    sum: (u64, u32),
}

/// A run being written.
pub(super) struct RunWriter {
    path: PathBuf,
    writer: StreamWriter<Summed<BufWriter<File>>>,
}

/// Counts what passes, and its checksum.
struct Summed<T> {
    inner: T,
    bytes: u64,
    crc: Hasher,
}

impl<T> Summed<T> {
    fn new(inner: T) -> Self {
        Self { inner, bytes: 0, crc: Hasher::new() }
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.crc.update(bytes);
    }

    fn sum(&self) -> (u64, u32) {
        (self.bytes, self.crc.clone().finalize())
    }
}

impl<T: Write> Write for Summed<T> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.passed(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Summed<T> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.passed(&bytes[..read]);
        Ok(read)
    }
}

/// The batches of a run; the end is one only if all of it was as it was written.
struct RunReader {
    path: PathBuf,
    sum: (u64, u32),
    reader: Option<StreamReader<Summed<BufReader<File>>>>,
}

impl Iterator for RunReader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.reader.as_mut()?.next() {
            Some(batch) => Some(batch.map_err(|error| of_file(&self.path, error))),
            None => self.end().err().map(Err),
        }
    }
}

impl RunReader {
    fn end(&mut self) -> Result<()> {
        let Some(mut reader) = self.reader.take() else { return Ok(()) };
        let rest = reader.get_mut();
        std::io::copy(rest, &mut std::io::sink()).map_err(|error| failed("read", &self.path, error))?;
        if rest.sum() == self.sum {
            return Ok(());
        }
        Err(Error::retry(format!("{} was altered since it was written", self.path.display()))
            .mend("Does anything else write to the scratch folder, or is its disk damaged?"))
    }
}

impl Run {
    pub(super) fn create(schema: &SchemaRef, scratch: &Scratch) -> Result<RunWriter> {
        let (path, file) = scratch.create("run")?;
        let writer = Summed::new(BufWriter::new(file));
        Ok(RunWriter { path, writer: StreamWriter::try_new(writer, schema).map_err(arrow_error)? })
    }

    /// Bytes of its file.
    pub const fn bytes(&self) -> u64 {
        self.sum.0
    }

    /// Moves its file to another scratch folder, which it then goes with.
    pub fn move_to(&mut self, scratch: &Scratch) -> Result<()> {
        self.path = scratch.adopt(&self.path, "run")?;
        Ok(())
    }

    /// Removes its file, if that is still there.
    pub fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Reads the run. Unless it is to be `kept`, its file is removed from the folder at once and freed with the reader.
    pub(super) fn read(
        &self,
        kept: bool,
    ) -> Result<impl Iterator<Item = Result<RecordBatch>> + Send + use<>> {
        let path = self.path.clone();
        let file = File::open(&path).map_err(|e| failed("read", &path, e))?;
        if !kept {
            std::fs::remove_file(&path).map_err(|e| failed("remove", &path, e))?;
        }
        let reader = Summed::new(BufReader::new(file));
        let reader = StreamReader::try_new(reader, None).map_err(|e| of_file(&path, e))?;
        Ok(RunReader { path, sum: self.sum, reader: Some(reader) })
    }
}

impl RunWriter {
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).map_err(|e| of_file(&self.path, e))
    }

    pub(super) fn finish(mut self) -> Result<Run> {
        self.writer.finish().map_err(|e| of_file(&self.path, e))?;
        self.writer.flush().map_err(|e| of_file(&self.path, e))?;
        Ok(Run { path: self.path, sum: self.writer.get_ref().sum() })
    }
}

fn of_file(path: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, error) => failed("use", path, error),
        other => arrow_error(other),
    }
}
