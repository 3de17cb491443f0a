//! Random histories of a table, and what the table holds at each cut.

mod copies;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use tidemark::change::{
    Column, ColumnType, Cut, CutTable, Datum, Ds, LogEnd, Lsn, Op, Position, ReplicaIdentity, SchemaVersion,
    TableName, TableSchema,
};

use super::alter::{alter, converted, value};
use copies::Copies;

pub type Row = Vec<Datum<'static>>;

/// A record of the log.
#[derive(Clone, Debug)]
pub struct Logged {
    pub offset: u64,
    /// None: a tombstone.
    pub change: Option<Change>,
}

#[derive(Clone, Debug)]
pub struct Change {
    pub position: Position,
    pub op: Op,
    pub commit_us: i64,
    pub schema: Arc<TableSchema>,
    pub old_key: Option<String>,
    pub before: Option<Row>,
    pub row: Row,
}

/// A day: its cut, the shape at it, and the rows that the table must have.
#[derive(Clone, Debug)]
pub struct Day {
    pub cut: Cut,
    pub schema: Arc<TableSchema>,
    pub rows: Vec<Row>,
}

impl Day {
    /// Whether the table is in it.
    pub fn is_there(&self) -> bool {
        self.cut.tables[TOPIC].lacking.is_none()
    }
}

/// A table's log, its days, and all shapes it had.
#[derive(Clone, Debug)]
pub struct History {
    pub partitions: Vec<Vec<Logged>>,
    /// Rows of copies.
    pub copies: Vec<Logged>,
    pub days: Vec<Day>,
    pub versions: Vec<Arc<TableSchema>>,
}

pub const TOPIC: &str = "shop.public.t";

/// What to make.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is on or off by itself")]
pub struct Shape {
    pub seed: u64,
    pub keyed: bool,
    pub partitions: usize,
    pub days: usize,
    pub changes_per_day: usize,
    pub truncates: bool,
    pub evolve: bool,
    /// From the second day on there are values that their columns' types lack, also in the key.
    pub beyond: bool,
    /// The table is copied, at first and again.
    pub copies: bool,
    /// From the second day on there are few changes a day, or none.
    pub quiet: bool,
    /// What makes a whole day of a table with a historic tail (truncates, changes of shape, copies, values left behind by a
    /// change of key) comes on few days only.
    pub calm: bool,
}

fn column(name: &str, column_type: ColumnType, nullable: bool) -> Column {
    Column::new(name, column_type, "", nullable)
}

/// The last timestamp of Postgres, 294276-12-31 23:59:59.999999.
pub const LAST_INSTANT: i128 = 9_224_318_015_999_999_999;

/// Whether values of a column may be unchanged TOAST values: text and arrays, in the key not.
pub fn may_be_toast(schema: &TableSchema, index: usize) -> bool {
    let column = &schema.columns[index];
    let long = matches!(column.column_type, ColumnType::Text { .. } | ColumnType::Array { .. });
    long && !column.dropped && !schema.key.contains(&index)
}

pub fn table(keyed: bool) -> TableSchema {
    let mut columns = vec![
        column("id", ColumnType::Int32, false),
        column("code", ColumnType::TEXT, false),
        column("n", ColumnType::Int64, true),
        column("amount", ColumnType::Decimal { precision: 12, scale: 2 }, true),
        column("note", ColumnType::TEXT, true),
        column("tags", ColumnType::Array { element: Box::new(ColumnType::Int32) }, true),
        column("f", ColumnType::Float64, true),
        column("at", ColumnType::TimestampTz { precision: 0 }, true),
    ];
    for (column, number) in columns.iter_mut().zip(1..) {
        column.number = number;
    }
    TableSchema {
        name: TableName::new("public", "t"),
        oid: 1,
        version: SchemaVersion(1),
        columns,
        key: if keyed { vec![0, 1] } else { Vec::new() },
        identity: if keyed { ReplicaIdentity::Default } else { ReplicaIdentity::Full },
        comment: None,
        dropped: false,
    }
}

