//! Where a replay into a lake began, which is decided once.
//!
//! The sequence of change files holds each offset once because every writer starts at the same place (see
//! [`super::stage::sequence`]). A replay starts where its caller says: from another place it would divide the same offsets
//! differently, and rows would stand twice. So the first one creates an object that says where, and the others compare.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Lake;
use super::store::Put;
use crate::change::TableName;
use crate::runtime::{Error, Result};

/// Where the change files of a log partition begin.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Begin {
    first: u64,
}

impl Lake {
    /// Begins to stage log partitions of a table at offsets of the caller's choice, or goes on with what was begun there.
    /// Cancel-safe.
    ///
    /// # Errors
    /// `Operator`: the table's change files begin elsewhere, or were not made by a replay. Nothing is written then.
    pub async fn begin_replay(&self, table: &TableName, begins: &BTreeMap<u32, u64>) -> Result<()> {
        let mut new = Vec::new();
        for (partition, first) in begins {
            match self.replay_begun(table, *partition).await? {
                Some(held) if held == *first => {}
                Some(held) => return Err(self.elsewhere(table, *partition, *first, Some(held))),
                // Files which nothing says the beginning of are deliver's.
                None => {
                    if self.is_staged(table, *partition).await? {
                        return Err(self.elsewhere(table, *partition, *first, None));
                    }
                    new.push((*partition, *first));
                }
            }
        }
        for (partition, first) in new {
            let mut bytes = serde_json::to_vec(&Begin { first }).map_err(|error| {
                Error::operator("the beginning of a replay cannot be written as JSON").cause(error)
            })?;
            bytes.push(b'\n');
            let path = self.layout.replay_begin(table, partition);
            if self.store.put_once(&path, Bytes::from(bytes)).await? == Put::Differs {
                let held = self.replay_begun(table, partition).await?;
                return Err(self.elsewhere(table, partition, first, held));
            }
        }
        Ok(())
    }

    /// Whether anything of a log partition was staged, or begun: change files, pieces of one, or a link.
    async fn is_staged(&self, table: &TableName, partition: u32) -> Result<bool> {
        let of = format!("{partition}-");
        for folder in [self.layout.changes(table), self.layout.pieces(table), self.layout.sequence(table)] {
            let objects = self.store.list(&folder).await?;
            let mut names = objects.iter().filter_map(|object| object.location.filename());
            if names.any(|name| name.starts_with(&of)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn replay_begun(&self, table: &TableName, partition: u32) -> Result<Option<u64>> {
        let path = self.layout.replay_begin(table, partition);
        let Some(bytes) = self.store.get(&path).await? else { return Ok(None) };
        let begin: Begin = serde_json::from_slice(&bytes).map_err(|error| {
            Error::operator(format!("{} does not say where a replay began", self.store.show(&path)))
                .cause(error)
                .mend("Was it written by a newer tidemark, or damaged? Replay into another lake.")
        })?;
        Ok(Some(begin.first))
    }

    fn elsewhere(&self, table: &TableName, partition: u32, first: u64, held: Option<u64>) -> Error {
        let begins = match held {
            Some(held) => format!("begin at offset {held}, from an earlier replay"),
            None => "were not made by a replay".to_owned(),
        };
        let folder = self.store.show(&self.layout.changes(table));
        Error::operator(format!(
            "{table}: the change files of log partition {partition} in {folder} {begins}; one from offset {first} on would \
             double rows"
        ))
        .mend("Run it with the same --from to go on, or name another folder by --to-lake.")
    }
}
