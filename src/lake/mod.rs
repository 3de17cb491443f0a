//! The lake: layout of paths, staging, merging and publishing.

pub mod layout;
mod scratch;
mod sort;
pub mod store;
