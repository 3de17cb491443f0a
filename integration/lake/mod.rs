//! What the lake's tests share.

pub mod alter;
pub mod faults;
pub mod history;
pub mod pauses;

use std::collections::BTreeMap;
use std::path::Path as LocalPath;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use futures::TryStreamExt;
use jiff::tz::TimeZone;
use object_store::{ObjectStore, ObjectStoreExt};
use tidemark::batch::{EXACT, FileReader, Format, ReaderOptions, arrow_schema, datum, exact_schema};
use tidemark::change::{Calendar, ColumnType, Datum, Ds, TableName, TableSchema};
use tidemark::envelope::Options;
use tidemark::lake::{Lake, LakeOptions, Manifest, RoundEnd, Shapes, StagedChange, Store, TailRule};
use tidemark::runtime::Result;

use history::{Day, History, Logged, TOPIC};

pub fn table_name() -> TableName {
    TableName::new("public", "t")
}

/// Limits so small that everything spills, and files are many.
pub fn tiny(scratch: &LocalPath) -> LakeOptions {
    let calendar = Calendar::new("00:00".parse().unwrap(), TimeZone::get("Asia/Dubai").unwrap());
    let mut options = LakeOptions::new(scratch.to_owned(), calendar);
    options.part_bytes_max = 6 << 10;
    options.memory_bytes_max = 64 << 10;
    options.stage_bytes_max = 8 << 10;
    options.merge_threads = 3;
    options
}

pub fn lake(store: Arc<dyn ObjectStore>, options: LakeOptions) -> Lake {
    Lake::on(Store::new(store, "memory:"), "shop", options)
}

/// Stages and publishes every day of a history, as a pipeline does: only what is not there yet.
pub async fn deliver(lake: &Lake, history: &History) -> Result<()> {
    for day in history.days.iter().filter(|day| day.is_there()) {
        deliver_day(lake, history, day).await?;
    }
    Ok(())
}

/// How days are made before they end.
#[derive(Clone, Copy)]
pub struct Premerging<'a> {
    /// How often what there is of a day is staged before its cut.
    pub rounds: u64,
    /// Whether it is also merged then.
    pub merges: bool,
    /// By whom, if it is not who stages.
    pub by: Option<&'a Lake>,
    /// What happens before the cut.
    pub before_cut: &'a (dyn Fn() + Sync),
}

/// The same, with days made before they end; how many bytes of parts were made so.
pub async fn deliver_premerged(lake: &Lake, history: &History, premerging: Premerging<'_>) -> Result<u64> {
    let mut bytes = 0;
    for day in history.days.iter().filter(|day| day.is_there()) {
        bytes += deliver_day_as(lake, history, day, premerging, None).await?.1;
    }
    Ok(bytes)
}

pub async fn deliver_day(lake: &Lake, history: &History, day: &Day) -> Result<Manifest> {
    deliver_day_with_tail(lake, history, day, None).await
}

/// The same, of a table that may have a historic tail.
pub async fn deliver_day_with_tail(
    lake: &Lake,
    history: &History,
    day: &Day,
    tail: Option<TailRule>,
) -> Result<Manifest> {
    let never = Premerging { rounds: 0, merges: false, by: None, before_cut: &|| {} };
    Ok(deliver_day_as(lake, history, day, never, tail).await?.0)
}

async fn deliver_day_as(
    lake: &Lake,
    history: &History,
    day: &Day,
    premerging: Premerging<'_>,
    tail: Option<TailRule>,
) -> Result<(Manifest, u64)> {
    let table = &day.schema.name;
    let latest = lake.latest_manifest(table).await?;
    let previous = match latest {
        Some(manifest) if manifest.ds >= day.cut.ds => {
            let held = lake.manifest(table, day.cut.ds).await?.unwrap();
            let earlier = held.previous_ds;
            match earlier {
                Some(ds) => lake.manifest(table, ds).await?,
                None => None,
            }
        }
        other => other,
    };
    let shapes = shapes(history, day);
    let mut premerged = None;
    let Premerging { rounds, merges, by, before_cut } = premerging;
    for round in 1..=rounds {
        stage_up_to(lake, history, day, previous.as_ref(), (round, rounds + 1)).await?;
        if let Some(previous) = previous.as_ref().filter(|_| merges) {
            let round = by.unwrap_or(lake).premerge(&shapes, previous, premerged, Arc::default()).await?;
            match round.end {
                RoundEnd::Whole => premerged = round.premerged,
                RoundEnd::Stopped if by.is_some() => premerged = round.premerged,
                other => panic!("nobody is in its way: {other:?}"),
            }
        }
    }
    before_cut();
    stage(lake, history, day, previous.as_ref()).await?;
    let published =
        lake.merge_and_publish(&shapes, &day.cut, TOPIC, previous.as_ref(), premerged, tail).await?;
    lake.publish_day(&day.cut, &std::collections::BTreeMap::new())
        .await?
        .expect("its only table is published");
    Ok((published.manifest, published.premerged.bytes))
}

