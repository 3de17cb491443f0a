//! Publishing a table's day, and then the database's.
//!
//! ```text
//!   _plan.json ── parts, dead letters ── (strays removed, sums checked) ── _manifest.json ── _SUCCESS
//!       │ conditional create: how the parts are made        └ conditional create: the day is there
//!       └ whoever comes second makes the same bytes                        cuts/…/ds=D.json when all are
//! ```
//!
//! Why two at once do no harm: the plan is created once and followed by everybody, so all make the same
//! parts and the same manifest, and each create finds its own bytes. Until the manifest exists nobody reads
//! the folder, so leftovers may be cleared; from then on nothing in it is touched. A plan by another version
//! of the program, whose files may come out otherwise, is thrown away with its parts. Parts that are taken over from the day
//! before are named by the plan, that day's manifest and the changes alone, so everybody takes the same ones.
//!
//! Only another version removes what somebody may still want, and there the lease which the caller holds keeps the two
//! from working at the same time. One that was paused beyond its lease, and goes on, looks for the manifest before each
//! single removal, and stops when it is there. What remains: a removal that was on its way when the other one published
//! (one request, since they are made one after the other) may take a part which the manifest names away, and a part put then
//! may lie beside them. `verify` finds both; the next day of a table of which a part is missing is not made.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::batch::{Compression, Format, OrcCompression};
use crate::change::{BACKFILL_PARTITION, Cut, CutTable, Ds, Position, TableName, TableSchema};
use crate::runtime::{Error, Result};

use super::Lake;
use super::layout::parse_change_file;
use super::manifest::{
    ChangeCounts, CutPoint, DayManifest, DayTable, ExactColumn, LogRange, MANIFEST_VERSION, Manifest,
    MissingTable, TAIL_MANIFEST_VERSION, Written, columns_as_text, from_bytes, to_bytes,
};
use super::merge::blocking::Blocking;
use super::merge::premerged::{Premerged, Taken};
use super::merge::tail::{Deferral, Tail};
use super::merge::{KEY_ORDER, MergeFile, MergeInput, Merged, merge};
use super::scratch::Scratch;
use super::shapes::Shapes;
use super::stage::{chain, covering, read_lines};
use super::store::{Put, sha256};
use super::tail::{self, TailPlan, TailRule};

/// How the parts of a day are made: all that their bytes depend on besides the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    writer: String,
    format: String,
    compression: Option<String>,
    part_bytes_max: usize,
    row_group_bytes: usize,
    /// Version of the order by which parts without changes are told and taken over; none: all are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_order: Option<u32>,
    /// The day may leave the historic tail as it is; none: it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    historic_tail: Option<TailPlan>,
}

impl Plan {
    /// What the manifest says of it.
    fn written(&self) -> Option<Written> {
        let Self { part_bytes_max, row_group_bytes, .. } = *self;
        let compression = self.compression.clone();
        Some(Written { compression, part_bytes_max, row_group_bytes, key_order: self.key_order? })
    }
}

/// A table's day, and what of it was made before its cut: that does not follow from the day's inputs, and so the manifest
/// does not say it.
#[derive(Clone, Debug)]
pub struct Published {
    /// What is there now.
    pub manifest: Manifest,
    /// What was made before the cut.
    pub premerged: Taken,
}

/// What a day is made from beside its changes: the day before, or where a new copy begins and is settled; and the condition
/// of rows which that took.
pub(super) type BaseOf<'a> = (Option<&'a Manifest>, Option<Range<Position>>, Option<String>);

