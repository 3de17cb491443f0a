//! What is late, missing or stuck, and whether a person must look. The one place where that is decided.
//!
//! One cause is one reason, whether it hits one table or ten thousand: a list that is too long to read tells
//! nothing. And each reason says what to do, if only where to look next.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::component::ComponentState;
use super::days::{DayTable, Held};
use super::human;
use super::notices;
use super::report::{ComponentReport, Report, SourceReport, TableReport, Word};

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Nothing to do.
    Ok,
    /// Worth knowing; nobody has to get up.
    Degraded,
    /// A person must look. `/health` answers 503.
    Failing,
}

impl Status {
    /// The word used in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failing => "failing",
        }
    }
}

/// How bad a reason is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// A person must look.
    Act,
    /// Worth knowing.
    Watch,
}

/// Why the verdict is not "ok".
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reason {
    /// How bad.
    pub severity: Severity,
    /// `late`, `missing`, `stuck` or `schema`.
    pub kind: Word,
    /// The component, the table or the day.
    pub subject: String,
    /// What is the matter.
    pub message: String,
    /// Since when, where that is known.
    pub since: Option<Timestamp>,
    /// What to do.
    pub mend: Option<String>,
}

/// A component that waits for so long does not come back by itself soon.
const WAITING_SECONDS: i64 = 60;
/// A component that takes so long to begin is stuck.
const STARTING_SECONDS: i64 = 300;
/// A cut may be overdue for so long: it waits for the transactions around midnight.
const CUT_OVERDUE_SECONDS: i64 = 120;
/// A schema change that is not applied is told for so long.
const UNAPPLIED_SECONDS: i64 = 86_400;
/// A day may take so long from its cut to its publication.
const PUBLISH_SECONDS: i64 = 3600;

/// The reasons, the worst first.
pub(super) fn reasons(report: &Report, held: &Held) -> Vec<Reason> {
    let now = report.time;
    let mut reasons = Vec::new();
    reasons.extend(report.components.iter().filter_map(|(name, part)| component(name, part, now)));
    reasons.extend(source(report));
    reasons.extend(log(report));
    reasons.extend(cut(report));
    reasons.extend(days(report, held));
    reasons.extend(failed_tables(report));
    reasons.extend(gaps(report));
    reasons.extend(lacking(report));
    reasons.extend(dead_letters(report));
    reasons.extend(unapplied(report));
    reasons.sort_by_key(|reason| reason.severity);
    reasons
}

/// The verdict that follows from them.
pub(super) fn status(reasons: &[Reason]) -> Status {
    match reasons.iter().map(|reason| reason.severity).min() {
        Some(Severity::Act) => Status::Failing,
        Some(Severity::Watch) => Status::Degraded,
        None => Status::Ok,
    }
}

fn component(name: &str, part: &ComponentReport, now: Timestamp) -> Option<Reason> {
    let seconds = (now.as_second() - part.since.as_second()).max(0);
    let (severity, message) = match part.state {
        ComponentState::Ok | ComponentState::Standby => return None,
        ComponentState::Starting if seconds < STARTING_SECONDS => return None,
        ComponentState::Starting => (Severity::Act, "does not get started".to_owned()),
        // Whoever is not told waits; days are published all the same.
        ComponentState::Waiting | ComponentState::Failed if notices::is_endpoint(name) => {
            (Severity::Watch, text(part))
        }
        ComponentState::Waiting if seconds < WAITING_SECONDS => (Severity::Watch, text(part)),
        ComponentState::Waiting | ComponentState::Failed => (Severity::Act, text(part)),
    };
    let elsewhere = match part.state {
        ComponentState::Waiting => "It is tried again by itself; look at the other side.",
        _ => "Look at the log of this process.",
    };
    Some(Reason {
        severity,
        kind: "stuck".into(),
        subject: name.to_owned(),
        message,
        since: Some(part.since),
        mend: Some(part.mend.clone().unwrap_or_else(|| elsewhere.to_owned())),
    })
}

fn text(part: &ComponentReport) -> String {
    part.reason.clone().unwrap_or_else(|| part.state.as_str().to_owned())
}

fn source(report: &Report) -> Vec<Reason> {
    let Some(source) = &report.source else { return Vec::new() };
    // One that begins, or stands by for another process, is not what is late.
    let state = report.components.get("source").map(|part| part.state);
    let streams = !matches!(state, Some(ComponentState::Starting | ComponentState::Standby));
    let late = streams.then(|| late(source)).flatten();
    late.into_iter().chain(retained(source)).collect()
}

