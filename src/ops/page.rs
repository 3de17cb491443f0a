//! The status page: what is late, missing or stuck, and what to do, on one self-contained page.
//!
//! It is made by the server, so that it also reads without scripts and through `curl`. Its script only fetches
//! it again every few seconds, keeps the place where the reader is, and says so loudly when nothing answers.
//! Of ten thousand tables it shows those in trouble first and then the busiest; a filter finds the others.

use std::fmt::Write;

use jiff::Timestamp;

use super::component::ComponentState;
use super::human;
use super::judge::{self, Reason, Severity, Status};
use super::report::{BackfillReport, ComponentReport, DayReport, Report, TableReport};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Rows of tables that are shown unless all are asked for.
const TABLES_MAX: usize = 100;
/// Reasons that are shown; beyond them their number tells enough.
const REASONS_MAX: usize = 20;
/// The way of a change through the parts; others follow by name.
const FLOW: [&str; 4] = ["source", "log", "deliver", "lake"];

/// Renders the page; `filter` is a part of a table's name.
pub(super) fn render(report: &Report, filter: &str, all: bool) -> String {
    let mut out = String::with_capacity(64 * 1024);
    let name = escape(&report.name);
    let mark = match report.status {
        Status::Ok => "",
        Status::Degraded => "! ",
        Status::Failing => "!! ",
    };
    let query = if filter.is_empty() { String::new() } else { format!(" value=\"{}\"", escape(filter)) };
    // Writing to a String does not fail.
    let _ = write!(
        out,
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>{mark}{name} · Tidemark</title>\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\
         <noscript><meta http-equiv=refresh content=10></noscript><style>{STYLE}</style></head><body>\
         <header><h1>{name}</h1><span class=dim>Tidemark {version}</span>\
         <form><input name=table placeholder=\"Find a table\" aria-label=\"Find a table\"{query}></form></header>\
         <p id=stale hidden></p><main>",
        version = report.version,
    );
    verdict(&mut out, report);
    reasons(&mut out, report);
    flow(&mut out, report);
    tiles(&mut out, report);
    days(&mut out, report);
    tables(&mut out, report, filter, all);
    let _ = write!(
        out,
        "<p class=dim>As of {} UTC, up for {}. <a href=/api/v1/status>JSON</a> · <a href=/metrics>metrics</a> · \
         <a href=/health>health</a></p></main><script>{SCRIPT}</script></body></html>",
        clock(report.time),
        human::duration(report.uptime_seconds as f64),
    );
    out
}

fn verdict(out: &mut String, report: &Report) {
    let act = report.reasons.iter().filter(|reason| reason.severity == Severity::Act).count();
    let watch = report.reasons.len() - act;
    let text = match (act, watch) {
        (0, 0) => "All is well".to_owned(),
        (0, 1) => "One thing to know; nothing that cannot wait".to_owned(),
        (0, watch) => format!("{watch} things to know; nothing that cannot wait"),
        (1, _) => "One thing needs you".to_owned(),
        (act, _) => format!("{act} things need you"),
    };
    let _ = write!(out, "<h2 class=\"verdict {}\">{text}</h2>", report.status.as_str());
}

fn reasons(out: &mut String, report: &Report) {
    if report.reasons.is_empty() {
        return;
    }
    out.push_str("<ol class=reasons>");
    for reason in report.reasons.iter().take(REASONS_MAX) {
        one_reason(out, reason, report.time);
    }
    let rest = report.reasons.len().saturating_sub(REASONS_MAX);
    if rest > 0 {
        let _ =
            write!(out, "<li class=dim>and {} more, with the tables below</li>", human::count(rest as u64));
    }
    out.push_str("</ol>");
}

fn one_reason(out: &mut String, reason: &Reason, now: Timestamp) {
    let class = if reason.severity == Severity::Act { "act" } else { "watch" };
    let _ = write!(
        out,
        "<li class={class}><b class=kind>{}</b><div><b>{}</b> {}",
        reason.kind,
        escape(&reason.subject),
        escape(&reason.message)
    );
    if let Some(since) = reason.since {
        let _ = write!(out, " <span class=dim>for {}</span>", ago(now, since));
    }
    if let Some(mend) = &reason.mend {
        let _ = write!(out, "<div class=mend>→ {}</div>", escape(mend));
    }
    out.push_str("</div></li>");
}

