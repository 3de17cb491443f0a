//! `tidemark backfill`, `pause` and `resume`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Outcome;
use super::client::Client;
use super::output::{print, print_json};
use crate::change::TableName;
use crate::config::Config;
use crate::runtime::Result;

/// Longer than the process itself lets anybody wait.
const ANSWER_MAX: Duration = Duration::from_secs(150);

#[derive(Debug, Deserialize, Serialize)]
struct Accepted {
    asked: Vec<TableName>,
    already: Vec<TableName>,
}

pub(super) fn run(config: &Config, tables: &[String], json: bool) -> Result<Outcome> {
    let client = Client::new(config, ANSWER_MAX);
    let accepted: Accepted =
        client.accepted(client.post("/api/v1/backfill", &json!({ "tables": tables }))?)?;
    if json {
        print_json(&accepted)?;
        return Ok(Outcome::Done);
    }
    for table in &accepted.asked {
        print(&format!("{table}: a new copy is asked for\n"))?;
    }
    for table in &accepted.already {
        print(&format!("{table}: a new copy was asked for before, and is not whole yet\n"))?;
    }
    print("`tidemark status` shows how far they are; the first cut after a copy is whole takes it\n")?;
    Ok(Outcome::Done)
}

/// Holds copies up, or lets them go on.
pub(super) fn hold(config: &Config, tables: &[String], pause: bool, json: bool) -> Result<Outcome> {
    let client = Client::new(config, ANSWER_MAX);
    let path = if pause { "/api/v1/backfill/pause" } else { "/api/v1/backfill/resume" };
    let accepted: Accepted = client.accepted(client.post(path, &json!({ "tables": tables }))?)?;
    if json {
        print_json(&accepted)?;
        return Ok(Outcome::Done);
    }
    let (now, before) = if pause {
        ("its copy is held up; `tidemark resume` lets it go on", "its copy was held up before")
    } else {
        ("its copy goes on", "its copy was not held up")
    };
    for table in &accepted.asked {
        print(&format!("{table}: {now}\n"))?;
    }
    for table in &accepted.already {
        print(&format!("{table}: {before}\n"))?;
    }
    Ok(Outcome::Done)
}
