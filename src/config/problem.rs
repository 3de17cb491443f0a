//! What is wrong with a file, all of it.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::runtime::Error;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1; none for a key that is not there.
    pub line: Option<usize>,
    /// The key as people write it: `[source] url`. Empty where the file is not TOML.
    pub key: String,
    /// What was found and what was expected. Never a secret.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// Everything that is wrong with a configuration file.
#[derive(Debug)]
pub struct ConfigErrors {
    path: PathBuf,
    problems: Vec<Problem>,
    mend: String,
}

const SMALLEST: &str = "[source]\nurl = \"postgresql://tidemark:${PGPASSWORD}@db.example.com:5432/shop\"";

impl ConfigErrors {
    /// Problems, put into the order of the file; those without a line come last.
    pub(super) fn new(path: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        let mend = "Every key is explained in the connector.toml that comes with Tidemark.".to_owned();
        Self { path: path.to_owned(), problems, mend }
    }

    /// A file that cannot be read.
    pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        let text = if error.kind() == std::io::ErrorKind::NotFound {
            "there is no such file".to_owned()
        } else {
            format!("cannot be read: {error}")
        };
        let problem = Problem { line: None, key: String::new(), text };
        let example = SMALLEST.replace('\n', "\n    ");
        let mend = format!("Name the file with --config. The smallest one that works is\n\n    {example}\n");
        Self { path: path.to_owned(), problems: vec![problem], mend }
    }

    /// The problems, in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// The file and its problems, a line each, without the mend.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [one] => write!(f, "{}: {one}", self.path.display()),
            many => {
                write!(f, "{}: {} problems", self.path.display(), many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigErrors> for Error {
    fn from(errors: ConfigErrors) -> Self {
        Self::usage(errors.to_string()).mend(errors.mend)
    }
}
