//! What other readers must see of each type, written out by hand.

use serde_json::{Value, json};
use tidemark::change::{ColumnType, Datum, TextKind};

/// A column, its types elsewhere, and for each value what pyarrow and DuckDB must see.
pub struct Case {
    pub name: &'static str,
    pub column_type: ColumnType,
    pub pyarrow: &'static str,
    pub parquet: &'static str,
    pub duckdb: &'static str,
    pub values: Vec<(Datum<'static>, Value, Value)>,
}

pub fn text(text: &str) -> Datum<'static> {
    Datum::Text(text.to_owned().into())
}

pub fn unscaled(value: i128) -> Datum<'static> {
    Datum::Decimal(value.to_be_bytes().to_vec().into())
}

/// The bits of a double, as `values.py` prints them.
fn bits(value: f64) -> Value {
    json!(format!("{:016x}", value.to_bits()))
}

/// A value which both readers print alike.
fn alike(datum: Datum<'static>, value: Value) -> (Datum<'static>, Value, Value) {
    let text = match &value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    (datum, value, json!(text))
}

fn int(value: i64) -> (Datum<'static>, Value, Value) {
    alike(Datum::Int(value), json!(value))
}

fn number_cases() -> Vec<Case> {
    let float = |value: f64, shown: &str| (Datum::Float(value), bits(value), json!(shown));
    vec![
        Case {
            name: "bool",
            column_type: ColumnType::Bool,
            pyarrow: "bool",
            parquet: "bool BOOLEAN None",
            duckdb: "BOOLEAN",
            values: vec![alike(Datum::Bool(true), json!(true)), alike(Datum::Bool(false), json!(false))],
        },
        Case {
            name: "int2",
            column_type: ColumnType::Int16,
            pyarrow: "int16",
            parquet: "int2 INT32 Int(bitWidth=16, isSigned=true)",
            duckdb: "SMALLINT",
            values: vec![int(-32768), int(32767), int(0)],
        },
        Case {
            name: "int4",
            column_type: ColumnType::Int32,
            pyarrow: "int32",
            parquet: "int4 INT32 None",
            duckdb: "INTEGER",
            values: vec![int(-2_147_483_648), int(2_147_483_647)],
        },
        Case {
            name: "int8",
            column_type: ColumnType::Int64,
            pyarrow: "int64",
            parquet: "int8 INT64 None",
            duckdb: "BIGINT",
            values: vec![int(i64::MIN), int(i64::MAX), int(9_007_199_254_740_993)],
        },
        Case {
            name: "float4",
            column_type: ColumnType::Float32,
            pyarrow: "float",
            parquet: "float4 FLOAT None",
            duckdb: "FLOAT",
            values: vec![
                float(f64::from(0.1_f32), "0.1"),
                float(f64::from(f32::MAX), "3.4028235e+38"),
                float(f64::from(f32::from_bits(1)), "1e-45"),
                float(f64::NEG_INFINITY, "-inf"),
                (Datum::Float(f64::NAN), json!("nan"), json!("nan")),
            ],
        },
        Case {
            name: "float8",
            column_type: ColumnType::Float64,
            pyarrow: "double",
            parquet: "float8 DOUBLE None",
            duckdb: "DOUBLE",
            values: vec![
                float(0.1, "0.1"),
                float(-0.0, "-0.0"),
                float(f64::MAX, "1.7976931348623157e+308"),
                float(5e-324, "5e-324"),
                float(f64::INFINITY, "inf"),
                (Datum::Float(f64::NAN), json!("nan"), json!("nan")),
            ],
        },
    ]
}

