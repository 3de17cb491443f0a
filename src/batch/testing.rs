//! Random tables and rows, from a seed.

use std::borrow::Cow;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::decimal;
use crate::change::{Column, ColumnType, Datum, TextKind};

/// Runs a test with a random seed, or with the one in `TIDEMARK_TEST_SEED`; prints it when the test fails.
pub fn with_seed(test: impl Fn(&mut StdRng)) {
    struct Tell(u64);
    impl Drop for Tell {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("replay with TIDEMARK_TEST_SEED={}", self.0);
            }
        }
    }
    let seed = std::env::var("TIDEMARK_TEST_SEED").ok().map_or_else(rand::random, |s| s.parse().unwrap());
    let tell = Tell(seed);
    test(&mut StdRng::seed_from_u64(tell.0));
}

pub fn column(name: &str, column_type: ColumnType) -> Column {
    Column::new(name, column_type, "", true)
}

/// A column of every type, and an array of each.
pub fn every_column() -> Vec<Column> {
    let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
    let plain = vec![
        ColumnType::Bool,
        ColumnType::Int16,
        ColumnType::Int32,
        ColumnType::Int64,
        ColumnType::Float32,
        ColumnType::Float64,
        decimal(9, 2),
        decimal(18, 0),
        decimal(38, 10),
        decimal(3, -3),
        decimal(2, 5),
        decimal(60, 20),
        decimal(1000, 500),
        ColumnType::Numeric,
        ColumnType::TEXT,
        ColumnType::Text { text: TextKind::Json },
        ColumnType::Bytes,
        ColumnType::Bits { length: 9 },
        ColumnType::Date,
        ColumnType::Time { precision: 6 },
        ColumnType::Timestamp { precision: 6 },
        ColumnType::TimestampTz { precision: 0 },
        ColumnType::TimeTz,
        ColumnType::Interval,
    ];
    let lists = plain.iter().map(|element| ColumnType::Array { element: Box::new(element.clone()) });
    let types: Vec<_> = plain.iter().cloned().chain(lists).collect();
    types.into_iter().enumerate().map(|(i, t)| column(&format!("c{i}"), t)).collect()
}

/// A value of the type: null, an extreme, or any.
pub fn value(rng: &mut StdRng, column_type: &ColumnType) -> Datum<'static> {
    if rng.random_ratio(1, 6) {
        return Datum::Null;
    }
    match column_type {
        ColumnType::Bool => Datum::Bool(rng.random()),
        ColumnType::Int16 => Datum::Int(one_of(rng, &[i16::MIN, i16::MAX, 0]).into()),
        ColumnType::Int32 => Datum::Int(one_of(rng, &[i32::MIN, i32::MAX, -1]).into()),
        ColumnType::Int64 => Datum::Int(one_of(rng, &[i64::MIN, i64::MAX, 1])),
        ColumnType::Float32 => Datum::Float(f64::from(float32(rng))),
        ColumnType::Float64 => Datum::Float(float64(rng)),
        ColumnType::Decimal { precision, .. } => unscaled(rng, *precision),
        ColumnType::Numeric => text(
            ["NaN", "Infinity", "-Infinity", "0", "-0.50", "123456789012345678901234567890.000001"]
                [rng.random_range(0..6)],
        ),
        ColumnType::Text { .. } => Datum::Text(Cow::Owned(any_text(rng))),
        ColumnType::Bits { length } => {
            Datum::Text((0..*length).map(|_| if rng.random() { '1' } else { '0' }).collect::<String>().into())
        }
        ColumnType::Bytes => {
            let mut bytes = vec![0; rng.random_range(0..20)];
            rng.fill_bytes(&mut bytes);
            Datum::Bytes(Cow::Owned(bytes))
        }
        // Postgres: 4713-11-24 BC to 5874897-12-31, and the infinities.
        ColumnType::Date => Datum::Date(match rng.random_range(0..8) {
            0 => i32::MIN,
            1 => i32::MAX,
            2 => -2_440_588,
            3 => 2_145_042_905,
            _ => rng.random_range(-2_440_588..2_145_042_905),
        }),
        ColumnType::Time { .. } => Datum::Time(match rng.random_range(0..4) {
            0 => 86_400_000_000,
            1 => 0,
            _ => rng.random_range(0..86_400_000_000),
        }),
        ColumnType::Timestamp { .. } | ColumnType::TimestampTz { .. } => Datum::Timestamp(instant(rng)),
        ColumnType::TimeTz => text("24:00:00+15:59:59"),
        ColumnType::Interval => text("P-1Y-2M3DT-4H-5M-6.000007S"),
        ColumnType::Array { element } => {
            Datum::List((0..rng.random_range(0..4)).map(|_| value(rng, element)).collect())
        }
    }
}

