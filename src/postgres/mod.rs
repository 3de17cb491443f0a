//! The source: the replication client, decoding, and everything that is asked of the server.

mod abridge;
pub mod assemble;
pub mod catalog;
pub mod claim;
pub mod copy;
pub mod ddl;
pub mod membership;
pub mod pgoutput;
pub mod preflight;
pub mod published;
pub mod retained;
pub mod setup;
pub mod slot;
pub mod snapshot;
pub mod spool;
pub mod wire;