fn decimal_cases() -> Vec<Case> {
    let nines = 10_i128.pow(38) - 1;
    let all_nines = "0.99999999999999999999999999999999999999";
    let minus = "-0.99999999999999999999999999999999999999";
    // DuckDB prints no zero before the point where all digits stand after it.
    let fraction = |value, shown: &str| (unscaled(value), json!(shown), json!(shown.replacen("0.", ".", 1)));
    vec![
        Case {
            name: "money",
            column_type: ColumnType::Decimal { precision: 9, scale: 2 },
            pyarrow: "decimal128(9, 2)",
            parquet: "money INT32 Decimal(precision=9, scale=2)",
            duckdb: "DECIMAL(9,2)",
            values: vec![
                alike(unscaled(999_999_999), json!("9999999.99")),
                alike(unscaled(-1), json!("-0.01")),
                alike(unscaled(0), json!("0.00")),
            ],
        },
        Case {
            name: "long_decimal",
            column_type: ColumnType::Decimal { precision: 18, scale: 6 },
            pyarrow: "decimal128(18, 6)",
            parquet: "long_decimal INT64 Decimal(precision=18, scale=6)",
            duckdb: "DECIMAL(18,6)",
            values: vec![alike(unscaled(-999_999_999_999_999_999), json!("-999999999999.999999"))],
        },
        Case {
            name: "widest_decimal",
            column_type: ColumnType::Decimal { precision: 38, scale: 38 },
            pyarrow: "decimal128(38, 38)",
            parquet: "widest_decimal FIXED_LEN_BYTE_ARRAY Decimal(precision=38, scale=38)",
            duckdb: "DECIMAL(38,38)",
            values: vec![fraction(nines, all_nines), fraction(-nines, minus)],
        },
        Case {
            name: "negative_scale",
            column_type: ColumnType::Decimal { precision: 3, scale: -3 },
            pyarrow: "decimal128(6, 0)",
            parquet: "negative_scale INT32 Decimal(precision=6, scale=0)",
            duckdb: "DECIMAL(6,0)",
            values: vec![alike(unscaled(-123), json!("-123000"))],
        },
        Case {
            name: "scale_above_precision",
            column_type: ColumnType::Decimal { precision: 2, scale: 5 },
            pyarrow: "decimal128(5, 5)",
            parquet: "scale_above_precision INT32 Decimal(precision=5, scale=5)",
            duckdb: "DECIMAL(5,5)",
            values: vec![fraction(12, "0.00012")],
        },
        Case {
            name: "decimal_40",
            column_type: ColumnType::Decimal { precision: 40, scale: 2 },
            pyarrow: "string",
            parquet: "decimal_40 BYTE_ARRAY String",
            duckdb: "VARCHAR",
            values: vec![alike(unscaled(nines), json!("999999999999999999999999999999999999.99"))],
        },
        Case {
            name: "numeric",
            column_type: ColumnType::Numeric,
            pyarrow: "string",
            parquet: "numeric BYTE_ARRAY String",
            duckdb: "VARCHAR",
            values: vec![
                alike(text("NaN"), json!("NaN")),
                alike(text("-Infinity"), json!("-Infinity")),
                alike(text("0.000"), json!("0.000")),
            ],
        },
    ]
}

fn text_cases() -> Vec<Case> {
    let same = |value: &str| alike(text(value), json!(value));
    let uuid = "6f1d7a52-1f0b-4c0e-9f5e-0123456789ab";
    let of = |name, kind, parquet, values| Case {
        name,
        column_type: ColumnType::Text { text: kind },
        pyarrow: "string",
        parquet,
        duckdb: "VARCHAR",
        values,
    };
    vec![
        of("uuid", TextKind::Uuid, "uuid BYTE_ARRAY String", vec![same(uuid)]),
        of(
            "text, \"quoted\"",
            TextKind::Plain,
            "text, \"quoted\" BYTE_ARRAY String",
            vec![
                same(""),
                same("NULL"),
                same("comma, \"quote\"\nline\r\nend"),
                same("日本 😀 é"),
                same(" spaces "),
                same("\\N"),
            ],
        ),
        of("json", TextKind::Json, "json BYTE_ARRAY String", vec![same("{\"a\": [1, \"x\", null]}")]),
        Case {
            name: "bytes",
            column_type: ColumnType::Bytes,
            pyarrow: "binary",
            parquet: "bytes BYTE_ARRAY None",
            duckdb: "BLOB",
            values: vec![
                (Datum::Bytes(vec![0, 255, b'a'].into()), json!("00ff61"), json!("\\x00\\xFFa")),
                (Datum::Bytes(Vec::new().into()), json!(""), json!("")),
            ],
        },
        Case {
            name: "interval",
            column_type: ColumnType::Interval,
            pyarrow: "string",
            parquet: "interval BYTE_ARRAY String",
            duckdb: "VARCHAR",
            values: vec![same("P1Y2M3DT4H5M6.000007S")],
        },
        Case {
            name: "timetz",
            column_type: ColumnType::TimeTz,
            pyarrow: "string",
            parquet: "timetz BYTE_ARRAY String",
            duckdb: "VARCHAR",
            values: vec![same("24:00:00-15:59:59")],
        },
    ]
}

