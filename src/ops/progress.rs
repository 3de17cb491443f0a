//! How far backfills are: a line in place on a terminal, a log line now and then elsewhere.

use std::collections::HashMap;
use std::time::Duration;

use super::table::{Backfill, TableState};
use super::{Ops, Terminal, human, now_ms};
use crate::change::TableName;
use crate::runtime::Shutdown;

const PAUSE_TERMINAL: Duration = Duration::from_millis(250);
const PAUSE_LOG: Duration = Duration::from_secs(10);

/// Shows the backfills that run until the flag is up. Cancel-safe.
pub async fn show_backfill(ops: Ops, terminal: Terminal, shutdown: Shutdown) {
    let pause = if terminal.is_terminal() { PAUSE_TERMINAL } else { PAUSE_LOG };
    let mut rates = HashMap::new();
    loop {
        tokio::select! {
            () = shutdown.raised() => break,
            () = tokio::time::sleep(pause) => {}
        }
        let now = now_ms();
        let running = running(&ops);
        rates.retain(|name, _| running.iter().any(|(running, _)| running == name));
        let lines: Vec<_> = running
            .iter()
            .map(|(name, backfill)| {
                let rate: &mut Rate = rates.entry(name.clone()).or_default();
                rate.add(backfill.rows, now);
                line(name, backfill, rate.per_second)
            })
            .collect();
        if terminal.is_terminal() {
            terminal.set_line(&one_line(&lines));
        } else {
            for line in &lines {
                tracing::info!("{line}");
            }
        }
    }
    terminal.set_line("");
}

fn running(ops: &Ops) -> Vec<(TableName, Backfill)> {
    let tables = ops.tables().into_iter();
    let tables = tables.filter(|(_, stats)| stats.state().0 == TableState::Backfilling);
    let tables = tables.map(|(name, stats)| (name, stats.backfill()));
    // A table whose turn has not come has no rows yet.
    tables.filter(|(_, backfill)| backfill.started_ms != 0 && backfill.ended_ms == 0).collect()
}

/// Rows a second, smoothed over some seconds.
#[derive(Debug, Default)]
struct Rate {
    rows: u64,
    at_ms: i64,
    per_second: f64,
}

impl Rate {
    fn add(&mut self, rows: u64, now_ms: i64) {
        let seconds = (now_ms - self.at_ms).max(1) as f64 / 1000.0;
        if self.at_ms != 0 {
            let now = rows.saturating_sub(self.rows) as f64 / seconds;
            let weight = (seconds / 5.0).min(1.0);
            let first = self.per_second == 0.0;
            self.per_second = if first { now } else { self.per_second * (1.0 - weight) + now * weight };
        }
        (self.rows, self.at_ms) = (rows, now_ms);
    }
}

/// `backfill public.orders  45%  1,234,567 rows (1.2 GiB)  85,000 rows/s  1 min 20 s left`.
fn line(name: &TableName, backfill: &Backfill, per_second: f64) -> String {
    let estimated = backfill.rows_estimated;
    let mut parts = vec![format!("backfill {name}")];
    if let Some(percent) = (backfill.rows * 100).checked_div(estimated) {
        parts.push(format!("{:2}%", percent.min(99)));
    }
    parts.push(format!("{} rows ({})", human::count(backfill.rows), human::bytes(backfill.bytes)));
    if per_second >= 1.0 {
        parts.push(format!("{} rows/s", human::count(per_second as u64)));
        let left = estimated.saturating_sub(backfill.rows);
        if left > 0 {
            parts.push(format!("{} left", human::duration(left as f64 / per_second)));
        }
    }
    parts.join("  ")
}

/// All that fits on a terminal's line: the first backfill, and how many more there are.
fn one_line(lines: &[String]) -> String {
    let width = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(100_usize);
    let text = match lines {
        [] => String::new(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first}  and {} more", rest.len()),
    };
    text.chars().take(width.saturating_sub(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_table_rows_rate_and_time_left() {
        let backfill = Backfill {
            copying: true,
            rows: 450_000,
            rows_before: 0,
            bytes: 3 << 20,
            rows_estimated: 1_000_000,
            started_ms: 1,
            ended_ms: 0,
        };
        let name = TableName::new("public", "orders");
        assert_eq!(
            line(&name, &backfill, 50_000.0),
            "backfill public.orders  45%  450,000 rows (3.0 MiB)  50,000 rows/s  11 s left"
        );
        let more = Backfill { rows: 2_000_000, ..backfill };
        assert!(line(&name, &more, 0.0).contains("99%"), "an estimate that is passed does not end the work");
        let unknown = Backfill { rows_estimated: 0, ..backfill };
        assert_eq!(line(&name, &unknown, 0.0), "backfill public.orders  450,000 rows (3.0 MiB)");
    }

    #[test]
    fn a_rate_follows_the_last_seconds() {
        let mut rate = Rate::default();
        for second in 0..20 {
            rate.add(second * 1000, 1 + second as i64 * 1000);
        }
        assert!((rate.per_second - 1000.0).abs() < 1.0, "{}", rate.per_second);
    }
}
