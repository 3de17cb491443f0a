//! The lake: layout of paths, staging, merging and publishing.
//!
//! ```text
//!   log ── Stager ──> change files, dead letters ── merge ──> parts ── publish ──> _manifest.json ──> cuts/…
//!            │            (immutable)                 ▲         (immutable)
//!            └─ recover: list them                    └── yesterday's parts
//! ```
//!
//! The immutable objects are the only state. There is no database beside them: progress of staging is the
//! list of change files, progress of publishing is the manifests. Every object's name and bytes follow from
//! the log and the cut, and is put by a conditional create for which the same bytes are a success; so any
//! step may be repeated, by anybody, at any time.

mod expire;
pub mod layout;
mod manifest;
mod merge;
mod notices;
mod premerge;
mod publish;
mod replay;
mod scratch;
mod shapes;
mod sort;
mod stage;
mod store;
mod tail;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use crate::batch::{Compression, Format};
use crate::change::{Calendar, Ds, TableName};
use crate::runtime::{Error, Result};

use layout::{Layout, parse_ds};
use manifest::from_bytes;
use stage::sequence::Sequence;
use stage::{StageLimits, Staging};

pub use expire::{ExpiredDay, Retention, Tombstone};
pub use manifest::{
    AsOf, AsText, ChangeCounts, CopiedFrom, CutPoint, DayManifest, DayTable, ExactColumn, HistoricTail,
    LogRange, MANIFEST_VERSION, Manifest, MissingTable, PartFile, TAIL_MANIFEST_VERSION, Work, Written,
};
pub use merge::premerged::{Premerged, Taken};
pub use notices::{NOTICE_VERSION, Notice, NoticeKind};
pub use premerge::{Round, RoundEnd};
pub use publish::Published;
pub use shapes::{ReadText, Shapes};
pub use stage::sequence::{Link, Place};
pub use stage::{
    Chain, ChangeFile, DeadLetter, DeadRecord, META_COLUMNS, Payload, StagedChange, Stager, change_schema,
};
pub use store::{Encryption, Put, S3Credentials, S3Options, Store, StoreProbe, sha256};
pub use tail::TailRule;
pub use verify::{VerifiedFile, VerifiedTable};

/// How the lake is written.
#[derive(Clone, Debug)]
pub struct LakeOptions {
    /// Format of the snapshots.
    pub format: Format,
    /// About how many bytes a part has, at most a quarter of `memory_bytes_max`.
    pub part_bytes_max: usize,
    /// Memory of one merge, roughly, for everything.
    pub memory_bytes_max: usize,
    /// Ranges of keys that a merge writes at once, as far as its memory allows.
    pub merge_threads: usize,
    /// Bytes in the scratch folder, of all tables, of what is made of the next day before it ends.
    pub premerge_bytes_max: u64,
    /// A change file ends when its decoded rows reach this size (or a million rows), or a quarter of `memory_bytes_max`.
    pub stage_bytes_max: usize,
    /// Local folder for files that live as long as a merge.
    pub scratch_dir: PathBuf,
    /// When a day ends.
    pub calendar: Calendar,
}

impl LakeOptions {
    /// Parquet with zstd in parts of 64 MiB, merged by one thread in 256 MiB; change files of at most 16 MiB decoded.
    pub const fn new(scratch_dir: PathBuf, calendar: Calendar) -> Self {
        Self {
            format: Format::Parquet { compression: Compression::Zstd(3) },
            part_bytes_max: 64 << 20,
            memory_bytes_max: 256 << 20,
            merge_threads: 1,
            premerge_bytes_max: 10 << 30,
            stage_bytes_max: 16 << 20,
            scratch_dir,
            calendar,
        }
    }

    /// Bytes of a change file's rows: when it is made, they are in memory as they were written early, as rows, in the
    /// order of their keys and encoded.
    fn stage_bytes(&self) -> usize {
        self.stage_bytes_max.min(self.memory_bytes_max / 4)
    }

    /// How many threads write parts of that size: each has a row group of a quarter of it in memory, encoded and as it was,
    /// with the rows on their way, and half the memory is theirs.
    fn threads(&self, part_bytes_max: usize) -> usize {
        let each = (part_bytes_max / 3 * 2).max(1);
        self.merge_threads.min(self.memory_bytes_max / 2 / each).max(1)
    }
}

/// One connector's part of a lake. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lake {
    store: Store,
    layout: Layout,
    name: String,
    options: std::sync::Arc<LakeOptions>,
    turns: std::sync::Arc<premerge::Turns>,
}

