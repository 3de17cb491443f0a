//! What is told of a complete day, and of which days it has been told.
//!
//! ```text
//!   cuts/<name>/ds=D.json ── day complete ──> notices: one a table, one of the day ── all sent ──> notices/<name>/<endpoint>/ds=D.json
//!   notices/<name>/<endpoint>/_begin.json     the last day that was complete when the endpoint was first known: not told
//! ```
//!
//! What has been sent is remembered here and not in the coordinator: beside the days that it is about it is lost only with
//! them, while a coordinator may be made anew, and then either years of days were told again, or the last one never. Both
//! objects are conditional creates. The beginning is made before anything is published, so a day that is
//! complete and has no mark is one that is still to be told, whoever died in between. A mark is made when all of a
//! day's messages were taken: one that dies before sends them again. What a notice says follows from the manifests
//! alone, so each time it is the same, with the same id.

use serde::{Deserialize, Serialize};

use super::Lake;
use super::manifest::{AsOf, DayManifest, from_bytes, to_bytes};
use super::store::sha256;
use crate::change::{Ds, TableName};
use crate::runtime::{Error, Result};

/// Version of [`Notice`].
pub const NOTICE_VERSION: u32 = 1;

/// Digits of a checksum that an id has.
const ID_DIGITS: usize = 16;

/// A message on a published day: `schemas/notice.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// [`NOTICE_VERSION`].
    pub notice_version: u32,
    /// The same each time the notice is sent, and no other's.
    pub id: String,
    /// What it is about.
    pub kind: NoticeKind,
    /// The connector.
    pub name: String,
    /// The database.
    pub database: String,
    /// The table; none for the day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<TableName>,
    /// The day.
    pub ds: Ds,
    /// URL of the table's folder of the day; of all tables' snapshots, for the day.
    pub location: String,
    /// URL of the manifest.
    pub manifest: String,
    /// SHA-256 of the manifest, hexadecimal.
    pub manifest_sha256: String,
    /// Rows.
    pub rows: u64,
    /// The cut that the table's historic tail is as of; none: all of it is as of the day's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub historic_tail: Option<AsOf>,
    /// Tables that are not in the day; only for the day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<TableName>,
}

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// A table's day.
    Table,
    /// The whole day: it comes after its tables'.
    Day,
}

#[derive(Debug, Serialize, Deserialize)]
struct Begin {
    after: Option<Ds>,
}

#[derive(Debug, Serialize)]
struct Sent {
    notices: usize,
}

impl Lake {
    /// Makes an endpoint known, before anything is published: days that are complete already are not told to it.
    /// Cancel-safe.
    pub async fn begin_notices(&self, endpoint: &str) -> Result<()> {
        let path = self.layout.notices_begin(endpoint);
        if self.store.get(&path).await?.is_none() {
            let begin = Begin { after: self.latest_day().await? };
            // Another process may know an earlier one.
            self.store.put_once(&path, to_bytes(&begin)?).await?;
        }
        Ok(())
    }

    /// Days which are complete and not told to an endpoint, ascending. Cancel-safe.
    pub async fn untold_days(&self, endpoint: &str) -> Result<Vec<Ds>> {
        let path = self.layout.notices_begin(endpoint);
        // Not begun yet, in the first moments of the first process: nothing is published then.
        let Some(bytes) = self.store.get(&path).await? else { return Ok(Vec::new()) };
        let begin: Begin = from_bytes(&bytes, &self.store.show(&path))?;
        let mut days = self.days().await?;
        let told = self.days_in(&self.layout.notices(endpoint)).await?;
        days.retain(|ds| Some(*ds) > begin.after && told.binary_search(ds).is_err());
        Ok(days)
    }

    /// What is to be told of a complete day: of each table, and then of the day. Cancel-safe.
    pub async fn notices(&self, database: &str, ds: Ds) -> Result<Vec<Notice>> {
        let path = self.layout.day_manifest(ds);
        let bytes = self.store.get_existing(&path).await?;
        let day: DayManifest = from_bytes(&bytes, &self.store.show(&path))?;
        let notice = |kind, about: Option<&TableName>, location, manifest, manifest_sha256: String, rows| {
            let subject = about.map_or_else(String::new, |table| format!("/{table}"));
            let digits = manifest_sha256.get(..ID_DIGITS).unwrap_or(&manifest_sha256);
            Notice {
                notice_version: NOTICE_VERSION,
                id: format!("{}{subject}/ds={ds}/{digits}", self.name),
                kind,
                name: self.name.clone(),
                database: database.to_owned(),
                table: about.cloned(),
                ds,
                location: self.store.show(&location),
                manifest,
                manifest_sha256,
                rows,
                historic_tail: None,
                missing: Vec::new(),
            }
        };
        let mut notices = Vec::with_capacity(day.tables.len() + 1);
        for table in &day.tables {
            let manifest = self.store.show(&self.layout.manifest(&table.table, ds));
            let location = self.layout.snapshot(&table.table, ds);
            let (about, sha256) = (Some(&table.table), table.sha256.clone());
            let of_table = notice(NoticeKind::Table, about, location, manifest, sha256, table.rows);
            notices.push(Notice { historic_tail: table.historic_tail, ..of_table });
        }
        let rows = day.tables.iter().map(|table| table.rows).sum();
        let (location, manifest) = (self.layout.all_snapshots(), self.store.show(&path));
        let mut whole = notice(NoticeKind::Day, None, location, manifest, sha256(&bytes), rows);
        whole.missing = day.missing.into_iter().map(|missing| missing.table).collect();
        notices.push(whole);
        Ok(notices)
    }

    /// Notes that an endpoint has taken all notices of a day. Cancel-safe.
    pub async fn note_told(&self, endpoint: &str, ds: Ds, notices: usize) -> Result<()> {
        self.store.put_once(&self.layout.notices_told(endpoint, ds), to_bytes(&Sent { notices })?).await?;
        Ok(())
    }
}

impl Notice {
    /// As it is sent: one line of JSON.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|error| Error::operator("a notice cannot be written as JSON").cause(error))
    }
}
