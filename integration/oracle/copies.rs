//! Later copies beside the database: every row of a copy stands just below a point at which the table held it, a copy that
//! a cut tells of has as many rows as it says, and little is read again.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;

use serde_json::Value as Json;
use tidemark::change::{BACKFILL_PARTITION, Cut, CutBackfill, Lsn};
use tidemark::log::RecordRef;

use super::checker::{position, whole_row};
use super::source::Table;
use super::{History, Row, State};

/// Readers at once.
const CONNECTIONS: u64 = 3;
/// Bytes of a piece.
const CHUNK_BYTES: u64 = 65_536;

/// What the connector is told of pieces.
pub const SETTINGS: [(&str, u64); 2] = [("connections", CONNECTIONS), ("chunk_bytes", CHUNK_BYTES)];

/// What was found.
#[derive(Debug, Default)]
pub struct Copied {
    /// Copies that a cut tells of.
    pub copies: usize,
    /// Their rows.
    pub rows: u64,
    /// Points of all copies.
    pub points: usize,
    /// Copies with several points.
    pub several: usize,
    /// Rows that a copy has more than once.
    pub again: u64,
}

/// A row of a copy.
pub struct CopiedRow {
    table: &'static Table,
    /// What commits below it is in the row.
    point: Lsn,
    ordinal: u64,
    row: Row,
}

impl CopiedRow {
    /// Of a record of a copies' topic.
    pub fn of(table: &'static Table, place: &dyn Display, record: &RecordRef<'_>) -> Self {
        let value: Json = serde_json::from_slice(record.value.unwrap()).unwrap();
        let position = position(record);
        let at = || format!("copy of {} {place} position {position}", table.name);
        assert_eq!(value["op"], "r", "{}", at());
        Self {
            table,
            point: Lsn(position.commit_lsn.0 + 1),
            ordinal: position.ordinal,
            row: whole_row(table, &at, &value["after"]),
        }
    }

    /// What it takes in the table, about: the texts of its values, and the row's header with its place in the page.
    fn bytes(&self) -> u64 {
        28 + self.row.iter().flatten().map(|value| value.len() as u64).sum::<u64>()
    }
}

/// Compares every row of the copies' topics, by offset, with what its table held at its point, and the copies that cuts tell
/// of with what they say. Panics at the first difference.
pub fn check(
    history: &History,
    name: &str,
    cuts: &[Cut],
    tables: Vec<(&'static Table, Vec<(u64, CopiedRow)>)>,
) -> Copied {
    let mut found = Copied::default();
    let mut all: BTreeMap<Lsn, Vec<CopiedRow>> = BTreeMap::new();
    for (table, rows) in tables {
        for cut in cuts {
            let of_table = cut.tables.get(&format!("{name}.public.{}", table.name));
            if let Some(copy) = of_table.and_then(|of_table| of_table.backfill.as_ref()) {
                whole(&mut found, table, copy, &rows);
            }
        }
        for (_, row) in rows {
            all.entry(row.point).or_default().push(row);
        }
    }
    found.points = all.len();
    let points: Vec<Lsn> = all.keys().copied().collect();
    history.each_state(&points, |point, state| held(&all[&point], state));
    found
}

/// What one copy has: as many rows as the cut says, each in its place, and few of them twice.
fn whole(found: &mut Copied, table: &Table, copy: &CutBackfill, rows: &[(u64, CopiedRow)]) {
    let at = format!("copy of {} at {}", table.name, copy.position);
    let offsets = copy.from_of(BACKFILL_PARTITION)..copy.end;
    let rows: Vec<&CopiedRow> =
        rows.iter().filter(|(offset, _)| offsets.contains(offset)).map(|(_, row)| row).collect();
    assert_eq!(rows.len() as u64, copy.rows, "{at}: rows");
    let first = Lsn(copy.position.commit_lsn.0 + 1);
    let last = Lsn(copy.settled().commit_lsn.0 + 1);
    // Those from before it began anew do not count.
    let rows = &rows[rows.partition_point(|row| row.point < first)..];
    let mut points: Vec<Lsn> = rows.iter().map(|row| row.point).collect();
    assert!(points.is_sorted() && rows.is_sorted_by_key(|row| row.ordinal), "{at}: the order of its rows");
    points.dedup();
    assert!(points.iter().all(|point| (first..=last).contains(point)), "{at}: {points:?}, {first} to {last}");
    assert!(points.len() < 2 || !table.key.is_empty(), "{at}: rows without a key at {points:?}");
    found.copies += 1;
    found.rows += copy.rows;
    found.several += usize::from(points.len() > 1);
    if table.key.is_empty() {
        return;
    }
    let mut seen: HashSet<Vec<_>> = HashSet::new();
    let key = |row: &Row| table.key_columns().iter().map(|column| row[*column].clone()).collect();
    let again: Vec<_> = rows.iter().filter(|row| !seen.insert(key(&row.row))).collect();
    found.again += again.len() as u64;
    // Each round may end in the midst of the pieces that are being read; a value may be longer as a text than it is stored,
    // and rows that moved are read once more.
    let bytes: u64 = again.iter().map(|row| row.bytes()).sum();
    let limit = 3 * CHUNK_BYTES * CONNECTIONS * (points.len() as u64).saturating_sub(1).max(1);
    assert!(bytes <= limit, "{at}: {} rows of {bytes} bytes were read again, at {points:?}", again.len());
}

/// The table held each of these rows at the point.
fn held(rows: &[CopiedRow], state: &State) {
    for CopiedRow { table, point, ordinal, row, .. } in rows {
        assert!(
            state[table.name].contains_key(row),
            "{}: the table did not hold copied row {ordinal} at {point}: {row:?}",
            table.name
        );
    }
}
