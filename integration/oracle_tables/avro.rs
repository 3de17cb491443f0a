//! Records in Avro, as fastavro reads them by the registry's schemas, in the form of the JSON envelope: what a header holds
//! stands in its place again.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value as Json, json};
use tidemark::log::{Log, LogPartition};
use tokio::sync::OnceCell;

use crate::oracle::reader;
use crate::support::registry::Registry;
use crate::support::{Connector, Record, open_log};

/// One registry for a run: all servers' tables of one name share their subjects.
static REGISTRY: OnceCell<Registry> = OnceCell::const_new();

/// A registry that takes any schema: tables are dropped and made anew, and columns change their types.
pub async fn registry() -> &'static Registry {
    let start = async || {
        let registry = Registry::start().await;
        let (status, answer) = registry.put("/config", &json!({ "compatibility": "NONE" }));
        assert_eq!(status, 200, "{answer}");
        registry
    };
    REGISTRY.get_or_init(start).await
}

/// A record as `read_avro.py` gives it.
#[derive(Deserialize)]
struct Read<'r> {
    key: Json,
    #[serde(borrow)]
    value: Option<&'r RawValue>,
}

/// The records of a topic.
pub async fn records(connector: &Connector, topic: &str) -> Vec<Record> {
    let log = open_log(connector.state().join("log.db"));
    let partition = LogPartition { topic: topic.into(), partition: 0 };
    let Some(range) = log.ranges().await.unwrap().get(&partition).copied() else { return Vec::new() };
    let (mut found, mut lines, mut at) = (Vec::new(), Vec::new(), range.start);
    while at < range.end {
        let fetched = log.read(&partition, at, 8 << 20).await.unwrap();
        for (offset, record) in fetched.iter() {
            let hex =
                |bytes: &[u8]| bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let headers: Map<String, Json> =
                record.headers().map(|(name, value)| (name.to_owned(), text(value).into())).collect();
            let line =
                json!({"key": record.key.map(hex), "value": record.value.map(hex), "headers": headers});
            lines.push(line.to_string());
            found.push((offset, text(record.header("tidemark.position").unwrap_or_default())));
        }
        at = fetched.next;
    }
    let read = by_fastavro(lines);
    let read: Vec<&str> = read.lines().collect();
    assert_eq!(read.len(), found.len(), "{topic}: read_avro.py");
    let record = |((offset, position), line): ((u64, String), &str)| {
        let read: Read<'_> = serde_json::from_str(line).unwrap();
        let bytes = read.value.map(|value| value.get().as_bytes().to_vec());
        Record { offset, position, key: read.key, value: Json::Null, bytes }
    };
    found.into_iter().zip(read).map(record).collect()
}

fn by_fastavro(lines: Vec<String>) -> String {
    let registry = REGISTRY.get().expect("Avro takes a registry");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/oracle_tables/read_avro.py");
    let mut python = Command::new(reader::python())
        .arg(script)
        .arg(registry.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for line in lines {
            // It has ended early: its status says so.
            if writeln!(stdin, "{line}").is_err() {
                break;
            }
        }
    });
    let output = python.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "read_avro.py failed");
    String::from_utf8(output.stdout).unwrap()
}
