//! The sections of the file: each key, its check and its default.

use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;

use super::document::{Document, Keys, Section};
use super::retention::{KEEP_ALL, RetentionRule};
use super::tables::{NEVER_COPIED, TableGlob, TableRule};
use super::{
    Backfill, BackfillConfig, Config, CutConfig, DdlTrigger, EmbeddedLogConfig, Environment, Failover,
    LakeConfig, LakeFormat, LakeUrl, LogConfig, LogFormat, LogKind, LogLevel, OpsConfig, OrcCompression,
    ParquetCompression, Problem, RetainedWalAction, SourceConfig, SourceLimits, SourceUrl, StateConfig,
    Streaming, TableFilter, check, coordinator, envelope, kafka, notices, s3, tail, url,
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;
/// What a row of SQLite takes, less some room for what stands beside the record.
const RECORD_BYTES_MAX: u64 = 1_000_000_000 - 8192;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Reads a whole file's text; gives also the keys that exist.
pub(super) fn read(text: &str, env: Environment<'_>) -> Result<(Config, Keys), Vec<Problem>> {
    let document = Document::parse(text, env)?;
    let state = state(&document.section("state"));
    let source = source(&document);
    let name = source.as_ref().map_or("", |source| source.name.as_str());
    let backfill = backfill(&document.section("backfill"));
    let log = log(&document, &state, name);
    let envelope = envelope::read(&document);
    let lake = lake(&document, &state);
    let notices = notices::read(&document, &log.kind);
    let cut = cut(&document.section("cut"));
    let coordinator = coordinator::read(&document, &state);
    let ops = ops(&document.section("ops"));
    let (problems, keys) = document.finish();
    match source {
        Some(source) if problems.is_empty() => Ok((
            Config { source, backfill, log, state, envelope, lake, notices, cut, coordinator, ops },
            keys,
        )),
        _ => Err(problems),
    }
}

/// `None` only with a problem noted.
fn source(document: &Document<'_>) -> Option<SourceConfig> {
    let section = document.section("source");
    let given = section.secret("url", "url_file");
    if given.is_none() && !section.has("url") && !section.has("url_file") {
        section.note(
            "url",
            "missing; expected a URL such as postgresql://tidemark@db.example.com:5432/shop".into(),
        );
    }
    let checked = given.map(|secret| SourceUrl::parse(secret.expose()));
    let url = checked.and_then(|checked| checked.map_err(|problem| section.note("url", problem)).ok());
    let password = section.secret("password", "password_file");
    if password.is_some() && url.as_ref().is_some_and(SourceUrl::has_password) {
        section.note("password", "given beside a password in url; expected only one of them".into());
    }
    let database = url.as_ref().and_then(SourceUrl::database).unwrap_or_default();
    let name = section.text("name", check::name).unwrap_or_else(|| check::name_from(&database));
    let slot = section.text("slot", check::slot).unwrap_or_else(|| check::slot_from(&name));
    let publication = section.text("publication", check::publication);
    let publication = publication.unwrap_or_else(|| check::slot_from(&name));
    let words = [("initial", Backfill::Initial), ("none", Backfill::None)];
    let backfill =
        section.text("backfill", |text| check::word(text, &words, &[])).unwrap_or(Backfill::Initial);
    let tables = tables(document, &section);
    let heartbeat_interval_ms = section.integer("heartbeat_interval_ms", "milliseconds", 0, DAY_MS, 0);
    let schema_poll_interval_ms =
        section.integer("schema_poll_interval_ms", "milliseconds", 100, DAY_MS, 60_000);
    let words = [("auto", DdlTrigger::Auto), ("on", DdlTrigger::On), ("off", DdlTrigger::Off)];
    let ddl_trigger = section.text("ddl_trigger", |text| check::word(text, &words, &[]));
    let words = [("auto", Failover::Auto), ("on", Failover::On), ("off", Failover::Off)];
    let failover = section.text("failover", |text| check::word(text, &words, &[])).unwrap_or(Failover::Auto);
    let words = [("off", Streaming::Off), ("on", Streaming::On), ("parallel", Streaming::Parallel)];
    let streaming = section.text("streaming", |text| check::word(text, &words, &[])).unwrap_or(Streaming::On);
    let stream_spool_bytes_max = section.integer("stream_spool_bytes_max", "bytes", MIB, 1024 * TIB, 4 * GIB);
    let limits = limits(&section);
    let change_bytes_max = section.integer("change_bytes_max", "bytes", MIB, GIB, GIB);
    url.map(|url| SourceConfig {
        name,
        url,
        password,
        slot,
        publication,
        backfill,
        heartbeat_interval_ms,
        schema_poll_interval_ms,
        ddl_trigger: ddl_trigger.unwrap_or(DdlTrigger::Auto),
        failover,
        streaming,
        stream_spool_bytes_max,
        limits,
        change_bytes_max,
        tables,
    })
}

fn limits(section: &Section<'_, '_>) -> SourceLimits {
    let bytes = |key| section.integer(key, "bytes", 0, 1024 * TIB, 0);
    let lag_ms_warn = section.integer("lag_ms_warn", "milliseconds", 0, 365 * DAY_MS, 60_000);
    let lag_ms_max = section.integer("lag_ms_max", "milliseconds", 0, 365 * DAY_MS, 900_000);
    let (lag_bytes_warn, lag_bytes_max) = (bytes("lag_bytes_warn"), bytes("lag_bytes_max"));
    let pairs = [("lag_ms_warn", lag_ms_warn, lag_ms_max), ("lag_bytes_warn", lag_bytes_warn, lag_bytes_max)];
    for (key, warn, max) in pairs.into_iter().filter(|(_, warn, max)| *max > 0 && warn > max) {
        section.note(key, format!("{warn} is more than the limit, which is {max}; expected less"));
    }
    let words = [("keep", RetainedWalAction::Keep), ("drop_slot", RetainedWalAction::DropSlot)];
    let action = section.text("retained_wal_action", |text| check::word(text, &words, &[]));
    let retained_wal_bytes_max = bytes("retained_wal_bytes_max");
    if action == Some(RetainedWalAction::DropSlot) && retained_wal_bytes_max == 0 {
        let text = "\"drop_slot\" needs retained_wal_bytes_max, at which the slot is dropped".to_owned();
        section.note("retained_wal_action", text);
    }
    SourceLimits {
        lag_ms_warn,
        lag_ms_max,
        lag_bytes_warn,
        lag_bytes_max,
        retained_wal_bytes_max,
        retained_wal_percent_warn: section.integer("retained_wal_percent_warn", "percent", 1, 99, 50),
        retained_wal_action: action.unwrap_or(RetainedWalAction::Keep),
    }
}

fn tables(document: &Document<'_>, source: &Section<'_, '_>) -> TableFilter {
    let tables = source.list("tables", TableGlob::parse);
    if tables.as_ref().is_some_and(Vec::is_empty) && source.is_empty_list("tables") {
        source.note("tables", "found an empty list; expected at least one pattern, such as \"*.*\"".into());
    }
    let tables = tables.unwrap_or_else(|| TableGlob::parse("*.*").into_iter().collect());
    let exclude = source.list("exclude", TableGlob::parse).unwrap_or_default();
    let rule = |section: &Section<'_, '_>| {
        let glob = section.text("match", TableGlob::parse);
        if glob.is_none() && !section.has("match") {
            section.note("match", "missing; expected a pattern on schema.table, such as \"public.*\"".into());
        }
        let exclude = section.boolean("exclude").unwrap_or(false);
        let copied = section.boolean("backfill").unwrap_or(true);
        let backfill_where = section.text("backfill_where", check::condition);
        if !copied && backfill_where.is_some() {
            section.note("backfill_where", "given beside backfill = false; expected only one of them".into());
        }
        let backfill_where = if copied { backfill_where } else { Some(NEVER_COPIED.to_owned()) };
        let retention = RetentionRule::read(section);
        let historic_tail = tail::read(section);
        glob.map(|glob| TableRule { glob, exclude, backfill_where, retention, historic_tail })
    };
    let rules = document.list("table").iter().filter_map(rule).collect();
    TableFilter { tables, exclude, rules }
}

fn backfill(section: &Section<'_, '_>) -> BackfillConfig {
    BackfillConfig {
        connections: section.integer("connections", "connections", 1, 64, 4) as u32,
        chunk_bytes: section.integer("chunk_bytes", "bytes", 64 * KIB, TIB, 64 * MIB),
        snapshot_age_max_ms: section.integer("snapshot_age_max_ms", "milliseconds", 1000, DAY_MS, 600_000),
        bytes_per_second_max: section.integer("bytes_per_second_max", "bytes", 0, TIB, 0),
    }
}

fn state(section: &Section<'_, '_>) -> StateConfig {
    StateConfig { dir: section.text("dir", check::path).unwrap_or_else(|| PathBuf::from("tidemark-data")) }
}

fn log(document: &Document<'_>, state: &StateConfig, name: &str) -> LogConfig {
    let section = document.section("log");
    let words = [("embedded", false), ("kafka", true)];
    let is_kafka = section.text("kind", |text| check::word(text, &words, &[])).unwrap_or(false);
    let embedded = document.section("log.embedded");
    let path = embedded.text("path", check::path).unwrap_or_else(|| state.dir.join("log.db"));
    let embedded = EmbeddedLogConfig {
        path,
        bytes_max: embedded.integer("bytes_max", "bytes", 64 * MIB, 1024 * TIB, 10 * GIB),
        record_bytes_max: embedded.integer(
            "record_bytes_max",
            "bytes",
            MIB,
            RECORD_BYTES_MAX,
            RECORD_BYTES_MAX,
        ),
        retention_ms: embedded.integer("retention_ms", "milliseconds", 0, 36_500 * DAY_MS, DAY_MS),
        retention_bytes: embedded.integer("retention_bytes", "bytes", 0, 1024 * TIB, GIB),
    };
    let kafka = kafka::read(document, name, state, is_kafka);
    // A transaction of Kafka costs some round trips, whatever its size.
    let append_bytes = if is_kafka { 16 * MIB } else { 4 * MIB };
    LogConfig {
        kind: if is_kafka { LogKind::Kafka(kafka) } else { LogKind::Embedded(embedded) },
        append_bytes_max: section.integer("append_bytes_max", "bytes", 64 * KIB, 64 * MIB, append_bytes),
        linger_ms: section.integer("linger_ms", "milliseconds", 0, 10_000, 5),
    }
}

fn lake(document: &Document<'_>, state: &StateConfig) -> LakeConfig {
    let section = &document.section("lake");
    // The only failure is a working directory that is gone; the folder then fails to open, with its name.
    let below =
        |name: &str| std::path::absolute(state.dir.join(name)).unwrap_or_else(|_| Path::new("/").join(name));
    let url = section.text("url", url::lake).unwrap_or_else(|| LakeUrl::Folder(below("lake")));
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64).min(256);
    LakeConfig {
        url,
        format: lake_format(section),
        part_bytes_max: section.integer("part_bytes_max", "bytes", 4 * KIB, GIB, 64 * MIB),
        stage_bytes_max: section.integer("stage_bytes_max", "bytes", 64 * KIB, GIB, 32 * MIB),
        memory_bytes_max: section.integer("memory_bytes_max", "bytes", 32 * MIB, TIB, 256 * MIB),
        merge_threads: section.integer("merge_threads", "threads", 1, 256, cores),
        premerge_interval_ms: section.integer("premerge_interval_ms", "milliseconds", 0, 86_400_000, 600_000),
        premerge_table_bytes_min: section.integer("premerge_table_bytes_min", "bytes", 0, TIB, 256 * MIB),
        premerge_bytes_max: section.integer("premerge_bytes_max", "bytes", 0, 1024 * TIB, 10 * GIB),
        scratch_dir: section.text("scratch_dir", check::path).unwrap_or_else(|| state.dir.join("scratch")),
        s3: s3::read(document),
        retention: RetentionRule::read(&document.section("lake.retention")).or(KEEP_ALL),
    }
}

