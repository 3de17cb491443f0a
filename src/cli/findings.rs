//! What `check` and `verify` found: a line each.

use std::fmt::Write;

use serde::Serialize;

use super::output::{columns, print, print_json};
use super::{Outcome, Style};
use crate::runtime::Result;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// It is as it should be.
    Ok,
    /// It works, and could be better.
    Warn,
    /// It does not work.
    Fail,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it went.
    pub level: Level,
    /// What was checked: a setting, a right, a table, a folder.
    pub subject: String,
    /// What was found, and what was expected where it differs.
    pub message: String,
    /// What the operator can do; several lines where it is SQL.
    pub mend: Option<String>,
}

/// Prints findings and gives `Failed` if there is a failure among them.
///
/// # Errors
/// Class `Operator` when stdout cannot be written.
pub fn print_findings(findings: &[Finding], json: bool) -> Result<Outcome> {
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    if json {
        #[derive(Serialize)]
        struct Findings<'a> {
            ok: bool,
            findings: &'a [Finding],
        }
        print_json(&Findings { ok: !failed, findings })?;
    } else {
        print(&render(findings, Style::stdout()))?;
    }
    Ok(if failed { Outcome::Failed } else { Outcome::Done })
}

fn render(findings: &[Finding], style: Style) -> String {
    let cells = |finding: &Finding| {
        let message = finding.message.replace('\n', " ");
        vec![finding.level.as_str().to_owned(), finding.subject.clone(), message]
    };
    let rows: Vec<_> = findings.iter().map(cells).collect();
    let table = columns(&rows, &[false; 3], |row, column, text| match (column, findings[row].level) {
        (0, Level::Ok) => style.good(text),
        (0, Level::Warn) => style.warning(text),
        (0, Level::Fail) => style.bad(text),
        _ => text.to_owned(),
    });
    let mut out = String::new();
    for (line, finding) in table.lines().zip(findings) {
        out += line;
        out.push('\n');
        if let Some(mend) = &finding.mend {
            let _ = writeln!(out, "      → {}", mend.trim_end().replace('\n', "\n        "));
        }
    }
    let number = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (warnings, failures) = (number(Level::Warn), number(Level::Fail));
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let _ = writeln!(
        out,
        "\n{} ok, {}, {}",
        number(Level::Ok),
        plural(warnings, "warning"),
        plural(failures, "failure")
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_a_line_each_with_their_mends_below() {
        let finding = |level, subject: &str, message: &str, mend: Option<&str>| Finding {
            level,
            subject: subject.into(),
            message: message.into(),
            mend: mend.map(str::to_owned),
        };
        let findings = [
            finding(Level::Ok, "wal_level", "logical", None),
            finding(Level::Warn, "max_slot_wal_keep_size", "-1: no limit", Some("Set one.")),
            finding(Level::Fail, "public.audit", "no identity", Some("Run:\nALTER TABLE …;")),
        ];
        let expected = "\
ok    wal_level               logical
warn  max_slot_wal_keep_size  -1: no limit
      → Set one.
fail  public.audit            no identity
      → Run:
        ALTER TABLE …;

1 ok, 1 warning, 1 failure
";
        assert_eq!(render(&findings, Style::plain()), expected);
    }
}
