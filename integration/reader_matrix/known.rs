//! What readers do not see as Postgres has it, each with the sentence of `docs/readers.md` that says so.

use serde_json::{Value, json};

/// A difference that is known. It has to be met, so that the document does not say too much.
pub struct Known {
    pub reader: &'static str,
    pub format: &'static str,
    /// Stands in `docs/readers.md`.
    pub told: &'static str,
    /// Whether this is it: of a column with that in it, what was found, and what is right.
    pub is: fn(what: &str, found: &Value, right: &Value) -> bool,
}

const fn of(
    reader: &'static str,
    format: &'static str,
    told: &'static str,
    is: fn(&str, &Value, &Value) -> bool,
) -> Known {
    Known { reader, format, told, is }
}

fn is_error(found: &Value, text: &str) -> bool {
    found["error"].as_str().is_some_and(|error| error.contains(text))
}

/// The right values but for nulls, which are empty texts.
fn nulls_are_empty(found: &Value, right: &Value) -> bool {
    let empty = |value: &Value| if value.is_null() { json!("") } else { value.clone() };
    right.as_array().is_some_and(|right| *found == right.iter().map(empty).collect::<Value>())
}

/// Dates and timestamps that Java's other calendar does not have, or not in this way.
fn is_lost_in_calendars(what: &str) -> bool {
    (what.starts_with("date") || what.starts_with("timestamp"))
        && ["1582-10-10'", " BC'", "'-infinity'"].iter().any(|value| what.contains(value))
}

pub const KNOWN: &[Known] = &[
    of(
        "pyarrow",
        "orc",
        "pyarrow refuses columns with timestamps outside of 1677 to 2262 (and so infinity)",
        |what, found, _| what.starts_with("timestamp") && is_error(found, "out of range for nanosecond"),
    ),
    of("spark", "parquet", "finds no schema by itself where a table has a `time`", |what, found, _| {
        what == "everything" && is_error(found, "TIME")
    }),
    of(
        "spark",
        "orc",
        "Spark takes dates and timestamps before the year 1 (and so -infinity), and of 5 to 14 October 1582, for others",
        |what, found, right| is_lost_in_calendars(what) && found.is_array() && found != right,
    ),
    of(
        "trino",
        "orc",
        "Trino is a second early for timestamps before 1970 whose fraction of a second is below a millisecond",
        |what, found, _| {
            what.contains("'1500-02-28 23:59:59.000001'") && found.to_string().contains("-14826672001999999")
        },
    ),
    of("python", "csv", "Python's csv module takes nulls for empty texts", |_, found, right| {
        nulls_are_empty(found, right)
    }),
    of("trino", "csv", "Trino takes nulls for empty texts", |_, found, right| nulls_are_empty(found, right)),
    of("trino", "csv", "Trino takes a line break within a value for the end of a row", |what, found, _| {
        (what.contains("\\n") || what == "integer id") && is_error(found, "Cannot cast")
    }),
];
