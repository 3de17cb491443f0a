//! Merging a day: rows per second and peak memory, for a large table of which little has changed.
//!
//! `cargo bench --profile fast --bench merge`; `MERGE_ROWS` (5,000,000) and `MERGE_CHANGED` (1, per cent) set
//! the size. The first day is all backfill and so measures the external sort; the second merges the changes.
//!
//! `MERGE_CURVE=1`: what a day costs from its cut to its publication, by the share of changed rows, of narrow rows, with
//! changed keys side by side and strewn. The changes came evenly through the day: the file of its last hour is open at the
//! cut. Each once with all of the merge after the cut, and once with premerging: when all but one change in a hundred were
//! there, two rounds, before which what is open was written as a piece. `MERGE_THREADS` (the cores).

#![allow(clippy::expect_used, reason = "constants of the bench are well-formed")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use jiff::tz::TimeZone;
use tidemark::change::{
    Calendar, Column, ColumnType, Cut, CutTable, Datum, Ds, LogEnd, Lsn, Op, Position, ReplicaIdentity,
    SchemaVersion, TableName, TableSchema,
};
use tidemark::envelope::Options;
use tidemark::lake::{Lake, LakeOptions, Manifest, Shapes, StagedChange, Stager};
use tidemark::runtime::Result;

const TOPIC: &str = "bench.public.orders";
const DAY_US: u64 = 86_400_000_000;

fn main() {
    // `cargo test` runs benches too, with this argument, to see that they work.
    let quick = std::env::args().any(|argument| argument == "--test");
    let rows = setting("MERGE_ROWS", if quick { 20_000 } else { 5_000_000 });
    let changed = setting("MERGE_CHANGED", 1);
    let curve = setting("MERGE_CURVE", 0) > 0;
    let (plain, curve) = (quick || !curve, quick || curve);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    if let Err(error) = runtime.expect("a runtime starts").block_on(run((rows, changed), plain, curve)) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

async fn run((rows, changed): (u64, u64), plain: bool, curve: bool) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("tidemark-bench-merge-{}", std::process::id()));
    let mut result = if plain { days(&folder.join("days"), rows, changed).await } else { Ok(()) };
    if curve && result.is_ok() {
        result = cost_curve(&folder.join("curve"), rows).await;
    }
    let _ = std::fs::remove_dir_all(&folder);
    result
}

async fn days(folder: &Path, rows: u64, changed: u64) -> Result<()> {
    let calendar = Calendar::new(jiff::civil::Time::midnight(), TimeZone::UTC);
    let options = options(folder, calendar);
    println!(
        "{rows} rows of {} columns, {changed}% changed, memory_bytes_max = {} MiB",
        table().columns.len(),
        options.memory_bytes_max >> 20
    );
    let lake = Lake::open(&format!("file://{}", folder.join("lake").display()), "bench", options)?;
    let schema = Arc::new(table());
    let shapes = shapes(&[Arc::clone(&schema)]);

    let started = Instant::now();
    let mut stager = lake.stager(&schema.name, 0, 0, &shapes).await?;
    for id in 0..rows {
        // Not in the order of the key.
        let id = id * 7919 % rows;
        push(&mut stager, &schema, Op::Read, id, 0).await?;
    }
    let first = cut("2026-11-20", rows, stager.next_offset());
    stager.close(stager.next_offset(), first.at.as_microsecond()).await?;
    report("stage", rows, started);
    let previous = timed(&lake, &shapes, &first, None, "merge of a first day (all sorted)").await?;

    let step = (100 / changed.max(1)).max(1);
    let mut stager = lake.stager(&schema.name, 0, first.tables[TOPIC].ends[0].end, &shapes).await?;
    let mut changes = 0;
    for id in (0..rows).step_by(step as usize) {
        push(&mut stager, &schema, Op::Update, id, 1).await?;
        changes += 1;
    }
    let second = cut("2026-11-21", changes, stager.next_offset());
    stager.close(stager.next_offset(), second.at.as_microsecond()).await?;
    let manifest = timed(&lake, &shapes, &second, Some(&previous), "merge of a day").await?;
    println!("{} rows in {} parts, {} MiB", manifest.rows, manifest.files.len(), manifest.bytes() >> 20);
    Ok(())
}

