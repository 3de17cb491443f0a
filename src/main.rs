//! The `tidemark` command: arguments -> config -> run -> exit code.

use std::process::ExitCode;

use clap::Parser;
use tidemark::cli::{self, Args};

fn main() -> ExitCode {
    // Leaves by itself with 2 on wrong usage, and with 0 after --help and --version.
    let args = Args::parse();
    let outcome = cli::load_config(&args).and_then(|config| cli::run(&args, &config));
    cli::exit_code(outcome)
}