/// The table's shapes at a day's cut, as deliver has them: with all versions that the log knows.
pub fn shapes(history: &History, day: &Day) -> Shapes {
    let read = |column_type: &ColumnType, text: &str| Options::default().datum(column_type, text);
    Shapes::new(Arc::clone(&day.schema), history.versions.iter().cloned(), Arc::new(read))
}

pub async fn stage(lake: &Lake, history: &History, day: &Day, previous: Option<&Manifest>) -> Result<()> {
    stage_up_to(lake, history, day, previous, (1, 1)).await
}

/// Stages a share of a day's records.
async fn stage_up_to(
    lake: &Lake,
    history: &History,
    day: &Day,
    previous: Option<&Manifest>,
    (share, of): (u64, u64),
) -> Result<()> {
    for end in &day.cut.tables[TOPIC].ends {
        let from = previous.map_or(0, |manifest| manifest.end_of(end.partition));
        let since = previous.map(|manifest| manifest.ds);
        let chain = lake.chain(&day.schema.name, end.partition, (from, None), since).await?;
        if chain.next >= end.end {
            continue;
        }
        let target = (end.end - end.end.saturating_sub(from) * (of - share) / of).max(chain.next);
        let mut stager =
            lake.stager(&day.schema.name, end.partition, chain.next, &shapes(history, day)).await?;
        let own = history.partitions.get(end.partition as usize);
        for record in own.unwrap_or(&history.copies) {
            if record.offset >= stager.next_offset() && record.offset < target {
                push(&mut stager, record).await?;
            }
        }
        if share == of {
            stager.close(end.end, day.cut.at.as_microsecond()).await?;
        } else if share % 2 == 0 {
            stager.finish().await?;
        } else {
            stager.flush().await?;
        }
    }
    Ok(())
}

pub async fn push(stager: &mut tidemark::lake::Stager, record: &Logged) -> Result<()> {
    let Some(change) = &record.change else { return stager.skip(record.offset).await };
    stager
        .push(&StagedChange {
            offset: record.offset,
            position: change.position,
            op: change.op,
            commit_us: change.commit_us,
            schema: &change.schema,
            old_key: change.old_key.as_deref(),
            before: change.before.as_deref(),
            row: &change.row,
            raw_key: None,
            raw_value: Some(b"value"),
        })
        .await
}

/// The rows of a published day, printed and sorted.
///
/// Without a key, rows that differ only in columns which were dropped cannot be told apart: these are left out. With
/// `live`, they are left out anyway.
pub async fn rows(lake: &Lake, objects: &BTreeMap<String, Bytes>, ds: Ds, live: bool) -> Vec<String> {
    let mut rows = rows_by_file(lake, objects, ds, live).await.concat();
    rows.sort();
    rows
}

