//! `tidemark status`.

use std::fmt::Write;
use std::time::Duration;

use jiff::Timestamp;

use super::client::Client;
use super::output::{columns, print, print_json};
use super::{Outcome, Style};
use crate::change::Ds;
use crate::config::Config;
use crate::ops::{ComponentState, Report, Severity, Status, TableReport, human};
use crate::runtime::Result;

const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Tables that are shown unless they are asked for by name; all are in the JSON.
const TABLES_MAX: usize = 40;

/// Prints the process's report. It is done when the process has answered, whatever the answer says.
pub(super) fn run(config: &Config, table: Option<&str>, json: bool) -> Result<Outcome> {
    let client = Client::new(config, ANSWER_MAX);
    let mut report: Report = client.read(client.get("/api/v1/status")?)?;
    if let Some(text) = table {
        report.tables.retain(|name, _| name.contains(text));
    }
    if json {
        print_json(&report)?;
    } else {
        print(&render(&report, table.is_some(), Style::stdout()))?;
    }
    Ok(Outcome::Done)
}

fn render(report: &Report, all: bool, style: Style) -> String {
    let parts = [
        head(report, style),
        reasons(report, style),
        components(report, style),
        numbers(report),
        tables(report, all, style),
    ];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n")
}

fn head(report: &Report, style: Style) -> String {
    let verdict = match report.status {
        Status::Ok => style.good("ok"),
        Status::Degraded => style.warning("degraded"),
        Status::Failing => style.bad("failing"),
    };
    let up = human::duration(report.uptime_seconds as f64);
    let about = style.dim(&format!("Tidemark {}, up for {up}", report.version));
    format!("{}: {verdict}  {about}\n", report.name)
}

fn reasons(report: &Report, style: Style) -> String {
    let mut out = String::new();
    for reason in &report.reasons {
        let kind = format!("{:<7}", reason.kind);
        let kind = if reason.severity == Severity::Act { style.bad(&kind) } else { style.warning(&kind) };
        let since = reason.since.map_or(String::new(), |at| format!(" ({})", ago(report.time, at)));
        let _ = writeln!(out, "{kind}  {}: {}{}", reason.subject, reason.message, style.dim(&since));
        if let Some(mend) = &reason.mend {
            let _ = writeln!(out, "         → {}", mend.trim_end().replace('\n', "\n           "));
        }
    }
    out
}

fn components(report: &Report, style: Style) -> String {
    let mut rows = Vec::new();
    let mut states = Vec::new();
    for (name, part) in &report.components {
        let state = part.state.as_str().to_owned();
        rows.push(vec![name.to_string(), state, format!("for {}", ago(report.time, part.since))]);
        states.push(part.state);
    }
    columns(&rows, &[false; 3], |row, column, text| match (column, states[row]) {
        (1, ComponentState::Ok | ComponentState::Standby) => style.good(text),
        (1, ComponentState::Failed) => style.bad(text),
        (1, _) => style.warning(text),
        (2, _) => style.dim(text),
        _ => text.to_owned(),
    })
}

