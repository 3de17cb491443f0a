//! The command line: arguments, the commands' bodies, and how they print.
//!
//! What is asked for goes to stdout (with `--json` as JSON), what is said about it goes to stderr. The exit code
//! is 0 for done, 1 for failed and 2 for wrong usage or configuration.

mod args;
mod backfill;
mod client;
mod cut;
mod duration;
mod expire;
mod findings;
mod lake;
mod output;
mod replay;
mod run;
mod signals;
mod source;
mod status;

use std::process::ExitCode;

use crate::config::Config;
use crate::pipeline::Sides;
use crate::runtime::{Class, Error, Result};

pub use args::{Args, Command, DeadLettersCommand};
pub use findings::{Finding, Level, print_findings};
pub use output::{Style, print, print_error};
pub use signals::raise_on_signal;

/// How a command ended that had no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1: what was printed says why.
    Failed,
}

/// Loads the configuration that the arguments name, with the process's environment.
///
/// # Errors
/// Class `Usage`, with all that is wrong with it.
pub fn load_config(args: &Args) -> Result<Config> {
    Config::load(&args.config, &|name| std::env::var(name).ok()).map_err(Error::from)
}

/// Runs the command.
///
/// # Errors
/// The command's.
pub fn run(args: &Args, config: &Config) -> Result<Outcome> {
    match &args.command {
        Command::Status { table } => status::run(config, table.as_deref(), args.json),
        Command::Cut { ds } => cut::run(config, *ds, args.json),
        Command::Backfill { tables } => backfill::run(config, tables, args.json),
        Command::Pause { tables } => backfill::hold(config, tables, true, args.json),
        Command::Resume { tables } => backfill::hold(config, tables, false, args.json),
        Command::Run => run::run(config, Sides::Both),
        Command::Capture => run::run(config, Sides::Capture),
        Command::Deliver => run::run(config, Sides::Deliver),
        Command::Check => source::check(config, args.json),
        Command::Setup { print, uninstall: false } => source::setup(config, *print),
        Command::Setup { print, uninstall: true } => source::uninstall(config, *print),
        Command::AcceptGap { range } => source::accept_gap(config, range, args.json),
        Command::Wait { ds, table, timeout } => lake::wait(config, *ds, table.as_ref(), *timeout, args.json),
        Command::Verify { ds, table } => lake::verify(config, *ds, table.as_ref(), args.json),
        Command::Expire { delete, table } => expire::run(config, *delete, table.as_ref(), args.json),
        Command::Replay { from, table, to_lake } => {
            replay::run(config, *from, table.as_ref(), to_lake, args.json)
        }
        Command::DeadLetters { command } => lake::dead_letters(config, command, args.json),
    }
}

/// Prints the error, if there is one, and gives the exit code.
pub fn exit_code(outcome: Result<Outcome>) -> ExitCode {
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Err(error) => {
            print_error(&error);
            ExitCode::from(if error.class() == Class::Usage { 2 } else { 1 })
        }
    }
}