fn flow(out: &mut String, report: &Report) {
    out.push_str("<ul class=flow>");
    let known = FLOW.iter().filter_map(|name| report.components.get_key_value(*name));
    let others = report.components.iter().filter(|(name, _)| !FLOW.contains(&&***name));
    for (name, part) in known {
        component(out, name, part, "step", report.time);
    }
    for (name, part) in others {
        component(out, name, part, "aside", report.time);
    }
    out.push_str("</ul>");
}

fn component(out: &mut String, name: &str, part: &ComponentReport, class: &str, now: Timestamp) {
    let state = part.state.as_str();
    let earlier = match (&part.reason, part.state) {
        (Some(reason), ComponentState::Ok) => format!(" title=\"before: {}\"", escape(reason)),
        (Some(reason), _) => format!(" title=\"{}\"", escape(reason)),
        (None, _) => String::new(),
    };
    let _ = write!(
        out,
        "<li class=\"{class} {state}\"{earlier}><b>{}</b> {state} <span class=dim>for {}</span></li>",
        escape(name),
        ago(now, part.since)
    );
}

fn tile(out: &mut String, class: &str, title: &str, value: &str, note: &str) {
    let _ = write!(
        out,
        "<li class=\"{class}\"><span class=dim>{title}</span><strong>{}</strong><span class=dim>{}</span></li>",
        escape(value),
        escape(note)
    );
}

fn tiles(out: &mut String, report: &Report) {
    out.push_str("<ul class=tiles>");
    let class = |bad: bool, or: &'static str| if bad { or } else { "" };
    if let Some(source) = &report.source {
        let late = source.lag_seconds;
        let value = if late < 1.0 { "up to date".to_owned() } else { human::duration(late) };
        let note = format!("{} of WAL to go", human::bytes(source.lag_bytes));
        let named = |severity| match severity {
            Some(judge::Severity::Act) => "act",
            Some(judge::Severity::Watch) => "watch",
            None => "",
        };
        tile(out, named(judge::lag_severity(source)), "Log behind database", &value, &note);
        let retained = human::bytes(source.slot_retained_bytes);
        let limit = source.thresholds.retained_limit(source.slot_limit_bytes);
        let note = limit.map_or("no limit set".to_owned(), |l| format!("limit {}", human::bytes(l)));
        let severity = named(judge::retained_severity(source));
        tile(out, severity, "WAL kept on the source", &retained, &note);
    }
    let log = &report.log;
    let value = match (log.undelivered_records, log.oldest_undelivered_seconds) {
        (0, _) => "up to date".to_owned(),
        (_, Some(seconds)) => human::duration(seconds),
        (records, None) => format!("{} records", human::count(records)),
    };
    let size = log.bytes_max.map_or(String::new(), |max| format!(" of {}", human::bytes(max)));
    let records = human::count(log.undelivered_records);
    let note = format!("{records} records; log {}{size}", human::bytes(log.bytes));
    tile(out, "", "Lake behind log", &value, &note);
    let dead = report.dead_letters();
    let note = if dead == 0 { "nothing is missing" } else { "records missing from the lake" };
    tile(out, class(dead > 0, "watch"), "Dead letters", &human::count(dead), note);
    let cut = &report.cut;
    let last = cut.last_published_ds.map_or("none yet".to_owned(), |ds| ds.to_string());
    let due = |at: Timestamp| at.as_second() - report.time.as_second();
    let note = match (cut.in_progress, cut.next_due) {
        (Some(ds), _) => format!("cutting {ds} now"),
        (None, Some(at)) if due(at) >= 0 => format!("next cut in {}", human::duration(due(at) as f64)),
        (None, Some(at)) => format!("cut overdue by {}", human::duration(-due(at) as f64)),
        (None, None) => String::new(),
    };
    tile(out, class(note.contains("overdue"), "act"), "Last day published", &last, &note);
    out.push_str("</ul>");
}

fn days(out: &mut String, report: &Report) {
    if report.days.is_empty() {
        return;
    }
    out.push_str(
        "<h3>Days</h3><div class=scroll><table><thead><tr><th>ds<th>State<th class=n>Tables<th class=n>Rows\
         <th class=n>Size<th>Cut (UTC)<th>Published (UTC)</tr></thead><tbody>",
    );
    for day in &report.days {
        one_day(out, day, report.time);
    }
    out.push_str("</tbody></table></div>");
}

