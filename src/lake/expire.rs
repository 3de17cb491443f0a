//! Retention: which published days a rule lets go, and how they go. Only `tidemark expire --delete` ever removes one.
//!
//! ```text
//!   listing ── rule of the table ──> days that go ── each: tombstone ─ _SUCCESS ─ _manifest.json ─ guard ─ parts ─ guard gone
//!                                                           └ from here on it is decided, and is brought to its end
//! ```
//!
//! **What never goes:** a day that the rule keeps; a day that is not complete (its table's manifest is still needed for the
//! database's own); a table's newest published day, and the one that this was made from: what comes next is merged with the
//! newest, and a process that was overtaken may still be at work on the newest. Change files, dead letters, `cuts/` and
//! the log are not touched: a day that is not published yet finds all that it needs.
//!
//! **Why no reader sees half a day.** The order is that of trust. The tombstone comes first, a conditional create:
//! without it nobody could tell a day that was removed from one that was lost. Then what says that the day is there:
//! `_SUCCESS`, and the manifest. Who goes by either sees a whole day or none. Who just lists the folder is told by nobody,
//! and no store removes many objects at once; so before the first part goes, an object comes that sorts before the parts
//! and is not of their format, and goes after the last of them. A listing is all parts; or holds that guard, on which
//! readers fail loudly; or is empty. Who has read a listing, or a manifest, before, finds objects missing, which is an
//! error, too.
//!
//! **Why it may be interrupted, or run twice:** each step is a conditional create or removes what may be gone already, the
//! order is the same for all, and a day whose tombstone is there is one that goes, whatever the rules say since. The lease
//! of the caller only spares the work of two.
//!
//! **What stays true:** `cuts/` keeps saying that the day was complete, with counts and checksums of its tables' manifests,
//! so no delivery makes an expired day again; a tombstone names the same checksum, and `verify` tells the two apart.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use object_store::ObjectMeta;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::Lake;
use super::layout::{parse_object_ds, parse_table, parse_tombstone};
use super::manifest::{MANIFEST_VERSION, Manifest, from_bytes, to_bytes};
use super::store::sha256;
use crate::change::{Ds, TableName};
use crate::runtime::{Error, Result};

/// Which days of a table are kept, beside those that always are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// So many of the newest published days; 0: all.
    pub days: usize,
    /// The last published day of each calendar month, too.
    pub month_ends: bool,
}

impl Retention {
    /// Why a day of its table's `published` ones (ascending) goes; none if it is kept.
    fn lets_go(self, published: &[Ds], ds: Ds) -> Option<String> {
        let newer = published.iter().filter(|other| **other > ds).count();
        if self.days == 0 || newer < self.days {
            return None;
        }
        if !self.month_ends {
            return Some(format!("not among the last {} days", self.days));
        }
        let is_month_end =
            !published.iter().any(|other| *other > ds && other.first_of_month() == ds.first_of_month());
        (!is_month_end).then(|| format!("not among the last {} days, nor the last of its month", self.days))
    }
}

/// A table's day that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExpiredDay {
    /// The table.
    pub table: TableName,
    /// The day.
    pub ds: Ds,
    /// Objects of it that are there.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The rule that lets it go.
    pub reason: String,
    /// Whether its tombstone is there already: a run before did not come to its end.
    pub begun: bool,
}

/// What is left of a day that a rule has removed: `expired/<name>/ds=D/<schema>.<table>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// [`MANIFEST_VERSION`].
    pub manifest_version: u32,
    /// The connector.
    pub name: String,
    /// The table.
    pub table: TableName,
    /// The day.
    pub ds: Ds,
    /// The rule that has let it go.
    pub reason: String,
    /// Rows that it had.
    pub rows: u64,
    /// Bytes of its parts.
    pub bytes: u64,
    /// SHA-256 of its manifest, hexadecimal: the one that `cuts/` names.
    pub manifest_sha256: String,
}

/// The objects of a table's days.
type Days = BTreeMap<Ds, Vec<ObjectMeta>>;

