//! `tidemark run`, `capture` and `deliver`.

use std::time::Duration;

use super::{Outcome, raise_on_signal};
use crate::config::{Config, LogFormat};
use crate::ops::init_logging;
use crate::pipeline::{self, Sides};
use crate::runtime::{Error, Result, Shutdown};

/// How long threads may take to end once everything has drained.
const STRAGGLERS_PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn run(config: &Config, sides: Sides) -> Result<Outcome> {
    let json = match config.ops.log_format {
        LogFormat::Auto => None,
        LogFormat::Human => Some(false),
        LogFormat::Json => Some(true),
    };
    let terminal = init_logging(json, config.ops.log_level.as_str())?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let shutdown = Shutdown::new();
        raise_on_signal(&shutdown)?;
        pipeline::run(config, sides, terminal, shutdown).await
    });
    // A thread that waits for a disk which hangs cannot be ended, and must not keep the process.
    runtime.shutdown_timeout(STRAGGLERS_PATIENCE);
    outcome?;
    Ok(Outcome::Done)
}

/// The runtime of everything but capture's own thread.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::operator("cannot start the runtime").cause(error))
}
