//! Comma-separated text, gzipped: RFC 4180 in UTF-8 with a header line, lines ended by a line feed.
//!
//! | value | text |
//! |---|---|
//! | null | nothing, unquoted |
//! | empty text | `""` |
//! | boolean | `true`, `false` |
//! | float | the shortest digits that read back to it; `NaN`, `Infinity`, `-Infinity` |
//! | decimal | plain digits, always as many after the point as the scale |
//! | bytes | `\x` and hexadecimal digits |
//! | date | `2026-11-20`; years before 1 as ISO 8601 numbers them (`-0043` is 44 BC); `infinity`, `-infinity` |
//! | time | `10:15:30.123456`, `24:00:00.000000` |
//! | timestamp | `2026-11-20 10:15:30.123456`, in UTC with `+00` after it where it is an instant |
//! | list | JSON; decimals, bytes, dates and times in it as strings, and so the floats JSON lacks |
//!
//! Timestamps always have six digits after the seconds, since pandas takes one form a column. A quote is
//! written only where RFC 4180 or the difference between null and empty asks for it. In a table of one
//! column a null is an empty line, which most readers skip: only Parquet keeps such rows for them.

pub(super) mod calendar;
mod cells;
mod parse;
mod read;
mod records;
mod write;

pub(super) use cells::{write_float, write_hex, write_json_text};
pub(super) use read::CsvReader;
pub(super) use write::CsvWriter;