/// How bad a figure is.
fn above<T: PartialOrd + Copy + Default>(figure: T, warn: T, max: T) -> Option<Severity> {
    let is_above = |limit: T| limit > T::default() && figure >= limit;
    if is_above(max) { Some(Severity::Act) } else { is_above(warn).then_some(Severity::Watch) }
}

/// How bad the lag is; none: it is not worth a word.
pub(super) fn lag_severity(source: &SourceReport) -> Option<Severity> {
    let limits = &source.thresholds;
    let seconds = source.lag_seconds.max(source.slot_lag_seconds);
    let bytes = source.lag_bytes.max(source.slot_lag_bytes);
    let by_time = above(seconds, limits.lag_seconds_warn, limits.lag_seconds_max);
    by_time.into_iter().chain(above(bytes, limits.lag_bytes_warn, limits.lag_bytes_max)).min()
}

fn late(source: &SourceReport) -> Option<Reason> {
    Some(Reason {
        severity: lag_severity(source)?,
        kind: "late".into(),
        subject: "source".to_owned(),
        message: format!(
            "the log is {} ({} of WAL) behind the database",
            human::duration(source.lag_seconds.max(source.slot_lag_seconds)),
            human::bytes(source.lag_bytes.max(source.slot_lag_bytes))
        ),
        since: None,
        mend: Some("Nothing is lost: the slot keeps the WAL. Look at what is stuck; else at a long transaction or a bulk load at the source.".to_owned()),
    })
}

/// How bad it is what the slot keeps: between the first word and the limit a person must look from half-way on.
pub(super) fn retained_severity(source: &SourceReport) -> Option<Severity> {
    if matches!(&*source.slot_wal_status, "lost" | "unreserved") {
        return Some(Severity::Act);
    }
    let limit = u128::from(source.thresholds.retained_limit(source.slot_limit_bytes)?);
    let (kept, percent) =
        (u128::from(source.slot_retained_bytes), u128::from(source.thresholds.retained_percent_warn));
    above(kept, limit * percent / 100, limit * (percent + 100) / 200)
}

fn retained(source: &SourceReport) -> Option<Reason> {
    let severity = retained_severity(source)?;
    let (kept, limits) = (human::bytes(source.slot_retained_bytes), &source.thresholds);
    let (kind, message, mend) = match (
        &*source.slot_wal_status,
        limits.retained_limit(source.slot_limit_bytes),
    ) {
        ("lost", _) => (
            "missing",
            "the server has given up WAL that the slot needs: changes are lost".to_owned(),
            "The next start of capture names the range, to be given up by `tidemark accept-gap`; then every table is copied anew.",
        ),
        ("unreserved", _) => (
            "late",
            format!(
                "the slot keeps {kept} of WAL, more than the server grants: the next checkpoint removes it, and changes are lost"
            ),
            "Mend what is stuck now, or raise max_slot_wal_keep_size (SELECT pg_reload_conf()).",
        ),
        (_, Some(limit)) if source.slot_limit_bytes == Some(limit) => {
            let safe = source.slot_safe_wal_bytes.and_then(|bytes| u64::try_from(bytes).ok());
            let safe =
                safe.map_or(String::new(), |bytes| format!(", {} of WAL from now", human::bytes(bytes)));
            (
                "late",
                format!(
                    "the slot keeps {kept} of WAL, {} of max_slot_wal_keep_size ({}); beyond it{safe}, the server drops the \
                     WAL, and changes are lost",
                    percent(source.slot_retained_bytes, limit),
                    human::bytes(limit)
                ),
                "Mend what is stuck, or raise max_slot_wal_keep_size for the time being.",
            )
        }
        (_, limit) => {
            let limit = limit.unwrap_or_default();
            let then = if limits.drops_slot {
                "there the slot is dropped (retained_wal_action = \"drop_slot\"), and changes are lost"
            } else {
                "it is kept beyond that, too (retained_wal_action = \"keep\"), until the source's disk is full"
            };
            (
                "late",
                format!(
                    "the slot keeps {kept} of WAL, {} of [source] retained_wal_bytes_max ({}); {then}",
                    percent(source.slot_retained_bytes, limit),
                    human::bytes(limit)
                ),
                "Mend what is stuck, or raise retained_wal_bytes_max if the source's disk has the room.",
            )
        }
    };
    let held = source.slot_held_by.as_ref().map_or(String::new(), |by| format!(". It is kept for {by}"));
    Some(Reason {
        severity,
        kind: kind.into(),
        subject: "source".to_owned(),
        message: message + &held,
        since: None,
        mend: Some(mend.to_owned()),
    })
}

fn percent(part: u64, of: u64) -> String {
    format!("{} %", u128::from(part) * 100 / u128::from(of.max(1)))
}

