//! `tidemark cut`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Outcome;
use super::client::Client;
use super::output::{print, print_json};
use crate::change::Ds;
use crate::config::Config;
use crate::runtime::Result;

/// Longer than the process itself lets anybody wait.
const ANSWER_MAX: Duration = Duration::from_secs(150);

#[derive(Debug, Deserialize, Serialize)]
struct Made {
    ds: Ds,
}

pub(super) fn run(config: &Config, ds: Option<Ds>, json: bool) -> Result<Outcome> {
    let client = Client::new(config, ANSWER_MAX);
    let answer = client.post("/api/v1/cut", &json!({ "ds": ds }))?;
    let made: Made = client.accepted(answer)?;
    if json {
        print_json(&made)?;
    } else {
        print(&format!(
            "cut made: ds={0}\n`tidemark wait --ds {0}` leaves as soon as it is published\n",
            made.ds
        ))?;
    }
    Ok(Outcome::Done)
}
