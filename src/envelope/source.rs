//! The database that changes come from.

/// What a `source` block says of the whole database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceInfo {
    /// The source's configured name, first part of its topics.
    pub name: String,
    /// The database.
    pub database: String,
    /// Tidemark's version.
    pub version: String,
}
