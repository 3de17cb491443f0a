//! Retention that has passed what deliver had not read yet: stated, named in the day, and mended by a new copy of the table.

use crate::support::days::{days, use_rule};
use crate::support::lake::{duckdb, postgres, value};
use crate::support::{Connector, Kafka, PATIENCE, Postgres, Running, wait_until};
use serde_json::{Value, json};
use tokio_postgres::Client;

const PARTITIONS: u32 = 3;

const TABLES: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, total numeric(12,2), note text);
    ALTER TABLE orders ALTER note SET STORAGE EXTERNAL;
    CREATE TABLE audit (n int, line text);
    ALTER TABLE audit REPLICA IDENTITY FULL;
    INSERT INTO orders SELECT i, i * 1.25, repeat(md5(i::text), 80) FROM generate_series(1, 500) i;
    INSERT INTO audit SELECT i % 7, 'line' FROM generate_series(1, 100) i";

/// Rows go, come, change and move, and keep large values.
async fn traffic(client: &Client, round: i32) {
    let sql = format!(
        "UPDATE orders SET total = total + {round} WHERE id % 7 = {round};
         UPDATE orders SET id = id + {round} * 10000 WHERE id % 11 = {round} AND id < 500;
         DELETE FROM orders WHERE id % 13 = {round};
         INSERT INTO orders SELECT {round} * 1000000 + i, i, 'new' FROM generate_series(1, 30) i;
         DELETE FROM audit WHERE n = {round}; INSERT INTO audit SELECT {round}, 'round' FROM generate_series(1, 5)"
    );
    client.batch_execute(&sql).await.unwrap();
}

async fn assert_same(connector: &Connector, client: &Client, ds: &str, tables: &[&str]) {
    for table in tables {
        let sql = match *table {
            "orders" => "SELECT id, total, md5(note) FROM TABLE ORDER BY id",
            _ => "SELECT n, line, count(*) FROM TABLE GROUP BY n, line ORDER BY n, line",
        };
        let found = duckdb(connector, ds, &sql.replace("TABLE", &format!("{{{table}}}")));
        assert_eq!(found, postgres(client, &sql.replace("TABLE", table)).await, "{table} on {ds}");
    }
}

fn orders(running: &Running) -> Value {
    running.health().1["tables"]["public.orders"].clone()
}

