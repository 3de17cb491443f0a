//! Debezium's JSON envelope, written and read; with `schemas.enable=true` each key and value has its schema beside it.
//!
//! ```text
//!   key    {"id":1}
//!   value  {"before":…,"after":…,"source":{…},"transaction":null,"op":"u","ts_ms":…,"ts_us":…,"ts_ns":…}
//! ```
//!
//! Values are written as Debezium writes them, apart from where it loses something:
//!
//! | type | JSON |
//! |---|---|
//! | bool; integers, oid | `true`, `false`; number |
//! | float4, float8 | number as Postgres prints it (shortest exact form), or `"NaN"`, `"Infinity"`, `"-Infinity"` |
//! | numeric(p,s) | base64 of the unscaled value, big-endian two's complement; `"NaN"` (Debezium: null) |
//! | numeric | `{"scale":2,"value":"base64"}` with the scale as printed (Debezium strips zeros); `"NaN"`, `"Infinity"`, `"-Infinity"` |
//! | text kinds, uuid, json(b), enum, any other type | string |
//! | bytea | string of base64 |
//! | bit(1); bit(n) | `true`, `false`; base64 of the bits, the lowest byte first. varbit is text: its length would be lost |
//! | date | days since 1970; infinity `2147483647`, -infinity `-2147483648` (Debezium: the same for both) |
//! | time(0..3), time | ms, us since midnight; 24:00 is `86400000`, `86400000000` |
//! | timestamp(0..3), timestamp | ms, us since 1970; infinity `9223372036825200000`, -infinity `-9223372036832400000` |
//! | timestamptz | string, ISO 8601 in UTC, with the type's digits after the seconds, expanded years (`+12026-…`, `-0043-…`); `"infinity"`, `"-infinity"` |
//! | timetz | string as Postgres prints it (Debezium shifts it to UTC and loses the zone) |
//! | interval | string, ISO 8601 as Postgres prints it (Debezium's default, microseconds with months of 30.4375 days, is lossy) |
//! | arrays | array of the element's form, nested for more dimensions; with a lower bound other than 1 (`"[0:1]={a,b}"`) a string of Postgres's text |
//!
//! Microseconds since 1970 may exceed 64 bits from the year 294247 on: the number is exact. One timestamp,
//! 294247-01-10 04:00:25.2, has as microseconds the very number which Debezium gives to infinity: it is
//! written as `9223372036825200000.0`, the same number, told apart by its fraction. In milliseconds, and for
//! the negative one, no timestamp of Postgres comes near.
//!
//! An unchanged TOAST value leaves its field out of `after` (Debezium writes a placeholder).

mod decode;
mod encode;
pub(super) mod row;
pub(super) mod scan;
mod source;
pub(super) mod string;
mod typed;
pub(super) mod value;

#[cfg(test)]
mod tests;

pub use super::decode::{DecodeError, Decoded, Peeked, peek};
pub use super::encode::{EncodeError, OldKind, OldRow, RowChange};
pub use super::source::SourceInfo;
pub use decode::TableDecoder;
pub use encode::TableEncoder;
pub(super) use value::datum;

/// How `numeric` is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecimalHandling {
    /// As bytes: Debezium's `decimal.handling.mode=precise`.
    #[default]
    Precise,
    /// As Postgres's own decimal text, in a string: `decimal.handling.mode=string`.
    String,
}

/// Choices of representation. Both sides of a log must agree on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How `numeric` is written.
    pub decimal_handling: DecimalHandling,
}
