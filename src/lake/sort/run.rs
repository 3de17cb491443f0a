//! A sorted run on disk, as an Arrow IPC stream.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::PathBuf;

use arrow_array::RecordBatch;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, SchemaRef};

use super::super::scratch::{Scratch, failed};
use super::arrow_error;
use crate::runtime::{Error, Result};

/// A finished run. The file goes with the scratch folder.
#[derive(Clone, Debug)]
pub struct Run {
    path: PathBuf,
    /// Of the file.
    bytes: u64,
}

/// A run being written.
pub(super) struct RunWriter {
    path: PathBuf,
    writer: StreamWriter<BufWriter<File>>,
}

impl Run {
    pub(super) fn create(schema: &SchemaRef, scratch: &Scratch) -> Result<RunWriter> {
        let (path, file) = scratch.create("run")?;
        let writer = StreamWriter::try_new(BufWriter::new(file), schema).map_err(arrow_error)?;
        Ok(RunWriter { path, writer })
    }

    /// Bytes of its file.
    pub const fn bytes(&self) -> u64 {
        self.bytes
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
        let reader = StreamReader::try_new(BufReader::new(file), None).map_err(|e| of_file(&path, e))?;
        Ok(reader.map(move |batch| batch.map_err(|e| of_file(&path, e))))
    }
}

impl RunWriter {
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).map_err(|e| of_file(&self.path, e))
    }

    pub(super) fn finish(mut self) -> Result<Run> {
        self.writer.finish().map_err(|e| of_file(&self.path, e))?;
        let written = self.writer.get_ref().get_ref().metadata();
        let bytes = written.map_err(|e| failed("use", &self.path, e))?.len();
        Ok(Run { path: self.path, bytes })
    }
}

fn of_file(path: &std::path::Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, error) => failed("use", path, error),
        other => arrow_error(other),
    }
}