fn time_cases() -> Vec<Case> {
    let of = |datum, at_rest: i64, shown: &str| (datum, json!(at_rest), json!(shown));
    let date = |days, at_rest: i64, shown| of(Datum::Date(days), at_rest, shown);
    let at = |micros: i128, at_rest: i64, shown: &str| of(Datum::Timestamp(micros), at_rest, shown);
    let timestamp = |local: bool| {
        let utc = |shown: &str| if local { shown.to_owned() } else { format!("{shown}+00") };
        vec![
            // 2026-11-20 10:15:30.123456
            at(1_795_169_730_123_456, 1_795_169_730_123_456, &utc("2026-11-20 10:15:30.123456")),
            at(-1, -1, &utc("1969-12-31 23:59:59.999999")),
            at(9_223_372_036_854_775_806, 9_223_372_036_854_775_806, &utc("294247-01-10 04:00:54.775806")),
            // The first instant of Postgres.
            at(-210_866_803_200_000_000, -210_866_803_200_000_000, &utc("4714-11-24 (BC) 00:00:00")),
            at(Datum::INFINITY, i64::MAX, "infinity"),
            at(Datum::NEG_INFINITY, -i64::MAX, "-infinity"),
        ]
    };
    vec![
        Case {
            name: "date",
            column_type: ColumnType::Date,
            pyarrow: "date32[day]",
            parquet: "date INT32 Date",
            duckdb: "DATE",
            values: vec![
                date(20_777, 20_777, "2026-11-20"),
                date(-2_440_588, -2_440_588, "4714-11-24 (BC)"),
                date(2_145_042_905, 2_145_042_905, "5874897-12-31"),
                date(i32::MAX, 2_147_483_647, "infinity"),
                date(i32::MIN, -2_147_483_647, "-infinity"),
            ],
        },
        Case {
            name: "time",
            column_type: ColumnType::Time { precision: 6 },
            pyarrow: "time64[us]",
            parquet: "time INT64 Time(isAdjustedToUTC=false, timeUnit=microseconds)",
            duckdb: "TIME",
            values: vec![
                of(Datum::Time(36_930_123_456), 36_930_123_456, "10:15:30.123456"),
                of(Datum::Time(86_400_000_000), 86_400_000_000, "24:00:00"),
            ],
        },
        Case {
            name: "timestamp",
            column_type: ColumnType::Timestamp { precision: 6 },
            pyarrow: "timestamp[us]",
            parquet: "timestamp INT64 Timestamp(isAdjustedToUTC=false, timeUnit=microseconds, \
                      is_from_converted_type=false, force_set_converted_type=false)",
            duckdb: "TIMESTAMP",
            values: timestamp(true),
        },
        Case {
            name: "timestamptz",
            column_type: ColumnType::TimestampTz { precision: 0 },
            pyarrow: "timestamp[us, tz=UTC]",
            parquet: "timestamptz INT64 Timestamp(isAdjustedToUTC=true, timeUnit=microseconds, \
                      is_from_converted_type=false, force_set_converted_type=false)",
            duckdb: "TIMESTAMP WITH TIME ZONE",
            values: timestamp(false),
        },
    ]
}

fn list_cases() -> Vec<Case> {
    let array = |element| ColumnType::Array { element: Box::new(element) };
    vec![
        Case {
            name: "ints",
            column_type: array(ColumnType::Int32),
            pyarrow: "list<element: int32>",
            parquet: "ints.list.element INT32 None",
            duckdb: "INTEGER[]",
            values: vec![
                (
                    Datum::List(vec![Datum::Int(1), Datum::Null, Datum::Int(-3)]),
                    json!([1, null, -3]),
                    json!("[1, NULL, -3]"),
                ),
                (Datum::List(Vec::new()), json!([]), json!("[]")),
            ],
        },
        Case {
            name: "texts",
            column_type: array(ColumnType::TEXT),
            pyarrow: "list<element: string>",
            parquet: "texts.list.element BYTE_ARRAY String",
            duckdb: "VARCHAR[]",
            values: vec![(
                Datum::List(vec![text("a,\"b\"\n\t\u{1}"), text("")]),
                json!(["a,\"b\"\n\t\u{1}", ""]),
                json!("['a,\"b\"\n\t\u{1}', '']"),
            )],
        },
        Case {
            name: "decimals",
            column_type: array(ColumnType::Decimal { precision: 30, scale: 10 }),
            pyarrow: "list<element: decimal128(30, 10)>",
            parquet: "decimals.list.element FIXED_LEN_BYTE_ARRAY Decimal(precision=30, scale=10)",
            duckdb: "DECIMAL(30,10)[]",
            values: vec![(
                Datum::List(vec![unscaled(123_456_789_012_345_678_901_234_567_890)]),
                json!(["12345678901234567890.1234567890"]),
                json!("[12345678901234567890.1234567890]"),
            )],
        },
        Case {
            name: "instants",
            column_type: array(ColumnType::TimestampTz { precision: 0 }),
            pyarrow: "list<element: timestamp[us, tz=UTC]>",
            parquet: "instants.list.element INT64 Timestamp(isAdjustedToUTC=true, timeUnit=microseconds, \
                      is_from_converted_type=false, force_set_converted_type=false)",
            duckdb: "TIMESTAMP WITH TIME ZONE[]",
            values: vec![(
                Datum::List(vec![Datum::Timestamp(0), Datum::Timestamp(Datum::INFINITY)]),
                json!([0, i64::MAX]),
                json!("['1970-01-01 00:00:00+00', infinity]"),
            )],
        },
    ]
}

/// A column of every type, with its extremes.
pub fn every_case() -> Vec<Case> {
    [number_cases(), decimal_cases(), text_cases(), time_cases(), list_cases()]
        .into_iter()
        .flatten()
        .collect()
}
