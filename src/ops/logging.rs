//! Log lines on stderr, and the one line above which they pass: the backfill's progress.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::lock;
use crate::runtime::{Error, Result};

/// stderr. On a terminal its last line can be one that is updated in place; log lines are written above it.
/// Clones share it.
#[derive(Clone, Debug)]
pub struct Terminal {
    line: Arc<Mutex<String>>,
    is_terminal: bool,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

/// Back to the line's begin, and clear it.
const CLEAR: &[u8] = b"\r\x1b[2K";

impl Terminal {
    /// The process's stderr.
    pub fn new() -> Self {
        Self { line: Arc::default(), is_terminal: io::stderr().is_terminal() }
    }

    /// Whether somebody looks at it.
    pub const fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Puts the line, or takes it away when it is empty. Does nothing where there is no terminal.
    pub fn set_line(&self, text: &str) {
        if !self.is_terminal {
            return;
        }
        let mut line = lock(&self.line);
        if *line == text {
            return;
        }
        text.clone_into(&mut line);
        let mut stderr = io::stderr().lock();
        // A terminal that is gone is no reason to stop.
        let _ = stderr.write_all(CLEAR).and_then(|()| stderr.write_all(text.as_bytes()));
        let _ = stderr.flush();
    }
}

/// Writes a log line above the line in place.
impl Write for &Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = lock(&self.line);
        let mut stderr = io::stderr().lock();
        if line.is_empty() {
            stderr.write_all(bytes)?;
        } else {
            stderr.write_all(CLEAR)?;
            stderr.write_all(bytes)?;
            stderr.write_all(line.as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

#[derive(Clone)]
struct Lines(Terminal);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Terminal;

    fn make_writer(&'a self) -> Self::Writer {
        &self.0
    }
}

/// Begins logging to stderr with timestamps in UTC: JSON when `json`, human otherwise; `None` is human on a
/// terminal and JSON elsewhere. `level` holds unless `TIDEMARK_LOG`, or else `RUST_LOG`, gives directives.
///
/// # Errors
/// Class `Usage` for directives that cannot be read; `Operator` when logging has begun already.
pub fn init(json: Option<bool>, level: &str) -> Result<Terminal> {
    let terminal = Terminal::new();
    let given = ["TIDEMARK_LOG", "RUST_LOG"].into_iter().find_map(|name| {
        std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| (name, value))
    });
    let filter = match given {
        Some((name, value)) => EnvFilter::try_new(&value).map_err(|error| {
            Error::usage(format!("{name} holds {value:?}: {error}"))
                .mend("Expected something like info,tidemark::postgres=debug.")
        })?,
        None => EnvFilter::new(level),
    };
    let colours = terminal.is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Lines(terminal.clone()));
    let begun = if json.unwrap_or(!terminal.is_terminal) {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        builder.with_ansi(colours).with_target(false).try_init()
    };
    begun.map_err(|error| Error::operator(format!("logging cannot begin: {error}")))?;
    Ok(terminal)
}
