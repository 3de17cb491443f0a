//! Snapshots of every type of Postgres, as pyarrow, DuckDB and Spark see them: the same values as Postgres's own, but for
//! what `reader_matrix/known.rs` lists; and the rows that they find by filters.
//!
//! Each value of each type has a column of its own, so that one which a reader cannot take hides no other.

mod known;
mod lake;

use serde_json::json;

use lake::{FORMATS, Lakes, TABLES, assert_all_met, seen_by, spark};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reader_sees_the_values_of_postgres_in_every_format_and_finds_the_same_rows() {
    let lakes = Lakes::of_every_value().await;
    for table in TABLES {
        lakes.assert_copied_back(table).await;
    }
    let mut met = Vec::new();
    // DuckDB reads no ORC.
    for (reader, format) in [
        ("pyarrow", "parquet"),
        ("pyarrow", "orc"),
        ("pyarrow", "csv"),
        ("python", "csv"),
        ("duckdb", "parquet"),
        ("duckdb", "csv"),
    ] {
        for table in TABLES {
            let seen = seen_by(&[reader, format], &lakes.request(format, table));
            met.extend(lakes.compare(reader, format, table, &seen));
        }
        if format != "csv" {
            lakes.assert_filtered(reader, format, &seen_by(&[reader, format], &lakes.filters(format)));
        }
    }
    let mut asked = Vec::new();
    for format in FORMATS {
        asked.extend(TABLES.map(|table| (format, table, lakes.request(format, table))));
        if format != "csv" {
            asked.push((format, "filtered", lakes.filters(format)));
        }
    }
    // With the types in the definition of the table, as in a catalog.
    let mut declared = lakes.request("parquet", "every_value");
    declared["declared"] = json!(true);
    asked.push(("parquet", "every_value", declared));
    let requests: Vec<_> = asked.iter().map(|(.., request)| request.clone()).collect();
    let answers = spark(&requests);
    assert_eq!(answers.len(), asked.len());
    for ((format, table, _), seen) in asked.iter().zip(&answers) {
        if *table == "filtered" {
            lakes.assert_filtered("spark", format, seen);
        } else {
            met.extend(lakes.compare("spark", format, table, seen));
        }
    }
    assert_all_met(&["python", "pyarrow", "duckdb", "spark"], &met);
}
