//! Random changes of a table's shape, and what they make of the rows there are.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use tidemark::change::{Column, ColumnType, Datum, TableSchema, TextKind};

use super::history::Row;

/// A default: its text as Postgres prints it, and the value.
struct Default {
    column_type: ColumnType,
    text: &'static str,
    value: Datum<'static>,
}

fn defaults() -> Vec<Default> {
    let array = |element| ColumnType::Array { element: Box::new(element) };
    let text = |text: &'static str| Datum::Text(text.into());
    let at: Timestamp = "2026-11-20T10:15:30.5Z".parse().unwrap();
    let labels = vec!["sad".to_owned(), "glad".to_owned()];
    let of = |column_type, text, value| Default { column_type, text, value };
    vec![
        of(ColumnType::Bool, "t", Datum::Bool(true)),
        of(ColumnType::Int32, "-7", Datum::Int(-7)),
        of(ColumnType::Float64, "-0", Datum::Float(-0.0)),
        of(ColumnType::Decimal { precision: 12, scale: 2 }, "-12.50", decimal(-1250)),
        of(ColumnType::Numeric, "0.10", text("0.10")),
        of(ColumnType::TEXT, "it's \"x\",\n\\", text("it's \"x\",\n\\")),
        of(ColumnType::TEXT, "", text("")),
        of(ColumnType::Text { text: TextKind::Enum(labels) }, "sad", text("sad")),
        of(ColumnType::Text { text: TextKind::Json }, r#"{"a": [1, "é"]}"#, text(r#"{"a": [1, "é"]}"#)),
        of(ColumnType::Bytes, "\\x00ff", Datum::Bytes(vec![0, 255].into())),
        of(ColumnType::Date, "2000-02-29", Datum::Date(11_016)),
        of(
            ColumnType::TimestampTz { precision: 6 },
            "2026-11-20 10:15:30.5+00",
            Datum::Timestamp(at.as_microsecond().into()),
        ),
        of(ColumnType::Timestamp { precision: 6 }, "infinity", Datum::Timestamp(Datum::INFINITY)),
        of(
            array(ColumnType::Int32),
            "{1,NULL,3}",
            Datum::List(vec![Datum::Int(1), Datum::Null, Datum::Int(3)]),
        ),
        // Beyond what a file has for their types.
        of(array(ColumnType::Int32), "[0:1]={1,NULL}", text("[0:1]={1,NULL}")),
        of(
            array(ColumnType::Int32),
            "{{1,NULL},{1,NULL}}",
            Datum::List(vec![Datum::List(vec![Datum::Int(1), Datum::Null]); 2]),
        ),
        of(ColumnType::Decimal { precision: 9, scale: 1 }, "NaN", text("NaN")),
        of(array(ColumnType::TEXT), r#"{"a,\"b",NULL}"#, Datum::List(vec![text("a,\"b"), Datum::Null])),
    ]
}

fn decimal(unscaled: i64) -> Datum<'static> {
    Datum::Decimal(unscaled.to_be_bytes().to_vec().into())
}

/// Any value of a type; without a key of few different ones, so that there are equal rows.
pub fn value(random: &mut StdRng, column_type: &ColumnType, keyed: bool) -> Datum<'static> {
    let few = if keyed { 1000 } else { 2 };
    match column_type {
        ColumnType::Bool => Datum::Bool(random.random()),
        ColumnType::Decimal { .. } => decimal(random.random_range(-few..few)),
        ColumnType::Numeric => Datum::Text(["0.10", "-3", "NaN"][random.random_range(0..3)].into()),
        ColumnType::Float64 => {
            Datum::Float([0.0, -0.0, f64::NAN, f64::INFINITY, 1.5][random.random_range(0..5)])
        }
        ColumnType::Bytes => Datum::Bytes(vec![255; random.random_range(0..2)].into()),
        ColumnType::Date => Datum::Date(random.random_range(0..few as i32)),
        ColumnType::Timestamp { .. } | ColumnType::TimestampTz { .. } => match random.random_range(0..few) {
            0 => Datum::Timestamp(Datum::INFINITY),
            n => Datum::Timestamp(i128::from(n) * 1_000_000),
        },
        ColumnType::Array { element } => {
            let many = random.random_range(0..if keyed { 4 } else { 2 });
            let item = |random: &mut StdRng| {
                if random.random_ratio(1, 3) { Datum::Null } else { value(random, element, false) }
            };
            Datum::List((0..many).map(|_| item(random)).collect())
        }
        ColumnType::Text { .. } => {
            Datum::Text("t".repeat(random.random_range(0..few as usize / 2 + 1)).into())
        }
        _ => Datum::Int(random.random_range(0..few)),
    }
}

