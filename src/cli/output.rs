//! Printing: aligned, calm, in colours only where a terminal shows them.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use crate::runtime::Error;

/// Whether text is coloured.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    colours: bool,
}

impl Style {
    /// For stdout.
    pub fn stdout() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    /// For stderr.
    pub fn stderr() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    /// Without colours.
    pub const fn plain() -> Self {
        Self { colours: false }
    }

    /// <https://no-color.org>: set and not empty turns colours off.
    fn of(is_terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { colours: is_terminal && !refused && !dumb }
    }

    /// What is well.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// What is worth knowing.
    pub fn warning(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// What must be looked at.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// What is less important.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Prints to stdout. A reader that has gone (`| head`) is no error.
///
/// # Errors
/// Class `Operator` when stdout cannot be written.
pub fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::operator("cannot write to stdout").cause(error))
        }
        _ => Ok(()),
    }
}

/// Prints a value as JSON, on lines when somebody looks.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Error> {
    let pretty = io::stdout().is_terminal();
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    let text = text.map_err(|error| Error::operator("cannot write JSON").cause(error))?;
    print(&(text + "\n"))
}

/// Prints an error with its mend to stderr.
pub fn print_error(error: &Error) {
    // If stderr is gone there is nobody left to tell.
    let _ = io::stderr().lock().write_all(error_text(error, Style::stderr()).as_bytes());
}

fn error_text(error: &Error, style: Style) -> String {
    let mut text = format!("{} {}\n", style.bad("error:"), error.message());
    if let Some(mend) = error.mend_text() {
        // Writing to a String does not fail.
        let _ = writeln!(text, "→ {}", mend.trim_end().replace('\n', "\n  "));
    }
    text
}

/// Rows in columns, two blanks apart; `right` says which are aligned to the right. Colours have no width: they
/// are put on by `paint`, given row, column and the padded text.
pub(super) fn columns(
    rows: &[Vec<String>],
    right: &[bool],
    paint: impl Fn(usize, usize, &str) -> String,
) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..right.len()).map(width).collect();
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cell = |column: usize| {
            let pad = " ".repeat(widths[column] - row[column].chars().count());
            let text = paint(index, column, &row[column]);
            let last = column + 1 == right.len();
            match (right[column], last) {
                (true, _) => format!("{pad}{text}"),
                (false, true) => text,
                (false, false) => format!("{text}{pad}"),
            }
        };
        let cells: Vec<_> = (0..right.len()).map(cell).collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_its_mend_on_a_line_of_its_own() {
        let error = Error::operator("the slot is gone").mend("Run:\ntidemark setup\n");
        assert_eq!(error_text(&error, Style::plain()), "error: the slot is gone\n→ Run:\n  tidemark setup\n");
    }

    #[test]
    fn columns_are_aligned_without_blanks_at_the_end() {
        let rows = [["a", "1", "x"], ["bcé", "100", ""]].map(|row| row.map(str::to_owned).to_vec());
        let text = columns(&rows, &[false, true, false], |_, _, text| text.to_owned());
        assert_eq!(text, "a      1  x\nbcé  100\n");
    }
}
