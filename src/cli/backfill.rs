//! `tidemark backfill`.

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
