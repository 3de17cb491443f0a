//! Arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use super::duration;
use crate::change::{Ds, TableName};
use crate::config::{LakeUrl, TableGlob};
use crate::pipeline::deliver::From;

/// Streams every change of a Postgres database into a durable log, and turns it into write-once daily snapshots.
#[derive(Clone, Debug, Parser)]
#[command(name = "tidemark", version, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.")]
pub struct Args {
    /// Configuration file.
    #[arg(long, global = true, default_value = "./connector.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Capture and deliver in one process.
    Run,
    /// From the database into the log.
    Capture,
    /// From the log into the lake. Any number of processes share the work.
    Deliver,
    /// Try all that could fail later, and say what to do about it.
    Check,
    /// Create publication, slot and event trigger.
    Setup {
        /// Print the SQL for the DBA instead.
        #[arg(long)]
        print: bool,
        /// Take the event trigger away again, with its function and its schema. Slot and publication stay.
        #[arg(long)]
        uninstall: bool,
    },
    /// Give up a range of changes that cannot be had any more, and have every table copied anew by the next start.
    AcceptGap {
        /// The range, exactly as the connector told it, such as 0/3000060..0/3000400 or 0/3000060..
        #[arg(value_name = "RANGE")]
        range: String,
    },
    /// What runs, how late, what is stuck: asks the running process.
    Status {
        /// Only tables with this in their names.
        #[arg(long, value_name = "TEXT")]
        table: Option<String>,
    },
    /// Ask the running process for a cut now.
    Cut {
        /// The day that the cut ends; today in the cut's time zone unless given.
        #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
        ds: Option<Ds>,
    },
    /// Have tables copied anew while everything goes on: the running process takes the copy into its next day.
    Backfill {
        /// Tables, or patterns such as 'public.*'.
        #[arg(required = true, value_name = "SCHEMA.TABLE", value_parser = tables)]
        tables: Vec<String>,
    },
    /// Hold up copies of tables that are not whole; the stream goes on.
    Pause {
        /// Tables, or patterns such as 'public.*'.
        #[arg(required = true, value_name = "SCHEMA.TABLE", value_parser = tables)]
        tables: Vec<String>,
    },
    /// Let copies go on that were held up.
    Resume {
        /// Tables, or patterns such as 'public.*'.
        #[arg(required = true, value_name = "SCHEMA.TABLE", value_parser = tables)]
        tables: Vec<String>,
    },
    /// Wait until a day is published in the lake.
    Wait {
        /// The day.
        #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
        ds: Ds,
        /// Wait for this table only.
        #[arg(long, value_name = "SCHEMA.TABLE")]
        table: Option<TableName>,
        /// Leave with 1 after so long, such as 45s, 30m or 2h.
        #[arg(long, default_value = "2h", value_parser = duration::parse)]
        timeout: Duration,
    },
    /// Check counts and checksums of a published day.
    Verify {
        /// The day.
        #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
        ds: Ds,
        /// Check this table only.
        #[arg(long, value_name = "SCHEMA.TABLE")]
        table: Option<TableName>,
    },
    /// List the published days that the rules of [lake.retention] let go, and remove them with --delete.
    Expire {
        /// Remove them; without it nothing is changed.
        #[arg(long)]
        delete: bool,
        /// Of this table only.
        #[arg(long, value_name = "SCHEMA.TABLE")]
        table: Option<TableName>,
    },
    /// Make the change history again in another lake, from what the log still holds.
    Replay {
        /// A day, from its first change on, or a position such as 1/0/16B3748/12.
        #[arg(long, value_name = "D|POSITION", value_parser = beginning)]
        from: From,
        /// Of this table only.
        #[arg(long, value_name = "SCHEMA.TABLE")]
        table: Option<TableName>,
        /// An absolute folder, or a bucket and prefix which is reached as [lake.s3] says.
        #[arg(long, value_name = "URL", value_parser = lake)]
        to_lake: LakeUrl,
    },
    /// Records that could not be processed.
    DeadLetters {
        /// What to do with them.
        #[command(subcommand)]
        command: DeadLettersCommand,
    },
}

/// What to do with dead letters.
#[derive(Clone, Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// How many, by table and day.
    List {
        /// Of this table only.
        #[arg(long, value_name = "SCHEMA.TABLE")]
        table: Option<TableName>,
        /// Of this day only.
        #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
        ds: Option<Ds>,
    },
    /// The records themselves, each with the reason.
    Show {
        /// Of this table.
        #[arg(long, value_name = "SCHEMA.TABLE")]
        table: TableName,
        /// Of this day only.
        #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
        ds: Option<Ds>,
        /// Show no more than so many.
        #[arg(long, default_value_t = 20, value_name = "RECORDS")]
        limit: u64,
    },
}

/// What the running process takes for a pattern on tables.
fn tables(text: &str) -> Result<String, String> {
    TableGlob::parse(text).map(|_| text.to_owned()).map_err(|expected| format!("expected {expected}"))
}

fn lake(text: &str) -> Result<LakeUrl, String> {
    LakeUrl::parse(text).map_err(|expected| format!("expected {expected}"))
}

fn beginning(text: &str) -> Result<From, String> {
    match (day(text), text.parse()) {
        (Ok(ds), _) => Ok(From::Day(ds)),
        (_, Ok(position)) => Ok(From::Position(position)),
        _ => Err("expected a day such as 2026-11-20, or a position such as 1/0/16B3748/12".to_owned()),
    }
}

/// jiff reads more than days; only `YYYY-MM-DD` is one.
fn day(text: &str) -> Result<Ds, String> {
    let expected = || "expected a day such as 2026-11-20".to_owned();
    let plain = text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    if plain { text.parse().map_err(|_| expected()) } else { Err(expected()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn days_are_days_only() {
        assert!(day("2026-11-20").is_ok());
        for text in ["2026-11-31", "20261120", "2026-11-20T00:00", "today", "+02026-11-20"] {
            assert!(day(text).is_err(), "{text}");
        }
    }
}