fn lake_format(section: &Section<'_, '_>) -> LakeFormat {
    fn of<T: Copy>(section: &Section<'_, '_>, format: &str, words: &[(&'static str, T)], default: T) -> T {
        let found = section.text("compression", |text| {
            check::word(text, words, &[]).map_err(|expected| format!("{expected} with format {format:?}"))
        });
        found.unwrap_or(default)
    }
    let formats = ["parquet", "orc", "csv"].map(|format| (format, format));
    match section.text("format", |text| check::word(text, &formats, &[])).unwrap_or("parquet") {
        "orc" => {
            use OrcCompression::{None, Snappy, Zlib, Zstd};
            let words = [("zstd", Zstd), ("zlib", Zlib), ("snappy", Snappy), ("none", None)];
            LakeFormat::Orc(of(section, "orc", &words, Zstd))
        }
        "csv" => {
            of(section, "csv", &[("gzip", ())], ());
            LakeFormat::Csv
        }
        _ => {
            use ParquetCompression::{None, Snappy, Zstd};
            let words = [("zstd", Zstd), ("snappy", Snappy), ("none", None)];
            LakeFormat::Parquet(of(section, "parquet", &words, Zstd))
        }
    }
}

fn cut(section: &Section<'_, '_>) -> CutConfig {
    CutConfig {
        at: section.text("at", check::time_of_day).unwrap_or_default(),
        time_zone: section.text("time_zone", check::time_zone).unwrap_or(TimeZone::UTC),
    }
}

fn ops(section: &Section<'_, '_>) -> OpsConfig {
    let formats = [("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)];
    let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
    let levels = levels.map(|level| (level.as_str(), level));
    let listen = section.text("listen", check::listen);
    OpsConfig {
        listen: listen.unwrap_or_else(|| "127.0.0.1:8080".to_owned()),
        log_format: section.text("log_format", |t| check::word(t, &formats, &[])).unwrap_or(LogFormat::Auto),
        log_level: section.text("log_level", |t| check::word(t, &levels, &[])).unwrap_or(LogLevel::Info),
    }
}
