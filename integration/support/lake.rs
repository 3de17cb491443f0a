//! The lake as others see it: hashes of its objects, and rows read by DuckDB.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Connector;

/// Rows as texts; none for null.
pub type Rows = Vec<Vec<Option<String>>>;

/// Every file below a folder, by its path from there, with the SHA-256 of its bytes. Without the other name which
/// `object_store` gives a day's manifest for a moment while it creates it.
pub fn hashes(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                if !(name.starts_with("cuts/") && name.contains('#')) {
                    found.insert(name, tidemark::lake::sha256(&bytes));
                }
            }
        }
    }
    found
}

/// The objects of published days: snapshots of tables, and the days' own manifests; not what is half written.
pub fn published(connector: &Connector, ds: &str) -> BTreeMap<String, String> {
    let mut all = hashes(&connector.lake());
    all.retain(|name, _| {
        let of_days = name.starts_with("snapshots/") || name.starts_with("cuts/");
        of_days && name.contains(&format!("ds={ds}")) && !name.contains('#')
    });
    all
}

/// Python with DuckDB, pandas and pyarrow.
pub fn python() -> PathBuf {
    let python = std::env::var_os("TIDEMARK_TEST_PYTHON")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python"), PathBuf::from);
    assert!(python.exists(), "{} is missing: run `make venv`", python.display());
    python
}

/// What DuckDB's `sql` gives, where `{t}` stands for the rows of table `t` on that day. Every value as a text.
pub fn duckdb(connector: &Connector, ds: &str, sql: &str) -> Rows {
    let root = connector.lake().join(format!("snapshots/{}", super::NAME));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/support/query.py");
    let output = Command::new(python()).arg(script).arg(root).arg(ds).arg(sql).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{sql} on ds={ds}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What Postgres gives for a query, every value as a text.
pub async fn postgres(client: &tokio_postgres::Client, sql: &str) -> Rows {
    let messages = client.simple_query(sql).await.unwrap();
    let rows = messages.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()).collect()
}

/// The first value of the first row.
pub async fn value(client: &tokio_postgres::Client, sql: &str) -> String {
    let rows = postgres(client, sql).await;
    rows[0][0].clone().unwrap_or_default()
}