fn numbers(report: &Report) -> String {
    let mut rows = Vec::new();
    let mut row = |title: &str, text: String| rows.push(vec![title.to_owned(), text]);
    if let Some(source) = &report.source {
        let lag = if source.lag_seconds < 1.0 {
            "up to date".to_owned()
        } else {
            human::duration(source.lag_seconds)
        };
        row("log behind database", format!("{lag}, {} of WAL", human::bytes(source.lag_bytes)));
        let limit = source
            .thresholds
            .retained_limit(source.slot_limit_bytes)
            .map_or("no limit set".to_owned(), |l| format!("limit {}", human::bytes(l)));
        row("WAL kept on the source", format!("{}, {limit}", human::bytes(source.slot_retained_bytes)));
        let behind = human::duration(source.slot_lag_seconds);
        row("slot behind database", format!("{behind}, {} of WAL", human::bytes(source.slot_lag_bytes)));
    }
    let log = &report.log;
    let oldest = log.oldest_undelivered_seconds.filter(|_| log.undelivered_records > 0);
    let oldest = oldest.map_or(String::new(), |age| format!(", the oldest for {}", human::duration(age)));
    row("lake behind log", format!("{} records{oldest}", human::count(log.undelivered_records)));
    row("dead letters", human::count(report.dead_letters()));
    let cut = &report.cut;
    let last = cut.last_published_ds.map_or("none yet".to_owned(), |ds| ds.to_string());
    let next = cut.next_due.map_or(String::new(), |at| {
        let seconds = at.as_second() - report.time.as_second();
        let text = human::duration(seconds.abs() as f64);
        if seconds >= 0 { format!(", next cut in {text}") } else { format!(", cut overdue by {text}") }
    });
    row("last day published", format!("{last}{next}"));
    for day in report.days.iter().filter(|day| day.published.is_none()) {
        let done = format!("{} of {} tables are there", day.tables_published, day.tables);
        row(&format!("ds={}", day.ds), format!("{}: {done}", day.state));
    }
    columns(&rows, &[false; 2], |_, _, text| text.to_owned())
}

fn tables(report: &Report, all: bool, style: Style) -> String {
    let tables = report.tables_by_trouble();
    if tables.is_empty() {
        return String::new();
    }
    let shown = if all { tables.len() } else { tables.len().min(TABLES_MAX) };
    let titles = ["table", "state", "changes", "not in lake", "dead letters", "last commit", "last day"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    rows.extend(tables.iter().take(shown).map(|(name, table)| one_table(name, table, report.time)));
    let right = [false, false, true, true, true, false, false];
    let mut out = columns(&rows, &right, |row, column, text| match (row, column) {
        (0, _) => style.dim(text),
        (_, 1) if text == "failed" => style.bad(text),
        (_, 4) if text != "-" => style.warning(text),
        _ => text.to_owned(),
    });
    if shown < tables.len() {
        let _ = writeln!(
            out,
            "and {} more; --table TEXT finds them",
            human::count((tables.len() - shown) as u64)
        );
    }
    out
}

fn one_table(name: &str, table: &TableReport, now: Timestamp) -> Vec<String> {
    let state = match &table.backfill {
        Some(backfill) if !backfill.done && table.state == "backfilling" => {
            let percent = (backfill.rows * 100).checked_div(backfill.rows_estimated);
            percent.map_or(backfill.state.to_string(), |percent| {
                format!("{} {}%", backfill.state, percent.min(99))
            })
        }
        _ => table.state.to_string(),
    };
    let dash = || "-".to_owned();
    vec![
        name.to_owned(),
        state,
        human::count(table.changes),
        human::count(table.undelivered()),
        if table.dead_letters == 0 { dash() } else { human::count(table.dead_letters) },
        table.last_commit.map_or_else(dash, |at| format!("{} ago", ago(now, at))),
        table.published_ds.map_or_else(dash, |ds| published(ds, table)),
    ]
}

/// The day, how much of it was written where the rest is the day before's, and what of it is as of an earlier one.
fn published(ds: Ds, table: &TableReport) -> String {
    let (written, copied) = (table.published_bytes_written, table.published_bytes_copied);
    let share = (written * 100).checked_div(written + copied).filter(|_| copied > 0);
    let share = share.map(|percent| format!("{percent}% written"));
    let tail = table
        .historic_tail_ds
        .map(|ds| format!("tail of {ds}, {} changes deferred", human::count(table.deferred_changes)));
    match share.into_iter().chain(tail).collect::<Vec<_>>().join(", ") {
        more if more.is_empty() => ds.to_string(),
        more => format!("{ds} ({more})"),
    }
}

fn ago(now: Timestamp, at: Timestamp) -> String {
    human::duration((now.as_millisecond() - at.as_millisecond()) as f64 / 1000.0)
}