struct Maker {
    random: StdRng,
    shape: Shape,
    schema: Arc<TableSchema>,
    versions: Vec<Arc<TableSchema>>,
    /// The last `pg_attribute.attnum` given.
    number: i16,
    /// Keyed: by key. Else: by number.
    rows: BTreeMap<(i64, String), Row>,
    partitions: Vec<Vec<Logged>>,
    next: Vec<u64>,
    position: Position,
    commit_us: i64,
    changes: u64,
    unique: u64,
    today: usize,
    /// See [`Shape::calm`].
    calm: bool,
    copies: Copies,
}

/// Makes a history; the same seed gives the same one.
pub fn history(shape: Shape) -> History {
    let start: Timestamp = "2026-11-19T20:00:00Z".parse().unwrap();
    let mut schema = table(shape.keyed);
    if shape.beyond {
        schema.columns[1].column_type = ColumnType::Array { element: Box::new(ColumnType::TEXT) };
    }
    let schema = Arc::new(schema);
    let mut maker = Maker {
        random: StdRng::seed_from_u64(shape.seed),
        shape,
        versions: vec![Arc::clone(&schema)],
        number: schema.columns.len() as i16,
        schema,
        rows: BTreeMap::new(),
        partitions: vec![Vec::new(); shape.partitions],
        next: vec![0; shape.partitions],
        position: Position { timeline: 1, commit_lsn: Lsn(1000), ordinal: 0 },
        commit_us: start.as_microsecond(),
        changes: 0,
        unique: 0,
        today: 0,
        calm: false,
        copies: Copies::default(),
    };
    if shape.copies {
        maker.first_copy();
    }
    let days = (0..shape.days).map(|day| maker.day(day)).collect();
    let (partitions, copies) = (maker.partitions, maker.copies.log);
    History { partitions, copies, days, versions: maker.versions }
}

impl Maker {
    fn day(&mut self, day: usize) -> Day {
        self.today = day;
        self.calm = self.shape.calm && !self.random.random_ratio(1, 6);
        let ds: Ds = "2026-11-20".parse().unwrap();
        let ds = ds.saturating_add(jiff::Span::new().days(day as i64));
        let count = match day {
            3 => 0,
            1.. if self.shape.quiet => self.random.random_range(0..5),
            _ => self.shape.changes_per_day,
        };
        for step in 0..count {
            if self.random.random_ratio(1, 3) || step == 0 {
                self.commit();
            }
            if self.shape.evolve && !self.calm && self.random.random_ratio(4, count.max(20) as u32) {
                self.evolve();
            }
            self.position.ordinal += 1;
            self.step();
        }
        if self.shape.evolve && !self.calm && self.random.random() {
            self.evolve();
        }
        let at = format!("{ds}T20:00:00Z");
        let at: Timestamp = at.parse().unwrap();
        self.commit_us = at.as_microsecond();
        let ends = self.next.iter().enumerate().map(|(p, end)| LogEnd { partition: p as u32, end: *end });
        let ends = ends.chain(self.shape.copies.then(|| self.copies_end())).collect();
        let backfill = self.told();
        let table = CutTable {
            name: self.schema.name.clone(),
            schema_version: self.schema.version,
            changes: std::mem::take(&mut self.changes),
            dead_letters: 0,
            ends,
            backfill,
            lacking: self.lacking(),
            backfill_where: None,
        };
        let cut = Cut {
            ds,
            timeline: self.position.timeline,
            lsn: Lsn(self.position.commit_lsn.0 + 8),
            position: self.position,
            reason: "midnight".to_owned(),
            at,
            time_zone: "Asia/Dubai".to_owned(),
            tables: [(TOPIC.to_owned(), table)].into(),
        };
        Day { cut, schema: Arc::clone(&self.schema), rows: self.rows.values().cloned().collect() }
    }

    fn commit(&mut self) {
        if self.shape.copies {
            self.copy();
        }
        self.position.commit_lsn = Lsn(self.position.commit_lsn.0 + 8 * self.random.random_range(1..100));
        self.position.ordinal = 0;
        // Commit times of neighbours jitter.
        self.commit_us += self.random.random_range(-2_000_000..40_000_000);
        for next in &mut self.next {
            *next += self.random.random_range(0..2);
        }
    }