impl Lake {
    /// Merges the table's changes up to the cut with its day before, and publishes the day.
    ///
    /// `shapes` are the table's up to the cut, `topic` its key in [`Cut::tables`], `previous` its manifest
    /// of the cut before (none for its first), `premerged` what was made of the day before its cut. `tail` says whether the
    /// day may leave a historic tail as it is. All change files up to the cut must be staged. Doing it again, also at the
    /// same time elsewhere, publishes the same bytes.
    ///
    /// # Errors
    /// `Operator` when change files are missing, when records and dead letters do not add up to what capture
    /// counted, or when the day was published for another cut; nothing is published then. `Retry` for
    /// passing troubles of the store or the scratch folder.
    ///
    /// Cancel-safe: a dropped call stops at its next step and leaves at most unpublished parts behind.
    pub async fn merge_and_publish(
        &self,
        shapes: &Shapes,
        cut: &Cut,
        topic: &str,
        previous: Option<&Manifest>,
        premerged: Option<Premerged>,
        tail: Option<TailRule>,
    ) -> Result<Published> {
        let schema: &TableSchema = shapes.now();
        let table = cut.tables.get(topic).ok_or_else(|| {
            Error::operator(format!("the cut of {} does not name the topic {topic}", cut.ds))
        })?;
        if let Some(manifest) = self.manifest(&schema.name, cut.ds).await? {
            self.same_cut(&manifest, cut)?;
            self.mark_success(&schema.name, cut.ds).await?;
            return Ok(Published { manifest, premerged: Taken::default() });
        }
        // A new copy stands for everything before it.
        let previous = previous.filter(|_| table.backfill.is_none());
        let (files, log) = self.files_between(schema, cut, table, topic, previous).await?;
        let tail = previous.zip(tail).and_then(|(previous, rule)| rule.plan(previous, cut.ds));
        let plan = self.plan(&schema.name, cut.ds, tail).await?;
        let tail = self.tail_of((schema, cut), plan.historic_tail.as_ref(), previous).await?;
        let staged_dead = self.staged_dead_letters(&schema.name, &files).await?;

        let replaced = table.backfill.as_ref().map(|copy| copy.position..copy.settled());
        let base = (previous, replaced, table.backfill_where.clone());
        let mut merged = self.run_merge(shapes, cut.ds, &plan, base, (files, tail), premerged).await?;
        check_sums(schema, cut, table, &merged, staged_dead)?;
        let changes = change_counts(table, previous, &merged, staged_dead);
        let historic_tail = tail::told(&mut merged.files, merged.deferral, previous, &log);
        let manifest = Manifest {
            manifest_version: historic_tail.as_ref().map_or(MANIFEST_VERSION, |_| TAIL_MANIFEST_VERSION),
            name: self.name.clone(),
            table: schema.name.clone(),
            ds: cut.ds,
            cut: CutPoint::from(cut),
            schema: schema.clone(),
            as_text: columns_as_text(schema, &parse_format(&plan.format, None)?),
            exact: merged.exact.then(|| ExactColumn::of(&merged.files)),
            format: plan.format.clone(),
            written: plan.written(),
            rows: merged.files.iter().map(|file| file.rows).sum(),
            files: merged.files,
            historic_tail,
            work: Some(merged.work),
            changes,
            log,
            previous_ds: previous.map(|manifest| manifest.ds),
            backfill: table.backfill.clone(),
            backfill_where: table.backfill_where.clone(),
        };
        self.clear_strays(&manifest, merged.dead_letter_objects).await?;
        let manifest = self.create_manifest(manifest, cut).await?;
        Ok(Published { manifest, premerged: merged.premerged })
    }

    /// The change files between the two cuts, or since a new copy began, whole, and what they cover.
    async fn files_between(
        &self,
        schema: &TableSchema,
        cut: &Cut,
        table: &CutTable,
        topic: &str,
        previous: Option<&Manifest>,
    ) -> Result<(Vec<MergeFile>, Vec<LogRange>)> {
        let mut files = Vec::new();
        let mut log = Vec::new();
        for end in &table.ends {
            let range =
                |from| LogRange { topic: topic.to_owned(), partition: end.partition, from, end: end.end };
            if let Some(copy) = &table.backfill {
                let from = copy.from_of(end.partition);
                let to = if end.partition == BACKFILL_PARTITION { copy.end } else { end.end };
                files.extend(self.files_of_copy(schema, cut, (end.partition, from, end.end), to).await?);
                log.push(range(from));
                continue;
            }
            if end.partition == BACKFILL_PARTITION {
                // Of copies that did not become whole, or are not yet: nothing of them counts.
                log.push(range(end.end));
                continue;
            }
            let held = previous.and_then(|m| m.log.iter().find(|range| range.partition == end.partition));
            let from = match held {
                Some(range) => range.end,
                None => self.first_staged(&schema.name, end.partition, end.end).await?,
            };
            let since = previous.map(|manifest| manifest.ds);
            let range = (from, Some(end.end));
            let found = chain(&self.store, &self.layout, &schema.name, end.partition, range, since).await?;
            if found.next != end.end {
                return Err(Error::operator(format!(
                    "{} for {}: change files of log partition {topic}/{} reach offset {}, the cut ends at {}",
                    schema.name, cut.ds, end.partition, found.next, end.end
                ))
                .mend("Staging has to finish first; if change files were removed, bring them back."));
            }
            let all = 0..u64::MAX;
            files.extend(found.files.into_iter().map(|file| MergeFile { file, offsets: all.clone() }));
            log.push(LogRange { topic: topic.to_owned(), partition: end.partition, from, end: end.end });
        }
        Ok((files, log))
    }