fn one_day(out: &mut String, day: &DayReport, now: Timestamp) {
    let class = if day.state == "failed" { "failed" } else { "" };
    let tables = if day.tables_published == day.tables {
        human::count(day.tables)
    } else {
        let (done, all) = (human::count(day.tables_published), human::count(day.tables));
        format!("{done} of {all} {}", bar(day.tables_published, day.tables))
    };
    let state = match (&*day.state, day.tables_failed) {
        ("failed", failed) => format!("{} failed", human::count(failed)),
        (state, _) if day.tables_missing > 0 => {
            format!("{state} without {}", human::count(day.tables_missing))
        }
        (state, _) => state.to_owned(),
    };
    let published = day.published.map_or("–".to_owned(), clock);
    let _ = write!(
        out,
        "<tr class=\"{class}\"><td><a href=\"/api/v1/days/{ds}\">{ds}</a><td>{state}<td class=n>{tables}\
         <td class=n>{rows}<td class=n>{bytes}<td>{cut} <span class=dim>{ago} ago</span><td>{published}</tr>",
        ds = day.ds,
        rows = human::count(day.rows),
        bytes = human::bytes(day.bytes),
        cut = clock(day.cut),
        ago = ago(now, day.cut),
    );
}

fn tables(out: &mut String, report: &Report, filter: &str, all: bool) {
    let wanted = filter.to_lowercase();
    let mut found = report.tables_by_trouble();
    found.retain(|(name, _)| name.to_lowercase().contains(&wanted));
    let shown = if all { found.len() } else { found.len().min(TABLES_MAX) };
    let total = human::count(found.len() as u64);
    let count =
        if filter.is_empty() { total.clone() } else { format!("{total} with “{}”", escape(filter)) };
    let _ = write!(out, "<h3>Tables <span class=dim>{count}</span></h3>");
    if found.is_empty() {
        out.push_str("<p class=dim>None.</p>");
        return;
    }
    out.push_str(
        "<div class=scroll><table><thead><tr><th>Table<th>State<th class=n>Changes<th>Last commit\
         <th class=n>Not in lake<th class=n>Dead letters<th>Last day</tr></thead><tbody>",
    );
    for (name, table) in found.iter().take(shown) {
        one_table(out, name, table, report.time);
    }
    out.push_str("</tbody></table></div>");
    if shown < found.len() {
        let link = format!("/?all=1&amp;table={}", escape(&url_encoded(filter)));
        let _ = write!(
            out,
            "<p class=dim>The first {shown}, those in trouble before the others. <a href=\"{link}\">All {total}</a></p>"
        );
    }
}

fn one_table(out: &mut String, name: &str, table: &TableReport, now: Timestamp) {
    let class = match &*table.state {
        "failed" => "failed",
        _ if table.dead_letters > 0 => "warned",
        _ => "",
    };
    let state = match (&table.reason, &table.backfill) {
        (Some(reason), _) => format!("failed <span class=why>{}</span>", escape(reason)),
        (None, Some(backfill)) if !backfill.done && table.state == "backfilling" => backfilling(backfill),
        _ => table.state.to_string(),
    };
    let commit = table.last_commit.map_or("–".to_owned(), |at| format!("{} ago", ago(now, at)));
    let dead = if table.dead_letters == 0 { "–".to_owned() } else { human::count(table.dead_letters) };
    let day = table.published_ds.map_or("–".to_owned(), |ds| ds.to_string());
    let _ = write!(
        out,
        "<tr class=\"{class}\"><td>{}<td>{state}<td class=n>{}<td>{commit}<td class=n>{}<td class=n>{dead}<td>{day}</tr>",
        escape(name),
        human::count(table.changes),
        human::count(table.undelivered()),
    );
}

fn backfilling(backfill: &BackfillReport) -> String {
    let rows = human::count(backfill.rows);
    if backfill.rows_estimated == 0 {
        return format!("backfilling <span class=dim>{rows} rows</span>");
    }
    // The estimate is the planner's; more rows than it says are no reason to promise more than all.
    let percent = (backfill.rows * 100 / backfill.rows_estimated).min(99);
    let bar = bar(backfill.rows, backfill.rows_estimated);
    let left =
        backfill.seconds_left.map_or(String::new(), |left| format!(", {} left", human::duration(left)));
    format!("backfilling {bar} {percent}% <span class=dim>{rows} rows{left}</span>")
}

fn bar(done: u64, all: u64) -> String {
    format!("<progress value={} max={}></progress>", done.min(all), all.max(1))
}

fn ago(now: Timestamp, at: Timestamp) -> String {
    human::duration((now.as_second() - at.as_second()) as f64)
}

fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn url_encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