impl Lake {
    /// The days that go, by table and day. Nothing is changed. Without `table`, of all tables that the lake has.
    /// Cancel-safe.
    pub async fn expired(
        &self,
        rule: &dyn Fn(&TableName) -> Retention,
        table: Option<&TableName>,
    ) -> Result<Vec<ExpiredDay>> {
        let complete: BTreeSet<Ds> = self.days().await?.into_iter().collect();
        let begun = self.begun().await?;
        let tables = match table {
            Some(table) => vec![table.clone()],
            None => {
                let folders = self.store.folders(&self.layout.all_snapshots()).await?;
                folders.iter().filter_map(parse_table).collect()
            }
        };
        let mut expired = Vec::new();
        for table in tables {
            let days = self.objects_by_day(&table).await?;
            let published: Vec<Ds> =
                days.iter().filter(|(_, objects)| is_published(objects)).map(|(ds, _)| *ds).collect();
            let needed = self.needed(&table, published.last().copied()).await?;
            for (ds, objects) in days {
                let begun = begun.contains(&(table.clone(), ds));
                let reason = if begun { Some(self.reason_told(&table, ds).await?) } else { None };
                let reason = reason.or_else(|| {
                    let may_go = published.contains(&ds) && complete.contains(&ds);
                    rule(&table).lets_go(&published, ds).filter(|_| may_go)
                });
                let Some(reason) = reason.filter(|_| !needed.contains(&ds)) else { continue };
                let bytes = objects.iter().map(|object| object.size).sum();
                expired.push(ExpiredDay {
                    table: table.clone(),
                    ds,
                    objects: objects.len(),
                    bytes,
                    reason,
                    begun,
                });
            }
        }
        Ok(expired)
    }

    /// Removes a day that goes, or what is left of it; see the module. Not cancel-safe in that the day may be on its way:
    /// the next call brings it to its end.
    ///
    /// # Errors
    /// `Operator`: the day's manifest cannot be read. `Retry`: the store is in trouble.
    pub async fn expire(&self, day: &ExpiredDay) -> Result<()> {
        let (table, ds) = (&day.table, day.ds);
        let folder = self.layout.snapshot(table, ds);
        if !day.begun {
            self.bury(day).await?;
        }
        self.store.delete(&self.layout.success(table, ds)).await?;
        self.store.delete(&self.layout.manifest(table, ds)).await?;
        let objects: Vec<Path> =
            self.store.list(&folder).await?.into_iter().map(|object| object.location).collect();
        let (guards, rest): (Vec<_>, Vec<_>) = objects.into_iter().partition(is_guard);
        let extension = rest.iter().find_map(extension_of_part);
        let guard = extension.map(|extension| self.layout.snapshot_object(table, ds, &guard_name(extension)));
        if let Some(guard) = &guard {
            let text = format!("{table} for {ds} is being removed by `tidemark expire`: {}\n", day.reason);
            // Another's is as good; if it is gone since, so are all the parts.
            self.store.put_unless_taken(guard, Bytes::from(text)).await?;
        }
        self.store.delete_all(&rest).await?;
        self.store.sweep(&folder).await?;
        for guard in guards.iter().chain(&guard) {
            self.store.delete(guard).await?;
        }
        self.store.remove_empty(&folder).await
    }

    /// What is left of a table's day that a rule has removed. Cancel-safe.
    pub async fn tombstone(&self, table: &TableName, ds: Ds) -> Result<Option<Tombstone>> {
        let path = self.layout.tombstone(table, ds);
        let bytes = self.store.get(&path).await?;
        bytes.map(|bytes| from_bytes(&bytes, &self.store.show(&path))).transpose()
    }

    /// The tables of a day that a rule has removed. Cancel-safe.
    pub async fn expired_of_day(&self, ds: Ds) -> Result<Vec<TableName>> {
        let found = self.store.list(&self.layout.tombstones(Some(ds))).await?;
        let mut tables: Vec<_> =
            found.iter().filter_map(|object| Some(parse_tombstone(&object.location)?.0)).collect();
        tables.sort();
        Ok(tables)
    }