fn log(report: &Report) -> Option<Reason> {
    let log = &report.log;
    let max = log.bytes_max.filter(|max| log.bytes > max / 10 * 9)?;
    Some(Reason {
        severity: Severity::Act,
        kind: "stuck".into(),
        subject: "log".to_owned(),
        message: format!(
            "{} of {} are used; at the limit capture waits",
            human::bytes(log.bytes),
            human::bytes(max)
        ),
        since: None,
        mend: Some(
            "Mend delivery, so that the log can let go, or raise [log.embedded] bytes_max.".to_owned(),
        ),
    })
}

fn cut(report: &Report) -> Option<Reason> {
    let due = report.cut.next_due?;
    let seconds = report.time.as_second() - due.as_second();
    (seconds > CUT_OVERDUE_SECONDS).then(|| Reason {
        severity: Severity::Act,
        kind: "late".into(),
        subject: "cut".to_owned(),
        message: format!("the cut that was due at {due} has not been made"),
        since: Some(due),
        mend: Some("It is made as soon as capture has read past it; look at the source.".to_owned()),
    })
}

fn days(report: &Report, held: &Held) -> Vec<Reason> {
    let mut reasons = Vec::new();
    for day in report.days.iter().filter(|day| day.published.is_none()) {
        let tables = held.days.get(&day.ds).into_iter().flat_map(|day| &day.detail);
        let failed = tables.filter_map(|(name, state)| match state {
            DayTable::Failed { reason, mend } => Some((name.to_string(), reason.as_str(), mend.as_deref())),
            _ => None,
        });
        let look = format!("It is tried again by itself; /api/v1/days/{} tells each table.", day.ds);
        for cause in causes(failed) {
            reasons.push(Reason {
                severity: Severity::Act,
                kind: "stuck".into(),
                subject: format!("ds={}", day.ds),
                message: format!("{}: {}", cause.tables, cause.message),
                since: Some(day.cut),
                mend: Some(cause.mend.unwrap_or_else(|| look.clone())),
            });
        }
        let seconds = report.time.as_second() - day.cut.as_second();
        if seconds > PUBLISH_SECONDS {
            let (done, all) = (human::count(day.tables_published), human::count(day.tables));
            reasons.push(Reason {
                severity: Severity::Act,
                kind: "late".into(),
                subject: format!("ds={}", day.ds),
                message: format!(
                    "cut {} ago and not published: {done} of {all} tables are there",
                    human::duration(seconds as f64)
                ),
                since: None,
                mend: Some(format!("Look at deliver and lake; /api/v1/days/{} tells each table.", day.ds)),
            });
        }
    }
    reasons
}

fn failed_tables(report: &Report) -> Vec<Reason> {
    let failed = report.tables.iter().filter(|(_, table)| table.state == "failed");
    let since = failed.clone().map(|(_, table)| table.since).min();
    let failed = failed.map(|(name, table)| {
        (name.clone(), table.reason.as_deref().unwrap_or_default(), table.mend.as_deref())
    });
    let reason = |cause: Cause| Reason {
        severity: Severity::Act,
        kind: "stuck".into(),
        subject: cause.tables,
        message: cause.message,
        since,
        mend: Some(
            cause
                .mend
                .unwrap_or_else(|| "The other tables go on. Look at the log of this process.".to_owned()),
        ),
    };
    causes(failed).into_iter().map(reason).collect()
}

fn gaps(report: &Report) -> Vec<Reason> {
    let gap = |(name, table): (&String, &TableReport)| {
        // A day that lacks a table for another reason makes no second one.
        let gap = table.gap.as_ref().filter(|gap| gap.offsets > 0 || table.lacking.is_none())?;
        let mend = if gap.copy_asked {
            "A new copy is asked for; the table is in the days again from the first cut after that is whole. Give its topic \
             a longer retention."
                .to_owned()
        } else {
            format!(
                "Run `tidemark backfill {name}` beside the process that captures; the table is in the days again from the \
                 first cut after the copy is whole. Give its topic a longer retention."
            )
        };
        Some(Reason {
            severity: if gap.copy_asked { Severity::Watch } else { Severity::Act },
            kind: "missing".into(),
            subject: name.clone(),
            message: gap.reason.clone(),
            since: None,
            mend: Some(mend),
        })
    };
    report.tables.iter().filter_map(gap).collect()
}