/// What a change makes of a row, column by column of the shape after it.
pub struct Remake(Vec<From>);

enum From {
    /// What stood in a column, of one type, as one of another.
    Column {
        index: usize,
        from: ColumnType,
        to: ColumnType,
    },
    Value(Datum<'static>),
}

impl Remake {
    pub fn apply(&self, row: &mut Row) {
        let made = self.0.iter().map(|from| match from {
            From::Column { index, from, to } => converted(&row[*index], from, to),
            From::Value(value) => value.clone(),
        });
        *row = made.collect();
    }
}

/// A value of one type in a wider one.
pub fn converted(value: &Datum<'static>, from: &ColumnType, to: &ColumnType) -> Datum<'static> {
    match (value, from, to) {
        (Datum::List(items), ColumnType::Array { element: from }, ColumnType::Array { element: to }) => {
            Datum::List(items.iter().map(|item| converted(item, from, to)).collect())
        }
        (Datum::Int(n), _, ColumnType::Text { .. } | ColumnType::Numeric) => {
            Datum::Text(n.to_string().into())
        }
        (Datum::Int(n), _, ColumnType::Decimal { scale, .. }) => decimal(n * 10_i64.pow(*scale as u32)),
        (Datum::Decimal(bytes), ColumnType::Decimal { scale, .. }, _) => {
            let unscaled = i64::from_be_bytes(bytes.as_ref().try_into().unwrap());
            let digits = *scale as usize;
            match to {
                ColumnType::Decimal { scale, .. } => {
                    decimal(unscaled * 10_i64.pow(*scale as u32 - digits as u32))
                }
                _ => {
                    let sign = if unscaled < 0 { "-" } else { "" };
                    let whole = format!("{:0>width$}", unscaled.unsigned_abs(), width = digits + 1);
                    let (whole, fraction) = whole.split_at(whole.len() - digits);
                    Datum::Text(format!("{sign}{whole}.{fraction}").into())
                }
            }
        }
        (value, _, _) => value.clone(),
    }
}

/// A change of the table, as of its source: columns by name, type and number, and the defaults of new ones.
struct Alter<'a> {
    random: &'a mut StdRng,
    /// The last number given.
    number: &'a mut i16,
    source: TableSchema,
    /// Names which a column had that is gone.
    gone: Vec<String>,
    new: BTreeMap<i16, Default>,
}

/// The table's next version, and what becomes of its rows: that is told by the numbers of columns alone, whatever the
/// shape says of rows from before.
pub fn alter(random: &mut StdRng, schema: &TableSchema, number: &mut i16) -> Option<(TableSchema, Remake)> {
    let mut source = schema.clone();
    let live: Vec<_> = (0..schema.columns.len()).filter(|index| !schema.columns[*index].dropped).collect();
    source.columns = live
        .iter()
        .map(|index| {
            let column = &schema.columns[*index];
            Column {
                number: column.number,
                ..Column::new(column.source_name(), column.column_type.clone(), "", true)
            }
        })
        .collect();
    source.key = schema.key.iter().map(|key| live.iter().position(|index| index == key).unwrap()).collect();
    let gone = schema.columns.iter().filter(|c| c.dropped).map(|c| c.name.clone()).collect();
    let mut alter = Alter { random, number, source, gone, new: BTreeMap::new() };
    // Often several in one version, as where statements follow each other without a row between them.
    for _ in 0..alter.random.random_range(1..4) {
        alter.one();
    }
    let Alter { source, new, .. } = alter;
    let next = schema.evolve(&source)?.after;
    let from = |(index, column): (usize, &Column)| {
        let before = if column.dropped {
            // What it held it holds on.
            schema.columns.get(index).map(|known| (index, known))
        } else {
            let same = |known: &Column| !known.dropped && known.number == column.number;
            schema.columns.iter().enumerate().find(|(_, known)| same(known))
        };
        let to = &column.column_type;
        match (before, new.get(&column.number)) {
            (Some((index, known)), _) => {
                From::Column { index, from: known.column_type.clone(), to: to.clone() }
            }
            (None, Some(new)) => From::Value(converted(&new.value, &new.column_type, to)),
            (None, None) => From::Value(Datum::Null),
        }
    };
    let remake = Remake(next.columns.iter().enumerate().map(from).collect());
    Some((next, remake))
}

impl Alter<'_> {
    /// One statement.
    fn one(&mut self) {
        let columns = 0..self.source.columns.len();
        let other: Vec<_> = columns.filter(|index| !self.source.key.contains(index)).collect();
        let Some(&some) = other.choose(self.random) else { return self.add() };
        match self.random.random_range(0..8) {
            0 | 1 => self.add(),
            2 => self.drop(some),
            3 => {
                let name = self.source.columns[some].name.clone();
                self.drop(some);
                self.add_as(name);
            }
            4 => self.rename(some),
            5 => {
                let second = *other.choose(self.random).unwrap();
                let name = self.source.columns[some].name.clone();
                let other = std::mem::replace(&mut self.source.columns[second].name, name);
                self.source.columns[some].name = other;
            }
            6 => {
                let index = self.random.random_range(0..self.source.columns.len());
                self.widen(index);
            }
            _ => match self.source.key.choose(self.random) {
                Some(key) => self.rename(*key),
                None => self.rename(some),
            },
        }
    }

