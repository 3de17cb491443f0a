//! What every part needs to run: errors with a class and a mend, retry, shutdown, a memory budget.
//! Knows no other module.

pub mod aws;
mod error;
pub mod http;
mod retry;
mod shutdown;
pub(crate) mod sqlite;

pub use error::{Class, Error, Result};
pub use retry::Backoff;
pub use shutdown::Shutdown;

/// Bytes in lower-case hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
