//! A lake in a bucket: the same days as in a folder, whatever the store and the network do in between, and nothing that is
//! there is ever replaced.
//!
//! The store is `SeaweedFS`, a real one; before it stands a proxy that answers 503, cuts connections before and after a
//! request was carried out, stalls, and notes what was carried out. What is in the bucket is read by pyarrow.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod lake;
mod support;

#[path = "s3/binary.rs"]
mod binary;
#[path = "s3/encrypted.rs"]
mod encrypted;
#[path = "s3/faults.rs"]
mod faults;
#[path = "s3/hosted.rs"]
mod hosted;
#[path = "s3/large.rs"]
mod large;
#[path = "s3/refused.rs"]
mod refused;
#[path = "s3/web_identity.rs"]
mod web_identity;
