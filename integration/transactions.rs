//! Transaction metadata through the real binary: compared with what Postgres itself says of its transactions, also
//! when the process is killed within a large one.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::lake::value;
use crate::support::{Connector, NAME, PATIENCE, Postgres, Record, wait_until};
use serde_json::{Value as Json, json};

fn connector(server: &Postgres) -> Connector {
    Connector::new(&server.url()).set("envelope", "provide_transaction_metadata", true)
}

/// Transaction id of `<xid>:<lsn>`.
fn xid(id: &Json) -> String {
    id.as_str().unwrap().split_once(':').unwrap().0.to_owned()
}

/// BEGIN and END as `(status, xid, event_count, tables)`.
fn boundaries(records: &[Record]) -> Vec<(String, String, Json, Json)> {
    let boundary = |record: &Record| {
        let value = &record.value;
        assert_eq!(record.key, json!({ "id": value["id"] }));
        let status = value["status"].as_str().unwrap().to_owned();
        (status, xid(&value["id"]), value["event_count"].clone(), value["data_collections"].clone())
    };
    records.iter().map(boundary).collect()
}

async fn ends(connector: &Connector) -> usize {
    let records = connector.records(&format!("{NAME}.transaction")).await;
    records.iter().filter(|record| record.value["status"] == "END").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_transaction_begins_and_ends_with_what_postgres_says_of_it() {
    let server = Postgres::start().await;
    let mut client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, note text); CREATE TABLE lines (id int PRIMARY KEY, \"order\" int);
             CREATE TABLE hidden (id int PRIMARY KEY); CREATE PUBLICATION wide FOR TABLE orders, lines, hidden;
             INSERT INTO orders SELECT i, 'there before' FROM generate_series(1, 5) i",
        )
        .await
        .unwrap();
    let mut connector = connector(&server);
    connector.change("source", "exclude", ["public.hidden"]);
    connector.change("source", "publication", "wide");
    let mut running = connector.start_ready("run").await;
    // Each: what is done, and how many records with a value that makes by table.
    let all: [(&str, &[(&str, u64)]); 7] = [
        (
            "INSERT INTO orders VALUES (10, 'a'), (11, 'b'); INSERT INTO lines VALUES (1, 10), (2, 10), (3, 11)",
            &[("public.lines", 3), ("public.orders", 2)],
        ),
        // A key that moves is a delete and a create; tombstones do not count.
        (
            "UPDATE orders SET id = 12 WHERE id = 11; DELETE FROM orders WHERE id = 10",
            &[("public.orders", 3)],
        ),
        ("INSERT INTO hidden VALUES (1), (2)", &[]),
        ("INSERT INTO hidden VALUES (3); INSERT INTO lines VALUES (4, 12)", &[("public.lines", 1)]),
        ("SELECT pg_logical_emit_message(true, 'other', 'content')", &[]),
        ("TRUNCATE orders, lines", &[("public.lines", 1), ("public.orders", 1)]),
        (
            "SAVEPOINT a; INSERT INTO lines VALUES (5, 1); ROLLBACK TO a; INSERT INTO lines VALUES (6, 1)",
            &[("public.lines", 1)],
        ),
    ];
    let mut expected = Vec::new();
    for (sql, counts) in all {
        let transaction = client.transaction().await.unwrap();
        transaction.batch_execute(sql).await.unwrap();
        let xid: String = transaction
            .query_one("SELECT (pg_current_xact_id()::text::bigint & 4294967295)::text", &[])
            .await
            .unwrap()
            .get(0);
        transaction.commit().await.unwrap();
        let list: Vec<_> = counts
            .iter()
            .map(|(table, count)| json!({ "data_collection": table, "event_count": count }))
            .collect();
        let count: u64 = counts.iter().map(|(_, count)| count).sum();
        expected.push(("BEGIN".to_owned(), xid.clone(), Json::Null, Json::Null));
        expected.push(("END".to_owned(), xid, json!(count), json!(list)));
    }
    wait_until(PATIENCE, "all transactions have ended", async || ends(&connector).await == all.len()).await;
    let transactions = connector.records(&format!("{NAME}.transaction")).await;
    assert_eq!(boundaries(&transactions), expected);

    let (orders, lines) = (connector.table_records("orders").await, connector.table_records("lines").await);
    assert!(orders[..5].iter().all(|r| r.value["op"] == "r" && r.value["transaction"].is_null()));
    let mut seen: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for record in orders[5..].iter().chain(&lines).filter(|record| !record.value.is_null()) {
        let (source, block) = (&record.value["source"], &record.value["transaction"]);
        assert_eq!(block["id"], format!("{}:{}", source["txId"], source["lsn"]));
        let total = block["total_order"].as_u64().unwrap();
        assert!(seen.entry(xid(&block["id"])).or_default().insert(total), "{total} is given twice");
    }
    for (_, xid, count, _) in expected.iter().filter(|(status, ..)| status == "END") {
        let totals = seen.remove(xid).unwrap_or_default();
        assert!(totals.into_iter().eq(1..=count.as_u64().unwrap()), "numbers of transaction {xid}");
    }
    assert!(seen.is_empty(), "{seen:?}");

    // The lake takes no notice.
    let ds = value(&client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    running.cut(&ds);
    connector.wait_published(&ds).await;
    let verified = running.command(&["verify", "--ds", &ds]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    assert!(running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_counted_on_after_each_kill_within_it_and_begins_and_ends_once() {
    const ROWS: u64 = 60_000;
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE one (id int PRIMARY KEY, note text); CREATE TABLE two (id int PRIMARY KEY)",
        )
        .await
        .unwrap();
    let connector = connector(&server).set("log", "append_bytes_max", 65_536);
    connector.start_ready("capture").await.kill();
    client
        .batch_execute(&format!(
            "BEGIN; INSERT INTO one SELECT i, repeat('n', 300) FROM generate_series(1, {ROWS}) i;
             INSERT INTO two SELECT i FROM generate_series(1, {ROWS}) i;
             UPDATE one SET id = -id WHERE id <= 1000; COMMIT"
        ))
        .await
        .unwrap();
    let held = async |table: &str| connector.end(table).await;
    let mut within = 0;
    for step in 1.. {
        let mut running = connector.start("capture");
        let target = step * ROWS / 6;
        wait_until(PATIENCE, "a part of the transaction is in the log", async || {
            held("one").await + held("two").await >= target || ends(&connector).await > 0
        })
        .await;
        running.kill();
        if ends(&connector).await > 0 {
            break;
        }
        within += 1;
    }
    assert!(within >= 3, "killed {within} times within the transaction: too few to show anything");

    let count = 2 * ROWS + 2000;
    let transactions = connector.records(&format!("{NAME}.transaction")).await;
    let found = boundaries(&transactions);
    let statuses: Vec<_> = found.iter().map(|(status, ..)| status.as_str()).collect();
    assert_eq!(statuses, ["BEGIN", "END"]);
    let tables = json!([
        { "data_collection": "public.one", "event_count": ROWS + 2000 },
        { "data_collection": "public.two", "event_count": ROWS },
    ]);
    assert_eq!((&found[1].2, &found[1].3), (&json!(count), &tables));
    let mut total = 0;
    for table in ["one", "two"] {
        let mut of_table = 0;
        let mut last = 0;
        for record in connector.table_records(table).await.iter().filter(|record| !record.value.is_null()) {
            let block = &record.value["transaction"];
            of_table += 1;
            assert_eq!(block["data_collection_order"], of_table, "{table} at {}", record.position);
            let order = block["total_order"].as_u64().unwrap();
            assert!(order > last, "{table} at {}: {block}", record.position);
            last = order;
            total += 1;
        }
        assert!(last <= count, "{table}");
    }
    assert_eq!(total, count);
}
