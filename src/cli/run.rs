//! `tidemark run`, `capture` and `deliver`.

use super::{Outcome, raise_on_signal};
use crate::config::{Config, LogFormat};
use crate::ops::init_logging;
use crate::pipeline::{self, Sides};
use crate::runtime::{Error, Result, Shutdown};

pub(super) fn run(config: &Config, sides: Sides) -> Result<Outcome> {
    let json = match config.ops.log_format {
        LogFormat::Auto => None,
        LogFormat::Human => Some(false),
        LogFormat::Json => Some(true),
    };
    let terminal = init_logging(json, config.ops.log_level.as_str())?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let shutdown = Shutdown::new();
        raise_on_signal(&shutdown)?;
        pipeline::run(config, sides, terminal, shutdown).await
    })?;
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
