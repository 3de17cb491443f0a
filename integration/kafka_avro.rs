//! Avro on Kafka, through the real binary: a broker, a schema registry behind TLS and a password, and Confluent's own
//! Python client as the reader. The day that is published from those topics is compared with Postgres.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::days::{days, use_rule};
use crate::support::lake::{duckdb, postgres, python};
use crate::support::registry::Registry;
use crate::support::{Connector, Kafka, PATIENCE, Postgres, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

const LOGIN: (&str, &str) = ("tidemark", "geheim-91c4");

const TABLE: &str = "CREATE TABLE orders (id int PRIMARY KEY, total numeric(12,2), note text, tags int[]);
    ALTER TABLE orders ALTER COLUMN note SET STORAGE EXTERNAL;
    INSERT INTO orders SELECT i, i * 1.25, repeat('n', i * 20), ARRAY[i, NULL] FROM generate_series(1, 300) i";

/// HTTPS and a password in front of a registry, by Python.
struct Guarded {
    child: Child,
    port: u16,
}

impl Guarded {
    fn start(registry: &Registry, certificates: &Kafka) -> Self {
        let mut child = Command::new(python())
            .arg(script("proxy.py"))
            .args([certificates.certificate("server.crt"), certificates.certificate("server.key")])
            .args([format!("{}:{}", LOGIN.0, LOGIN.1), registry.port().to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, port: line.trim().parse().unwrap() }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/apis/ccompat/v7", self.port)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/kafka_avro").join(name)
}

fn on_kafka(url: &str, kafka: &Kafka, registry: &str) -> Connector {
    Connector::new(url)
        .set("log", "kind", "kafka")
        .set("log.kafka", "brokers", json!([kafka.address()]))
        .set("log.kafka", "partitions", 3)
        .set("envelope", "format", "avro")
        .set("envelope.registry", "url", registry)
}

/// Every committed record of a topic, as Confluent's client reads it; in order within each partition.
fn read(kafka: &Kafka, guarded: &Guarded, topic: &str) -> Vec<Value> {
    let output = Command::new(python())
        .arg(script("read.py"))
        .args([kafka.address(), guarded.url()])
        .arg(kafka.certificate("ca.crt"))
        .args([format!("{}:{}", LOGIN.0, LOGIN.1), topic.to_owned()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// The rows that the records leave: what a consumer keeps who knows that an unchanged value is named in a header. One
/// of a row whose key has changed is that of the row which its old key names.
fn fold(records: &[Value]) -> BTreeMap<i64, Value> {
    let mut by_position: Vec<&Value> = records.iter().collect();
    by_position.sort_by_key(|record| position(record));
    let mut rows: BTreeMap<i64, Value> = BTreeMap::new();
    let mut moved: BTreeMap<i64, Value> = BTreeMap::new();
    for record in by_position {
        let (value, headers) = (&record["value"], &record["headers"]);
        let id = record["key"]["id"].as_i64().unwrap();
        match value["op"].as_str() {
            None => assert!(!rows.contains_key(&id), "a tombstone follows the delete of {id}"),
            Some("d") => {
                if let Some(row) = rows.remove(&id)
                    && headers.get("__debezium.newkey").is_some()
                {
                    moved.insert(id, row);
                }
            }
            Some(_) => {
                let mut row = record["latest"]["after"].clone();
                let unchanged: Vec<String> = headers
                    .get("tidemark.unchanged")
                    .map_or_else(Vec::new, |text| serde_json::from_str(text.as_str().unwrap()).unwrap());
                let old = headers.get("__debezium.oldkey").map(|text| {
                    serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap()["id"].as_i64().unwrap()
                });
                for name in unchanged {
                    assert!(row[&name].is_null(), "{name} is named as unchanged");
                    let held = old.map_or_else(|| &rows[&id], |old| &moved[&old]);
                    row[&name] = held[&name].clone();
                }
                rows.insert(id, row);
            }
        }
    }
    rows
}

/// Commit LSN and ordinal, and which of a change's records it is: a change of key is a delete, its tombstone and a create.
fn position(record: &Value) -> (u64, u64, u8) {
    let text = record["headers"]["tidemark.position"].as_str().unwrap();
    let parts: Vec<&str> = text.split('/').collect();
    let hex = |part: &str| u64::from_str_radix(part, 16).unwrap();
    let part = match record["value"]["op"].as_str() {
        Some("d") => 0,
        None => 1,
        Some(_) => 2,
    };
    (hex(parts[1]) << 32 | hex(parts[2]), parts[3].parse().unwrap(), part)
}

/// Waits until the server may forget everything that has been written.
async fn slot_has_passed(client: &tokio_postgres::Client) {
    let written = &postgres(client, "SELECT pg_current_wal_lsn()").await[0][0].clone().unwrap();
    let sql = format!("SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots");
    wait_until(PATIENCE, "the slot has passed what was written", async || {
        postgres(client, &sql).await[0][0].as_deref() == Some("t")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confluents_client_and_the_published_day_agree_with_postgres() {
    let kafka = Kafka::shared();
    let registry = Registry::start().await;
    let guarded = Guarded::start(&registry, kafka);
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    let password = kafka.certificate("registry-password");
    std::fs::write(&password, format!("{}\n", LOGIN.1)).unwrap();
    let days = days(&client).await;
    let mut connector = on_kafka(&server.url(), kafka, &guarded.url())
        .set("envelope.registry", "ca_file", kafka.certificate("ca.crt").display().to_string())
        .set("envelope.registry", "user", LOGIN.0);

    // Without the right password, and without trust: told, and no secret with it.
    for (change, words) in [("password", "refuses us"), ("ca_file", "out of reach")] {
        let mut wrong = on_kafka(&server.url(), kafka, &guarded.url())
            .set("envelope.registry", "ca_file", kafka.certificate("ca.crt").display().to_string())
            .set("envelope.registry", "user", LOGIN.0)
            .set("envelope.registry", "password", LOGIN.1);
        let value = if change == "password" {
            "hemlig-77".to_owned()
        } else {
            kafka.certificate("other-ca.crt").display().to_string()
        };
        wrong.change("envelope.registry", change, value);
        let mut checked = wrong.start("check");
        assert_eq!(checked.ended().await.code(), Some(1));
        let told = checked.output();
        assert!(told.contains(words) && told.contains("[envelope.registry]"), "{told}");
        assert!(!told.contains("hemlig") && !told.contains(LOGIN.1), "{told}");
    }

    connector.change("envelope.registry", "password_file", password.display().to_string());
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    client
        .batch_execute(
            "UPDATE orders SET total = total + 1 WHERE id % 3 = 0;
             UPDATE orders SET id = id + 1000 WHERE id % 10 = 0;
             DELETE FROM orders WHERE id % 7 = 0;
             ALTER TABLE orders ADD COLUMN extra text;
             INSERT INTO orders SELECT i, NULL, 'new', '{}', 'x' || i FROM generate_series(5000, 5050) i;
             UPDATE orders SET extra = 'late' WHERE id % 11 = 0",
        )
        .await
        .unwrap();
    slot_has_passed(&client).await;

    let records = read(kafka, &guarded, "shop.public.orders");
    let mut positions: Vec<_> = records.iter().map(position).collect();
    positions.sort_unstable();
    assert!(positions.windows(2).all(|pair| pair[0] != pair[1]), "a record is there twice");
    for partition in 0..3 {
        let of: Vec<_> = records.iter().filter(|r| r["partition"] == partition).map(position).collect();
        assert!(!of.is_empty() && of.is_sorted(), "partition {partition} is in the order of commits");
    }
    let tombstones = records.iter().filter(|record| record["value"].is_null()).count();
    let deletes = records.iter().filter(|record| record["value"]["op"] == "d").count();
    assert!(tombstones > 0 && tombstones == deletes, "{tombstones} tombstones, {deletes} deletes");
    let ids: std::collections::BTreeSet<_> = records.iter().filter_map(|r| r["value_id"].as_u64()).collect();
    assert_eq!(ids.len(), 2, "one schema before the new column, one from then on: {ids:?}");
    assert_eq!(registry.get("/subjects/shop.public.orders-value/versions"), json!([1, 2]));
    let rows = postgres(&client, "SELECT id, total, md5(note), extra FROM orders ORDER BY id").await;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let notes = postgres(&client, "SELECT id, note FROM orders ORDER BY id").await;
    let found = fold(&records);
    let seen: Vec<_> = found.iter().map(|(id, row)| vec![Some(id.to_string()), text(&row["note"])]).collect();
    assert_eq!(seen, notes);
    for (row, (id, found)) in rows.iter().zip(&found) {
        assert_eq!((&row[1], &row[3]), (&text(&found["total"]), &text(&found["extra"])), "row {id}");
    }

    let ds = &days[0];
    running.cut(ds);
    connector.wait_published(ds).await;
    let day = duckdb(&connector, ds, "SELECT id, total, md5(note), extra FROM {orders} ORDER BY id");
    assert_eq!(day, rows);
    let verified = running.command(&["verify", "--ds", ds]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let (_, health) = running.health();
    assert_eq!(running.terminate().await.code(), Some(0), "{}", running.output());
    assert!(!running.output().contains(LOGIN.1) && !health.to_string().contains(LOGIN.1));
}

/// A registry which, from some moment on, takes connections and says nothing.
struct Silent {
    port: u16,
    says_nothing: watch::Sender<bool>,
    asked: mpsc::UnboundedReceiver<()>,
}

impl Silent {
    async fn start(registry: Option<u16>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let says_nothing = watch::Sender::new(registry.is_none());
        let (asking, asked) = mpsc::unbounded_channel();
        let is_silent = says_nothing.subscribe();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                match registry.filter(|_| !*is_silent.borrow()) {
                    Some(registry) => {
                        let mut upstream = TcpStream::connect(("127.0.0.1", registry)).await.unwrap();
                        let mut is_silent = is_silent.clone();
                        tokio::spawn(async move {
                            // A connection that is kept open would go on being answered.
                            tokio::select! {
                                _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream) => {}
                                _ = is_silent.wait_for(|silent| *silent) => {}
                            }
                        });
                    }
                    None => {
                        held.push(stream);
                        let _ = asking.send(());
                    }
                }
            }
        });
        Self { port, says_nothing, asked }
    }
}

/// The call may take ten minutes; leaving does not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_the_process_although_the_registry_says_nothing() {
    let kafka = Kafka::shared();
    let registry = Registry::start().await;
    for (name, port) in [("copying", None), ("streaming", Some(registry.port()))] {
        let server = Postgres::start().await;
        let client = server.connect().await;
        client.batch_execute(TABLE).await.unwrap();
        let mut silent = Silent::start(port).await;
        let url = Registry::url_at(silent.port);
        let connector = on_kafka(&server.url(), kafka, &format!("{url},{url}"))
            .set("source", "name", name)
            .set("envelope.registry", "timeout_ms", 600_000);
        let mut running = connector.start("capture");
        if port.is_some() {
            running.ready().await;
            silent.says_nothing.send_replace(true);
            client
                .batch_execute("ALTER TABLE orders ADD COLUMN a int; INSERT INTO orders VALUES (1000)")
                .await
                .unwrap();
        }
        let asked = tokio::time::timeout(PATIENCE, silent.asked.recv()).await;
        assert_eq!(asked, Ok(Some(())), "{name}: the registry is not asked: {}", running.output());
        running.signal(Signal::TERM);
        assert_eq!(running.ended().await.code(), Some(0), "{name}: {}", running.output());
    }
}
