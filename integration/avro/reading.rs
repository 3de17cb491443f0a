//! What others read: fastavro, by the registry's schemas; DuckDB, of the days that are made of such a log.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::{connector, fold, raw, read_by_fastavro, records, shared};
use crate::support::lake::{duckdb, postgres, value};
use crate::support::registry::Registry;
use crate::support::{Connector, NAME, Postgres, Running};

/// A row of `goods` as `read.py` shows it.
const ROW: &str = "SELECT id, json_build_object('id', id, 'name', name, 'amount', amount::text, 'free', free::text,
    'raw', encode(raw, 'hex'), 'day', day - date '1970-01-01', 'at', (extract(epoch FROM at) * 1000000)::bigint,
    'tz', to_char(tz AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), 'tags', to_json(tags), 'flag', flag,
    'ratio', ratio, 'body', body, 'odd__name', \"odd: name\" EXTRA)::text FROM goods ORDER BY id";

const GOODS: &str = "CREATE TABLE goods (id bigint PRIMARY KEY, name text, amount numeric(12, 2), free numeric,
        raw bytea, day date, at timestamp, tz timestamptz, tags text[], flag boolean, ratio double precision, body text,
        \"odd: name\" text);
    ALTER TABLE goods ALTER body SET STORAGE EXTERNAL;
    INSERT INTO goods SELECT i, 'name ' || i, i * 1.25 - 20, CASE WHEN i % 7 = 0 THEN 'NaN' ELSE (i * 1e-7)::numeric END,
        decode(md5(i::text), 'hex'), date '2026-11-20' + i, timestamp '2026-11-20 10:15:30.123456' + i * interval '1 day',
        timestamptz '2026-11-20 10:15:30+04' + i * interval '1 hour', ARRAY['a', NULL, i::text], i % 3 = 0, (i + 0.5) / 7,
        repeat(md5(i::text), 200), 'odd ' || i
    FROM generate_series(1, 50) i;";

/// What changes once it streams: unchanged TOAST values, moved keys, nulls, deletes.
const CHANGES: &str =
    "INSERT INTO goods (id, name, body) VALUES (100, 'new', repeat('x', 5000)), (101, NULL, NULL);
    UPDATE goods SET amount = 'NaN' WHERE id % 5 = 0;
    UPDATE goods SET name = name || '!' WHERE id % 2 = 0;
    UPDATE goods SET body = NULL WHERE id = 6;
    UPDATE goods SET id = id + 1000 WHERE id IN (10, 11);
    DELETE FROM goods WHERE id IN (3, 100);";

async fn expected(client: &tokio_postgres::Client, extra: &str) -> BTreeMap<i64, Json> {
    let rows = postgres(client, &ROW.replace("EXTRA", extra)).await;
    let row = |row: Vec<Option<String>>| {
        let [Some(id), Some(json)] = &row[..] else { panic!("{row:?}") };
        (id.parse().unwrap(), serde_json::from_str(json).unwrap())
    };
    rows.into_iter().map(row).collect()
}

