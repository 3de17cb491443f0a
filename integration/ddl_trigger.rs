//! The event trigger: what it tells the stream of DDL, in which order, and that it never stands in the way.
//!
//! Read by `test_decoding`, which is not ours; what a message says of a table is compared with what the catalog says.

mod harmless;
mod installing;
mod order;
mod shapes;
mod source;
