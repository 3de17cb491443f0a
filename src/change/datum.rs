//! A value, decoded: what the envelope carries and the lake stores.

use std::borrow::Cow;

/// A decoded column value. Text and bytes are borrowed from the record where it holds them verbatim.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum<'a> {
    /// SQL null.
    Null,
    /// An unchanged TOAST value: missing, to be completed from the row held.
    Unchanged,
    /// `bool`.
    Bool(bool),
    /// `int2`, `int4`, `int8`, `oid`.
    Int(i64),
    /// `float4` (widened exactly), `float8`; NaN and infinities included.
    Float(f64),
    /// `numeric(p, s)`: the unscaled value in two's complement, big-endian, of any length; the scale is
    /// the column's.
    Decimal(Cow<'a, [u8]>),
    /// Text in all its kinds: numeric without scale (plain decimal digits as Postgres prints them, or
    /// `NaN`, `Infinity`, `-Infinity`), json, uuid, enum, interval (ISO 8601), timetz. Of an array with a lower
    /// bound other than 1: Postgres's text of it, such as `[0:1]={a,b}`.
    Text(Cow<'a, str>),
    /// `bytea`.
    Bytes(Cow<'a, [u8]>),
    /// `date`: days since 1970-01-01; `i32::MAX` / `i32::MIN` are infinity / -infinity.
    Date(i32),
    /// `time`: microseconds since midnight; 24:00 is 86,400,000,000.
    Time(i64),
    /// `timestamp` and `timestamptz` (UTC): microseconds since 1970-01-01; [`Datum::INFINITY`] and
    /// [`Datum::NEG_INFINITY`] are the infinities. Wider than 64 bits, since Postgres reaches year 294276.
    Timestamp(i128),
    /// An array; of more dimensions, a list of lists.
    List(Vec<Datum<'a>>),
}

impl Datum<'_> {
    /// `timestamp 'infinity'`.
    pub const INFINITY: i128 = i128::MAX;
    /// `timestamp '-infinity'`.
    pub const NEG_INFINITY: i128 = i128::MIN;

    /// The same value, owning its bytes.
    pub fn into_owned(self) -> Datum<'static> {
        match self {
            Self::Null => Datum::Null,
            Self::Unchanged => Datum::Unchanged,
            Self::Bool(v) => Datum::Bool(v),
            Self::Int(v) => Datum::Int(v),
            Self::Float(v) => Datum::Float(v),
            Self::Decimal(v) => Datum::Decimal(Cow::Owned(v.into_owned())),
            Self::Text(v) => Datum::Text(Cow::Owned(v.into_owned())),
            Self::Bytes(v) => Datum::Bytes(Cow::Owned(v.into_owned())),
            Self::Date(v) => Datum::Date(v),
            Self::Time(v) => Datum::Time(v),
            Self::Timestamp(v) => Datum::Timestamp(v),
            Self::List(v) => Datum::List(v.into_iter().map(Datum::into_owned).collect()),
        }
    }
}