    /// The change files of a log partition from where a new copy of the table begins to need it. `to`: what lies beyond
    /// in them does not count.
    async fn files_of_copy(
        &self,
        schema: &TableSchema,
        cut: &Cut,
        (partition, from, end): (u32, u64, u64),
        to: u64,
    ) -> Result<Vec<MergeFile>> {
        let found = covering(&self.store, &self.layout, &schema.name, partition, (from, end)).await?;
        if found.next < end {
            return Err(Error::operator(format!(
                "{} for {}: change files of log partition {partition} reach offset {} from {from} on, the cut ends at {end}",
                schema.name, cut.ds, found.next
            ))
            .mend("Staging has to finish first; if change files were removed, bring them back."));
        }
        Ok(found.files.into_iter().map(|file| MergeFile { file, offsets: from..to }).collect())
    }

    /// Where the change files of a log partition begin: at the log's first offset, for a table's first day.
    async fn first_staged(&self, table: &TableName, partition: u32, end: u64) -> Result<u64> {
        let objects = self.store.list(&self.layout.changes(table)).await?;
        let ranges = objects.iter().filter_map(|object| parse_change_file(&object.location));
        Ok(ranges
            .filter(|range| range.partition == partition)
            .map(|range| range.first)
            .min()
            .unwrap_or(0)
            .min(end))
    }

    async fn staged_dead_letters(&self, table: &TableName, files: &[MergeFile]) -> Result<u64> {
        let mut count = 0;
        for object in self.store.list(&self.layout.dead_letters(table)).await? {
            let name =
                object.location.filename().and_then(|name| name.strip_suffix(".jsonl")).unwrap_or_default();
            let same = |file: &&MergeFile| {
                file.file.path.filename().and_then(|name| name.strip_suffix(".parquet")) == Some(name)
            };
            if let Some(file) = files.iter().find(same) {
                let bytes = self.store.get_existing(&object.location).await?;
                let letters = read_lines(&bytes, &self.store.show(&object.location))?;
                count += letters.iter().filter(|letter| file.offsets.contains(&letter.offset)).count() as u64;
            }
        }
        Ok(count)
    }

    /// The plan that the options make.
    pub(super) fn new_plan(&self, historic_tail: Option<TailPlan>) -> Plan {
        let options = &self.options;
        let (format, compression) = format_name(options.format);
        let part_bytes_max = options.part_bytes_max.min(options.memory_bytes_max / 4);
        Plan {
            writer: concat!("tidemark ", env!("CARGO_PKG_VERSION")).to_owned(),
            format: format.to_owned(),
            compression,
            part_bytes_max,
            row_group_bytes: part_bytes_max / 4,
            key_order: Some(KEY_ORDER),
            historic_tail,
        }
    }

    /// The plan that everybody follows, made by whoever comes first.
    async fn plan(&self, table: &TableName, ds: Ds, tail: Option<TailPlan>) -> Result<Plan> {
        let plan = self.new_plan(tail);
        let path = self.layout.snapshot_object(table, ds, "_plan.json");
        let bytes = to_bytes(&plan)?;
        if self.store.put_once(&path, bytes.clone()).await? != Put::Differs {
            return Ok(plan);
        }
        let held: Plan = from_bytes(&self.store.get_existing(&path).await?, &self.store.show(&path))?;
        if held.writer == plan.writer {
            return Ok(held);
        }
        tracing::info!(table = %table, ds = %ds, writer = %held.writer, "parts left by another version are made again");
        for object in self.store.list(&self.layout.snapshot(table, ds)).await? {
            self.delete_unpublished(table, ds, &object.location).await?;
        }
        self.refuse_if_published(table, ds).await?;
        self.store.put_same(&path, bytes).await?;
        Ok(plan)
    }

    async fn run_merge(
        &self,
        shapes: &Shapes,
        ds: Ds,
        plan: &Plan,
        base: BaseOf<'_>,
        files: (Vec<MergeFile>, Option<Tail>),
        premerged: Option<Premerged>,
    ) -> Result<Merged> {
        let abandoned = Arc::new(AtomicBool::new(false));
        let _guard = RaiseOnDrop(Arc::clone(&abandoned));
        let turn = self.turns.merge().await;
        let input = self.merge_input(shapes, ds, plan, base, files, abandoned)?;
        let shown = format!("merging {} for {ds}", shapes.now().name);
        let merged = tokio::task::spawn_blocking(move || {
            let merged = merge(&input, premerged);
            drop(turn);
            merged
        });
        merged
            .await
            .map_err(|error| Error::operator("the merge stopped by a defect; please report it").cause(error))?
            .map_err(|error| error.context(shown))
    }

