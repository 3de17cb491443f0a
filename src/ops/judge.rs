//! What is late, lost or stuck, and whether a person must look. The one place where that is decided.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::component::ComponentState;
use super::days::{DayTable, Held};
use super::report::{ComponentReport, Report, TableReport, Word};
use crate::change::Ds;

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
    /// `late`, `lost` or `stuck`.
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
/// The log may be so late without anybody being told.
const LAG_WATCH_SECONDS: f64 = 60.0;
/// From here on a person must look.
const LAG_ACT_SECONDS: f64 = 900.0;
/// A cut may be overdue for so long: it waits for the transactions around midnight.
const CUT_OVERDUE_SECONDS: i64 = 120;
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
    reasons.extend(report.tables.iter().flat_map(|(name, state)| table(name, state)));
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
        ComponentState::Ok => return None,
        ComponentState::Starting if seconds < STARTING_SECONDS => return None,
        ComponentState::Starting => (Severity::Act, "does not get started".to_owned()),
        ComponentState::Waiting if seconds < WAITING_SECONDS => (Severity::Watch, text(part)),
        ComponentState::Waiting | ComponentState::Failed => (Severity::Act, text(part)),
    };
    let again = (part.state == ComponentState::Waiting)
        .then(|| "It is tried again by itself; look at the other side.".to_owned());
    Some(Reason {
        severity,
        kind: "stuck".into(),
        subject: name.to_owned(),
        message,
        since: Some(part.since),
        mend: part.mend.clone().or(again),
    })
}

fn text(part: &ComponentReport) -> String {
    part.reason.clone().unwrap_or_else(|| part.state.as_str().to_owned())
}

fn source(report: &Report) -> Vec<Reason> {
    let Some(source) = &report.source else { return Vec::new() };
    let mut reasons = Vec::new();
    if source.lag_seconds >= LAG_WATCH_SECONDS {
        let act = source.lag_seconds >= LAG_ACT_SECONDS;
        reasons.push(Reason {
            severity: if act { Severity::Act } else { Severity::Watch },
            kind: "late".into(),
            subject: "source".to_owned(),
            message: format!(
                "the log is {:.0} s ({} bytes of WAL) behind the database",
                source.lag_seconds, source.lag_bytes
            ),
            since: None,
            mend: Some("Nothing is lost: the slot keeps the WAL. Look at what is stuck; else at a long transaction or a bulk load at the source.".to_owned()),
        });
    }
    if let Some(limit) = source.slot_limit_bytes.filter(|limit| source.slot_retained_bytes > limit / 2) {
        reasons.push(Reason {
            severity: Severity::Act,
            kind: "late".into(),
            subject: "source".to_owned(),
            message: format!(
                "the slot retains {} bytes of WAL, more than half of max_slot_wal_keep_size ({limit} bytes); \
                 beyond it the server drops the WAL, and changes are lost",
                source.slot_retained_bytes
            ),
            since: None,
            mend: Some("Mend what is stuck, or raise max_slot_wal_keep_size for the time being.".to_owned()),
        });
    }
    reasons
}

fn log(report: &Report) -> Option<Reason> {
    let log = &report.log;
    let max = log.bytes_max.filter(|max| log.bytes > max / 10 * 9)?;
    Some(Reason {
        severity: Severity::Act,
        kind: "stuck".into(),
        subject: "log".to_owned(),
        message: format!("{} of {max} bytes are used; at the limit capture stops", log.bytes),
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
        for (name, state) in tables {
            if let DayTable::Failed { reason, mend } = state {
                reasons.push(unpublished(
                    day.ds,
                    format!("{name}: {reason}"),
                    "stuck",
                    day.cut,
                    mend.clone(),
                ));
            }
        }
        let seconds = report.time.as_second() - day.cut.as_second();
        if seconds > PUBLISH_SECONDS {
            let message = format!(
                "cut {} min ago and not published: {} of {} tables are there",
                seconds / 60,
                day.tables_published,
                day.tables
            );
            let mend = format!("Look at deliver and lake; /api/v1/days/{} tells each table.", day.ds);
            reasons.push(unpublished(day.ds, message, "late", day.cut, Some(mend)));
        }
    }
    reasons
}

fn unpublished(ds: Ds, message: String, kind: &'static str, cut: Timestamp, mend: Option<String>) -> Reason {
    let subject = format!("ds={ds}");
    Reason { severity: Severity::Act, kind: kind.into(), subject, message, since: Some(cut), mend }
}

fn table(name: &str, table: &TableReport) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if table.state == "failed" {
        reasons.push(Reason {
            severity: Severity::Act,
            kind: "stuck".into(),
            subject: name.to_owned(),
            message: table.reason.clone().unwrap_or_default(),
            since: Some(table.since),
            mend: table.mend.clone(),
        });
    }
    if table.dead_letters > 0 {
        let records = if table.dead_letters == 1 { "record" } else { "records" };
        reasons.push(Reason {
            severity: Severity::Watch,
            kind: "lost".into(),
            subject: name.to_owned(),
            message: format!(
                "{} {records} could not be processed and wait as dead letters",
                table.dead_letters
            ),
            since: None,
            mend: Some("`tidemark dead-letters list` shows them with the reasons.".to_owned()),
        });
    }
    reasons
}
