//! Avro, checked against the JSON envelope and against a decoder which was not written here.

mod fixture;
mod records;
mod robust;
mod schemas;
mod types;