/// Waits until the process tells of the gap, and gives the reason by which it does.
async fn told(running: &Running) -> (u16, Value) {
    let reason = |health: &Value| {
        let reasons = health["reasons"].as_array().unwrap().clone();
        reasons.into_iter().find(|reason| reason["subject"] == "public.orders" && reason["kind"] == "missing")
    };
    wait_until(PATIENCE, "the gap is told", async || reason(&running.health().1).is_some()).await;
    let (code, health) = running.health();
    (code, reason(&health).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_retention_took_are_told_named_in_the_day_and_made_good_by_a_new_copy() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let days = days(&client).await;
    let kafka = Kafka::start();
    let mut connector = Connector::new(&server.url())
        .set("log", "kind", "kafka")
        .set("log.kafka", "brokers", json!([kafka.address()]))
        .set("log.kafka", "partitions", PARTITIONS);
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    running.cut(&days[0]);
    connector.wait_published(&days[0]).await;
    running.kill();

    // Nobody delivers, and what is captured meanwhile is gone before anybody does.
    use_rule(&mut connector, 1);
    let mut capture = connector.start_ready("capture").await;
    traffic(&client, 1).await;
    let written = value(&client, "SELECT pg_current_wal_lsn()").await;
    wait_until(PATIENCE, "what was written is in the log", async || {
        let sql = format!("SELECT bool_or(confirmed_flush_lsn >= '{written}') FROM pg_replication_slots");
        value(&client, &sql).await == "t"
    })
    .await;
    assert_eq!(capture.terminate().await.code(), Some(0), "{}", capture.output());
    kafka.delete_records("shop.public.orders", PARTITIONS);

    let mut deliver = connector.start_ready("deliver").await;
    let (code, reason) = told(&deliver).await;
    assert_eq!((code, &reason["severity"]), (503, &json!("act")), "{reason}");
    let mend = reason["mend"].as_str().unwrap();
    assert!(mend.contains("`tidemark backfill public.orders` beside the process that captures"), "{mend}");
    let metrics = deliver.get("/metrics").unwrap().1;
    let line =
        metrics.lines().find(|line| line.starts_with("tidemark_table_gap_offsets{table=\"public.orders\"}"));
    assert!(line.is_some_and(|line| !line.ends_with(" 0")), "{line:?}");
    let refused = deliver.command(&["backfill", "public.orders"]);
    let refused = (refused.status.code(), String::from_utf8_lossy(&refused.stderr).into_owned());
    assert!(refused.0 == Some(1) && refused.1.contains("ask the one that does"), "{refused:?}");
    deliver.terminate().await;

    // An open transaction keeps the new copy waiting: the day is cut before it can be whole.
    let open = server.connect().await;
    open.batch_execute("BEGIN; INSERT INTO audit VALUES (0, 'open')").await.unwrap();
    running = connector.start_ready("run").await;
    let (code, reason) = told(&running).await;
    assert_eq!((code, &reason["severity"]), (200, &json!("watch")), "{reason}");
    traffic(&client, 2).await;
    running.cut(&days[1]);
    connector.wait_published(&days[1]).await;
    assert_same(&connector, &client, &days[1], &["audit"]).await;
    let day = Connector::json(&connector.day(&days[1]));
    let missing = &day["missing"][0];
    assert_eq!(
        (&day["tables"].as_array().unwrap().len(), &missing["table"]["table"]),
        (&1, &json!("orders")),
        "{day}"
    );
    assert!(missing["reason"].as_str().unwrap().contains("of shop.public.orders/0"), "{missing}");
    assert!(!connector.snapshot("orders", &days[1]).join("_manifest.json").exists());
    for command in [
        &["wait", "--ds", &days[1]][..],
        &["wait", "--table", "public.orders", "--ds", &days[1]],
        &["verify", "--ds", &days[1]],
    ] {
        let output = running.command(command);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(output.status.code() == Some(1) && text.contains("public.orders"), "{command:?}: {text}");
    }

    // Killed while the copy waits or runs; then it becomes whole under writes.
    running.kill();
    running = connector.start_ready("run").await;
    open.batch_execute("COMMIT").await.unwrap();
    traffic(&client, 3).await;
    wait_until(PATIENCE, "the copy is whole", async || orders(&running)["backfill"]["done"] == true).await;
    traffic(&client, 4).await;
    running.kill();

    use_rule(&mut connector, 2);
    running = connector.start_ready("run").await;
    traffic(&client, 5).await;
    running.cut(&days[2]);
    connector.wait_published(&days[2]).await;
    assert_same(&connector, &client, &days[2], &["orders", "audit"]).await;
    let verified = running.command(&["verify", "--ds", &days[2]]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let letters = running.command(&["dead-letters", "list"]);
    assert!(!String::from_utf8_lossy(&letters.stdout).contains("public.orders"), "{letters:?}");
    wait_until(PATIENCE, "the gap is closed", async || orders(&running)["gap"].is_null()).await;

    // Other consumers see changes alone in the table's topic, and the copy in its own.
    let ops = |topic| {
        let lines = kafka.committed(topic, 1);
        let values = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        values.filter_map(|value| value["op"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert!(ops("shop.public.orders").iter().all(|op| op != "r"));
    let copies = ops("shop.backfill-public.orders");
    assert!(!copies.is_empty() && copies.iter().all(|op| op == "r"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_lost_is_given_up_on_kafka_too_and_not_beside_a_running_process() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let days = days(&client).await;
    let kafka = Kafka::start();
    let mut connector = Connector::new(&server.url())
        .set("log", "kind", "kafka")
        .set("log.kafka", "brokers", json!([kafka.address()]))
        .set("log.kafka", "partitions", PARTITIONS)
        // Its file would be in use, which is told first.
        .set("log.kafka", "spill_bytes_max", 0);
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    traffic(&client, 1).await;
    let beside = connector.command(&["accept-gap", "0/1.."]);
    let said = String::from_utf8_lossy(&beside.stderr).into_owned();
    assert!(beside.status.code() == Some(1) && said.contains("which streams from the slot"), "{said}");
    running.cut(&days[0]);
    connector.wait_published(&days[0]).await;
    assert!(running.terminate().await.success(), "it went on all the while: {}", running.output());

    client.batch_execute("SELECT pg_drop_replication_slot('tidemark_shop')").await.unwrap();
    traffic(&client, 2).await;
    use_rule(&mut connector, 1);
    let mut refused = connector.start("run");
    assert_eq!(refused.ended().await.code(), Some(1));
    let said = refused.output();
    let command = said.split('`').find(|part| part.starts_with("tidemark accept-gap")).expect(&said);
    let accepted = connector.command(&["accept-gap", command.split(' ').next_back().unwrap(), "--json"]);
    assert!(accepted.status.success(), "{}", String::from_utf8_lossy(&accepted.stderr));
    let told: Value = serde_json::from_slice(&accepted.stdout).unwrap();
    assert_eq!(told["new_slot"], true, "{told}");
    traffic(&client, 3).await;
    running = connector.start_ready("run").await;
    wait_until(PATIENCE, "the copy is whole", async || {
        let table = orders(&running);
        table["backfill"]["done"] == true && table["lacking"].is_null()
    })
    .await;
    traffic(&client, 4).await;
    running.cut(&days[1]);
    connector.wait_published(&days[1]).await;
    assert_same(&connector, &client, &days[1], &["orders", "audit"]).await;
}
