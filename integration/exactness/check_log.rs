//! The log beside the oracle: each change once, in commit order, with the values the database had.

use std::collections::BTreeMap;

use tidemark::change::{Cut, Lsn, SchemaChange};
use tidemark::log::{Log, LogPartition, RecordRef, SqliteLog, SqliteLogOptions};

use super::connector::{Connector, NAME};
use crate::oracle::History;
use crate::oracle::checker::{Checker, Entry, point_of_row};
use crate::oracle::source::TABLES;

/// What a log holds.
pub struct CheckedLog {
    /// The cuts, in order.
    pub cuts: Vec<Cut>,
    /// The first consistent point of the backfill: what commits from there on is streamed.
    pub first_point: Lsn,
    /// The last consistent point of the backfill: from there on all tables are whole.
    pub whole_from: Lsn,
    /// Records by table's name and offset: where each stands.
    pub records: BTreeMap<&'static str, Vec<Entry>>,
    /// Fields left out because their values did not change.
    pub unchanged: u64,
}

/// Reads the whole log and compares it with the oracle. Panics at the first difference.
pub async fn check(connector: &Connector, history: &History) -> CheckedLog {
    let log = SqliteLog::open(SqliteLogOptions::new(connector.log())).unwrap();
    let cuts: Vec<Cut> =
        read(&log, "cuts", |_, record| serde_json::from_slice(record.value.unwrap()).unwrap()).await;
    let dead =
        read(&log, "dead-letters", |_, record| String::from_utf8_lossy(record.value.unwrap()).into_owned())
            .await;
    assert!(dead.is_empty(), "dead letters: {:?}", &dead[..dead.len().min(3)]);
    let points = consistent_points(&log, connector).await;
    let whole_from = *points.values().max().unwrap();
    let first_point = *points.values().min().unwrap();
    let mut checked = CheckedLog { cuts, first_point, whole_from, records: BTreeMap::new(), unchanged: 0 };
    for table in TABLES {
        let topic = format!("public.{}", table.name);
        let point = points[&format!("{NAME}.{topic}")];
        let base = history.states_at(&[point]).remove(0);
        let copies = format!("{NAME}.backfill-{topic}");
        let has_rows = log.ranges().await.unwrap().keys().any(|partition| *partition.topic == *copies);
        // A table that had been emptied by the time of its later copy has no rows beside, but cuts tell of the copy.
        let is_told =
            |cut: &Cut| cut.tables.get(&format!("{NAME}.{topic}")).is_some_and(|t| t.backfill.is_some());
        let is_part = has_rows || checked.cuts.iter().any(is_told);
        let mut checker = Checker::new(table, history, &base, point).in_part(is_part);
        let entries = read(&log, &topic, |offset, record| checker.take(&offset, &record)).await;
        checked.unchanged += checker.end();
        checked.records.insert(table.name, entries);
    }
    checked
}

/// The point at which each table was copied first, by topic.
async fn consistent_points(log: &SqliteLog, connector: &Connector) -> BTreeMap<String, Lsn> {
    let changes: Vec<SchemaChange> =
        read(log, "ddl", |_, record| serde_json::from_slice(record.value.unwrap()).unwrap()).await;
    let points = changes.into_iter().map(|change| {
        assert!(change.before.is_none(), "a change of schema that nobody made: {change:?}");
        (change.topic, Lsn(change.position.commit_lsn.0 + 1))
    });
    let mut points: BTreeMap<String, Lsn> = points.collect();
    assert_eq!(points.len(), TABLES.len(), "tables copied: {points:?}");
    // A first copy that was broken off before its first row begins anew, and leaves the stream before a row, too, where none
    // was read in time: then only the stream tells of the later point.
    let mut of_rows = connector.first_streamed_from().unwrap();
    for table in TABLES {
        let rows = read(log, &format!("public.{}", table.name), |_, record| point_of_row(&record)).await;
        of_rows = rows.into_iter().flatten().fold(of_rows, Lsn::max);
    }
    for point in points.values_mut() {
        *point = of_rows.max(*point);
    }
    points
}

/// Every record of a topic, in order, without a gap.
pub async fn read<T>(log: &SqliteLog, topic: &str, mut take: impl FnMut(u64, RecordRef<'_>) -> T) -> Vec<T> {
    let topic = format!("{NAME}.{topic}");
    let mut taken = Vec::new();
    let ranges = log.ranges().await.unwrap();
    let partitions: Vec<&LogPartition> = ranges.keys().filter(|p| *p.topic == *topic).collect();
    assert!(partitions.len() <= 1, "the embedded log has one log partition a topic");
    for partition in partitions {
        let range = ranges[partition];
        assert_eq!(range.start, 0, "{partition} was trimmed");
        let mut next = 0;
        while next < range.end {
            let fetched = log.read(partition, next, 4 << 20).await.unwrap();
            for (offset, record) in fetched.iter() {
                assert_eq!(offset, taken.len() as u64, "{partition}: a gap in the offsets");
                taken.push(take(offset, record));
            }
            assert!(fetched.next > next, "{partition}: reading stands still at {next}");
            next = fetched.next;
        }
    }
    taken
}
