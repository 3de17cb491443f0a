//! Where the two sides meet: capture, deliver, and what keeps them running.
//!
//! ```text
//!   source ─> capture ─> log ─> deliver ─> lake
//!                └── supervise ──┘
//! ```

pub mod capture;
pub mod deliver;
pub mod settings;
mod supervise;
mod topics;
mod watch;

pub use supervise::{Sides, run};
