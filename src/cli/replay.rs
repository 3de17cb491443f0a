//! `tidemark replay`.

use serde_json::json;

use super::Outcome;
use super::output::{print, print_json};
use super::run::runtime;
use crate::change::TableName;
use crate::config::{Config, LakeUrl};
use crate::pipeline::deliver::{From, replay};
use crate::pipeline::settings;
use crate::runtime::{Error, Result};

pub(super) fn run(
    config: &Config,
    from: From,
    table: Option<&TableName>,
    to_lake: &LakeUrl,
    json: bool,
) -> Result<Outcome> {
    if *to_lake == config.lake.url {
        return Err(Error::usage(format!("--to-lake {to_lake} is the connector's own lake"))
            .mend("Name another folder or prefix: what is there already is not made again."));
    }
    let replayed = runtime()?.block_on(async {
        let (log, lake) = (settings::open_log(config)?, settings::open_lake_at(config, to_lake)?);
        let source = (config.source.name.as_str(), settings::envelope(config));
        replay(source, log.as_ref(), &lake, from, table).await
    })?;
    if json {
        print_json(&json!({ "to_lake": to_lake.to_string(), "replayed": replayed }))?;
        return Ok(Outcome::Done);
    }
    for part in &replayed {
        let (table, partition) = (&part.table, part.partition);
        print(&format!("{table}, log partition {partition}: offsets {} up to {}\n", part.from, part.end))?;
    }
    print(&format!("changes are in {to_lake}\n"))?;
    Ok(Outcome::Done)
}
