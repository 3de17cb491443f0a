//! Reading the connector's own topics, whose values are JSON: `<name>.ddl` and `<name>.cuts`.

use std::collections::HashMap;

use serde::de::DeserializeOwned;

use crate::log::{Log, LogPartition, Offset};
use crate::runtime::{Error, Result};

const READ_BYTES: usize = 4 << 20;

/// Where a reader of a topic stands, by log partition.
pub type Places = HashMap<LogPartition, Offset>;

/// Reads the values of a topic from where `places` left off up to its end now, and moves `places` on.
pub async fn read_json<T: DeserializeOwned>(
    log: &dyn Log,
    topic: &str,
    places: &mut Places,
) -> Result<Vec<T>> {
    let mut values = Vec::new();
    for (partition, range) in log.ranges().await? {
        if &*partition.topic != topic {
            continue;
        }
        let place = places.entry(partition.clone()).or_insert(range.start);
        while *place < range.end {
            let fetched = log.read(&partition, *place, READ_BYTES).await?;
            for (offset, record) in fetched.iter() {
                values.push(serde_json::from_slice(record.value.unwrap_or_default()).map_err(|error| {
                    Error::operator(format!("record {offset} of {partition} cannot be read")).cause(error).mend(
                        "It was written by another version, or the log is damaged: run the version that wrote it.",
                    )
                })?);
            }
            if fetched.next <= *place {
                break;
            }
            *place = fetched.next;
        }
    }
    Ok(values)
}
