//! The lake: layout of paths, staging, merging and publishing.
