//! A published day beside the tables as the server had them at its cut.

use tokio_postgres::Client;

use super::tables::{Table, quoted};
use crate::oracle::reader::Reader;
use crate::oracle::{Row, Rows};
use crate::support::Connector;

/// A table and its rows, at a cut.
pub struct State {
    pub table: Table,
    rows: Rows,
}

impl State {
    /// Asks the server.
    pub async fn load(sql: &Client, table: &Table) -> Self {
        let columns = table.columns.iter().map(|c| c.of.kind.text(&format!("whole_row.{}", quoted(&c.name))));
        let columns = columns.collect::<Vec<_>>().join(", ");
        let query = format!("SELECT ARRAY[{columns}]::text[] FROM {} AS whole_row", table.quoted());
        let mut rows = Rows::new();
        for row in sql.query(&query, &[]).await.unwrap_or_else(|error| panic!("{query}: {error:?}")) {
            *rows.entry(row.get::<_, Row>(0)).or_default() += 1;
        }
        Self { table: table.clone(), rows }
    }

    /// Compares it with what pyarrow reads in the lake.
    pub fn check(&self, reader: &mut Reader, connector: &Connector, ds: &str) -> Result<(), String> {
        let Table { schema, name, columns, .. } = &self.table;
        let day = Connector::json(&connector.day(ds));
        let is_ours = |entry: &&serde_json::Value| {
            entry["table"]["schema"] == **schema && entry["table"]["table"] == **name
        };
        let Some(entry) = day["tables"].as_array().unwrap().iter().find(is_ours) else {
            // A partition that was written anew under its root is followed by a copy, and a cut before that is whole
            // says so; nothing else may be missing.
            let told = day["missing"].as_array().into_iter().flatten().find(is_ours);
            let reason = told.and_then(|told| told["reason"].as_str()).unwrap_or_default();
            if !self.table.partitions.is_empty() && reason.contains("was truncated or rewritten") {
                return Ok(());
            }
            return Err(format!("ds={ds}: not a table of the day; missing: {}", day["missing"]));
        };
        let manifest = connector.lake().join(entry["manifest"].as_str().unwrap());
        if entry["changes"]["dead_letters"] != 0 {
            return Err(format!("ds={ds}: dead letters: {}", entry["changes"]));
        }
        let columns: Vec<_> = columns.iter().map(|column| (column.name.as_str(), column.of.kind)).collect();
        let mut found = reader.columns(manifest.parent().unwrap(), columns.iter().copied())?;
        for (row, count) in &self.rows {
            *found.entry(row.clone()).or_default() -= count;
        }
        found.retain(|_, count| *count != 0);
        if found.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
        let list = found.iter().take(8).map(|(row, count)| {
            let what = if *count > 0 { "too many in the lake:" } else { "missing in the lake: " };
            format!("  {} {what} {row:?}", count.abs())
        });
        let list: Vec<_> = list.collect();
        Err(format!("ds={ds}: {} rows differ, columns {names:?}\n{}", found.len(), list.join("\n")))
    }
}
