//! What a consumer has seen beside what the database says.
//!
//! * In each partition positions only grow, and each key stands in one partition: the order of a key is that of its
//!   partition.
//! * All partitions of a table together, by position, are exactly the changes of the oracle: none is missing, none is
//!   there twice, and each has the values it had.
//! * Applied one after the other they give the rows that the table holds.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Once;

use serde_json::Value as Json;
use tidemark::change::{Lsn, SchemaChange};
use tokio_postgres::Client;

use crate::oracle::checker::{Checker, point_of_row, shown};
use crate::oracle::source::{TABLES, Table};
use crate::oracle::{History, Row, Rows, State};
use crate::support::NAME;

use super::topics::{Seen, Topics};

/// A topic with no more records than this shows that the comparison can fail.
const FEW: usize = 100;

/// What was compared.
#[derive(Debug, Default)]
pub struct Compared {
    /// Transactions of the oracle.
    pub transactions: usize,
    /// Records of tables.
    pub records: usize,
    /// Records by partition of all tables.
    pub partitions: BTreeMap<String, u64>,
    /// Fields that were left out because their values did not change.
    pub unchanged: u64,
    /// Tables whose first copy is in their copies' topics, at least in part.
    pub parts: Vec<&'static str>,
    /// Writers that took over, and how many of them in the middle of a source transaction.
    pub writers: (u64, usize),
}

/// Compares everything. Panics at the first difference.
pub async fn check(topics: &Topics, sql: &Client) -> Compared {
    topics.assert_whole();
    let history = History::load(sql).await;
    let mut compared = Compared { transactions: history.transactions.len(), ..Compared::default() };
    let letters = topics.partitions.get(&format!("{NAME}.dead-letters/0")).map_or(0, |place| place.records);
    assert_eq!(letters, 0, "dead letters");
    let points = consistent_points(topics);
    for table in TABLES {
        let name = format!("{NAME}.public.{}", table.name);
        let topic = topics.topic(&name);
        let seen = topic.seen();
        let base = history.states_at(&[points[&name]]).remove(0);
        // TRUNCATE during the first copy, for one, leaves the table to a later one.
        let is_part = first_rows(&seen) < base[table.name].values().sum::<i64>()
            && topics.partitions.contains_key(&format!("{NAME}.backfill-public.{}/0", table.name));
        let oracle = Expected { table, history: &history, point: points[&name], base, is_part };
        let (ordered, unchanged) = oracle.compare(&seen);
        compared.unchanged += unchanged;
        compared.records += ordered.len();
        if is_part {
            compared.parts.push(table.name);
        } else {
            assert_rows(table, fold(table, &ordered), sql).await;
        }
        oracle.assert_it_notices(&seen);
        let places = topics.partitions.iter().filter(|(place, _)| place.starts_with(&format!("{name}/")));
        compared.partitions.extend(places.map(|(place, read)| (place.clone(), read.records)));
    }
    assert_cuts(topics);
    compared.writers = writers(topics);
    compared
}

/// What a topic has to hold.
struct Expected<'h> {
    table: &'static Table,
    history: &'h History,
    /// Where the table was copied.
    point: Lsn,
    /// What all tables held there.
    base: State,
    /// Some of its rows are in the topic of later copies.
    is_part: bool,
}

