//! Copies on Kafka under write load, while the program and the broker are killed: what consumers see of them, and the day
//! that is made of them.

use std::time::{Duration, Instant};

use rand::Rng;

use super::campaign::{Campaign, PATIENCE, TOPICS};
use super::topics::{Consumer, Seen, Topics};
use crate::oracle::copies::{self, Copied, CopiedRow};
use crate::oracle::reader::Reader;
use crate::oracle::source::{TABLES, Table};
use crate::oracle::{History, Rows};
use crate::support::{Connector, NAME};

/// Small pieces. The first copy is one round; those that follow are many.
pub fn settings(connector: Connector) -> Connector {
    copies::SETTINGS.iter().fold(connector, |connector, (key, value)| connector.set("backfill", key, *value))
}

impl Campaign {
    /// Asks for copies, unless some are on their way.
    pub async fn ask_for_copies(&mut self) {
        for connector in &mut self.connectors {
            connector.change("backfill", "snapshot_age_max_ms", 1000);
        }
        self.ensure_streaming().await;
        if !self.copies().is_empty() {
            return;
        }
        let what = ["public.*", "public.items", "public.[pt]*", "public.{items,pairs,bag}"];
        let what = what[self.random.random_range(0..what.len())];
        // An append may be in doubt, after a fault that has only just ended.
        self.running().asks(&["backfill", what]);
    }

    /// Tables whose copies are on their way.
    fn copies(&mut self) -> Vec<String> {
        let health = self.running().health().1;
        let tables = health["tables"].as_object().unwrap();
        let on_their_way = tables.iter().filter(|(_, table)| table["backfill"]["done"] == false);
        on_their_way.map(|(name, _)| name.clone()).collect()
    }

    /// Lets all copies come to their end, and the traffic; then the day is the tables.
    pub async fn day_is_exact(&mut self) {
        self.ensure_streaming().await;
        let started = Instant::now();
        while !self.copies().is_empty() {
            let left = self.copies();
            assert!(started.elapsed() < PATIENCE, "{left:?}\n{}", self.running().output());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.quiet().await;
        let ds = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
        self.running().cut(&ds);
        let mut deliver = self.connectors[self.home].start("deliver");
        // After hundreds of rounds the largest table has half a million rows, of many copies.
        let started = Instant::now();
        while !self.connectors[self.home].day(&ds).exists() {
            assert!(started.elapsed() < PATIENCE * 5, "ds={ds} is not published\n{}", deliver.output());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let sql = self.server.connect().await;
        let mut reader = Reader::start();
        for table in TABLES {
            let folder = self.connectors[self.home].snapshot(table.name, &ds);
            let found = reader.rows(&folder, table.columns.iter().map(|column| (column.name, column.kind)));
            let mut rows = Rows::new();
            for row in sql.query(&table.rows_sql(), &[]).await.unwrap() {
                *rows.entry(row.get(0)).or_default() += 1;
            }
            let differs = rows.iter().find(|(row, count)| found.get(*row) != Some(*count));
            assert!(differs.is_none() && rows.len() == found.len(), "{}: {differs:?}", table.name);
        }
        assert!(deliver.terminate().await.success(), "{}", deliver.output());
    }

    /// The copies' topics, as a consumer sees them, beside the database.
    pub async fn compare_copies(&self) -> Copied {
        let topics = Consumer::start(&self.brokers.addresses(), TOPICS).finish();
        let history = History::load(&self.server.connect().await).await;
        let cuts = topics.cuts();
        let tables = TABLES.iter().map(|table| (table, rows(&topics, table))).collect();
        copies::check(&history, NAME, &cuts, tables)
    }
}

fn rows(topics: &Topics, table: &'static Table) -> Vec<(u64, CopiedRow)> {
    let name = format!("{NAME}.backfill-public.{}", table.name);
    if !topics.partitions.contains_key(&format!("{name}/0")) {
        return Vec::new();
    }
    let topic = topics.topic(&name);
    let row = |seen: &Seen<'_>| {
        (seen.offset as u64, CopiedRow::of(table, &format!("offset {}", seen.offset), &seen.record))
    };
    topic.seen().iter().map(row).collect()
}
