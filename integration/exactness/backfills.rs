//! Copies of tables under write load, killed again and again: the first one, and those that are asked for.
//!
//! Pieces are so small and snapshots so short-lived that a copy takes many of both. Whenever all copies have come to
//! their end, new ones are asked for. `BACKFILL_KILLS` sets how often something is killed.

use std::time::{Duration, Instant};

use rand::Rng;
use rustix::process::Signal;
use serde_json::Value as Json;
use tidemark::log::{RecordRef, SqliteLog, SqliteLogOptions};

use super::connector::{NAME, Process};
use super::{CATCH_UP, LATER, PATIENCE, Test, check_lake, check_log};
use crate::oracle::History;
use crate::oracle::copies::{self, CopiedRow};
use crate::oracle::source::{self, PUBLICATION, TABLES};
use crate::support::Stop;

/// What the connector's configuration needs.
pub fn settings() -> String {
    let pieces: Vec<String> =
        copies::SETTINGS.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    format!("[backfill]\nsnapshot_age_max_ms = 1_000\n{}", pieces.concat())
}

impl Test {
    /// One life of the program during copies, and its end.
    pub async fn copy_round(&mut self, round: u32) {
        let first = !self.streamed;
        let mut process = self.connector.start("run", 0);
        let life = Duration::from_millis(self.random.random_range(5..if first { 700 } else { 1500 }));
        if !first {
            self.until_streaming(&mut process).await;
            self.ask_for_copies(&process);
        }
        if self.random.random_ratio(1, 6) {
            source::swap_leaf(&self.server.connect().await).await;
        }
        if self.random.random_ratio(1, 3) {
            self.clock.set(self.clock.end_of(self.clock.today()));
        }
        tokio::time::sleep(life).await;
        let what = match self.random.random_range(0..10) {
            0 => {
                self.server.stop(Stop::Immediate);
                self.server.start_again().await;
                tokio::time::sleep(life).await;
                process.kill();
                "server crash and kill"
            }
            1 if !first => {
                process.signal(Signal::TERM);
                let status = process.wait(PATIENCE);
                assert!(status.success(), "round {round}: SIGTERM: {status}:\n{}", process.said());
                "terminate"
            }
            2 => {
                process.signal(Signal::STOP);
                tokio::time::sleep(life / 2).await;
                process.kill();
                "pause and kill"
            }
            _ => {
                process.kill();
                "kill"
            }
        };
        // Every third life at most is one of the first copy.
        self.streamed |= round >= 2;
        let copies = self.copies();
        eprintln!(
            "{:?}: round {round}: {what} after {life:?}; on their way: {}",
            self.began.elapsed(),
            copies.join(" ")
        );
    }

    /// Asks for a copy of some tables, unless some are on their way.
    fn ask_for_copies(&mut self, process: &Process) {
        if !self.copies().is_empty() {
            return;
        }
        let what = ["public.*", "public.items", "public.[pt]*", "public.{items,pairs,bag}"];
        let what = what[self.random.random_range(0..what.len())];
        let start = Instant::now();
        while let (false, said) = self.connector.run(&["backfill", what]) {
            // Capture was interrupted before it answered.
            let passes = said.contains("ask again") && start.elapsed() < PATIENCE;
            assert!(passes, "backfill {what}: {said}\n{}", process.said());
        }
    }

    /// Lets all copies come to their end; then the days are cut and published as ever.
    pub async fn copies_end(&mut self) {
        self.streamed = true;
        let mut process = self.connector.start("run", 0);
        self.until_streaming(&mut process).await;
        self.until_copied(&mut process).await;
        let today = self.clock.today().to_string();
        let (made, said) = self.connector.run(&["cut", "--ds", &today]);
        let made = made || said.contains(LATER);
        assert!(made || said.contains("cannot be cut"), "cut of {today}: {said}\n{}", process.said());
        let (published, said) = self.connector.run(&["wait", "--ds", &today, "--timeout", CATCH_UP]);
        let without = said.contains("is published without public.parts: ");
        assert!(published || without || !made, "wait for {today}: {said}\n{}", process.said());
        process.signal(Signal::TERM);
        assert!(process.wait(PATIENCE).success(), "{}", process.said());
    }