/// Waits until the records of `goods` leave what Postgres holds, and gives them.
async fn wait_until_equal(
    connector: &Connector,
    registry: &Registry,
    expected: &BTreeMap<i64, Json>,
    mark: i64,
) -> Vec<Json> {
    let started = std::time::Instant::now();
    loop {
        let records = records(connector, registry, "goods").await;
        let rows = fold_moved(&records);
        if rows.contains_key(&mark) || started.elapsed() > crate::support::PATIENCE {
            assert_eq!(rows.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (id, row) in expected {
                assert_eq!(&rows[id], row, "row {id}");
            }
            return records;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// As [`fold`]; a moved row's unchanged values are those of the row which its old key names.
fn fold_moved(records: &[Json]) -> BTreeMap<i64, Json> {
    let mut held = Vec::new();
    let mut gone: BTreeMap<i64, Json> = BTreeMap::new();
    for record in records {
        let before = fold(&held);
        let mut record = record.clone();
        if let Some(old_key) = record["headers"].get("__debezium.oldkey") {
            let key: Json = serde_json::from_str(old_key.as_str().unwrap()).unwrap();
            let row = &gone[&key["id"].as_i64().unwrap()];
            let unchanged = record["headers"].get("tidemark.unchanged").cloned();
            if let Some(names) = unchanged {
                let names: Vec<String> = serde_json::from_str(names.as_str().unwrap()).unwrap();
                for name in names {
                    record["value"]["after"][&name] = row[&name].clone();
                }
                record["headers"].as_object_mut().unwrap().remove("tidemark.unchanged");
            }
        }
        if record["value"]["op"] == "d" {
            let id = record["value"]["before"]["id"].as_i64().unwrap();
            gone.extend(before.get(&id).map(|row| (id, row.clone())));
        }
        held.push(record);
    }
    fold(&held)
}

#[tokio::test(flavor = "multi_thread")]
async fn fastavro_reads_what_postgres_holds_and_a_new_column_is_a_compatible_version() {
    let registry = shared().await;
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(GOODS).await.unwrap();
    let connector = connector(&server.url(), registry);
    let running = connector.start_ready("capture").await;
    client.batch_execute(CHANGES).await.unwrap();
    client.batch_execute("INSERT INTO goods (id) VALUES (5000)").await.unwrap();
    let seen = wait_until_equal(&connector, registry, &expected(&client, "").await, 5000).await;

    let id = |part: &str| {
        registry.get(&format!("/subjects/shop.public.goods-{part}/versions/latest"))["id"].clone()
    };
    assert!(seen.iter().all(|record| record["key_id"] == id("key")), "{}", id("key"));
    assert!(seen.iter().all(|record| record["value_id"] == id("value") || record["value"].is_null()));
    assert!(
        seen.iter().any(|record| record["headers"].get("tidemark.unchanged").is_some()),
        "a TOAST value stayed"
    );

    client
        .batch_execute(
            "ALTER TABLE goods ADD COLUMN more int DEFAULT 7; INSERT INTO goods (id) VALUES (5001)",
        )
        .await
        .unwrap();
    // Rows that are not written again do not have it.
    let extra = ", 'more', CASE id WHEN 5001 THEN more END";
    let mut with_more = expected(&client, extra).await;
    for (id, row) in &mut with_more {
        if *id != 5001 {
            row.as_object_mut().unwrap().remove("more");
        }
    }
    let seen = wait_until_equal(&connector, registry, &with_more, 5001).await;
    assert_eq!(registry.get("/subjects/shop.public.goods-value/versions"), serde_json::json!([1, 2]));
    assert_eq!(registry.get("/subjects/shop.public.goods-key/versions"), serde_json::json!([1]));
    let last = seen.last().unwrap();
    assert_eq!((&last["value_id"], &last["value"]["after"]["more"]), (&id("value"), &serde_json::json!(7)));
    assert_eq!(running.health().0, 200);
}

/// Cuts the day and waits for it.
async fn day(connector: &Connector, running: &Running, ds: &str) {
    running.cut(ds);
    connector.wait_published(ds).await;
    let verified = running.command(&["verify", "--ds", ds]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_made_of_avro_is_that_of_json_with_and_without_schemas() {
    const ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY, total numeric(12, 2), free numeric, at timestamp,
            grid int[], body text);
        ALTER TABLE orders ALTER body SET STORAGE EXTERNAL;
        CREATE TABLE loose (a int, b numeric); ALTER TABLE loose REPLICA IDENTITY FULL;
        INSERT INTO loose VALUES (1, 'NaN'), (2, 1.5), (2, 1.5);
        INSERT INTO orders SELECT i, i * 1.1, i * 1e-5, '2026-11-20', ARRAY[i, NULL], repeat(md5(i::text), 100)
        FROM generate_series(1, 300) i";
    const MORE: &str = "UPDATE orders SET total = -total WHERE id % 3 = 0;
        UPDATE orders SET id = id + 1000 WHERE id % 50 = 1;
        DELETE FROM orders WHERE id % 11 = 0;
        UPDATE orders SET body = 'short' WHERE id = 8;
        UPDATE orders SET free = 'Infinity' WHERE id = 9;
        DELETE FROM loose WHERE b = 'NaN'; UPDATE loose SET b = 'NaN' WHERE ctid = (SELECT min(ctid) FROM loose);
        ALTER TABLE orders ADD COLUMN more text DEFAULT 'x'; INSERT INTO orders VALUES (5000)";
    let registry = shared().await;
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(ORDERS).await.unwrap();
    let json = Connector::new(&server.url());
    let typed =
        Connector::new(&server.url()).set("source", "slot", "typed").set("envelope", "schemas_enable", true);
    let avro = connector(&server.url(), registry).set("source", "slot", "avro");
    let mut days = Vec::new();
    for connector in [&json, &typed, &avro] {
        days.push((connector, connector.start_ready("run").await));
    }
    client.batch_execute(MORE).await.unwrap();
    let ds = value(&client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    let queries = [
        "SELECT id, total, free, \"at\", grid::varchar, body, more FROM {orders} ORDER BY id",
        "SELECT a, b FROM {loose} ORDER BY a, b",
    ];
    let mut first = None;
    for (connector, running) in &days {
        day(connector, running, &ds).await;
        let rows: Vec<_> = queries.iter().map(|sql| duckdb(connector, &ds, sql)).collect();
        let count = value(&client, "SELECT count(*) FROM orders").await;
        assert_eq!(rows[0].len().to_string(), count);
        let first = first.get_or_insert_with(|| rows.clone());
        for (ours, json) in rows.iter().zip(first.iter()) {
            assert_eq!(ours, json);
        }
    }
    let held = postgres(&client, "SELECT id, total, free, body FROM orders ORDER BY id").await;
    assert_eq!(duckdb(&avro, &ds, "SELECT id, total, free, body FROM {orders} ORDER BY id"), held);
    let value = typed.table_records("loose").await.remove(0).value;
    assert_eq!(value["schema"]["name"], "shop.public.loose.Envelope");
    assert_eq!(value["payload"]["after"]["a"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_are_read_by_schemas_that_were_registered_before_anything_was_copied() {
    let registry = shared().await;
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE moves (id int PRIMARY KEY, note text)").await.unwrap();
    let connector = connector(&server.url(), registry).set("envelope", "provide_transaction_metadata", true);
    let running = connector.start_ready("capture").await;
    let sql =
        "BEGIN; INSERT INTO moves VALUES (1, 'a'), (2, 'b'); UPDATE moves SET id = 3 WHERE id = 1; COMMIT";
    client.batch_execute(sql).await.unwrap();
    let read = async || read_by_fastavro(raw(&connector, &format!("{NAME}.transaction")).await, registry);
    crate::support::wait_until(crate::support::PATIENCE, "the transaction has ended", async || {
        read().await.len() == 2
    })
    .await;
    let transactions = read().await;
    let id = |record: &Json| record["value"]["id"].as_str().unwrap().to_owned();
    for (record, status) in transactions.iter().zip(["BEGIN", "END"]) {
        assert_eq!((&record["value"]["status"], &record["key"]["id"]), (&status.into(), &id(record).into()));
    }
    assert_eq!(transactions[0]["value"]["event_count"], Json::Null);
    let end = &transactions[1]["value"];
    let tables = serde_json::json!([{ "data_collection": "public.moves", "event_count": 4 }]);
    assert_eq!((&end["event_count"], &end["data_collections"]), (&4.into(), &tables));
    let moves = records(&connector, registry, "moves").await;
    let orders = moves.iter().filter(|record| !record["value"].is_null());
    let orders = orders.map(|record| record["value"]["transaction"]["total_order"].as_u64().unwrap());
    assert!(orders.eq(1..=4), "{moves:?}");
    assert_eq!(registry.get("/subjects/shop.transaction-value/versions"), serde_json::json!([1]));
    assert_eq!(running.health().0, 200);
}
