//! One error type: what went wrong, of which class, and what the operator can do.

use std::error::Error as StdError;
use std::fmt;

/// Who can mend an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Time: the same step may succeed when it is tried again.
    Retry,
    /// A person: trying again without a change cannot help.
    Operator,
    /// Nobody: another process has taken over, and this one must stop writing.
    Fenced,
    /// Whoever typed the command or wrote the configuration.
    Usage,
}

impl Class {
    /// The word used in logs, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Operator => "operator",
            Self::Fenced => "fenced",
            Self::Usage => "usage",
        }
    }
}

/// The product's error. `message` names the thing (table, LSN, file, TOML key) and what was expected;
/// `mend` says what the operator can do. Neither ever holds a secret.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    class: Class,
    message: String,
    mend: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// `Result` with the product's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of a class.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { inner: Box::new(Inner { class, message: message.into(), mend: None, source: None }) }
    }

    /// Worth trying again.
    pub fn retry(message: impl Into<String>) -> Self {
        Self::new(Class::Retry, message)
    }

    /// Needs a person.
    pub fn operator(message: impl Into<String>) -> Self {
        Self::new(Class::Operator, message)
    }

    /// Another process has taken over.
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(Class::Fenced, message)
    }

    /// Wrong usage or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, message)
    }

    /// Adds what the operator can do.
    #[must_use]
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.inner.mend = Some(mend.into());
        self
    }

    /// Adds the cause. It is printed after the message.
    #[must_use]
    pub fn cause(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.inner.message = format!("{doing}: {}", self.inner.message);
        self
    }

    /// Who can mend it.
    pub fn class(&self) -> Class {
        self.inner.class
    }

    /// What the operator can do, if that is known.
    pub fn mend_text(&self) -> Option<&str> {
        self.inner.mend.as_deref()
    }

    /// The message with its causes, without the mend.
    pub fn message(&self) -> String {
        let mut text = self.inner.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let part = error.to_string();
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            cause = error.source();
        }
        text
    }
}

/// Message, causes and mend, on one line.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        match &self.inner.mend {
            Some(mend) => write!(f, ". {mend}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_thing_cause_and_mend() {
        let error = Error::operator("cannot open /x")
            .cause(std::io::Error::other("no space"))
            .mend("Free some space.");
        assert_eq!(error.to_string(), "cannot open /x: no space. Free some space.");
        assert_eq!(error.context("starting").class(), Class::Operator);
    }
}