    /// Waits until no copy is on its way; each has to come on all the while, or to wait for the stream, which does.
    pub async fn until_copied(&self, process: &mut Process) {
        let sql = self.server.connect().await;
        let confirmed = format!(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{PUBLICATION}'"
        );
        let (mut copied, mut last) = (Instant::now(), Vec::new());
        let (mut streamed, mut position) = (Instant::now(), None);
        while !self.copies().is_empty() {
            assert!(process.ended().is_none(), "the process ended by itself:\n{}", process.said());
            // Not the changes, which come in any case.
            let read = |(table, state): (String, Json)| (table, state["progress"]["read"].as_u64());
            let states: Vec<_> = self.copy_states().into_iter().map(read).collect();
            if states != last {
                (copied, last) = (Instant::now(), states);
            }
            let slot = sql.query_opt(&confirmed, &[]).await.unwrap();
            let now = slot.and_then(|slot| slot.get::<_, Option<String>>(0));
            if now != position {
                (streamed, position) = (Instant::now(), now);
            }
            // The stream comes on under load in any case.
            let moves = copied.elapsed() < PATIENCE
                || (streamed.elapsed() < PATIENCE && copied.elapsed() < PATIENCE * 5);
            assert!(moves, "{last:?} did not move for {:?}:\n{}", copied.elapsed(), process.said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Everything beside the oracle.
    pub async fn compare_copies(&self) {
        let history = History::load(&self.server.connect().await).await;
        let log = check_log::check(&self.connector, &history).await;
        let mut copied = Vec::new();
        let held = SqliteLog::open(SqliteLogOptions::new(self.connector.log())).unwrap();
        for table in TABLES {
            let topic = format!("backfill-public.{}", table.name);
            let row = |offset, record: RecordRef<'_>| (offset, CopiedRow::of(table, &offset, &record));
            copied.push((table, check_log::read(&held, &topic, row).await));
        }
        let copied = copies::check(&history, NAME, &log.cuts, copied);
        check_lake::check(&self.connector, &history, &log, &self.clock);
        eprintln!(
            "{:?}: {} transactions; {} days and {} copies of {} rows at {} points are right, {} of them with several \
             points; {} rows were read again",
            self.began.elapsed(),
            history.transactions.len(),
            log.cuts.len(),
            copied.copies,
            copied.rows,
            copied.points,
            copied.several,
            copied.again
        );
        assert!(copied.copies > 0, "no copy came to its end");
        let last = log.cuts.last().unwrap();
        let lacking =
            last.tables.values().find_map(|table| table.lacking.as_ref().map(|why| (&table.name, why)));
        assert!(lacking.is_none(), "the last day: {lacking:?}");
    }

    /// Topics of tables whose copies are on their way.
    fn copies(&self) -> Vec<String> {
        let tables = self.copy_states().into_iter().filter(|(_, state)| state["wanted"] == true);
        tables.map(|(table, _)| table).collect()
    }

    /// What the log's state has of copies, by table.
    fn copy_states(&self) -> Vec<(String, Json)> {
        let Ok(log) = rusqlite::Connection::open(self.connector.log()) else { return Vec::new() };
        let Ok(mut state) = log.prepare("SELECT key, value FROM state WHERE key LIKE 'backfill/%'") else {
            return Vec::new();
        };
        let entry = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?));
        let entries = state.query_map([], entry).unwrap().map(Result::unwrap);
        let table = |key: &str| key.trim_start_matches(&format!("backfill/{NAME}.public.")).to_owned();
        entries.map(|(key, value)| (table(&key), serde_json::from_slice(&value).unwrap())).collect()
    }
}