    /// A name for a new column: one of its own, or that of one which is gone.
    fn name(&mut self) -> String {
        let free = |name: &&String| !self.source.columns.iter().any(|column| column.name == **name);
        let former = self.gone.iter().filter(free).choose(self.random).cloned();
        *self.number += 1;
        former.filter(|_| self.random.random()).unwrap_or_else(|| format!("x{}", self.number))
    }

    fn add(&mut self) {
        let name = self.name();
        self.add_as(name);
    }

    fn add_as(&mut self, name: String) {
        let default = defaults().into_iter().choose(self.random).unwrap();
        *self.number += 1;
        let mut column = Column::new(name, default.column_type.clone(), "", true);
        column.number = *self.number;
        if self.random.random_ratio(2, 3) {
            column.missing = Some(default.text.to_owned());
            self.new.insert(column.number, default);
        }
        self.source.columns.push(column);
    }

    fn drop(&mut self, index: usize) {
        let gone = self.source.columns.remove(index);
        self.gone.push(gone.name);
        for key in &mut self.source.key {
            *key -= usize::from(*key > index);
        }
    }

    fn rename(&mut self, index: usize) {
        let name = self.name();
        self.gone.push(std::mem::replace(&mut self.source.columns[index].name, name));
    }

    fn widen(&mut self, index: usize) {
        // A new column's default is told in its own type.
        if self.new.contains_key(&self.source.columns[index].number) {
            return;
        }
        let column_type = &mut self.source.columns[index].column_type;
        match column_type {
            ColumnType::Int32 => *column_type = ColumnType::Int64,
            ColumnType::Decimal { precision, scale } if *scale < 6 => {
                *precision += 2;
                *scale += 1;
            }
            ColumnType::Decimal { .. } => *column_type = ColumnType::Numeric,
            _ => {}
        }
    }
}