/// A row of values of the columns' types.
pub fn row(rng: &mut StdRng, columns: &[Column]) -> Vec<Datum<'static>> {
    columns.iter().map(|column| value(rng, &column.column_type)).collect()
}

fn one_of<T: Copy>(rng: &mut StdRng, extremes: &[T]) -> T
where
    rand::distr::StandardUniform: rand::distr::Distribution<T>,
{
    if rng.random_ratio(1, 2) { extremes[rng.random_range(0..extremes.len())] } else { rng.random() }
}

fn float32(rng: &mut StdRng) -> f32 {
    let extremes = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MIN_POSITIVE, f32::MAX, 1e-45];
    match rng.random_range(0..10) {
        n @ 0..7 => extremes[n],
        _ => Some(f32::from_bits(rng.random())).filter(|v| !v.is_nan()).unwrap_or(1.5),
    }
}

fn float64(rng: &mut StdRng) -> f64 {
    let extremes = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MIN_POSITIVE, f64::MAX, 5e-324];
    match rng.random_range(0..10) {
        n @ 0..7 => extremes[n],
        _ => Some(f64::from_bits(rng.random())).filter(|v| !v.is_nan()).unwrap_or(1.5),
    }
}

fn unscaled(rng: &mut StdRng, precision: u16) -> Datum<'static> {
    let digits = if rng.random() { precision } else { rng.random_range(1..=precision) };
    let sign = if rng.random() { "-" } else { "" };
    let nines = rng.random::<bool>();
    let digit = |rng: &mut StdRng| if nines { '9' } else { char::from(b'0' + rng.random_range(0..10)) };
    let text: String = (0..digits).map(|_| digit(rng)).collect();
    Datum::Decimal(Cow::Owned(decimal::parse(format!("{sign}{text}").as_bytes(), 0).unwrap()))
}

fn instant(rng: &mut StdRng) -> i128 {
    match rng.random_range(0..8) {
        0 => Datum::INFINITY,
        1 => Datum::NEG_INFINITY,
        2 => i128::from(i64::MAX) - 1,
        3 => -210_866_803_200_000_000, // 4713-11-24 BC
        4 => -1,
        _ => rng.random_range(-62_135_596_800_000_000_i128..253_402_300_800_000_000),
    }
}

fn text(text: &str) -> Datum<'static> {
    Datum::Text(Cow::Owned(text.to_owned()))
}

fn any_text(rng: &mut StdRng) -> String {
    let pieces = [
        "", "a", "NULL", "\"", "\"\"", ",", "\n", "\r\n", "\r", " ", "é", "日本", "😀", "\\N", "\t", "\u{1}",
    ];
    (0..rng.random_range(0..5)).map(|_| pieces[rng.random_range(0..pieces.len())]).collect()
}

/// Equality of values which tells signed zeros apart and takes NaN as itself.
pub fn same(left: &Datum<'_>, right: &Datum<'_>) -> bool {
    match (left, right) {
        (Datum::Float(l), Datum::Float(r)) => l.to_bits() == r.to_bits() || (l.is_nan() && r.is_nan()),
        (Datum::List(l), Datum::List(r)) => {
            l.len() == r.len() && l.iter().zip(r).all(|(left, right)| same(left, right))
        }
        (left, right) => left == right,
    }
}