fn lacking(report: &Report) -> Vec<Reason> {
    let lacking = report.tables.iter().filter_map(|(name, table)| Some((name, table.lacking.as_ref()?)));
    // By what is to be done: a publication that is altered may hit every table at once.
    let mut by_cause: BTreeMap<(&str, bool, Option<&str>), Vec<&str>> = BTreeMap::new();
    for (name, lacking) in lacking {
        let cause = (lacking.reason.as_str(), lacking.copy_asked, lacking.trouble.as_deref());
        by_cause.entry(cause).or_default().push(name);
    }
    let reason = |((reason, copy_asked, trouble), names): ((&str, bool, Option<&str>), Vec<&str>)| {
        let (severity, message, mend) = match (copy_asked, trouble) {
            (true, None) => (
                Severity::Watch,
                reason.to_owned(),
                "It is being copied anew by itself; days lack it until the copy is whole.".to_owned(),
            ),
            (true, Some(trouble)) => (
                Severity::Act,
                format!("{reason}; it has to be copied anew, and that fails: {trouble}"),
                "It is tried again by itself. `tidemark check` tells what the copy needs.".to_owned(),
            ),
            (false, _) => (
                Severity::Act,
                reason.to_owned(),
                "Put it back into the publication (ALTER PUBLICATION … ADD TABLE …), and it is copied anew by itself; or \
                 leave it out by `exclude` in the configuration, and days lack it without a word."
                    .to_owned(),
            ),
        };
        Reason {
            severity,
            kind: "missing".into(),
            subject: some_of(&names),
            message,
            since: None,
            mend: Some(mend),
        }
    };
    by_cause.into_iter().map(reason).collect()
}

fn dead_letters(report: &Report) -> Option<Reason> {
    let with = report.tables.iter().filter(|(_, table)| table.dead_letters > 0);
    let names: Vec<_> = with.map(|(name, _)| name.as_str()).collect();
    let all = report.dead_letters();
    let records = if all == 1 { "1 record is" } else { &format!("{} records are", human::count(all)) };
    (all > 0).then(|| Reason {
        severity: Severity::Watch,
        kind: "missing".into(),
        subject: some_of(&names),
        message: format!(
            "{records} missing from the lake: they could not be processed and wait as dead letters"
        ),
        since: None,
        mend: Some("`tidemark dead-letters list` tells why.".to_owned()),
    })
}

fn unapplied(report: &Report) -> Vec<Reason> {
    let recent = report.tables.iter().filter_map(|(name, table)| {
        let last = table.unapplied.as_ref()?;
        (report.time.as_second() - last.at.as_second() < UNAPPLIED_SECONDS).then_some((name, last))
    });
    let since = recent.clone().map(|(_, last)| last.at).min();
    let told = recent.map(|(name, last)| (name.clone(), last.detail.as_str(), None));
    let reason = |cause: Cause| Reason {
        severity: Severity::Watch,
        kind: "schema".into(),
        subject: cause.tables,
        message: cause.message,
        since,
        mend: Some(
            "Nothing was taken away downstream; the topic <name>.ddl has the change. This is told for a day."
                .to_owned(),
        ),
    };
    causes(told).into_iter().map(reason).collect()
}

/// What several tables have in common.
struct Cause {
    tables: String,
    message: String,
    mend: Option<String>,
}

/// Causes that are told; the tables of further ones are only counted.
const CAUSES_MAX: usize = 5;

/// Failures of tables by their message, that of most tables first.
fn causes<'a>(failed: impl Iterator<Item = (String, &'a str, Option<&'a str>)>) -> Vec<Cause> {
    let mut by_message: BTreeMap<&str, (Vec<String>, Option<&str>)> = BTreeMap::new();
    for (name, message, mend) in failed {
        let cause = by_message.entry(message).or_default();
        cause.0.push(name);
        cause.1 = cause.1.or(mend);
    }
    let mut groups: Vec<_> = by_message.into_iter().collect();
    groups.sort_by_key(|(_, (names, _))| Reverse(names.len()));
    let rest: Vec<_> = groups.split_off(groups.len().min(CAUSES_MAX));
    let cause = |(message, (names, mend)): (&str, (Vec<String>, Option<&str>))| Cause {
        tables: some_of(&names.iter().map(String::as_str).collect::<Vec<_>>()),
        message: message.to_owned(),
        mend: mend.map(str::to_owned),
    };
    let mut causes: Vec<_> = groups.into_iter().map(cause).collect();
    if !rest.is_empty() {
        let names: Vec<_> = rest.iter().flat_map(|(_, (names, _))| names).map(String::as_str).collect();
        let message = "failed for further reasons".to_owned();
        causes.push(Cause { tables: some_of(&names), message, mend: None });
    }
    causes
}

/// `public.a`, or `public.a and 2 more tables`.
fn some_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first, _] => format!("{first} and 1 more table"),
        [first, rest @ ..] => format!("{first} and {} more tables", human::count(rest.len() as u64)),
    }
}
