//! The picture as Prometheus text exposition, format 0.0.4.

use std::fmt::Write;

use super::component::ComponentState;
use super::judge::Status;
use super::notices::NoticesReport;
use super::report::{Report, TableReport};
use crate::change::{Ds, Lsn};

/// Text being written, a family at a time.
struct Exposition {
    out: String,
}

impl Exposition {
    /// Begins a family; its samples follow.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        // Writing to a String does not fail.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { out: &mut self.out, name }
    }

    /// A gauge with one sample and no label.
    fn gauge(&mut self, name: &'static str, help: &str, value: f64) {
        self.family(name, "gauge", help).sample(&[], value);
    }
}

struct Family<'a> {
    out: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(self.name);
        for (index, (name, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.out, "{}{name}=\"{value}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.out, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

/// Writes the whole exposition.
pub(super) fn render(report: &Report) -> String {
    let mut out = Exposition { out: String::with_capacity(4096 + report.tables.len() * 1200) };
    process(&mut out, report);
    components(&mut out, report);
    source(&mut out, report);
    copies(&mut out, report);
    log(&mut out, report);
    cut(&mut out, report);
    notices(&mut out, report);
    tables(&mut out, report);
    out.out
}

fn process(out: &mut Exposition, report: &Report) {
    out.family("tidemark_build_info", "gauge", "The version that runs; always 1.")
        .sample(&[("version", &report.version), ("name", &report.name)], 1.0);
    out.gauge("tidemark_uptime_seconds", "Age of the process.", report.uptime_seconds as f64);
    let healthy = f64::from(u8::from(report.status != Status::Failing));
    out.gauge("tidemark_healthy", "1 while /health answers 200, else 0.", healthy);
    if let Some(bytes) = resident_bytes() {
        out.gauge("process_resident_memory_bytes", "Resident memory.", bytes);
    }
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    out.family("process_cpu_seconds_total", "counter", "CPU time of the process, user and system.")
        .sample(&[], seconds);
}

/// `VmRSS` of /proc/self/status, which is in kB; none where there is no such file.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok().map(|kb| kb * 1024.0)
}

fn components(out: &mut Exposition, report: &Report) {
    let mut family =
        out.family("tidemark_component_state", "gauge", "1 for the state in which a component is.");
    for (name, part) in &report.components {
        use ComponentState::{Failed, Ok, Standby, Starting, Waiting};
        for state in [Starting, Ok, Standby, Waiting, Failed] {
            let value = f64::from(u8::from(part.state == state));
            family.sample(&[("component", name), ("state", state.as_str())], value);
        }
    }
    let help = "When a component came into its state, since 1970.";
    let mut family = out.family("tidemark_component_state_since_timestamp_seconds", "gauge", help);
    for (name, part) in &report.components {
        family.sample(&[("component", name)], part.since.as_millisecond() as f64 / 1000.0);
    }
}

fn source(out: &mut Exposition, report: &Report) {
    let Some(source) = &report.source else { return };
    let lsn = |lsn: Lsn| lsn.0 as f64;
    out.gauge("tidemark_source_flush_lsn_bytes", "WAL position reported as durable.", lsn(source.flush_lsn));
    out.gauge(
        "tidemark_source_received_lsn_bytes",
        "End of the last transaction received.",
        lsn(source.received_lsn),
    );
    out.gauge(
        "tidemark_source_server_wal_end_bytes",
        "End of WAL as the server last said it.",
        lsn(source.server_wal_end),
    );
    out.gauge("tidemark_source_lag_bytes", "WAL that is not durable in the log.", source.lag_bytes as f64);
    out.gauge(
        "tidemark_source_lag_seconds",
        "How late the log is; 0 when nothing is pending.",
        source.lag_seconds,
    );
    let retained = source.slot_retained_bytes as f64;
    out.gauge("tidemark_source_slot_retained_bytes", "WAL which the slot keeps at the server.", retained);
    if let Some(limit) = source.slot_limit_bytes {
        let help = "Retained WAL at which the server gives the slot up.";
        out.gauge("tidemark_source_slot_limit_bytes", help, limit as f64);
    }
    if source.thresholds.retained_bytes_max > 0 {
        let (help, max) = ("[source] retained_wal_bytes_max.", source.thresholds.retained_bytes_max);
        out.gauge("tidemark_source_retained_wal_limit_bytes", help, max as f64);
    }
    if let Some(safe) = source.slot_safe_wal_bytes {
        let help = "WAL that may be written before the server gives the slot up.";
        out.gauge("tidemark_source_slot_safe_wal_bytes", help, safe as f64);
    }
    let help = "WAL that the slot has not confirmed, whoever streams from it.";
    out.gauge("tidemark_source_slot_lag_bytes", help, source.slot_lag_bytes as f64);
    let help = "For so long at least the slot has not confirmed WAL that was there.";
    out.gauge("tidemark_source_slot_lag_seconds", help, source.slot_lag_seconds);
    let mut family = out.family("tidemark_source_slot_wal_status", "gauge", "1 for the slot's wal_status.");
    for status in ["reserved", "extended", "unreserved", "lost"] {
        family.sample(&[("status", status)], f64::from(u8::from(source.slot_wal_status == status)));
    }
    let in_flight = source.in_flight_bytes as f64;
    out.gauge("tidemark_source_in_flight_bytes", "Bytes between the socket and the log.", in_flight);
    let spooled = source.stream_spool_bytes as f64;
    out.gauge(
        "tidemark_source_stream_spool_bytes",
        "Bytes of transactions in progress that are kept on disk.",
        spooled,
    );
}

fn copies(out: &mut Exposition, report: &Report) {
    let age = report.copies.as_ref().map_or(0.0, |copies| copies.snapshot_age_seconds);
    out.gauge(
        "tidemark_backfill_snapshot_age_seconds",
        "Age of the snapshot that copies hold; 0: none.",
        age,
    );
    let connections = report.copies.as_ref().map_or(0, |copies| copies.connections);
    out.gauge("tidemark_backfill_connections", "Connections that copy.", f64::from(connections));
}

fn log(out: &mut Exposition, report: &Report) {
    let log = &report.log;
    out.gauge("tidemark_log_size_bytes", "Size of the log.", log.bytes as f64);
    if let Some(max) = log.bytes_max {
        out.gauge("tidemark_log_size_limit_bytes", "Size at which capture waits.", max as f64);
    }
    out.gauge(
        "tidemark_log_undelivered_records",
        "Records that are not staged in the lake.",
        log.undelivered_records as f64,
    );
    let age = log.oldest_undelivered_seconds.unwrap_or(0.0);
    out.gauge("tidemark_log_oldest_undelivered_age_seconds", "Age of the oldest of them.", age);
}

fn notices(out: &mut Exposition, report: &Report) {
    type Value = fn(&NoticesReport) -> u64;
    let families: [(&'static str, &str, &str, Value); 3] = [
        ("tidemark_notices_sent_total", "counter", "Notices that their endpoint has taken.", |n| n.sent),
        ("tidemark_notices_failed_total", "counter", "Tries to send a notice that failed.", |n| n.failed),
        ("tidemark_notices_pending_days", "gauge", "Days that are complete and not told.", |n| {
            n.pending_days
        }),
    ];
    if report.notices.is_empty() {
        return;
    }
    for (name, kind, help, value) in families {
        let mut family = out.family(name, kind, help);
        for (endpoint, told) in &report.notices {
            family.sample(&[("endpoint", endpoint)], value(told) as f64);
        }
    }
}

fn cut(out: &mut Exposition, report: &Report) {
    let cut = &report.cut;
    let progress = f64::from(u8::from(cut.in_progress.is_some()));
    out.gauge("tidemark_cut_in_progress", "1 while a cut is being made.", progress);
    if let Some(due) = cut.next_due {
        let help = "When the next cut is due, since 1970.";
        out.gauge("tidemark_cut_next_due_timestamp_seconds", help, due.as_second() as f64);
    }
    for (name, help, ds) in [
        (
            "tidemark_cut_last_ds_timestamp_seconds",
            "The last day that was cut, as its midnight UTC.",
            cut.last_ds,
        ),
        (
            "tidemark_day_last_published_ds_timestamp_seconds",
            "The last day that was published, as its midnight UTC.",
            cut.last_published_ds,
        ),
    ] {
        if let Some(seconds) = ds.and_then(midnight) {
            out.gauge(name, help, seconds);
        }
    }
    let unpublished = report.days.iter().filter(|day| day.published.is_none()).count();
    out.gauge("tidemark_days_unpublished", "Days that are cut and not published.", unpublished as f64);
}

type Column = (&'static str, &'static str, &'static str, fn(&TableReport) -> Option<f64>);

const COLUMNS: [Column; 20] = [
    ("tidemark_table_changes_total", "counter", "Changes captured.", |t| Some(t.changes as f64)),
    ("tidemark_table_records_total", "counter", "Records that became of them.", |t| Some(t.records as f64)),
    ("tidemark_table_dead_letters", "gauge", "Records that could not be processed and wait.", |t| {
        Some(t.dead_letters as f64)
    }),
    ("tidemark_table_last_commit_timestamp_seconds", "gauge", "Commit time of the last change.", |t| {
        t.last_commit.map(|at| at.as_millisecond() as f64 / 1000.0)
    }),
    ("tidemark_table_end_offset", "gauge", "End of the table's log partitions, summed.", |t| {
        Some(t.end_offset as f64)
    }),
    ("tidemark_table_staged_offset", "gauge", "Up to where they are staged in the lake.", |t| {
        Some(t.staged_offset as f64)
    }),
    ("tidemark_table_backfill_rows", "gauge", "Rows that the backfill has read.", |t| {
        t.backfill.as_ref().map(|b| b.rows as f64)
    }),
    ("tidemark_table_backfill_bytes", "gauge", "Bytes that the backfill has read.", |t| {
        t.backfill.as_ref().map(|b| b.bytes as f64)
    }),
    (
        "tidemark_table_backfill_rows_estimated",
        "gauge",
        "Rows that the backfill expects; 0: not known.",
        |t| t.backfill.as_ref().map(|b| b.rows_estimated as f64),
    ),
    ("tidemark_table_backfilling", "gauge", "1 while the table is being backfilled.", |t| {
        Some(f64::from(u8::from(t.state == "backfilling")))
    }),
    (
        "tidemark_table_gap_offsets",
        "gauge",
        "Offsets of the log that are lost, until the table is copied anew.",
        |t| Some(t.gap.as_ref().map_or(0.0, |gap| gap.offsets as f64)),
    ),
    ("tidemark_table_schema_changes_total", "counter", "Schema changes seen at the source.", |t| {
        Some(t.schema_changes as f64)
    }),
    (
        "tidemark_table_schema_changes_unapplied_total",
        "counter",
        "Those of them which are not applied, since they would destroy, or not in all parts.",
        |t| Some(t.schema_changes_unapplied as f64),
    ),
    ("tidemark_table_failed", "gauge", "1 while the table is isolated.", |t| {
        Some(f64::from(u8::from(t.state == "failed")))
    }),
    (
        "tidemark_table_last_published_ds_timestamp_seconds",
        "gauge",
        "The table's last published day, as its midnight UTC.",
        |t| t.published_ds.and_then(midnight),
    ),
    (
        "tidemark_table_last_published_written_bytes",
        "gauge",
        "Bytes of that day's files which were written for it.",
        |t| t.published_ds.map(|_| t.published_bytes_written as f64),
    ),
    (
        "tidemark_table_last_published_copied_bytes",
        "gauge",
        "Bytes of that day's files which are the day before's, copied.",
        |t| t.published_ds.map(|_| t.published_bytes_copied as f64),
    ),
    (
        "tidemark_table_premerged_bytes",
        "gauge",
        "Bytes of files of the next day that are made already.",
        |t| t.published_ds.map(|_| t.premerged_bytes as f64),
    ),
    (
        "tidemark_table_historic_tail_ds_timestamp_seconds",
        "gauge",
        "The day that the historic tail of the last published one is as of, as its midnight UTC.",
        |t| t.historic_tail_ds.and_then(midnight),
    ),
    (
        "tidemark_table_deferred_changes",
        "gauge",
        "Changes of the historic tail that wait for the next whole day.",
        |t| t.published_ds.map(|_| t.deferred_changes as f64),
    ),
];

fn tables(out: &mut Exposition, report: &Report) {
    for (name, kind, help, value) in COLUMNS {
        let mut family = out.family(name, kind, help);
        for (table, report) in &report.tables {
            if let Some(value) = value(report) {
                family.sample(&[("table", table)], value);
            }
        }
    }
}

fn midnight(ds: Ds) -> Option<f64> {
    let at = ds.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(at.timestamp().as_second() as f64)
}