    fn step(&mut self) {
        let truncate = self.shape.truncates && !self.calm && self.random.random_ratio(1, 200);
        if truncate {
            self.rows.clear();
            self.truncated();
            self.log(0, Op::Truncate, None, None, Vec::new());
            return;
        }
        match (self.shape.keyed, self.random.random_range(0..10)) {
            (true, 0..4) => self.insert(),
            (true, 4..7) => self.update(),
            (true, 7) => self.delete(),
            (true, _) => self.move_key(),
            (false, 0..5) => self.insert_any(),
            (false, 5..8) => self.update_any(),
            (false, _) => self.delete_any(),
        }
    }

    fn log(&mut self, partition: usize, op: Op, old_key: Option<String>, before: Option<Row>, row: Row) {
        let change = Change {
            position: self.position,
            op,
            commit_us: self.commit_us,
            schema: Arc::clone(&self.schema),
            old_key,
            before,
            row,
        };
        self.count();
        self.record(partition, Some(change));
    }

    fn count(&mut self) {
        self.changes += 1;
        self.copies.changes += 1;
    }

    fn record(&mut self, partition: usize, change: Option<Change>) {
        let offset = self.next[partition];
        self.next[partition] += 1;
        self.partitions[partition].push(Logged { offset, change });
    }

    fn partition_of(&self, key: &(i64, String)) -> usize {
        (key.0.unsigned_abs() as usize + key.1.len()) % self.shape.partitions
    }

    fn some_key(&mut self) -> Option<(i64, String)> {
        self.rows.keys().choose(&mut self.random).cloned()
    }

    fn free_key(&mut self) -> (i64, String) {
        loop {
            let mut length = self.random.random_range(0..4);
            if self.shape.beyond && self.today == 0 {
                length &= !1;
            }
            let key = (self.random.random_range(-40..40), "x".repeat(length));
            if !self.rows.contains_key(&key) {
                return key;
            }
            self.unique += 1;
            if self.unique.is_multiple_of(7) {
                let key = (1000 + self.unique as i64, String::new());
                return key;
            }
        }
    }

