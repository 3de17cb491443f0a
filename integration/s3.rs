//! A lake in a bucket: the same days as in a folder, whatever the store and the network do in between, and nothing that is
//! there is ever replaced.
//!
//! The store is `SeaweedFS`, a real one; before it stands a proxy that answers 503, cuts connections before and after a
//! request was carried out, stalls, and notes what was carried out. What is in the bucket is read by pyarrow.

mod binary;
mod encrypted;
mod faults;
mod hosted;
mod large;
mod refused;
mod web_identity;
