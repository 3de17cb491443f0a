//! The change history made again from the log is the one that deliver has made, by pyarrow; and where the log does not
//! reach back so far, that is said.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::days::{days, use_rule};
use crate::support::lake::python;
use crate::support::registry::Registry;
use crate::support::{Connector, Kafka, NAME, PATIENCE, Postgres, Running, wait_until};
use serde_json::json;

type Rows = BTreeMap<String, Vec<String>>;

fn rows(folders: &[PathBuf]) -> Vec<Rows> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/replay/read.py");
    let output = Command::new(python()).arg(script).args(folders).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn changes(lake: &Path, table: &str) -> PathBuf {
    lake.join(format!("changes/{NAME}/public.{table}"))
}

fn replay(running: &Running, arguments: &[&str], to: &Path) -> (bool, String) {
    let to = format!("file://{}", to.display());
    let output = running.command(&[&["replay", "--to-lake", &to], arguments].concat());
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// What a process leaves that is killed while it writes a change file, a part, and the manifest of a day.
fn half_written(connector: &Connector, ds: &str) -> Vec<PathBuf> {
    let a_file = |folder: PathBuf| std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let hour = a_file(changes(&connector.lake(), "orders").join(format!("ds={ds}")));
    let files =
        [a_file(hour), connector.snapshot("orders", ds).join("part-00000.parquet"), connector.day(ds)];
    let halves = files.map(|file| PathBuf::from(format!("{}#1", file.display())));
    for half in &halves {
        std::fs::write(half, "half").unwrap();
    }
    halves.to_vec()
}

async fn day(
    running: &Running,
    connector: &Connector,
    client: &tokio_postgres::Client,
    number: i32,
    ds: &str,
) {
    let sql = format!(
        "UPDATE orders SET a = repeat(a, 3) WHERE id % 7 = {number}; DELETE FROM orders WHERE id % 11 = {number};
         INSERT INTO orders SELECT i, 'day {number}' FROM generate_series(10000 * {number} + 10000, 10000 * {number} + 10200) i;
         UPDATE lines SET id = id + 100 WHERE id = {number}"
    );
    client.batch_execute(&sql).await.unwrap();
    running.cut(ds);
    connector.wait_published(ds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_files_made_again_from_the_log_hold_the_same_rows() {
    made_again(Connector::new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_files_made_again_from_avro_on_kafka_hold_the_same_rows() {
    let (kafka, registry) = (Kafka::start(), Registry::start().await);
    let on_kafka = |url: &str| {
        Connector::new(url)
            .set("log", "kind", "kafka")
            .set("log.kafka", "brokers", json!([kafka.address()]))
            .set("log.kafka", "partitions", 3)
            .set("envelope", "format", "avro")
            .set("envelope.registry", "url", registry.url())
    };
    made_again(on_kafka).await;
}

async fn made_again(connect: impl Fn(&str) -> Connector) {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, a text); CREATE TABLE lines (id int PRIMARY KEY);
             INSERT INTO orders SELECT i, md5(i::text) FROM generate_series(1, 3000) i;
             INSERT INTO lines VALUES (0), (1), (2), (3)",
        )
        .await
        .unwrap();
    let days = days(&client).await;
    let mut connector = connect(&server.url());
    connector.change("lake", "stage_bytes_max", 65_536);
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    for (number, ds) in days.iter().enumerate() {
        let mut halves = Vec::new();
        if number > 0 {
            assert!(running.terminate().await.success());
            halves = half_written(&connector, &days[number - 1]);
            use_rule(&mut connector, number);
            running = connector.start_ready("run").await;
        }
        day(&running, &connector, &client, number as i32, ds).await;
        assert!(!halves.iter().any(|half| half.exists()), "{halves:?}");
        if number == 0 {
            let other = connector.folder().join("first");
            let (done, said) = replay(&running, &["--from", ds], &other);
            assert!(done, "{said}");
            let found = rows(&[changes(&connector.lake(), "orders"), changes(&other, "orders")]);
            assert!(!found[0].is_empty());
            assert_eq!(found[0], found[1], "by day and hour");
        }
    }
    let lake = |name: &str| connector.folder().join(name);
    let ours = |table: &str| changes(&connector.lake(), table);
    // Days are others by the rule of now.
    let all_of = |rows: &Rows| {
        let mut all: Vec<String> = rows.values().flatten().cloned().collect();
        all.sort();
        all
    };

    // Everything, with the first copies, beside the process that runs. Twice: what is there is not made again.
    for _ in 0..2 {
        let (done, said) = replay(&running, &["--from", "2000-01-01"], &lake("all"));
        assert!(done && said.contains("public.orders"), "{said}");
        for table in ["orders", "lines"] {
            let found = rows(&[ours(table), changes(&lake("all"), table)]);
            assert!(all_of(&found[0]).len() > 3, "{table}");
            assert_eq!(all_of(&found[0]), all_of(&found[1]), "{table}");
        }
    }
    // From a day on, of one table.
    let (done, said) = replay(&running, &["--from", &days[1], "--table", "public.orders"], &lake("day"));
    assert!(done, "{said}");
    let found = rows(&[ours("orders"), changes(&lake("day"), "orders")]);
    let manifest = Connector::json(&connector.snapshot("orders", &days[0]).join("_manifest.json"));
    let ends: BTreeMap<u64, u64> = manifest["log"]
        .as_array()
        .unwrap()
        .iter()
        .map(|range| (range["partition"].as_u64().unwrap(), range["end"].as_u64().unwrap()))
        .collect();
    let behind = |rows: &Rows| -> Vec<String> {
        let mut found = all_of(rows);
        found.retain(|row| {
            let row: serde_json::Value = serde_json::from_str(row).unwrap();
            let end = ends.get(&row["__partition"].as_u64().unwrap()).copied().unwrap_or(0);
            row["__offset"].as_u64().unwrap() >= end
        });
        found
    };
    assert_eq!(behind(&found[0]), behind(&found[1]));
    assert_eq!(
        behind(&found[1]).len(),
        found[1].values().map(Vec::len).sum::<usize>(),
        "nothing before the day"
    );
    assert!(!changes(&lake("day"), "lines").exists());
    // From elsewhere it would divide the same offsets otherwise.
    let held = found[1].clone();
    for from in ["2000-01-01", days[2].as_str()] {
        let (done, said) = replay(&running, &["--from", from, "--table", "public.orders"], &lake("day"));
        assert!(!done && said.contains("from an earlier replay"), "{said}");
    }
    let (done, said) = replay(&running, &["--from", &days[1], "--table", "public.orders"], &lake("day"));
    assert!(done, "{said}");
    assert_eq!(rows(&[changes(&lake("day"), "orders")])[0], held);
    // From a position on: the last change of a day's log.
    let position = manifest["cut"]["position"].as_str().unwrap().to_owned();
    let (done, said) = replay(&running, &["--from", &position, "--table", "public.lines"], &lake("position"));
    assert!(done, "{said}");
    let found = rows(&[ours("lines"), changes(&lake("position"), "lines")]);
    let held = |rows: &Rows| rows.values().flatten().cloned().collect::<std::collections::BTreeSet<String>>();
    assert!(held(&found[1]).is_subset(&held(&found[0])) && !held(&found[1]).is_empty());

    let (done, said) = replay(&running, &["--from", &days[0]], &connector.lake());
    assert!(!done && said.contains("the connector's own lake"), "{said}");
    let (done, said) = replay(&running, &["--from", &days[0], "--table", "public.nowhere"], &lake("x"));
    assert!(!done && said.contains("the log knows no table public.nowhere"), "{said}");
    wait_until(PATIENCE, "all is well", async || running.health().1["status"] == "ok").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_log_does_not_hold_any_more_is_refused() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE orders (id int PRIMARY KEY, a text)").await.unwrap();
    client
        .batch_execute("CREATE TABLE lines (id int PRIMARY KEY); INSERT INTO orders SELECT i, md5(i::text) FROM generate_series(1, 5000) i")
        .await
        .unwrap();
    let days = days(&client).await;
    let mut connector = Connector::new(&server.url());
    connector.change("log.embedded", "retention_ms", 0);
    connector.change("log.embedded", "retention_bytes", 0);
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    day(&running, &connector, &client, 1, &days[0]).await;
    assert!(running.terminate().await.success());
    use_rule(&mut connector, 1);
    let running = connector.start_ready("run").await;
    day(&running, &connector, &client, 2, &days[1]).await;
    let refused = async || {
        let (done, said) = replay(&running, &["--from", &days[0]], &connector.folder().join("other"));
        let files = changes(&connector.folder().join("other"), "orders");
        !done
            && said.contains("the log does not reach back so far")
            && said.contains("Ask for a later day")
            && !files.exists()
    };
    wait_until(PATIENCE, "the log has let go of the first day", refused).await;
}
