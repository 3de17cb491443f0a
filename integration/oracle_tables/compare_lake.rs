//! A published day beside the tables as the server had them at its cut.

use tokio_postgres::Client;

use super::tables::{Column, Table, quoted};
use crate::oracle::reader::Reader;
use crate::oracle::source::Kind;
use crate::oracle::{Row, Rows};
use crate::support::Connector;

/// Whether pyarrow refuses a timestamp in ORC, given as [`Kind::text`] does: it makes nanoseconds of them.
fn is_beyond_orc(kind: Kind, text: &str) -> bool {
    match kind {
        Kind::Local(_) | Kind::Instant => {
            text.parse::<i64>().map_or(true, |micros| micros.checked_mul(1000).is_none())
        }
        Kind::List(element) => serde_json::from_str::<Vec<Option<String>>>(text)
            .is_ok_and(|list| list.iter().flatten().any(|text| is_beyond_orc(*element, text))),
        _ => false,
    }
}

/// Rows of whose column nothing is compared, since the reader does not read it.
fn unread(rows: Rows, place: usize) -> Rows {
    let mut others = Rows::new();
    for (mut row, count) in rows {
        row[place] = Some("?".to_owned());
        *others.entry(row).or_default() += count;
    }
    others
}

fn carried(table: &Table) -> impl Iterator<Item = &Column> {
    table.columns.iter().filter(|column| table.carries(&column.name))
}

/// A table and its rows, at a cut.
pub struct State {
    pub table: Table,
    rows: Rows,
    /// Whether changes of its shape are told in the stream.
    told: bool,
}

impl State {
    /// Asks the server.
    pub async fn load(sql: &Client, table: &Table, told: bool) -> Self {
        let columns = carried(table).map(|c| c.of.kind.text(&format!("whole_row.{}", quoted(&c.name))));
        let columns = columns.collect::<Vec<_>>().join(", ");
        let filter = table.filter_sql().map_or_else(String::new, |filter| format!("WHERE {filter}"));
        let query = format!("SELECT ARRAY[{columns}]::text[] FROM {} AS whole_row {filter}", table.quoted());
        let mut rows = Rows::new();
        for row in sql.query(&query, &[]).await.unwrap_or_else(|error| panic!("{query}: {error:?}")) {
            *rows.entry(row.get::<_, Row>(0)).or_default() += 1;
        }
        Self { table: table.clone(), rows, told }
    }

    /// Compares it with what pyarrow reads in the lake. False: the day says why it lacks the table, and may. `forgets`:
    /// the stream was taken up again, and which TRUNCATE it had told of a root was not known any more.
    pub fn check(
        &self,
        reader: &mut Reader,
        connector: &Connector,
        ds: &str,
        is_orc: bool,
        forgets: bool,
    ) -> Result<bool, String> {
        let Table { schema, name, .. } = &self.table;
        let day = Connector::json(&connector.day(ds));
        let is_ours = |entry: &&serde_json::Value| {
            entry["table"]["schema"] == **schema && entry["table"]["table"] == **name
        };
        let Some(entry) = day["tables"].as_array().unwrap().iter().find(is_ours) else {
            let told = day["missing"].as_array().into_iter().flatten().find(is_ours);
            let told = told.and_then(|told| told["reason"].as_str());
            // A row came into the filter, of which the server had logged a part: at any time, also before the last cut.
            let is_partial =
                |reason: &str| reason.contains("carried a row into the publication's row filter");
            let is_emptied =
                |reason: &str| !self.table.leaves.is_empty() && reason.contains("was truncated or rewritten");
            return match (told, self.table.may_lack) {
                (Some(reason), _) if forgets && is_emptied(reason) => Ok(false),
                (Some(reason), _) if is_partial(reason) && self.table.filter.is_some() => Ok(false),
                (Some(_), Some(_)) => Ok(false),
                _ => Err(format!(
                    "ds={ds}: not a table of the day: {told:?}, may lack it: {:?}",
                    self.table.may_lack
                )),
            };
        };
        if !self.told && self.table.may_lack.is_some() {
            // A change of its shape may not have been seen yet.
            return Ok(false);
        }
        let manifest = connector.lake().join(entry["manifest"].as_str().unwrap());
        if entry["changes"]["dead_letters"] != 0 {
            return Err(format!("ds={ds}: dead letters: {}", entry["changes"]));
        }
        let columns: Vec<_> =
            carried(&self.table).map(|column| (column.name.as_str(), column.of.kind)).collect();
        let mut found = reader.columns(manifest.parent().unwrap(), columns.iter().copied())?;
        let mut expected = self.rows.clone();
        if is_orc {
            for (place, (_, kind)) in columns.iter().enumerate() {
                let beyond = |row: &Row| row[place].as_deref().is_some_and(|text| is_beyond_orc(*kind, text));
                if self.rows.keys().any(beyond) {
                    expected = unread(expected, place);
                    found = unread(found, place);
                }
            }
        }
        for (row, count) in expected {
            *found.entry(row).or_default() -= count;
        }
        found.retain(|_, count| *count != 0);
        if found.is_empty() {
            return Ok(true);
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
