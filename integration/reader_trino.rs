//! Snapshots of every type of Postgres, as Trino sees them, and the rows that it finds by filters. Not among the tests that
//! `cargo test` runs by itself: the server is a download of 820 MB. `make readers` fetches it and runs this.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "reader_matrix/known.rs"]
mod known;
#[path = "reader_matrix/lake.rs"]
#[allow(dead_code, reason = "Spark is asked elsewhere")]
mod lake;
#[allow(dead_code, unused_imports, reason = "all others are one program, which uses all of it")]
mod support;
#[path = "reader_matrix/trino.rs"]
mod trino;
#[allow(dead_code, reason = "its cases are what is read")]
mod types {
    pub mod cases;
}

use serde_json::{Value, json};

use crate::lake::{FORMATS, Lakes, TABLES, assert_all_met};
use crate::support::NAME;
use crate::trino::Trino;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trino_sees_the_values_of_postgres_in_every_format_and_finds_the_same_rows() {
    let lakes = Lakes::of_every_value().await;
    let trino = Trino::start(&lakes);
    let at = |table: &str, mut request: Value| {
        request["table"] = json!(table);
        request["folder"] = json!(format!("local:///lake/snapshots/{NAME}/public.{table}"));
        request
    };
    let mut met = Vec::new();
    for format in FORMATS {
        for table in TABLES {
            let seen = trino.sees(format, &at(table, lakes.request(format, table)));
            met.extend(lakes.compare("trino", format, table, &seen));
        }
        if format != "csv" {
            lakes.assert_filtered(
                "trino",
                format,
                &trino.sees(format, &at("filtered", lakes.filters(format))),
            );
        }
    }
    assert_all_met(&["trino"], &met);
}
