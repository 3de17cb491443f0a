//! A sorted run on disk, as an Arrow IPC stream, with its checksum.
//!
//! A run that is [kept](Run::move_to) may lie there for hours. Of a stream that was altered, the reader of such streams may
//! take a part for the whole, other values for those that were written, or come to no result at all: so a kept run is
//! read through, and its length and checksum compared, before anything of it is decoded; and once more on the way.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, SchemaRef};
use crc32fast::Hasher;

use super::super::scratch::{Scratch, altered, failed};
use super::arrow_error;
use crate::runtime::{Error, Result};

/// Bytes that are read through at once.
const PIECE_BYTES: usize = 256 << 10;

/// A finished run. The file goes with the scratch folder.
#[derive(Clone, Debug)]
pub struct Run {
    path: PathBuf,
    /// Of the file: its bytes and their CRC-32.
    sum: (u64, u32),
    /// Whether it may lie there for long.
    kept: bool,
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
            Some(batch) => Some(batch.map_err(|error| unread(&self.path, error))),
            None => self.end().err().map(Err),
        }
    }
}

impl RunReader {
    fn end(&mut self) -> Result<()> {
        let Some(mut reader) = self.reader.take() else { return Ok(()) };
        check_rest(reader.get_mut(), &self.path, self.sum, &|| Ok(()))
    }
}

/// Reads what is left of a run's file, as long as `check` lets it, and compares the whole of it.
fn check_rest(
    file: &mut Summed<impl Read>,
    path: &Path,
    sum: (u64, u32),
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    while file.read(&mut piece).map_err(|error| failed("read", path, error))? > 0 {
        check()?;
    }
    if file.sum() == sum { Ok(()) } else { Err(altered(path, "its CRC-32 is another one")) }
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

    /// Moves its file to another scratch folder, which it then goes with, to be kept there.
    pub fn move_to(&mut self, scratch: &Scratch) -> Result<()> {
        self.path = scratch.adopt(&self.path, "run")?;
        self.kept = true;
        Ok(())
    }

    /// Removes its file, if that is still there.
    pub fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Reads the run. Unless it is to `stay`, its file is removed from the folder at once and freed with the reader.
    /// A kept one is read through before, as long as `check` lets it.
    pub(super) fn read(
        &self,
        stay: bool,
        check: &dyn Fn() -> Result<()>,
    ) -> Result<impl Iterator<Item = Result<RecordBatch>> + Send + use<>> {
        let Self { path, sum, kept } = self.clone();
        let mut file = File::open(&path).map_err(|e| failed("read", &path, e))?;
        if !stay {
            std::fs::remove_file(&path).map_err(|e| failed("remove", &path, e))?;
        }
        if kept {
            check_rest(&mut Summed::new(&file), &path, sum, check)?;
            file.rewind().map_err(|e| failed("read", &path, e))?;
        }
        let reader = Summed::new(BufReader::new(file));
        let reader = StreamReader::try_new(reader, None).map_err(|e| unread(&path, e))?;
        Ok(RunReader { path, sum, reader: Some(reader) })
    }
}

impl RunWriter {
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).map_err(|e| unwritten(&self.path, e))
    }

    pub(super) fn finish(mut self) -> Result<Run> {
        self.writer.finish().map_err(|e| unwritten(&self.path, e))?;
        self.writer.flush().map_err(|e| unwritten(&self.path, e))?;
        Ok(Run { path: self.path, sum: self.writer.get_ref().sum(), kept: false })
    }
}

fn unwritten(path: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, error) => failed("write", path, error),
        other => arrow_error(other),
    }
}

fn unread(path: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, error) => failed("read", path, error),
        other => altered(path, other),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, UInt64Array};

    use super::super::super::scratch::is_of_scratch;
    use super::*;

    fn batch(from: u64) -> RecordBatch {
        let column: ArrayRef = Arc::new(UInt64Array::from_iter_values(from..from + 8));
        RecordBatch::try_from_iter([("n", column)]).expect("it is well-formed")
    }

    #[test]
    fn a_kept_run_of_which_any_byte_is_altered_or_missing_is_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let (scratch, lasting) = (Scratch::new(folder.path()), Scratch::new(folder.path()));
        let (scratch, lasting) = (scratch.expect("a folder"), lasting.expect("a folder"));
        let mut writer = Run::create(&batch(0).schema(), &scratch).expect("it is made");
        let batches: Vec<_> = (0..2).map(|n| batch(n * 8)).collect();
        for batch in &batches {
            writer.write(batch).expect("it is written");
        }
        let mut run = writer.finish().expect("it is written");
        run.move_to(&lasting).expect("it is moved");
        let whole = std::fs::read(&run.path).expect("it is there");
        let read = || run.read(true, &|| Ok(())).and_then(Iterator::collect::<Result<Vec<_>>>);
        for at in 0..whole.len() {
            let zeros = [&whole[..at], &vec![0; whole.len() - at]].concat();
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            let mut longer = whole.clone();
            longer.insert(at, 0);
            for (how, bytes) in [
                ("a bit", flipped),
                ("zeros", zeros),
                ("a byte more", longer),
                ("a cut", whole[..at].to_vec()),
            ] {
                if bytes != whole {
                    std::fs::write(&run.path, bytes).expect("it is written");
                    let error = read().map(|_| ()).expect_err("it is altered");
                    assert!(is_of_scratch(&error), "{how} at {at}: {error}");
                }
            }
        }
        std::fs::write(&run.path, whole).expect("it is written");
        assert_eq!(read().expect("it is as it was written"), batches);
    }
}