    fn value(&mut self, index: usize) -> Datum<'static> {
        let column = &self.schema.columns[index];
        if column.dropped || (column.nullable && self.random.random_ratio(1, 5)) {
            return Datum::Null;
        }
        if index == 1 && column.column_type == ColumnType::TEXT {
            return Datum::Text("c".into());
        }
        if self.shape.beyond && self.today > 0 && self.random.random_ratio(1, 6) {
            let one = Datum::List(vec![Datum::Int(1), Datum::Null]);
            match &column.column_type {
                ColumnType::Decimal { .. } => return Datum::Text("NaN".into()),
                ColumnType::Array { element } if **element == ColumnType::Int32 => {
                    let bounds = Datum::Text("[0:1]={1,NULL}".into());
                    return if self.random.random() { bounds } else { Datum::List(vec![one.clone(), one]) };
                }
                ColumnType::TimestampTz { .. } => return Datum::Timestamp(LAST_INSTANT),
                _ => {}
            }
        }
        value(&mut self.random, &column.column_type, self.shape.keyed)
    }

    fn new_row(&mut self, key: Option<&(i64, String)>) -> Row {
        let mut row: Row = (0..self.schema.columns.len()).map(|index| self.value(index)).collect();
        if let Some(key) = key {
            self.set_key(&mut row, key);
        }
        row
    }

    fn set_key(&self, row: &mut Row, key: &(i64, String)) {
        let [id, code] = self.schema.key[..] else { panic!("the key has two columns") };
        // Renamed to a name that a column of text had once, it is text.
        row[id] = converted(&Datum::Int(key.0), &ColumnType::Int64, &self.schema.columns[id].column_type);
        row[code] = match (&self.schema.columns[code].column_type, key.1.len() % 2) {
            (ColumnType::Array { .. }, 0) => Datum::List(vec![Datum::Text(key.1.clone().into())]),
            (ColumnType::Array { .. }, _) => Datum::Text(format!("[0:0]={{{}}}", key.1).into()),
            _ => Datum::Text(key.1.clone().into()),
        };
    }

    fn insert(&mut self) {
        let key = self.free_key();
        let row = self.new_row(Some(&key));
        let op = if self.random.random_ratio(1, 5) { Op::Read } else { Op::Create };
        self.log(self.partition_of(&key), op, None, None, row.clone());
        self.rows.insert(key, row);
    }

    /// The held row with some values changed, and what the server sends of it.
    fn changed(&mut self, held: &Row, key: Option<&(i64, String)>) -> (Row, Row) {
        let mut row = self.new_row(key);
        let mut sent = row.clone();
        for index in 0..row.len() {
            let toast = may_be_toast(&self.schema, index) && !matches!(held[index], Datum::Null);
            if toast && self.random.random_ratio(2, 3) {
                row[index] = held[index].clone();
                sent[index] = Datum::Unchanged;
            }
        }
        (row, sent)
    }

    fn update(&mut self) {
        let Some(key) = self.some_key() else { return self.insert() };
        let held = self.rows[&key].clone();
        let (row, sent) = self.changed(&held, Some(&key));
        self.log(self.partition_of(&key), Op::Update, None, None, sent);
        self.rows.insert(key, row);
    }

    fn key_row(&self, key: &(i64, String)) -> Row {
        let mut row = vec![Datum::Null; self.schema.columns.len()];
        self.set_key(&mut row, key);
        row
    }

    fn log_delete(&mut self, key: &(i64, String)) {
        let partition = self.partition_of(key);
        let before = self.key_row(key);
        self.log(partition, Op::Delete, None, Some(before), Vec::new());
        self.record(partition, None);
    }

    fn delete(&mut self) {
        let Some(key) = self.some_key() else { return self.insert() };
        self.rows.remove(&key);
        self.log_delete(&key);
    }

    fn move_key(&mut self) {
        let Some(from) = self.some_key() else { return self.insert() };
        let to = self.free_key();
        self.move_row(&from, &to);
        if self.random.random_ratio(1, 4) {
            // A swap, or a chain: another row takes the place just left, and the first comes on.
            if let Some(other) = self.some_key().filter(|other| *other != to) {
                self.position.ordinal += 1;
                self.move_row(&other, &from);
                self.position.ordinal += 1;
                self.move_row(&to, &other);
            }
        }
    }

    fn move_row(&mut self, from: &(i64, String), to: &(i64, String)) {
        let held = self.rows.remove(from).unwrap();
        self.log_delete(from);
        let (row, mut sent) = self.changed(&held, Some(to));
        if self.calm {
            sent.clone_from(&row);
        }
        if sent.contains(&Datum::Unchanged) {
            self.came_in_part(to);
        }
        let old_key = format!("{{\"id\":{},\"code\":\"{}\"}}", from.0, from.1);
        self.log(self.partition_of(to), Op::Create, Some(old_key), None, sent);
        self.rows.insert(to.clone(), row);
    }

    fn insert_any(&mut self) {
        let row = self.new_row(None);
        self.log_any(Op::Create, None, row.clone());
        self.unique += 1;
        self.rows.insert((self.unique as i64, String::new()), row);
    }

    fn update_any(&mut self) {
        let Some(key) = self.some_key() else { return self.insert_any() };
        let held = self.rows[&key].clone();
        let (row, sent) = self.changed(&held, None);
        let old = self.old_row(held);
        self.log_any(Op::Update, Some(old), sent);
        self.rows.insert(key, row);
    }

    fn delete_any(&mut self) {
        let Some(key) = self.some_key() else { return self.insert_any() };
        let held = self.rows.remove(&key).unwrap();
        let old = self.old_row(held);
        self.log_any(Op::Delete, Some(old), Vec::new());
    }

    /// What the server sends of a row: nothing of columns that are dropped.
    fn old_row(&self, held: Row) -> Row {
        let sent =
            |(datum, column): (Datum<'static>, &Column)| if column.dropped { Datum::Null } else { datum };
        held.into_iter().zip(&self.schema.columns).map(sent).collect()
    }

    fn log_any(&mut self, op: Op, before: Option<Row>, row: Row) {
        // Rows without a key go to one log partition.
        self.log(0, op, None, before, row);
    }

    /// A change of the table's shape, which makes of the rows held what Postgres would.
    fn evolve(&mut self) {
        let Some((next, remake)) = alter(&mut self.random, &self.schema, &mut self.number) else { return };
        for row in self.rows.values_mut() {
            remake.apply(row);
        }
        self.schema = Arc::new(next);
        self.versions.push(Arc::clone(&self.schema));
    }
}
