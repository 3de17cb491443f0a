//! Checking a published day: every object is there, has the checksum its manifest names, and the rows.

use serde::Serialize;

use crate::batch::{FileReader, ReaderOptions, arrow_schema, exact_schema};
use crate::change::{Ds, TableName};
use crate::runtime::{Error, Result};

use super::Lake;
use super::expire::Tombstone;
use super::manifest::{AsOf, Manifest, PartFile, from_bytes};
use super::publish::parse_format;
use super::store::sha256;

/// What [`Lake::verify`] found of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedFile {
    /// The object, from the lake's root.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
    /// Bytes of it.
    pub bytes: u64,
    /// What is wrong; none when all is as its manifest says.
    pub problem: Option<String>,
}

/// What [`Lake::verify`] found of a table's day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedTable {
    /// The table.
    pub table: TableName,
    /// Rows that the manifest names.
    pub rows: u64,
    /// Its parts, and whatever else stands in the folder.
    pub files: Vec<VerifiedFile>,
    /// What is wrong with the manifest itself.
    pub problem: Option<String>,
    /// The cut that its historic tail is as of, and changes that are deferred; none: all of it is as of the day's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub historic_tail: Option<(AsOf, u64)>,
    /// A rule has removed it, as told here, and there is nothing to compare.
    pub expired: Option<String>,
}

impl VerifiedTable {
    /// Whether nothing is wrong.
    pub fn is_right(&self) -> bool {
        self.problem.is_none() && self.files.iter().all(|file| file.problem.is_none())
    }
}

impl Lake {
    /// Reads a published day again and compares it with its manifests: checksums, bytes, rows, sums and
    /// strays. Without `table`, all tables which the database's manifest names. Cancel-safe.
    ///
    /// # Errors
    /// The day, or the table's day, is not published.
    pub async fn verify(&self, ds: Ds, table: Option<&TableName>) -> Result<Vec<VerifiedTable>> {
        if let Some(table) = table {
            return Ok(vec![self.verify_table(ds, table, None).await?]);
        }
        let day = self.day(ds).await?.ok_or_else(|| {
            Error::operator(format!("{ds} is not published"))
                .mend("`tidemark status` says what it waits for.")
        })?;
        let mut tables = Vec::with_capacity(day.tables.len());
        for table in &day.tables {
            tables.push(self.verify_table(ds, &table.table, Some(&table.sha256)).await?);
        }
        for missing in day.missing {
            let problem = Some(format!("it is not in the day: {}", missing.reason));
            tables.push(VerifiedTable {
                table: missing.table,
                rows: 0,
                files: Vec::new(),
                problem,
                historic_tail: None,
                expired: None,
            });
        }
        Ok(tables)
    }

    async fn verify_table(&self, ds: Ds, table: &TableName, named: Option<&str>) -> Result<VerifiedTable> {
        let path = self.layout.manifest(table, ds);
        let tombstone = self.tombstone(table, ds).await?;
        let Some(bytes) = self.store.get(&path).await? else {
            return match (tombstone, named) {
                (Some(tombstone), _) => self.verify_expired(&tombstone, named).await,
                (None, Some(_)) => {
                    let problem = Some(format!(
                        "{} is missing, and no tombstone says that a rule has removed it: the day is lost",
                        self.store.show(&path)
                    ));
                    Ok(VerifiedTable {
                        table: table.clone(),
                        rows: 0,
                        files: Vec::new(),
                        problem,
                        historic_tail: None,
                        expired: None,
                    })
                }
                (None, None) => Err(Error::operator(format!(
                    "{table} is not published for {ds}: {} is missing",
                    self.store.show(&path)
                ))),
            };
        };
        let manifest: Manifest = from_bytes(&bytes, &self.store.show(&path))?;
        let problem = manifest_problem(&manifest, named.is_some_and(|named| named != sha256(&bytes)));
        let problem = problem.or_else(|| tombstone.is_some().then(|| NOT_GONE.to_owned()));
        let mut files = Vec::new();
        for part in &manifest.files {
            files.push(self.verify_part(&manifest, part).await?);
        }
        for object in self.store.list(&self.layout.snapshot(table, ds)).await? {
            let name = object.location.filename().unwrap_or_default();
            if !name.starts_with('_') && !manifest.files.iter().any(|part| part.path == name) {
                let problem =
                    Some("the manifest does not name it, but readers of the folder find it".to_owned());
                files.push(VerifiedFile {
                    path: object.location.to_string(),
                    rows: 0,
                    bytes: object.size,
                    problem,
                });
            }
        }
        let problem = match problem {
            None => self.deferral_problem(&manifest).await?,
            problem => problem,
        };
        let historic_tail = manifest.historic_tail.map(|tail| (tail.as_of, manifest.changes.deferred));
        let (table, rows) = (table.clone(), manifest.rows);
        Ok(VerifiedTable { table, rows, files, problem, historic_tail, expired: None })
    }