/// A first day, and one day after the other with more changes.
async fn cost_curve(folder: &Path, rows: u64) -> Result<()> {
    let calendar = Calendar::new(jiff::civil::Time::midnight(), TimeZone::UTC);
    let options = options(folder, calendar);
    let lake = Lake::open(&format!("file://{}", folder.join("lake").display()), "bench", options)?;
    let schema = Arc::new(narrow());
    let shapes = shapes(&[Arc::clone(&schema)]);
    let mut stager = lake.stager(&schema.name, 0, 0, &shapes).await?;
    let mut ds: Ds = "2026-11-20".parse().expect("a date");
    for id in 0..rows {
        push_narrow(&mut stager, &schema, (Op::Read, begin_us(ds)), id, 0).await?;
    }
    let mut end = stager.next_offset();
    let first = cut(&ds.to_string(), rows, end);
    stager.close(end, first.at.as_microsecond()).await?;
    let mut held = lake.merge_and_publish(&shapes, &first, TOPIC, None, None, None).await?.manifest;
    println!("{rows} rows of {} columns, {} parts", schema.columns.len(), held.files.len());
    println!(
        "          keys       premerge  parts       read  written  copied   CPU s  wall s  RSS  before: CPU s  wall s"
    );
    for (per_mille, strewn) in [1, 10, 100].into_iter().flat_map(|share| [(share, false), (share, true)]) {
        for premerge in [false, true] {
            ds = ds.tomorrow().expect("a date");
            let changes = (rows * per_mille / 1000).max(1);
            let day = Day { per_mille, strewn, premerge, rows, changes, ds };
            (held, end) = curve_day(&lake, (&shapes, &schema), &day, (held, end)).await?;
        }
    }
    Ok(())
}

/// A day of the curve.
struct Day {
    per_mille: u64,
    strewn: bool,
    premerge: bool,
    rows: u64,
    changes: u64,
    ds: Ds,
}

async fn curve_day(
    lake: &Lake,
    (shapes, schema): (&Shapes, &Arc<TableSchema>),
    day: &Day,
    (held, end): (Manifest, u64),
) -> Result<(Manifest, u64)> {
    let mut stager = lake.stager(&schema.name, 0, end, shapes).await?;
    let mut premerged = None;
    let (mut before, mut cpu_before) = (0.0, 0.0);
    for n in 0..day.changes {
        if day.premerge && n == day.changes - (day.changes / 100).max(1) {
            let (started, cpu) = (Instant::now(), cpu_seconds());
            for _ in 0..2 {
                stager.flush().await?;
                premerged = lake.premerge(shapes, &held, premerged, Arc::default()).await?.premerged;
            }
            (before, cpu_before) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        }
        let id = if day.strewn { n * 1_000_003 % day.rows } else { day.rows / 3 + n };
        let commit_us = begin_us(day.ds) + (n * (DAY_US / 1000) / day.changes * 1000) as i64;
        push_narrow(&mut stager, schema, (Op::Update, commit_us), id, end).await?;
    }
    let end = stager.next_offset();
    let cut = cut(&day.ds.to_string(), day.changes, end);
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let (started, cpu) = (Instant::now(), cpu_seconds());
    stager.close(end, cut.at.as_microsecond()).await?;
    let published = lake.merge_and_publish(shapes, &cut, TOPIC, Some(&held), premerged, None).await?;
    let (wall, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let work = published.manifest.work.unwrap_or_default();
    let held = published.manifest;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{:>6.1}%  {:<9}  {:>3}  {:>3}+{:>3} of {:>3}  {:>8.1} {:>8.1} {:>7.1} {cpu:>7.2} {wall:>7.2} {:>4} {cpu_before:>13.2} {before:>7.2}",
        day.per_mille as f64 / 10.0,
        if day.strewn { "strewn" } else { "clustered" },
        if day.premerge { "yes" } else { "no" },
        work.files_written - published.premerged.files,
        published.premerged.files,
        held.files.len(),
        mib(work.bytes_read),
        mib(work.bytes_written),
        mib(work.bytes_copied),
        peak_rss_mib(),
    );
    Ok((held, end))
}

fn options(folder: &Path, calendar: Calendar) -> LakeOptions {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut options = LakeOptions::new(folder.join("scratch"), calendar);
    options.merge_threads = setting("MERGE_THREADS", cores as u64) as usize;
    options
}

fn cpu_seconds() -> f64 {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9
}

fn narrow() -> TableSchema {
    let columns = vec![
        column("id", ColumnType::Int64),
        column("customer", ColumnType::Int32),
        column("total", ColumnType::Decimal { precision: 12, scale: 2 }),
        column("placed_at", ColumnType::TimestampTz { precision: 0 }),
    ];
    TableSchema::new(TableName::new("public", "orders"), 1, columns, vec![0], ReplicaIdentity::Default)
}

/// When a day begins, microseconds since 1970.
fn begin_us(ds: Ds) -> i64 {
    let midnight: jiff::Timestamp = format!("{ds}T00:00:00Z").parse().expect("an instant");
    midnight.as_microsecond()
}

