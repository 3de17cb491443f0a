//! Starts the sides, watches them, and ends all when one ends.
//!
//! ```text
//!   listen ─> open log, coordinator, lake ─> capture ┐
//!                                            deliver ┼─ first error, or a signal ─> shutdown ─> all drain
//!                                            http    ┘
//! ```
//!
//! Everything that can fail at once (a port in use, an unwritable folder, a wrong URL) is tried before
//! anything runs.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Backfill, Config};
use crate::lake::Lake;
use crate::ops::{Ops, Server, Terminal, show_backfill};
use crate::runtime::{Backoff, Class, Error, Result, Shutdown};

use super::{capture, deliver, settings, watch};

/// A lake that does not answer is taken for one that is away after this long: capture is not to wait for it.
const LAKE_PATIENCE: Duration = Duration::from_secs(10);

/// Which sides run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// `tidemark run`.
    Both,
    /// `tidemark capture`.
    Capture,
    /// `tidemark deliver`.
    Deliver,
}

impl Sides {
    const fn captures(self) -> bool {
        matches!(self, Self::Both | Self::Capture)
    }

    const fn delivers(self) -> bool {
        matches!(self, Self::Both | Self::Deliver)
    }
}

/// Tries the lake, and tells of it: false where time may mend what is wrong.
async fn lake_answers(lake: &Lake, ops: &Ops) -> Result<bool> {
    let component = ops.component("lake");
    let tried = tokio::time::timeout(LAKE_PATIENCE, lake.probe()).await;
    match tried.unwrap_or_else(|_| Err(Error::retry(format!("the lake did not answer in {LAKE_PATIENCE:?}"))))
    {
        Ok(()) => component.ok(),
        Err(error) if error.class() == Class::Retry => {
            tracing::warn!(%error, "the lake does not answer: trying again");
            component.failed(&error);
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// Tries the lake until it answers, or the process is to stop.
async fn until_lake_answers(lake: &Lake, ops: &Ops, shutdown: &Shutdown) -> Result<()> {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
    loop {
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = shutdown.raised() => return Ok(()),
        }
        tokio::select! {
            answers = lake_answers(lake, ops) => if answers? { return Ok(()) },
            () = shutdown.raised() => return Ok(()),
        }
    }
}

/// Runs until a signal raises `shutdown` or a person is needed.
pub async fn run(config: &Config, sides: Sides, terminal: Terminal, shutdown: Shutdown) -> Result<()> {
    if sides.delivers() && config.source.backfill == Backfill::None {
        return Err(Error::usage("[source] backfill is \"none\", and snapshots need every row")
            .mend("Run `tidemark capture` for a log of changes alone, or set backfill = \"initial\"."));
    }
    let capture_settings = settings::capture(config)?;
    let deliver_settings = settings::deliver(config)?;
    let (ops, commands) = Ops::new(&config.source.name);
    ops.source().set_thresholds(settings::thresholds(config));
    let server = Server::bind(&config.ops.listen).await?;
    let log = settings::open_log(config)?;
    ops.component("log").ok();
    let mut target = None;
    if sides.delivers() {
        let coordinator = settings::open_coordinator(config)?;
        ops.component("coordinator").ok();
        let lake = settings::open_lake(config)?;
        // A lake that is away for a while must not keep capture from starting: the source would keep its WAL.
        let answers = lake_answers(&lake, &ops).await?;
        target = Some((coordinator, lake, answers));
    }
    // Known from the start: without them the process would call itself ready before they have begun.
    for (name, runs) in [("source", sides.captures()), ("deliver", sides.delivers())] {
        if runs {
            ops.component(name);
        }
    }
    let mut sides_running = tokio::task::JoinSet::new();
    let mut watched = Arc::clone(&log);
    if sides.captures() {
        let settings = capture_settings;
        watched = settings::capture_log(config, &log)?;
        let (log, ops, shutdown) = (Arc::clone(&watched), ops.clone(), shutdown.clone());
        sides_running.spawn(on_a_thread_of_its_own("capture", move |runtime| {
            runtime.block_on(capture::run(&settings, log, &ops, commands, &shutdown))
        }));
    } else {
        // Who asks is told at once that it is another process which captures.
        drop(commands);
    }
    if let Some((coordinator, lake, answers)) = target {
        let settings = deliver_settings;
        let (log, ops, shutdown) = (Arc::clone(&log), ops.clone(), shutdown.clone());
        sides_running.spawn(async move {
            if !answers {
                until_lake_answers(&lake, &ops, &shutdown).await?;
            }
            deliver::run(&settings, &log, &lake, &coordinator, &ops, &shutdown).await
        });
    }
    let (http_down, watch_down) = (shutdown.clone(), Shutdown::new());
    let http_ops = ops.clone();
    let http = tokio::spawn(async move { server.serve(http_ops, http_down).await });
    let watching = tokio::spawn(watch::run(
        sides.captures().then(|| settings::watched_slot(config)).transpose()?,
        watched,
        settings::log_file(config),
        ops.clone(),
        watch_down.clone(),
    ));

    let progress = tokio::spawn(show_backfill(ops.clone(), terminal, watch_down.clone()));

    let mut result = Ok(());
    while let Some(ended) = sides_running.join_next().await {
        let ended =
            ended.unwrap_or_else(|error| Err(Error::operator("a side of the connector died").cause(error)));
        // The first error is the reason; what follows from it is only logged.
        match (&result, ended) {
            (Ok(()), Err(error)) => result = Err(error),
            (Err(_), Err(error)) => tracing::warn!(%error, "while shutting down"),
            (_, Ok(())) => {}
        }
        shutdown.raise();
    }
    watch_down.raise();
    let (_, _, _) = tokio::join!(http, watching, progress);
    result
}

/// Runs a side on a runtime with one thread: capture paces its reads by sleeping, and must not hold up others.
async fn on_a_thread_of_its_own(
    name: &'static str,
    body: impl FnOnce(&tokio::runtime::Runtime) -> Result<()> + Send + 'static,
) -> Result<()> {
    let (done, result) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::operator(format!("cannot start the runtime of {name}")).cause(error))?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let result = body(&runtime);
            // A call that nobody waits for any more, such as to a registry that hangs, must not keep the thread.
            runtime.shutdown_background();
            drop(done.send(result));
        })
        .map_err(|error| Error::operator(format!("cannot start the thread of {name}")).cause(error))?;
    result.await.unwrap_or_else(|_| Err(Error::operator(format!("{name} died; see the log for its panic"))))
}
