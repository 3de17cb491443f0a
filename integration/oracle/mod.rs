//! What the database itself says happened, traffic that gives it something to say, and the comparison of records
//! with it. Shared by the tests of exactness on either log.

pub mod checker;
pub mod copies;
mod history;
pub mod reader;
pub mod source;
pub mod traffic;
pub mod values;

pub use history::{Change, History, Row, Rows, State, Transaction};