impl Lake {
    /// Opens the lake at a URL (`file:///absolute/folder`) for the connector of that name.
    pub fn open(url: &str, name: &str, options: LakeOptions) -> Result<Self> {
        Ok(Self::on(Store::open(url)?, name, options))
    }

    /// The lake on an opened store.
    pub fn on(store: Store, name: &str, options: LakeOptions) -> Self {
        Self {
            store,
            layout: Layout::new(name),
            name: name.to_owned(),
            options: options.into(),
            turns: std::sync::Arc::default(),
        }
    }

    /// The store.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Where things stand in it.
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Stages a log partition of a table from `next` on, which is [`Chain::next`] of [`Self::chain`], and not within a
    /// range that is lost ([`Self::link`]); `shapes` are the table's as far as they are known. Not cancel-safe in that it may
    /// write what was staged before.
    ///
    /// # Errors
    /// `Fenced`: several have staged there; look again for where to go on.
    pub async fn stager(
        &self,
        table: &TableName,
        partition: u32,
        next: u64,
        shapes: &Shapes,
    ) -> Result<Stager> {
        let to = Staging {
            store: self.store.clone(),
            layout: self.layout.clone(),
            calendar: self.options.calendar.clone(),
            limits: StageLimits { rows_max: 1 << 20, bytes_max: self.options.stage_bytes() },
        };
        Stager::open(to, (table.clone(), partition), next, shapes.clone()).await
    }

    /// What was begun at an offset of a log partition: a change file, or a range that is lost. Cancel-safe.
    pub async fn link(&self, table: &TableName, partition: u32, first: u64) -> Result<Option<Link>> {
        self.sequence(table, partition).link(first).await
    }

    /// Notes that the offsets from `first` up to `next` are lost. `false`: something else was begun there. Cancel-safe.
    pub async fn give_up(&self, table: &TableName, partition: u32, first: u64, next: u64) -> Result<bool> {
        self.sequence(table, partition).make(first, Link { next, place: None }).await
    }

    fn sequence(&self, table: &TableName, partition: u32) -> Sequence {
        Sequence::new(self.store.clone(), self.layout.clone(), table.clone(), partition)
    }

    /// The change files which cover a log partition from an offset on (the end of the last published cut), up
    /// to another (none: as far as they go). `since` is the day of that cut, and spares listing older days.
    /// Cancel-safe.
    pub async fn chain(
        &self,
        table: &TableName,
        partition: u32,
        range: (u64, Option<u64>),
        since: Option<Ds>,
    ) -> Result<Chain> {
        stage::chain(&self.store, &self.layout, table, partition, range, since).await
    }

    /// Clears what a process that died left half written: among a table's change files, from the day before `last` on, and
    /// in the snapshot of `last`, its last published day. Readers of those folders would take it for one more file.
    /// Cancel-safe.
    pub async fn sweep(&self, table: &TableName, last: Option<Ds>) -> Result<()> {
        if !self.store.leaves_halves() {
            return Ok(());
        }
        if let Some(ds) = last {
            self.store.sweep(&self.layout.snapshot(table, ds)).await?;
        }
        self.store.sweep(&self.layout.pieces(table)).await?;
        let since = last.and_then(|ds| ds.yesterday().ok());
        for day in self.store.folders(&self.layout.changes(table)).await? {
            if parse_ds(&day) >= since {
                for hour in self.store.folders(&day).await? {
                    self.store.sweep(&hour).await?;
                }
            }
        }
        Ok(())
    }

    /// A table's manifest of a day; `None` while it is not published. Cancel-safe.
    pub async fn manifest(&self, table: &TableName, ds: Ds) -> Result<Option<Manifest>> {
        let path = self.layout.manifest(table, ds);
        let bytes = self.store.get(&path).await?;
        bytes.map(|bytes| from_bytes(&bytes, &self.store.show(&path))).transpose()
    }

