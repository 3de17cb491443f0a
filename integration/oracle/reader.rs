//! Rows of a published day as pyarrow reads them, in a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::source::Kind;
use super::{Row, Rows};

/// The process, asked for one folder after the other.
pub struct Reader {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Reader {
    /// Starts it.
    pub fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/oracle/read_lake.py");
        let mut child =
            Command::new(python()).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The rows of a day's folder, which has exactly these columns.
    pub fn rows<'c>(&mut self, folder: &Path, columns: impl Iterator<Item = (&'c str, Kind)>) -> Rows {
        self.ask(folder, columns, false).unwrap_or_else(|error| panic!("{error}"))
    }

    /// These columns of the rows of a day's folder, which may have others.
    pub fn columns<'c>(
        &mut self,
        folder: &Path,
        columns: impl Iterator<Item = (&'c str, Kind)>,
    ) -> Result<Rows, String> {
        let rows = self.ask(folder, columns, true);
        if rows.is_err() {
            *self = Self::start();
        }
        rows
    }

    fn ask<'c>(
        &mut self,
        folder: &Path,
        columns: impl Iterator<Item = (&'c str, Kind)>,
        others: bool,
    ) -> Result<Rows, String> {
        let columns: Vec<_> = columns.map(|(name, kind)| json!([name, kind.name()])).collect();
        let asked = json!({"folder": folder, "columns": columns, "others": others});
        writeln!(self.child.stdin.as_mut().unwrap(), "{asked}").unwrap();
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        if line.is_empty() {
            return Err(format!(
                "{} could not be read: the reader has said why, and ended",
                folder.display()
            ));
        }
        let list: Vec<Row> = serde_json::from_str(&line)
            .map_err(|error| format!("{} could not be read: {error}", folder.display()))?;
        let mut rows = Rows::new();
        for row in list {
            *rows.entry(row).or_default() += 1;
        }
        Ok(rows)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Python with pyarrow.
pub fn python() -> PathBuf {
    let python = std::env::var_os("TIDEMARK_TEST_PYTHON")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python"), PathBuf::from);
    assert!(python.exists(), "{} is missing: run `make venv`", python.display());
    python
}
