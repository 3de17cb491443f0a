//! The source: the replication client, decoding, and everything that is asked of the server.

pub mod assemble;
pub mod copy;
pub mod pgoutput;