    /// A table's last published day. Cancel-safe.
    pub async fn latest_manifest(&self, table: &TableName) -> Result<Option<Manifest>> {
        let mut days: Vec<Ds> =
            self.store.folders(&self.layout.snapshots(table)).await?.iter().filter_map(parse_ds).collect();
        days.sort_unstable();
        for ds in days.into_iter().rev() {
            // A folder without a manifest is an attempt.
            if let Some(manifest) = self.manifest(table, ds).await? {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// The database's manifest of a day; `None` while the day is not complete. Cancel-safe.
    pub async fn day(&self, ds: Ds) -> Result<Option<DayManifest>> {
        let path = self.layout.day_manifest(ds);
        let bytes = self.store.get(&path).await?;
        bytes.map(|bytes| from_bytes(&bytes, &self.store.show(&path))).transpose()
    }

    /// The last day which is complete. Cancel-safe.
    pub async fn latest_day(&self) -> Result<Option<Ds>> {
        Ok(self.days().await?.pop())
    }

    /// Days which are complete, ascending. Cancel-safe.
    pub async fn days(&self) -> Result<Vec<Ds>> {
        self.days_in(&self.layout.day_manifests()).await
    }

    /// The days of objects `ds=D.json` in a folder, ascending.
    async fn days_in(&self, folder: &object_store::path::Path) -> Result<Vec<Ds>> {
        let objects = self.store.list(folder).await?;
        let name = |object: &object_store::ObjectMeta| {
            object.location.filename()?.strip_prefix("ds=")?.strip_suffix(".json")?.parse().ok()
        };
        let mut days: Vec<Ds> = objects.iter().filter_map(name).collect();
        days.sort_unstable();
        Ok(days)
    }

    /// Tries everything that is done in the store; the first thing that fails. Cancel-safe.
    ///
    /// # Errors
    /// `Operator` where it stays so: no rights, no bucket, a store without conditional create. `Retry` else.
    pub async fn probe(&self) -> Result<()> {
        self.try_store().await.into_iter().try_for_each(|tried| tried.outcome.map(|_| ()))
    }

    /// The same, one thing after the other. Cancel-safe.
    pub async fn try_store(&self) -> Vec<StoreProbe> {
        self.store.probe(&self.layout.day_manifests()).await
    }

    /// Aborts what processes that died left of uploads in parts, once it is older than `age`. Only for whoever owns
    /// this connector's tables. Cancel-safe.
    pub async fn abort_uploads(&self, age: Duration) -> Result<()> {
        for folder in self.layout.areas() {
            let aborted = self.store.abort_uploads(&folder, age).await?;
            if aborted > 0 {
                tracing::info!(folder = %self.store.show(&folder), aborted, "uploads that were broken off are aborted");
            }
        }
        Ok(())
    }

    /// Binds this connector's folders to the log that fills them, by what that log begins with. Names of change
    /// files are offsets of the log, so what came out of another one would be taken for this one's.
    /// `Operator`: they were filled from another log. Cancel-safe.
    pub async fn bind(&self, beginning: &str) -> Result<()> {
        let path = self.layout.log_beginning();
        if self.store.put_once(&path, bytes::Bytes::from(format!("{beginning}\n"))).await? != Put::Differs {
            return Ok(());
        }
        let held = self.store.get(&path).await?.unwrap_or_default();
        let name = &self.name;
        Err(Error::operator(format!(
            "the lake's folders of {name} were filled from another log, which began with {:?}; this one begins with \
             {beginning:?} ({})",
            String::from_utf8_lossy(&held).trim_end(),
            self.store.show(&path)
        ))
        .mend(format!(
            "Bring the former log back; or, after a new backfill, move the lake's folders of this source \
             (snapshots/{name}, changes/{name}, cuts/{name}, dead_letters/{name}) aside: the days in them stay readable."
        )))
    }

    /// Tables that have dead letters. Cancel-safe.
    pub async fn tables_with_dead_letters(&self) -> Result<Vec<TableName>> {
        let folders = self.store.folders(&self.layout.all_dead_letters()).await?;
        Ok(folders.iter().filter_map(layout::parse_table).collect())
    }

    /// A table's dead letters of a day, or of all days, in the order of their objects' names. Cancel-safe.
    pub async fn dead_letters(&self, table: &TableName, ds: Option<Ds>) -> Result<Vec<DeadLetter>> {
        let folder = match ds {
            Some(ds) => self.layout.dead_letters_of_day(table, ds),
            None => self.layout.dead_letters(table),
        };
        let mut objects = self.store.list(&folder).await?;
        objects.sort_by(|a, b| a.location.cmp(&b.location));
        let mut letters = Vec::new();
        for object in objects {
            let bytes = self.store.get_existing(&object.location).await?;
            letters.extend(stage::read_lines(&bytes, &self.store.show(&object.location))?);
        }
        Ok(letters)
    }
}