    pub(super) fn merge_input(
        &self,
        shapes: &Shapes,
        ds: Ds,
        plan: &Plan,
        (previous, replaced, left_out): BaseOf<'_>,
        (files, tail): (Vec<MergeFile>, Option<Tail>),
        abandoned: Arc<AtomicBool>,
    ) -> Result<MergeInput> {
        let written = plan.written();
        let carry = written.is_some()
            && previous.is_some_and(|held| held.format == plan.format && held.written == written);
        let previous = match previous {
            Some(manifest) => Some((Arc::new(manifest.clone()), parse_format(&manifest.format, None)?)),
            None => None,
        };
        Ok(MergeInput {
            store: Blocking::new(Handle::current(), self.store.clone(), abandoned),
            layout: self.layout.clone(),
            scratch: Arc::new(Scratch::new(&self.options.scratch_dir)?),
            shapes: shapes.clone(),
            ds,
            previous,
            carry,
            replaced,
            left_out,
            files,
            tail,
            format: parse_format(&plan.format, plan.compression.as_deref())?,
            part_bytes_max: plan.part_bytes_max,
            row_group_bytes: plan.row_group_bytes,
            sort_bytes_max: self.options.memory_bytes_max / 4,
            threads: self.options.threads(plan.part_bytes_max),
            room: self.turns.room(),
        })
    }

    /// Removes an object of a day, unless that is published: then it may be one of those which the manifest names.
    async fn delete_unpublished(&self, table: &TableName, ds: Ds, path: &Path) -> Result<()> {
        self.refuse_if_published(table, ds).await?;
        self.store.delete(path).await
    }

    /// Whoever finds a manifest before it removes anything has been overtaken.
    async fn refuse_if_published(&self, table: &TableName, ds: Ds) -> Result<()> {
        match self.manifest(table, ds).await? {
            None => Ok(()),
            Some(_) => Err(Error::fenced(format!(
                "{table} for {ds} was published by another process in the meantime"
            ))),
        }
    }

    /// Removes what an interrupted attempt left and the manifest will not name.
    async fn clear_strays(&self, manifest: &Manifest, dead_letter_objects: usize) -> Result<()> {
        // Once the day is published, by whomever, nothing of it is touched.
        if self.manifest(&manifest.table, manifest.ds).await?.is_some() {
            return Ok(());
        }
        let folder = self.layout.snapshot(&manifest.table, manifest.ds);
        let mut wanted: BTreeMap<&str, u64> =
            manifest.files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
        for object in self.store.list(&folder).await? {
            let name = object.location.filename().unwrap_or_default();
            match wanted.remove(name) {
                Some(bytes) if bytes == object.size => {}
                // A copy of a part that was altered since it was written.
                Some(_) => return Err(self.store.altered(&object.location)),
                None if name.starts_with('_') => {}
                None => self.delete_unpublished(&manifest.table, manifest.ds, &object.location).await?,
            }
        }
        if let Some(name) = wanted.keys().next() {
            let path = self.layout.snapshot_object(&manifest.table, manifest.ds, name);
            return Err(Error::retry(format!("{} was made, and is gone", self.store.show(&path))));
        }
        self.store.sweep(&folder).await?;
        let written: Vec<_> = (0..dead_letter_objects)
            .map(|index| self.layout.merge_dead_letters(&manifest.table, manifest.ds, index))
            .collect();
        for object in self.store.list(&self.layout.dead_letters_of_day(&manifest.table, manifest.ds)).await? {
            let merge = object.location.filename().is_some_and(|name| name.starts_with("snapshot-"));
            if merge && !written.contains(&object.location) {
                self.delete_unpublished(&manifest.table, manifest.ds, &object.location).await?;
            }
        }
        Ok(())
    }

