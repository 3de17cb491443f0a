//! `tidemark wait`, `verify` and `dead-letters`: what is in the lake, without a running process.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::findings::{Finding, Level, print_findings};
use super::output::{print, print_json};
use super::run::runtime;
use super::{DeadLettersCommand, Outcome};
use crate::change::{Ds, TableName};
use crate::config::Config;
use crate::lake::{DeadLetter, Lake};
use crate::pipeline::settings;
use crate::runtime::{Error, Result};

const POLL: Duration = Duration::from_millis(250);

/// Leaves as soon as the day, or the table's day, is published.
pub(super) fn wait(
    config: &Config,
    ds: Ds,
    table: Option<&TableName>,
    timeout: Duration,
    json: bool,
) -> Result<Outcome> {
    let deadline = Instant::now() + timeout;
    runtime()?.block_on(async {
        let lake = settings::open_lake(config)?;
        while !is_published(&lake, ds, table).await? {
            if Instant::now() >= deadline {
                let what = table.map_or_else(|| format!("ds={ds}"), |table| format!("ds={ds} of {table}"));
                return Err(Error::operator(format!("{what} was not published within {timeout:?}"))
                    .mend("`tidemark status` says what it waits for."));
            }
            tokio::time::sleep(POLL).await;
        }
        // Whoever goes on from here counts on every table: a day without one is not what was waited for.
        let missing = lake.day(ds).await?.map(|day| day.missing).unwrap_or_default();
        if let Some(lacks) = missing.iter().find(|lacks| table.is_none_or(|table| *table == lacks.table)) {
            let (name, others) = (&lacks.table, missing.len() - 1);
            let others = if table.is_none() && others > 0 { format!(" and {others} more") } else { String::new() };
            return Err(Error::operator(format!("ds={ds} is published without {name}{others}: {}", lacks.reason))
                .mend("It stays so; the days after the table was copied anew are whole. `tidemark verify` lists the day's tables."));
        }
        let expired = lake.expired_of_day(ds).await?;
        if let Some(gone) = expired.iter().find(|gone| table.is_none_or(|table| table == *gone)) {
            return Err(Error::operator(format!("ds={ds} was published, and a rule has removed {gone} of it since"))
                .mend("`tidemark verify` lists the day's tables, [lake.retention] says what is kept."));
        }
        if json {
            print_json(&json!({ "ds": ds, "table": table, "published": true }))?;
        } else {
            print(&format!("ds={ds} is published\n"))?;
        }
        Ok(Outcome::Done)
    })
}

/// Whether the day is published, or was, or it is known that the table is not in it.
async fn is_published(lake: &Lake, ds: Ds, table: Option<&TableName>) -> Result<bool> {
    Ok(match table {
        Some(table) if lake.manifest(table, ds).await?.is_some() => true,
        Some(table) => {
            let missing =
                lake.day(ds).await?.is_some_and(|day| day.missing.iter().any(|m| m.table == *table));
            missing || lake.tombstone(table, ds).await?.is_some()
        }
        None => lake.day(ds).await?.is_some(),
    })
}

/// Reads a published day again and compares it with its manifests.
pub(super) fn verify(config: &Config, ds: Ds, table: Option<&TableName>, json: bool) -> Result<Outcome> {
    let verified = runtime()?.block_on(async { settings::open_lake(config)?.verify(ds, table).await })?;
    let mut findings = Vec::new();
    for table in verified {
        let wrong = table
            .files
            .iter()
            .filter_map(|file| file.problem.as_ref().map(|p| format!("{}: {p}", file.path)));
        let problems: Vec<String> = table.problem.iter().cloned().chain(wrong).collect();
        let bytes: u64 = table.files.iter().map(|file| file.bytes).sum();
        let (level, message) = if let (true, Some(expired)) = (problems.is_empty(), &table.expired) {
            (Level::Warn, expired.clone())
        } else if problems.is_empty() {
            let tail = table.historic_tail.map_or_else(String::new, |(as_of, deferred)| {
                format!("; its historic tail is as of {}, and {deferred} changes wait", as_of.ds)
            });
            (Level::Ok, format!("{} rows in {} files, {bytes} bytes{tail}", table.rows, table.files.len()))
        } else {
            (Level::Fail, problems.join("; "))
        };
        findings.push(Finding { level, subject: table.table.to_string(), message, mend: None });
    }
    print_findings(&findings, json)
}

/// Lists or shows dead letters.
pub(super) fn dead_letters(config: &Config, command: &DeadLettersCommand, json: bool) -> Result<Outcome> {
    runtime()?.block_on(async {
        let lake = settings::open_lake(config)?;
        match command {
            DeadLettersCommand::List { table, ds } => list(&lake, table.as_ref(), *ds, json).await,
            DeadLettersCommand::Show { table, ds, limit } => {
                let letters = lake.dead_letters(table, *ds).await?;
                show(&letters[..letters.len().min(usize::try_from(*limit).unwrap_or(usize::MAX))], json)
            }
        }
    })
}

async fn list(lake: &Lake, table: Option<&TableName>, ds: Option<Ds>, json: bool) -> Result<Outcome> {
    #[derive(Serialize)]
    struct Line {
        table: TableName,
        dead_letters: usize,
    }
    let tables = match table {
        Some(table) => vec![table.clone()],
        None => lake.tables_with_dead_letters().await?,
    };
    let mut lines = Vec::new();
    for table in tables {
        let dead_letters = lake.dead_letters(&table, ds).await?.len();
        if dead_letters > 0 {
            lines.push(Line { table, dead_letters });
        }
    }
    if json {
        print_json(&lines)?;
    } else if lines.is_empty() {
        print("no dead letters\n")?;
    } else {
        for line in &lines {
            print(&format!("{:>10}  {}\n", line.dead_letters, line.table))?;
        }
    }
    Ok(Outcome::Done)
}

fn show(letters: &[DeadLetter], json: bool) -> Result<Outcome> {
    if json {
        print_json(&letters)?;
        return Ok(Outcome::Done);
    }
    for letter in letters {
        let position =
            letter.position.map_or_else(|| "position unknown".to_owned(), |position| position.to_string());
        print(&format!(
            "offset {} of log partition {}, {position}: {}\n",
            letter.offset, letter.partition, letter.reason
        ))?;
    }
    Ok(Outcome::Done)
}
