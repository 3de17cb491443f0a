//! Much at once.

use serde_json::json;

use super::{MB, TABLE, insert};
use crate::support::lake::{duckdb, value};
use crate::support::{Connector, Postgres, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_any_size_passes_in_bounded_memory() {
    const ROWS: u64 = 300_000;
    let server = Postgres::builder().set("logical_decoding_work_mem", "64MB").start().await;
    let client = server.connect().await;
    client
        .batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, a int, b numeric(12,2), c text)")
        .await
        .unwrap();
    let connector = Connector::new(&server.url());
    let capture = connector.start_ready("capture").await;
    let idle = capture.memory("VmHWM");
    let sql =
        format!("INSERT INTO t SELECT i, i % 7, i / 100.0, md5(i::text) FROM generate_series(1, {ROWS}) i");
    client.batch_execute(&sql).await.unwrap();
    connector.wait_for_records("t", ROWS).await;
    let peak = capture.memory("VmHWM");
    eprintln!("one transaction of {ROWS} rows: peak RSS {} MB, idle {} MB", peak / MB, idle / MB);
    assert!(peak < 150 * MB, "{} MB", peak / MB);
    let records = connector.table_records("t").await;
    assert!(records.iter().map(|r| r.value["after"]["id"].as_u64().unwrap()).eq(1..=ROWS));
    let commits: std::collections::BTreeSet<_> =
        records.iter().map(|r| r.position.rsplit_once('/').unwrap().0.to_owned()).collect();
    assert_eq!(commits.len(), 1, "one transaction, one commit LSN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_50_mb_passes_and_disturbs_nothing() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    client.batch_execute("CREATE TABLE u (id int PRIMARY KEY)").await.unwrap();
    let connector = Connector::new(&server.url());
    let running = connector.start_ready("run").await;
    insert(&client, 1, 100).await;
    client
        .batch_execute(
            "INSERT INTO t SELECT 101, string_agg(md5(i::text), '') FROM generate_series(1, 50 << 15) i;
             INSERT INTO u VALUES (1)",
        )
        .await
        .unwrap();
    insert(&client, 102, 200).await;
    connector.wait_for_records("t", 200).await;
    let ds = value(&client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    running.cut(&ds);
    connector.wait_published(&ds).await;
    eprintln!("a value of 50 MB: peak RSS {} MB", running.memory("VmHWM") / MB);

    let sql = "SELECT id, length(pad), md5(pad) FROM TABLE ORDER BY id";
    let expected = crate::support::lake::postgres(&client, &sql.replace("TABLE", "t")).await;
    assert_eq!(duckdb(&connector, &ds, &sql.replace("TABLE", "{t}")), expected);
    assert_eq!(duckdb(&connector, &ds, "SELECT id FROM {u}"), [[Some("1".to_owned())]]);
    wait_until(crate::support::PATIENCE, "health is well", async || running.health().1["status"] == "ok")
        .await;
}

/// Rows of about 30 MB, and small ones, in the log and in the letters.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_larger_than_its_limit_is_a_dead_letter_and_was_never_held() {
    let server = Postgres::builder().set("logical_decoding_work_mem", "64kB").start().await;
    let client = server.connect().await;
    let large = "string_agg(md5(i::text) || chr(9) || E'\\n', '') FROM generate_series(1, 900000) i";
    let sql = format!(
        "CREATE TABLE t (id int PRIMARY KEY, note text, pad text);
         CREATE TABLE f (id int PRIMARY KEY, pad bytea); ALTER TABLE f REPLICA IDENTITY FULL;
         INSERT INTO t SELECT 1, 'copied', {large};
         INSERT INTO t VALUES (2, 'copied', 'short')"
    );
    client.batch_execute(&sql).await.unwrap();
    let connector = Connector::new(&server.url()).set("source", "change_bytes_max", 4 * MB);
    let running = connector.start_ready("run").await;
    for sql in [
        // By protocol 1, and in parts, with more behind it.
        format!("INSERT INTO t SELECT 3, 'streamed', {large}"),
        "BEGIN; INSERT INTO t SELECT i, 'in parts', repeat('x', 100) FROM generate_series(11, 1010) i"
            .to_owned(),
        format!("INSERT INTO t SELECT 4, 'in parts', {large}"),
        "INSERT INTO t VALUES (5, 'in parts', 'short'); COMMIT".to_owned(),
        "UPDATE t SET note = 'unchanged' WHERE id = 3".to_owned(),
        format!(
            "INSERT INTO f VALUES (1, 'short'); UPDATE f SET pad = (SELECT convert_to({large}, 'UTF8') )"
        )
        .replace("convert_to(string_agg", "convert_to((SELECT string_agg")
        .replace(", 'UTF8')", "), 'UTF8')"),
        "SELECT pg_logical_emit_message(true, 'other', repeat('m', 30000000))".to_owned(),
        "INSERT INTO t VALUES (6, 'last', 'short')".to_owned(),
    ] {
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    wait_until(crate::support::PATIENCE, "the last row is in the log", async || {
        connector.table_records("t").await.last().is_some_and(|r| r.value["after"]["note"] == "last")
    })
    .await;
    let peak = running.memory("VmHWM") / MB;
    eprintln!("changes of 30 MB beyond the limit: peak RSS {peak} MB");
    assert!(peak < 100, "{peak} MB: less than any two of their values");

    let letters = connector.records("shop.dead-letters").await;
    let of = |letter: &crate::support::Record| {
        let new = &letter.value["new"];
        (
            letter.value["table"].clone(),
            letter.value["op"].clone(),
            new["id"].clone(),
            new["pad"]["bytes"].clone(),
        )
    };
    let bytes = value(&client, "SELECT octet_length(pad) FROM t WHERE id = 3").await.parse::<u64>().unwrap();
    assert_eq!(
        letters.iter().map(of).collect::<Vec<_>>(),
        [
            (json!("t"), json!("r"), json!("1"), json!(bytes)),
            (json!("t"), json!("c"), json!("3"), json!(bytes)),
            (json!("t"), json!("c"), json!("4"), json!(bytes)),
            (json!("f"), json!("u"), json!("1"), json!(2 * bytes + 2)),
        ]
    );
    for letter in &letters {
        let reason = letter.value["reason"].as_str().unwrap();
        assert!(reason.contains("\"pad\"") && reason.contains("change_bytes_max"), "{reason}");
        let begins = letter.value["new"]["pad"]["begins"].as_str().unwrap();
        assert!(
            begins.starts_with("c4ca4238a0b923820dcc509a6f75849b\t\n") || begins.starts_with("\\x6334636134"),
            "{begins}"
        );
    }
    let ds = value(&client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    running.cut(&ds);
    connector.wait_published(&ds).await;
    let expected = "SELECT id, note, pad FROM t WHERE id NOT IN (1, 3, 4) ORDER BY id";
    let rows = crate::support::lake::postgres(&client, expected).await;
    assert_eq!(duckdb(&connector, &ds, "SELECT id, note, pad FROM {t} ORDER BY id"), rows);
}

/// PostgreSQL cannot send it, since the text of a bytea has twice its size.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_server_cannot_send_is_told_by_transaction_and_table() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE small (id int PRIMARY KEY); CREATE TABLE large (id int PRIMARY KEY, raw bytea)",
        )
        .await
        .unwrap();
    let connector = Connector::new(&server.url());
    let mut running = connector.start_ready("capture").await;
    let rolled_back =
        "BEGIN; INSERT INTO large VALUES (1, convert_to(repeat('x', 550000000), 'UTF8')); ROLLBACK";
    client.batch_execute(rolled_back).await.unwrap();
    client.batch_execute("INSERT INTO small VALUES (1)").await.unwrap();
    connector.wait_for_records("small", 1).await;
    assert!(running.is_running(), "what was rolled back does no harm: {}", running.output());
    let sql = "BEGIN; INSERT INTO small VALUES (2); INSERT INTO large VALUES (1, convert_to(repeat('x', 550000000), 'UTF8'))";
    client.batch_execute(sql).await.unwrap();
    let xid = value(&client, "SELECT txid_current()").await;
    client.batch_execute("COMMIT").await.unwrap();
    assert!(!running.ended().await.success());
    let output = running.output();
    for part in [
        "cannot send a change",
        &format!("in transaction {xid}, which commits at"),
        "public.large",
        "column list",
    ] {
        assert!(output.contains(part), "{part}: {output}");
    }
    assert_eq!(value(&client, "SELECT count(*) FROM pg_replication_slots").await, "1", "the slot keeps it");
}