    /// A day that a rule has removed: nothing of it may be left, and it must have been the one that was published.
    async fn verify_expired(&self, tombstone: &Tombstone, named: Option<&str>) -> Result<VerifiedTable> {
        let (table, ds) = (&tombstone.table, tombstone.ds);
        let left = self.store.list(&self.layout.snapshot(table, ds)).await?;
        let problem = if named.is_some_and(|named| named != tombstone.manifest_sha256) {
            Some("a rule has removed it, but not the one which the database's manifest names".to_owned())
        } else {
            (!left.is_empty()).then(|| NOT_GONE.to_owned())
        };
        let expired =
            Some(format!("removed by a rule ({}): it had {} rows", tombstone.reason, tombstone.rows));
        let (table, files) = (table.clone(), Vec::new());
        Ok(VerifiedTable { table, rows: 0, files, problem, historic_tail: None, expired })
    }

    /// What a day takes over of a historic tail must be what the day before has left, as long as that is there.
    async fn deferral_problem(&self, manifest: &Manifest) -> Result<Option<String>> {
        let Some(ds) = manifest.previous_ds else { return Ok(None) };
        let Some(previous) = self.manifest(&manifest.table, ds).await? else { return Ok(None) };
        let begun = previous.historic_tail.as_ref().map_or_else(|| AsOf::of(&previous), |tail| tail.as_of);
        let follows = manifest.changes.deferred_before == previous.changes.deferred
            && manifest.historic_tail.as_ref().is_none_or(|tail| tail.as_of == begun);
        Ok((!follows).then(|| {
            format!(
                "{ds} has left {} changes of a historic tail as of {}, and this day goes on from {}: was it made by a version \
                 that knows none? Copy the table again with `tidemark backfill`",
                previous.changes.deferred, begun.ds, manifest.changes.deferred_before
            )
        }))
    }

    async fn verify_part(&self, manifest: &Manifest, part: &PartFile) -> Result<VerifiedFile> {
        let path = self.layout.snapshot_object(&manifest.table, manifest.ds, &part.path);
        let found = |rows, bytes, problem| VerifiedFile { path: path.to_string(), rows, bytes, problem };
        let Some(bytes) = self.store.get(&path).await? else {
            return Ok(found(0, 0, Some("it is missing".to_owned())));
        };
        let size = bytes.len() as u64;
        let format = parse_format(&manifest.format, None)?;
        let columns = &manifest.schema.columns;
        let schema = if manifest.exact.is_some() { exact_schema(columns) } else { arrow_schema(columns) };
        let part = part.clone();
        let checked = tokio::task::spawn_blocking(move || {
            if sha256(&bytes) != part.sha256 || size != part.bytes {
                return Err("its SHA-256 or size is not what the manifest says".to_owned());
            }
            let reader = FileReader::open(&format, &schema, bytes, &ReaderOptions::default());
            let rows: Result<u64> =
                reader.and_then(|mut r| r.try_fold(0, |rows, batch| Ok(rows + batch?.num_rows() as u64)));
            match rows {
                Ok(rows) if rows == part.rows => Ok(rows),
                Ok(rows) => Err(format!("it has {rows} rows, the manifest says {}", part.rows)),
                Err(error) => Err(error.to_string()),
            }
        });
        let checked =
            checked.await.map_err(|error| Error::retry("verifying was interrupted").cause(error))?;
        Ok(match checked {
            Ok(rows) => found(rows, size, None),
            Err(problem) => found(0, size, Some(problem)),
        })
    }
}

const NOT_GONE: &str =
    "a rule lets it go, and its removal was interrupted: run `tidemark expire --delete` again";

fn manifest_problem(manifest: &Manifest, differs: bool) -> Option<String> {
    let changes = manifest.changes;
    if differs {
        return Some("the manifest is not the one which the database's manifest names".to_owned());
    }
    if manifest.files.iter().map(|file| file.rows).sum::<u64>() != manifest.rows {
        return Some("the rows of its files do not add up".to_owned());
    }
    if !changes.add_up() {
        return Some(
            "changes applied, dead letters and those deferred do not add up to changes in and those deferred before"
                .to_owned(),
        );
    }
    tail_problem(manifest)
}

/// What a manifest says of a historic tail in one place must be what it says in the others.
fn tail_problem(manifest: &Manifest) -> Option<String> {
    let tail = manifest.historic_tail.as_ref();
    let files = tail.map_or(0, |tail| tail.files);
    let told = manifest
        .files
        .iter()
        .zip(0..)
        .all(|(file, at)| file.as_of == tail.filter(|_| at < files).map(|tail| tail.as_of));
    let rows = manifest.files.iter().take(files as usize).map(|file| file.rows).sum::<u64>();
    let counted =
        tail.is_none_or(|tail| tail.rows == rows && tail.files > 0 && files as usize <= manifest.files.len());
    let deferred = tail.is_some() == (manifest.changes.deferred > 0);
    (!(told && counted && deferred))
        .then(|| "what it says of its historic tail does not fit its files".to_owned())
}