impl Expected<'_> {
    /// Panics at the first difference; gives the records in the order of the source, and how many fields were left out.
    fn compare<'t>(&self, seen: &[Seen<'t>]) -> (Vec<Seen<'t>>, u64) {
        assert_order(self.table, seen);
        let mut ordered = seen.to_vec();
        ordered.sort_by_key(|seen| (seen.position, seen.step));
        let mut checker =
            Checker::new(self.table, self.history, &self.base, self.point).in_part(self.is_part);
        for seen in &ordered {
            checker.take(&format!("{}/{}", seen.partition, seen.offset), &seen.record);
        }
        (ordered, checker.end())
    }

    /// That what was found right would have been found wrong with a record lost, doubled, or before its predecessor.
    fn assert_it_notices(&self, seen: &[Seen<'_>]) {
        let of_first = |s: &&Seen<'_>| s.partition == seen[0].partition;
        let pair: Vec<_> = seen.iter().filter(of_first).take(2).map(|seen| seen.offset).collect();
        // On a few records only: those of the smallest table.
        let [first, second] = pair[..] else { return };
        if seen.len() > FEW {
            return;
        }
        let at = |offset| seen.iter().position(|s| of_first(&s) && s.offset == offset).unwrap();
        let (first, second) = (at(first), at(second));
        let (mut lost, mut doubled, mut swapped) = (seen.to_vec(), seen.to_vec(), seen.to_vec());
        lost.remove(second);
        doubled.push(Seen { offset: i64::MAX, ..seen[second] });
        swapped[first] = Seen { offset: seen[first].offset, ..seen[second] };
        swapped[second] = Seen { offset: seen[second].offset, ..seen[first] };
        let noticed = [&lost, &doubled, &swapped].map(|wrong| panics(|| drop(self.compare(wrong))));
        assert_eq!(noticed, [true; 3], "{}: lost, doubled, swapped", self.table.name);
    }
}

/// Whether it panics, which is not said. What other tests panic with meanwhile is.
fn panics(work: impl FnOnce()) -> bool {
    static HOOKED: Once = Once::new();
    thread_local! {
        static EXPECTED: Cell<bool> = const { Cell::new(false) };
    }
    HOOKED.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !EXPECTED.get() {
                told(panic);
            }
        }));
    });
    EXPECTED.set(true);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
    EXPECTED.set(false);
    panicked
}

/// How many rows of the first copy there are.
fn first_rows(seen: &[Seen<'_>]) -> i64 {
    let is_copied = |seen: &&Seen<'_>| {
        let value = seen.record.value.map(|value| serde_json::from_slice::<Json>(value).unwrap());
        value.is_some_and(|value| value["op"] == "r")
    };
    seen.iter().filter(is_copied).count() as i64
}

/// The point at which each table was copied, by topic.
fn consistent_points(topics: &Topics) -> BTreeMap<String, Lsn> {
    let ddl = topics.topic(&format!("{NAME}.ddl"));
    let points = ddl.entries().map(|(_, value)| {
        let change: SchemaChange = serde_json::from_slice(value.unwrap()).unwrap();
        assert!(change.before.is_none(), "a change of schema that nobody made: {change:?}");
        (change.topic, Lsn(change.position.commit_lsn.0 + 1))
    });
    let points: Vec<_> = points.collect();
    assert_eq!(points.len(), TABLES.len(), "schemas: {points:?}");
    let mut points: BTreeMap<String, Lsn> = points.into_iter().collect();
    let mut of_rows = Lsn(0);
    for topic in points.keys().map(|name| topics.topic(name)) {
        let rows = topic.seen().into_iter().filter_map(|seen| point_of_row(&seen.record));
        of_rows = rows.fold(of_rows, Lsn::max);
    }
    for point in points.values_mut() {
        *point = of_rows.max(*point);
    }
    points
}