    async fn create_manifest(&self, manifest: Manifest, cut: &Cut) -> Result<Manifest> {
        let path = self.layout.manifest(&manifest.table, manifest.ds);
        let put = self.store.put_once(&path, to_bytes(&manifest)?).await?;
        if put == Put::Differs {
            let held: Manifest = from_bytes(&self.store.get_existing(&path).await?, &self.store.show(&path))?;
            self.same_cut(&held, cut)?;
            return Err(Error::operator(format!(
                "{} was published by another writer in the meantime, with {} rows in {} files; this one has {} rows in {}",
                self.store.show(&path),
                held.rows,
                held.files.len(),
                manifest.rows,
                manifest.files.len()
            ))
            .mend("The published day stands as it is. Run `tidemark verify`, and see that only one version of tidemark serves this lake."));
        }
        self.mark_success(&manifest.table, manifest.ds).await?;
        Ok(manifest)
    }

    async fn mark_success(&self, table: &TableName, ds: Ds) -> Result<()> {
        self.store.put_same(&self.layout.success(table, ds), bytes::Bytes::new()).await
    }

    fn same_cut(&self, manifest: &Manifest, cut: &Cut) -> Result<()> {
        if manifest.cut == CutPoint::from(cut) {
            return Ok(());
        }
        Err(Error::operator(format!(
            "{} was published at the cut {}, and not at {} which the log holds for {}",
            self.store.show(&self.layout.manifest(&manifest.table, manifest.ds)),
            manifest.cut.lsn,
            cut.lsn,
            cut.ds
        ))
        .mend("A published day never changes. Does another connector of the same name write to this lake?"))
    }

    /// Publishes the database's own manifest of a day: with it, the day is complete, and so are its folders:
    /// whoever died between a table's manifest and its `_SUCCESS` never comes back to that table's day.
    ///
    /// `missing` are tables, by topic, whose snapshot cannot be made, each with the reason. So are those which have a later
    /// day, but not this one: whoever delivers a table goes on behind its last day. A manifest that is there already stands,
    /// if it is of the same cut.
    ///
    /// `None`: another table's day is not published yet, and nothing was done. Cancel-safe.
    pub async fn publish_day(
        &self,
        cut: &Cut,
        missing: &BTreeMap<String, String>,
    ) -> Result<Option<DayManifest>> {
        let mut tables = Vec::with_capacity(cut.tables.len());
        let mut missed = Vec::new();
        for (topic, table) in &cut.tables {
            if let Some(reason) = missing.get(topic) {
                let (topic, table, reason) = (topic.clone(), table.name.clone(), reason.clone());
                missed.push(MissingTable { topic, table, reason });
                continue;
            }
            let path = self.layout.manifest(&table.name, cut.ds);
            let Some(bytes) = self.store.get(&path).await? else {
                // What is complete stands, whatever is known of it by now.
                if let Some(day) = self.day(cut.ds).await? {
                    return Ok(Some(day));
                }
                let Some(missing) = self.passed_by(topic, &table.name, cut.ds).await? else {
                    return Ok(None);
                };
                missed.push(missing);
                continue;
            };
            let manifest: Manifest = from_bytes(&bytes, &self.store.show(&path))?;
            self.same_cut(&manifest, cut)?;
            self.mark_success(&table.name, cut.ds).await?;
            tables.push(DayTable {
                topic: topic.clone(),
                table: table.name.clone(),
                manifest: path.to_string(),
                sha256: sha256(&bytes),
                rows: manifest.rows,
                changes: manifest.changes,
                historic_tail: manifest.historic_tail.map(|tail| tail.as_of),
            });
        }
        let day = DayManifest {
            manifest_version: MANIFEST_VERSION,
            name: self.name.clone(),
            ds: cut.ds,
            cut: cut.clone(),
            tables,
            missing: missed,
        };
        let (path, bytes) = (self.layout.day_manifest(cut.ds), to_bytes(&day)?);
        // What a process left that died while it wrote one.
        self.store.sweep(&self.layout.day_manifests()).await?;
        if self.store.put_once(&path, bytes.clone()).await? != Put::Differs {
            return Ok(Some(day));
        }
        // Whether a table is missing, and what is told of it, is what the first who made it says.
        let held: DayManifest = from_bytes(&self.store.get_existing(&path).await?, &self.store.show(&path))?;
        let other = |table: &DayTable| held.tables.iter().any(|t| t.topic == table.topic && t != table);
        if held.cut != day.cut || day.tables.iter().any(other) {
            self.store.put_same(&path, bytes).await?;
        }
        Ok(Some(held))
    }
}