/// The same as they stand, by file.
pub async fn rows_by_file(
    lake: &Lake,
    objects: &BTreeMap<String, Bytes>,
    ds: Ds,
    live: bool,
) -> Vec<Vec<String>> {
    let manifest = lake.manifest(&table_name(), ds).await.unwrap().unwrap();
    let format = match manifest.format.as_str() {
        "parquet" => Format::Parquet { compression: tidemark::batch::Compression::None },
        "orc" => Format::Orc { compression: tidemark::batch::OrcCompression::None },
        _ => Format::CsvGzip,
    };
    let columns = &manifest.schema.columns;
    let schema = if manifest.exact.is_some() { exact_schema(columns) } else { arrow_schema(columns) };
    let mut exact = BTreeMap::new();
    let mut files = Vec::new();
    for file in &manifest.files {
        let mut rows = Vec::new();
        let path = lake.layout().snapshot_object(&table_name(), ds, &file.path).to_string();
        let bytes = objects[&path].clone();
        for batch in FileReader::open(&format, &schema, bytes, &ReaderOptions::default()).unwrap() {
            let batch = batch.unwrap();
            for row in 0..batch.num_rows() {
                let texts = exact_values(&batch, row);
                let cells = columns.iter().enumerate().map(|(i, c)| {
                    let plain = datum(batch.column(i).as_ref(), &c.column_type, row);
                    let Some(text) = texts.get(&c.name) else { return shown_cell(&plain) };
                    assert_eq!(plain, Datum::Null, "{:?} stands beside its text {text}", c.name);
                    *exact.entry(c.name.clone()).or_insert(0) += 1;
                    format!("beside: {text}")
                });
                rows.push(joined(&manifest.schema, cells, live));
            }
        }
        assert_eq!(rows.len() as u64, file.rows);
        files.push(rows);
    }
    assert_eq!(files.iter().map(Vec::len).sum::<usize>() as u64, manifest.rows);
    assert_eq!(manifest.exact.map(|told| told.values).unwrap_or_default(), exact, "the manifest's counts");
    files
}

/// What stands in a row's column of texts.
fn exact_values(batch: &RecordBatch, row: usize) -> serde_json::Map<String, serde_json::Value> {
    let Some(texts) = batch.column_by_name(EXACT) else { return serde_json::Map::new() };
    let texts = texts.as_string::<i32>();
    if texts.is_null(row) { serde_json::Map::new() } else { serde_json::from_str(texts.value(row)).unwrap() }
}

/// A row, with unscaled values as numbers (their bytes may be longer than needed), and values that their types lack as
/// the JSON that must stand beside them.
pub fn shown(schema: &TableSchema, row: &[Datum<'_>], live: bool) -> String {
    joined(schema, row.iter().map(shown_cell), live)
}

fn joined(schema: &TableSchema, cells: impl Iterator<Item = String>, live: bool) -> String {
    let live = live || schema.key.is_empty();
    let told = cells.zip(&schema.columns).filter(|(_, c)| !(c.dropped && live));
    told.map(|(cell, _)| cell).collect::<Vec<_>>().join(" | ")
}

fn shown_cell(datum: &Datum<'_>) -> String {
    match datum {
        Datum::Decimal(bytes) => {
            let sign = if bytes[0] >= 0x80 { 0xFF } else { 0 };
            let mut full = [sign; 16];
            full[16 - bytes.len()..].copy_from_slice(bytes);
            format!("Decimal({})", i128::from_be_bytes(full))
        }
        Datum::Text(text) if text == "NaN" || text.starts_with('[') => format!("beside: {text:?}"),
        Datum::List(items) if matches!(items.first(), Some(Datum::List(_))) => {
            assert_eq!(items.len(), 2, "the one list of lists that there is");
            "beside: [[1,null],[1,null]]".to_owned()
        }
        Datum::Timestamp(history::LAST_INSTANT) => "beside: \"294276-12-31 23:59:59.999999+00\"".to_owned(),
        other => format!("{other:?}"),
    }
}

pub fn expected(day: &Day, live: bool) -> Vec<String> {
    let mut rows: Vec<_> = day.rows.iter().map(|row| shown(&day.schema, row, live)).collect();
    rows.sort();
    rows
}

/// Every object of a store.
pub async fn objects(store: &dyn ObjectStore) -> BTreeMap<String, Bytes> {
    let found: Vec<_> = store.list(None).try_collect().await.unwrap();
    let mut objects = BTreeMap::new();
    for object in found {
        let bytes = store.get(&object.location).await.unwrap().bytes().await.unwrap();
        objects.insert(object.location.to_string(), bytes);
    }
    objects
}

/// What differs between two stores, by path.
pub fn difference(one: &BTreeMap<String, Bytes>, other: &BTreeMap<String, Bytes>) -> Vec<String> {
    let mut paths: Vec<_> = one.keys().chain(other.keys()).cloned().collect();
    paths.sort();
    paths.dedup();
    paths.retain(|path| one.get(path) != other.get(path));
    paths
}