/// Within a partition, and between partitions.
fn assert_order(table: &Table, seen: &[Seen<'_>]) {
    let mut last: HashMap<u32, &Seen<'_>> = HashMap::new();
    let mut homes: HashMap<&[u8], u32> = HashMap::new();
    for seen in seen {
        let place =
            || format!("{} {}/{} position {}", table.name, seen.partition, seen.offset, seen.position);
        if let Some(last) = last.insert(seen.partition, seen) {
            assert!(seen.offset > last.offset, "{}: read after offset {}", place(), last.offset);
            let grows = (seen.position, seen.step) > (last.position, last.step);
            assert!(
                grows,
                "{}: out of order after offset {} position {}",
                place(),
                last.offset,
                last.position
            );
        }
        if let Some(key) = seen.record.key {
            let home = *homes.entry(key).or_insert(seen.partition);
            let key = String::from_utf8_lossy(key);
            assert_eq!(home, seen.partition, "{}: key {key} has moved to another partition", place());
        }
    }
}

/// The rows which the records of a table lead to.
fn fold(table: &Table, seen: &[Seen<'_>]) -> Rows {
    let mut rows = Rows::new();
    let mut by_key: HashMap<Vec<u8>, Row> = HashMap::new();
    // The row under its former key, for values which a change of the key left alone.
    let mut moving: Option<Row> = None;
    for seen in seen {
        let Some(value) = seen.record.value else { continue };
        let value: Json = serde_json::from_slice(value).unwrap();
        let key = seen.record.key.unwrap_or_default().to_vec();
        match value["op"].as_str().unwrap() {
            "t" => (rows, by_key) = (Rows::new(), HashMap::new()),
            "d" if table.key.is_empty() => take(&mut rows, &row(table, &value["before"], None)),
            "d" => moving = by_key.remove(&key),
            "u" if table.key.is_empty() => {
                take(&mut rows, &row(table, &value["before"], None));
                *rows.entry(row(table, &value["after"], None)).or_default() += 1;
            }
            _ if table.key.is_empty() => *rows.entry(row(table, &value["after"], None)).or_default() += 1,
            _ => {
                let moved = seen.record.header("__debezium.oldkey").and(moving.take());
                let before = moved.or_else(|| by_key.get(&key).cloned());
                by_key.insert(key, row(table, &value["after"], before.as_ref()));
            }
        }
    }
    for (_, row) in by_key {
        *rows.entry(row).or_default() += 1;
    }
    rows
}

fn take(rows: &mut Rows, row: &Row) {
    let count = rows.get_mut(row).unwrap_or_else(|| panic!("a row ends that was not there: {row:?}"));
    *count -= 1;
    if *count == 0 {
        rows.remove(row);
    }
}

/// A row as the oracle shows it; what is missing is as it was before.
fn row(table: &Table, fields: &Json, before: Option<&Row>) -> Row {
    let value = |(at, column): (usize, &crate::oracle::source::Column)| match fields.get(column.name) {
        Some(value) => shown(column, value),
        None => {
            before.unwrap_or_else(|| panic!("{}.{} was never there", table.name, column.name))[at].clone()
        }
    };
    table.columns.iter().enumerate().map(value).collect()
}

async fn assert_rows(table: &Table, folded: Rows, sql: &Client) {
    let mut rows = Rows::new();
    for row in sql.query(&table.rows_sql(), &[]).await.unwrap() {
        *rows.entry(row.get(0)).or_default() += 1;
    }
    let missing: Vec<_> =
        rows.iter().filter(|(row, count)| folded.get(*row) != Some(*count)).take(3).collect();
    let extra: Vec<_> = folded.iter().filter(|(row, count)| rows.get(*row) != Some(*count)).take(3).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{}: {} rows, and its topic leads to {}; missing {missing:?}, too many {extra:?}",
        table.name,
        rows.len(),
        folded.len()
    );
}

/// One record a day, in order.
fn assert_cuts(topics: &Topics) {
    let cuts = topics.cuts();
    let follow = cuts.windows(2).all(|pair| pair[0].ds < pair[1].ds && pair[0].lsn <= pair[1].lsn);
    assert!(follow, "cuts: {cuts:?}");
}

/// How many writers there were, by the state topic, and how many went on from within a source transaction.
fn writers(topics: &Topics) -> (u64, usize) {
    let state = topics.topic(&format!("{NAME}.state"));
    let (mut epoch, mut within, mut inside) = (0, 0, false);
    for (key, value) in state.entries() {
        let Some(value) = value.and_then(|value| serde_json::from_slice::<Json>(value).ok()) else {
            continue;
        };
        match key {
            "writer" => {
                let next = value["epoch"].as_u64().unwrap();
                assert!(next >= epoch, "epoch {next} after {epoch}");
                within += usize::from(next > epoch && inside);
                epoch = next;
            }
            "s/stream" => {
                let lsn = |text: &Json| text.as_str().unwrap().parse::<Lsn>().unwrap();
                let position: tidemark::change::Position =
                    serde_json::from_value(value["position"].clone()).unwrap();
                inside = position.commit_lsn >= lsn(&value["flush_lsn"]);
            }
            _ => {}
        }
    }
    (epoch, within)
}