impl Lake {
    /// Why a table is not in a day, if a later one of it is published: the reason was told to the coordinator, and is lost.
    async fn passed_by(&self, topic: &str, table: &TableName, ds: Ds) -> Result<Option<MissingTable>> {
        let Some(later) = self.latest_manifest(table).await?.filter(|manifest| manifest.ds > ds) else {
            return Ok(None);
        };
        let later = later.ds;
        let reason = format!(
            "no snapshot was made of it before the one of {later}; why is not known any more, since what the processes that \
             deliver had told the coordinator was lost"
        );
        tracing::error!(table = %table, ds = %ds, reason, "the table is missing from the day");
        Ok(Some(MissingTable { topic: topic.to_owned(), table: table.clone(), reason }))
    }
}

/// Records that capture has counted: of the changes since the cut before, or of a new copy with those since it began.
fn counted(table: &CutTable) -> u64 {
    table.backfill.as_ref().map_or(table.changes, |copy| copy.rows + copy.changes)
}

/// Where the changes of a day, and those that were deferred, went.
fn change_counts(
    table: &CutTable,
    previous: Option<&Manifest>,
    merged: &Merged,
    staged_dead: u64,
) -> ChangeCounts {
    let dead_letters = table.backfill.as_ref().map_or(table.dead_letters, |copy| copy.dead_letters);
    let Deferral { parts, deferred, late, .. } = merged.deferral;
    let deferred_before = previous.map_or(0, |manifest| manifest.changes.deferred);
    ChangeCounts {
        taken: counted(table) + dead_letters,
        applied: merged.records + late - deferred - merged.dead_letters,
        dead_letters: dead_letters + staged_dead + merged.dead_letters,
        deferred_before,
        deferred: if parts > 0 { deferred_before + deferred } else { 0 },
    }
}

/// Records in = records applied + dead letters, or nothing is published. That what was deferred is there, too, the merge
/// has seen.
fn check_sums(
    schema: &TableSchema,
    cut: &Cut,
    table: &CutTable,
    merged: &Merged,
    staged_dead: u64,
) -> Result<()> {
    let counted = counted(table);
    if merged.records + staged_dead == counted {
        return Ok(());
    }
    Err(Error::operator(format!(
        "{} for {}: capture counted {} changes, but {} are staged and {} are dead letters, together {}; the day is not published",
        schema.name,
        cut.ds,
        counted,
        merged.records,
        staged_dead,
        merged.records + staged_dead
    ))
    .mend("Records were lost or doubled between the log and the lake. Move the table's change files of that day away to have them staged again from the log."))
}

/// The name under which a manifest has a format, and its compression.
fn format_name(format: Format) -> (&'static str, Option<String>) {
    let zstd = |level| format!("zstd({level})");
    match format {
        Format::Parquet { compression } => {
            let compression = match compression {
                Compression::None => "none".to_owned(),
                Compression::Snappy => "snappy".to_owned(),
                Compression::Zstd(level) => zstd(level),
            };
            ("parquet", Some(compression))
        }
        Format::Orc { compression } => {
            let compression = match compression {
                OrcCompression::None => "none".to_owned(),
                OrcCompression::Zlib => "zlib".to_owned(),
                OrcCompression::Snappy => "snappy".to_owned(),
                OrcCompression::Zstd(level) => zstd(level),
            };
            ("orc", Some(compression))
        }
        Format::CsvGzip => ("csv", None),
    }
}

/// The reverse of [`format_name`]; without a compression, one for reading.
pub(super) fn parse_format(name: &str, compression: Option<&str>) -> Result<Format> {
    let unknown =
        || Error::operator(format!("the lake holds files of the unknown format {name:?} ({compression:?})"));
    let zstd = |text: &str| {
        let level = text.strip_prefix("zstd(").and_then(|text| text.strip_suffix(')'));
        level.and_then(|level| level.parse().ok()).ok_or_else(unknown)
    };
    match name {
        "parquet" => {
            let compression = match compression {
                None | Some("none") => Compression::None,
                Some("snappy") => Compression::Snappy,
                Some(text) => Compression::Zstd(zstd(text)?),
            };
            Ok(Format::Parquet { compression })
        }
        "orc" => {
            let compression = match compression {
                None | Some("none") => OrcCompression::None,
                Some("zlib") => OrcCompression::Zlib,
                Some("snappy") => OrcCompression::Snappy,
                Some(text) => OrcCompression::Zstd(zstd(text)?),
            };
            Ok(Format::Orc { compression })
        }
        "csv" => Ok(Format::CsvGzip),
        _ => Err(unknown()),
    }
}

/// Tells a blocking merge that nobody waits for it any more.
pub(super) struct RaiseOnDrop(pub(super) Arc<AtomicBool>);

impl Drop for RaiseOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
