//! Avro with a real schema registry, through the real binary: what is registered, what a reader that was not written
//! here sees, and what happens when the registry is away or refuses.

mod copied;
mod reading;
mod trouble;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::registry::Registry;
use crate::support::{Connector, NAME, open_log};
use serde_json::{Map, Value as Json, json};
use tidemark::log::{Log, LogPartition};
use tokio::sync::OnceCell;

/// One registry for all tests: it takes longer to start than they do to run. Each test has tables of its own, and so
/// subjects of its own.
static REGISTRY: OnceCell<Registry> = OnceCell::const_new();

async fn shared() -> &'static Registry {
    REGISTRY.get_or_init(Registry::start).await
}

/// A connector that writes Avro.
fn connector(database: &str, registry: &Registry) -> Connector {
    Connector::new(database).set("envelope", "format", "avro").set("envelope.registry", "url", registry.url())
}

/// Every record of a table as fastavro reads it.
async fn records(connector: &Connector, registry: &Registry, table: &str) -> Vec<Json> {
    read_by_fastavro(raw(connector, &format!("{NAME}.public.{table}")).await, registry)
}

/// Records of [`raw`] as fastavro reads them.
fn read_by_fastavro(lines: Vec<Json>, registry: &Registry) -> Vec<Json> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/avro/read.py");
    let mut python = Command::new(crate::support::lake::python())
        .arg(script)
        .arg(registry.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for line in lines {
            writeln!(stdin, "{line}").unwrap();
        }
    });
    let output = python.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "read.py failed");
    output.stdout.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// The records of a topic as they stand, bytes in hexadecimal.
async fn raw(connector: &Connector, topic: &str) -> Vec<Json> {
    let log = open_log(connector.state().join("log.db"));
    let partition = LogPartition { topic: topic.into(), partition: 0 };
    let Some(range) = log.ranges().await.unwrap().get(&partition).copied() else { return Vec::new() };
    let (mut found, mut at) = (Vec::new(), range.start);
    while at < range.end {
        let fetched = log.read(&partition, at, 8 << 20).await.unwrap();
        for (_, record) in fetched.iter() {
            let hex =
                |bytes: &[u8]| bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
            let headers: Map<String, Json> = record
                .headers()
                .map(|(name, value)| (name.to_owned(), json!(std::str::from_utf8(value).unwrap())))
                .collect();
            found.push(
                json!({"key": record.key.map(hex), "value": record.value.map(hex), "headers": headers}),
            );
        }
        at = fetched.next;
    }
    found
}

/// The rows that the records of a topic leave, by their `id`: what a consumer keeps who knows the two headers.
fn fold(records: &[Json]) -> BTreeMap<i64, Json> {
    let mut rows: BTreeMap<i64, Json> = BTreeMap::new();
    for record in records {
        let value = &record["value"];
        let header = |name: &str| {
            record["headers"]
                .get(name)
                .map(|text| serde_json::from_str::<Json>(text.as_str().unwrap()).unwrap())
        };
        let id = |row: &Json| row["id"].as_i64().unwrap();
        match value["op"].as_str() {
            None => assert!(value.is_null(), "a tombstone"),
            Some("d") => drop(rows.remove(&id(&value["before"]))),
            Some("t") => rows.clear(),
            Some(_) => {
                let mut row = value["after"].clone();
                let held = rows.get(&id(&row));
                for name in header("tidemark.unchanged").iter().flat_map(|names| names.as_array().unwrap()) {
                    let name = name.as_str().unwrap();
                    assert!(row[name].is_null(), "{name} is named as unchanged");
                    row[name] = held.expect("an unchanged value is held")[name].clone();
                }
                for (name, exact) in
                    header("tidemark.exact").iter().flat_map(|exact| exact.as_object().unwrap())
                {
                    assert!(row[name].is_null(), "{name} is named as exact");
                    row[name] = exact.clone();
                }
                rows.insert(id(&row), row);
            }
        }
    }
    rows
}
