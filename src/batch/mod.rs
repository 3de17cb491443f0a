//! Rows to file bytes and back: Parquet and CSV. Pure.