async fn push_narrow(
    stager: &mut Stager,
    schema: &Arc<TableSchema>,
    (op, commit_us): (Op, i64),
    id: u64,
    version: u64,
) -> Result<()> {
    let mixed = (id ^ version << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let total = ((mixed >> 20) as u32).to_be_bytes();
    let row = [
        Datum::Int(id as i64),
        Datum::Int((mixed >> 44) as i64),
        Datum::Decimal(total[1..].into()),
        Datum::Timestamp(1_700_000_000_000_000 + i128::from(mixed >> 30)),
    ];
    push_row(stager, schema, (op, commit_us), &row).await
}

fn shapes(versions: &[Arc<TableSchema>]) -> Shapes {
    let read = |column_type: &ColumnType, text: &str| Options::default().datum(column_type, text);
    let now = versions.last().expect("there is a version");
    Shapes::new(Arc::clone(now), versions.iter().cloned(), Arc::new(read))
}

async fn timed(
    lake: &Lake,
    shapes: &Shapes,
    cut: &Cut,
    previous: Option<&Manifest>,
    what: &str,
) -> Result<Manifest> {
    // Starts the kernel's high-water mark again, where it is allowed.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let started = Instant::now();
    let manifest = lake.merge_and_publish(shapes, cut, TOPIC, previous, None, None).await?.manifest;
    report(what, manifest.rows, started);
    Ok(manifest)
}

fn report(what: &str, rows: u64, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    let rate = rows as f64 / seconds;
    println!("{what:<36} {seconds:>7.1} s {rate:>12.0} rows/s   peak RSS {:>5} MiB", peak_rss_mib());
}

fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|text| text.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn column(name: &str, column_type: ColumnType) -> Column {
    Column::new(name, column_type, "", name != "id")
}

fn table() -> TableSchema {
    let columns = vec![
        column("id", ColumnType::Int64),
        column("customer", ColumnType::Int32),
        column("status", ColumnType::TEXT),
        column("total", ColumnType::Decimal { precision: 12, scale: 2 }),
        column("tax", ColumnType::Decimal { precision: 12, scale: 2 }),
        column("placed_at", ColumnType::TimestampTz { precision: 0 }),
        column("paid", ColumnType::Bool),
        column("weight", ColumnType::Float64),
        column("email", ColumnType::TEXT),
        column("note", ColumnType::TEXT),
        column("day", ColumnType::Date),
        column("lines", ColumnType::Int16),
    ];
    let name = TableName::new("public", "orders");
    TableSchema::new(name, 1, columns, vec![0], ReplicaIdentity::Default)
}

async fn push(stager: &mut Stager, schema: &Arc<TableSchema>, op: Op, id: u64, version: u64) -> Result<()> {
    let mixed = (id ^ version << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let total = ((mixed >> 20) as u32).to_be_bytes();
    let email = format!("customer{}@example.com", mixed >> 44);
    let note = format!("note {mixed:016x} for order {id}");
    let row = [
        Datum::Int(id as i64),
        Datum::Int((mixed >> 44) as i64),
        Datum::Text(["new", "paid", "sent", "returned"][(mixed % 4) as usize].into()),
        Datum::Decimal(total[1..].into()),
        Datum::Decimal(total[2..].into()),
        Datum::Timestamp(1_700_000_000_000_000 + i128::from(mixed >> 30)),
        Datum::Bool(mixed.is_multiple_of(3)),
        Datum::Float((mixed >> 11) as f64 / 1e9),
        Datum::Text(email.into()),
        if mixed.is_multiple_of(5) { Datum::Null } else { Datum::Text(note.into()) },
        Datum::Date((mixed % 20_000) as i32),
        Datum::Int((mixed % 30) as i64),
    ];
    // After all days of the bench: changes are looked for from the day before on.
    push_row(stager, schema, (op, 1_798_761_600_000_000), &row).await
}

async fn push_row(
    stager: &mut Stager,
    schema: &Arc<TableSchema>,
    (op, commit_us): (Op, i64),
    row: &[Datum<'_>],
) -> Result<()> {
    let offset = stager.next_offset();
    stager
        .push(&StagedChange {
            offset,
            position: Position { timeline: 1, commit_lsn: Lsn(1000 + offset * 8), ordinal: 1 },
            op,
            commit_us,
            schema,
            old_key: None,
            before: None,
            row,
            raw_key: None,
            raw_value: None,
        })
        .await
}

fn cut(ds: &str, changes: u64, end: u64) -> Cut {
    let ds: Ds = ds.parse().expect("a date");
    let table = CutTable {
        name: TableName::new("public", "orders"),
        schema_version: SchemaVersion(1),
        changes,
        dead_letters: 0,
        ends: vec![LogEnd { partition: 0, end }],
        backfill: None,
        lacking: None,
        backfill_where: None,
    };
    Cut {
        ds,
        timeline: 1,
        lsn: Lsn(end * 8 + 1001),
        position: Position { timeline: 1, commit_lsn: Lsn(992 + end * 8), ordinal: 1 },
        reason: "midnight".to_owned(),
        at: format!("{ds}T23:59:59Z").parse().expect("an instant"),
        time_zone: "UTC".to_owned(),
        tables: [(TOPIC.to_owned(), table)].into(),
    }
}