    /// Puts the tombstone. One that is there stands: the day goes by it.
    async fn bury(&self, day: &ExpiredDay) -> Result<()> {
        let path = self.layout.manifest(&day.table, day.ds);
        let Some(bytes) = self.store.get(&path).await? else {
            // Another process has begun it since.
            let begun = self.tombstone(&day.table, day.ds).await?.is_some();
            return if begun { Ok(()) } else { Err(self.store.missing(&path)) };
        };
        let manifest: Manifest = from_bytes(&bytes, &self.store.show(&path))?;
        let tombstone = Tombstone {
            manifest_version: MANIFEST_VERSION,
            name: self.name.clone(),
            table: day.table.clone(),
            ds: day.ds,
            reason: day.reason.clone(),
            rows: manifest.rows,
            bytes: manifest.files.iter().map(|file| file.bytes).sum(),
            manifest_sha256: sha256(&bytes),
        };
        self.store.put_once(&self.layout.tombstone(&day.table, day.ds), to_bytes(&tombstone)?).await?;
        Ok(())
    }

    /// The newest published day and the one that it was made from.
    async fn needed(&self, table: &TableName, newest: Option<Ds>) -> Result<BTreeSet<Ds>> {
        let Some(newest) = newest else { return Ok(BTreeSet::new()) };
        let manifest = self.manifest(table, newest).await?;
        let base = manifest.and_then(|manifest| manifest.previous_ds);
        Ok([newest].into_iter().chain(base).collect())
    }

    /// Days with a tombstone.
    async fn begun(&self) -> Result<BTreeSet<(TableName, Ds)>> {
        let found = self.store.list(&self.layout.tombstones(None)).await?;
        Ok(found.iter().filter_map(|object| parse_tombstone(&object.location)).collect())
    }

    async fn reason_told(&self, table: &TableName, ds: Ds) -> Result<String> {
        let gone = || {
            Error::retry(format!(
                "{} is not there any more",
                self.store.show(&self.layout.tombstone(table, ds))
            ))
        };
        Ok(self.tombstone(table, ds).await?.ok_or_else(gone)?.reason)
    }

    async fn objects_by_day(&self, table: &TableName) -> Result<Days> {
        let mut days = Days::new();
        for object in self.store.list(&self.layout.snapshots(table)).await? {
            if let Some(ds) = parse_object_ds(&object.location) {
                days.entry(ds).or_default().push(object);
            }
        }
        Ok(days)
    }
}

fn is_published(objects: &[ObjectMeta]) -> bool {
    objects.iter().any(|object| object.location.filename() == Some("_manifest.json"))
}

/// Sorts before `part-…`, and is found by whoever reads all files of that extension.
fn guard_name(extension: &str) -> String {
    format!("expired.{extension}")
}

fn is_guard(path: &Path) -> bool {
    path.filename().is_some_and(|name| name.starts_with("expired."))
}

fn extension_of_part(path: &Path) -> Option<&str> {
    path.filename()?.strip_prefix("part-")?.split_once('.').map(|(_, extension)| extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(retention: Retention, published: &[&str]) -> Vec<String> {
        let published: Vec<Ds> = published.iter().map(|ds| ds.parse().unwrap()).collect();
        let going = published.iter().filter(|ds| retention.lets_go(&published, **ds).is_some());
        going.map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_lets_go_what_it_names_and_nothing_else() {
        let days = [
            "2026-09-29",
            "2026-09-30",
            "2026-10-01",
            "2026-10-30",
            "2026-11-01",
            "2026-11-02",
            "2026-11-03",
        ];
        assert!(gone(Retention::default(), &days).is_empty());
        assert!(gone(Retention { days: 0, month_ends: true }, &days).is_empty());
        assert_eq!(gone(Retention { days: 2, month_ends: false }, &days), days[..5]);
        // The 31st was never published: the 30th is October's last.
        let kept = Retention { days: 2, month_ends: true };
        assert_eq!(gone(kept, &days), ["2026-09-29", "2026-10-01", "2026-11-01"]);
        assert!(gone(Retention { days: 7, month_ends: false }, &days).is_empty());
        assert_eq!(gone(Retention { days: 6, month_ends: false }, &days), days[..1]);
    }
}
