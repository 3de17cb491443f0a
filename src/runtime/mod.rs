//! What every part needs to run: errors with a class and a mend, retry, shutdown, a memory budget.
//! Knows no other module.

mod error;
pub mod http;
mod retry;
mod shutdown;
pub(crate) mod sqlite;

pub use error::{Class, Error, Result};
pub use retry::Backoff;
pub use shutdown::Shutdown;
