//! Debezium's envelope in Avro, as Confluent's `AvroConverter` makes it, written and read.
//!
//! ```text
//!   key, value   0x00 │ id of the schema in the registry, 4 bytes, big-endian │ Avro binary
//!   headers      tidemark.unchanged  ["note"]            columns of after that were not sent
//!                tidemark.exact      {"amount":"NaN"}    columns of after which their Avro type cannot hold
//!                tidemark.exact.before                   the same for before
//! ```
//!
//! A row is written straight into the record, column by column, from Postgres's text. Why a value is itself or
//! missing here, too, where each field of a record has to be there and has one type:
//!
//! * **An unchanged TOAST value** is null in its field and named in the header `tidemark.unchanged`, which is there
//!   only when there is such a column. A null without its name in the header is SQL's null. (Debezium writes a
//!   placeholder, which can be a value.)
//! * **A value that its Avro type cannot hold** is null in its field, and in the header `tidemark.exact` in the form of
//!   the JSON envelope: `NaN` and infinities of a numeric, timestamps beyond 64 bits of microseconds (from the year
//!   294247 on), arrays of more than one dimension or with a lower bound other than 1. A reader which does not know the
//!   header sees what Debezium writes for the first of them: null. Where the column takes no null (it is in the key) the
//!   change is a dead letter.
//! * All else is held as it is: floats have their `NaN`, dates and timestamps their infinities as in JSON
//!   ([`super::json`]), and decimals any number of digits.
//!
//! The reader needs no registry: the header `tidemark.schema` names the version of the table, and its shape tells the
//! schema that the writer had. The id in the record is for other readers.

mod decode;
mod encode;
mod names;
mod read;
mod schema;
mod source;
pub(in crate::envelope) mod transaction;
mod value;

#[cfg(test)]
mod tests;

pub use decode::TableDecoder;
pub use encode::{SchemaIds, TableEncoder};
pub use schema::{AvroSchemas, Named};

/// First byte of a key or value with a schema's id.
pub const MAGIC: u8 = 0;
