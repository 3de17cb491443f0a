//! Transactions in progress through the real binary: what comes out is compared, record for record, with what the same
//! server sends by protocol 1, and with what Postgres itself has.

mod prepared;
mod within;

use std::collections::{BTreeMap, BTreeSet};

use crate::support::lake::value;
use crate::support::{Connector, NAME, PATIENCE, Postgres, Record, Running, Stop, wait_until};
use serde_json::Value as Json;
use tokio_postgres::Client;

/// A server which streams whatever is larger than 64 kB.
async fn server() -> Postgres {
    let builder = Postgres::builder().set("logical_decoding_work_mem", "64kB");
    builder.set("max_connections", "50").start().await
}

/// A connector with a slot of that name, without a copy.
fn connector(server: &Postgres, slot: &str, streaming: &str) -> Connector {
    Connector::new(&server.url())
        .set("source", "slot", slot)
        .set("source", "publication", "everything")
        .set("source", "backfill", "none")
        .set("source", "streaming", streaming)
        .set("envelope", "provide_transaction_metadata", true)
        .set("log", "append_bytes_max", 65_536)
}

async fn slot(client: &Client, name: &str) {
    let sql = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
    client.batch_execute(&sql).await.unwrap();
}

/// One server, with a connector which streams and one which does not.
struct Both {
    server: Postgres,
    client: Client,
    streamed: Connector,
    whole: Connector,
}

impl Both {
    async fn new(tables: &str) -> Self {
        Self::on(server().await, "on", tables).await
    }

    async fn on(server: Postgres, streaming: &str, tables: &str) -> Self {
        let client = server.connect().await;
        client.batch_execute(tables).await.unwrap();
        client.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").await.unwrap();
        slot(&client, "streamed").await;
        slot(&client, "whole").await;
        let (streamed, whole) =
            (connector(&server, "streamed", streaming), connector(&server, "whole", "off"));
        Self { server, client, streamed, whole }
    }

    async fn start(&self) -> (Running, Running) {
        (self.streamed.start_ready("capture").await, self.whole.start_ready("capture").await)
    }

    /// Waits until both have everything that is in the WAL, and the server says that so many transactions were sent in
    /// parts to one, and none to the other.
    async fn caught_up(&self, in_parts: i64) {
        self.slots_are_at_the_end(&["streamed", "whole"]).await;
        let sql = "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = $1";
        let of = async |name: &str| {
            let row = self.client.query_opt(sql, &[&name]).await.unwrap();
            row.map_or(0, |row| row.get::<_, i64>(0))
        };
        // Statistics arrive a little later.
        wait_until(PATIENCE, &format!("{in_parts} transactions were sent in parts"), async || {
            of("streamed").await >= in_parts
        })
        .await;
        assert_eq!(of("whole").await, 0, "the other one does not stream");
    }

    async fn slots_are_at_the_end(&self, slots: &[&str]) {
        let end = value(&self.client, "SELECT pg_current_wal_lsn()").await;
        for slot in slots {
            let sql = format!(
                "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{slot}'"
            );
            wait_until(PATIENCE, &format!("slot {slot} is at {end}"), async || {
                value(&self.client, &sql).await == "t"
            })
            .await;
        }
    }

    /// Every record of both is the same, down to its position; gives those of the first.
    async fn same(&self, topics: &[&str]) -> Vec<Vec<Record>> {
        let mut all = Vec::new();
        for topic in topics {
            let topic = format!("{NAME}.{topic}");
            let (streamed, whole) = (self.streamed.records(&topic).await, self.whole.records(&topic).await);
            let major = self.server.major();
            for (one, other) in streamed.iter().zip(&whole) {
                let (one, other) = (timeless(one, major), timeless(other, major));
                assert_eq!(one, other, "{topic}");
            }
            assert_eq!(streamed.len(), whole.len(), "records in {topic}");
            all.push(streamed);
        }
        all
    }
}

/// A record without the time at which it was made.
fn timeless(record: &Record, major: u32) -> (u64, String, Json, Json) {
    let mut value = record.value.clone();
    for key in ["ts_ms", "ts_us", "ts_ns"] {
        if let Some(time) = value.get_mut(key).filter(|_| record.value.get("op").is_some()) {
            *time = Json::Null;
        }
    }
    let mut position = record.position.clone();
    if value.get("before").is_some_and(Json::is_null) && value.get("actions").is_some() {
        // A table is seen first where the slot stands.
        position.clear();
        value["position"] = Json::Null;
    }
    let mut key = record.key.clone();
    if major == 14 && value["status"] == "BEGIN" {
        // By protocol 1, 14 gives BEGIN the LSN of the first change whether or not that one was rolled back.
        (key, value["id"]) = (Json::Null, Json::Null);
    }
    (record.offset, position, key, value)
}

async fn sql(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn interleaved_transactions_come_out_as_by_protocol_1() {
    let both = Both::new(
        "CREATE TABLE a (id int PRIMARY KEY, note text); CREATE TABLE b (id int PRIMARY KEY, note text);
         ALTER TABLE b REPLICA IDENTITY FULL; CREATE TABLE c (id int PRIMARY KEY)",
    )
    .await;
    let running = both.start().await;
    let (one, two, three) =
        (both.server.connect().await, both.server.connect().await, both.server.connect().await);
    for client in [&one, &two, &three] {
        sql(client, "BEGIN").await;
    }
    for round in 0..6 {
        let (from, to) = (round * 1000 + 1, round * 1000 + 1000);
        sql(&one, &format!("INSERT INTO a SELECT i, repeat('x', 100) FROM generate_series({from}, {to}) i"))
            .await;
        sql(&two, &format!("INSERT INTO b SELECT i, repeat('y', 100) FROM generate_series({from}, {to}) i"))
            .await;
        sql(&three, &format!("INSERT INTO a SELECT -i, 'rolled back' FROM generate_series({from}, {to}) i"))
            .await;
        // Small ones commit in between, and are not held back.
        sql(&both.client, &format!("INSERT INTO c VALUES ({round})")).await;
        both.streamed.wait_for_records("c", round + 1).await;
        sql(&two, &format!("UPDATE b SET note = 'changed' WHERE id BETWEEN {from} AND {from} + 500")).await;
        sql(&one, &format!("DELETE FROM a WHERE id BETWEEN {from} AND {from} + 10")).await;
    }
    assert_eq!((both.streamed.end("a").await, both.streamed.end("b").await), (0, 0), "nothing has committed");
    sql(&two, "TRUNCATE c; SELECT pg_logical_emit_message(true, 'other', 'content'); COMMIT").await;
    sql(&three, "ROLLBACK").await;
    sql(&both.client, "INSERT INTO b VALUES (-1, 'after the first'), (-2, 'in the shape that it described')")
        .await;
    sql(&one, "COMMIT").await;
    sql(&both.client, "INSERT INTO a VALUES (-1, 'after both')").await;
    both.caught_up(3).await;
    let records = both.same(&["public.a", "public.b", "public.c", "transaction"]).await;
    let of_c: Vec<_> = records[2].iter().map(|record| record.value["op"].as_str().unwrap()).collect();
    assert_eq!(of_c, ["c", "c", "c", "c", "c", "c", "t"]);
    assert!(records[0].iter().all(|record| record.value["after"]["note"] != "rolled back"));
    assert_eq!(records[0].iter().filter(|record| record.value["op"] == "c").count(), 6001);
    let left = std::fs::read_dir(both.streamed.state().join("stream-spool")).unwrap().count();
    assert_eq!(left, 0, "files of transactions which have ended");
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subtransaction_that_aborts_drops_its_own_rows_only() {
    let both = Both::new(
        "CREATE TABLE a (id int PRIMARY KEY, note text); CREATE TABLE o (id int PRIMARY KEY, note text);
         CREATE TABLE kept (id int PRIMARY KEY);
         CREATE FUNCTION each(from_id int, to_id int) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           FOR i IN from_id .. to_id LOOP
             BEGIN
               INSERT INTO a VALUES (i, repeat('x', 50));
               INSERT INTO kept VALUES (i / 2);
             EXCEPTION WHEN unique_violation THEN NULL;
             END;
           END LOOP;
         END $$",
    )
    .await;
    let running = both.start().await;
    let other = both.server.connect().await;
    sql(&other, "BEGIN; INSERT INTO o SELECT -i, repeat('o', 100) FROM generate_series(1, 2000) i").await;
    sql(
        &both.client,
        "BEGIN; INSERT INTO a SELECT i, repeat('1', 100) FROM generate_series(1, 1000) i;
         SAVEPOINT one; INSERT INTO a SELECT i, repeat('2', 100) FROM generate_series(1001, 2000) i;
         SAVEPOINT two; INSERT INTO a SELECT i, repeat('3', 100) FROM generate_series(2001, 3000) i;
         INSERT INTO a SELECT i, '3' FROM generate_series(3001, 4000) i; ROLLBACK TO one; INSERT INTO a SELECT i, repeat('4', 100) FROM generate_series(1001, 2000) i;
         RELEASE one; ALTER TABLE a ADD COLUMN more int;
         SAVEPOINT three; UPDATE a SET more = 1 WHERE id BETWEEN 1 AND 1000; ROLLBACK TO three; RELEASE three;
         UPDATE a SET more = 2 WHERE id BETWEEN 1 AND 1000; COMMIT",
    )
    .await;
    sql(&both.client, "BEGIN; SELECT each(10001, 12000); COMMIT").await;
    // One that is rolled back as a whole, with subtransactions which were not.
    sql(&both.client, "BEGIN; SELECT each(20001, 22000); SELECT each(22001, 24000); ROLLBACK").await;
    sql(
        &other,
        "SAVEPOINT s; INSERT INTO o SELECT -i, 'gone' FROM generate_series(2001, 4000) i; ROLLBACK TO s",
    )
    .await;
    sql(&other, "UPDATE o SET note = 'updated' WHERE id < -1000; COMMIT").await;
    both.caught_up(3).await;
    let records = both.same(&["public.a", "public.kept", "ddl", "transaction", "public.o"]).await;
    assert!(
        !records[2].iter().any(|record| record.value.to_string().contains("gone")),
        "rolled back with its rows"
    );
    let rows = rows_of(&records[0], "id");
    let expected: BTreeSet<String> = both
        .client
        .query("SELECT id::text || ':' || note || ':' || coalesce(more::text, '') FROM a", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let found: BTreeSet<String> = rows
        .values()
        .map(|row| {
            let more = row.get("more").filter(|more| !more.is_null()).map_or(String::new(), Json::to_string);
            format!("{}:{}:{more}", row["id"], row["note"].as_str().unwrap())
        })
        .collect();
    assert_eq!(found, expected, "what Postgres has");
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_streams_each_change_for_parallel_subscribers_gives_the_same() {
    let server = Postgres::version(16).set("debug_logical_replication_streaming", "immediate").start().await;
    let tables = "CREATE TABLE a (id int PRIMARY KEY, note text); CREATE TABLE b (id int PRIMARY KEY)";
    let both = Both::on(server, "parallel", tables).await;
    let running = both.start().await;
    let other = both.server.connect().await;
    sql(&other, "BEGIN; INSERT INTO b SELECT generate_series(1, 100)").await;
    sql(
        &both.client,
        "BEGIN; INSERT INTO a VALUES (1, 'a'); SAVEPOINT s; INSERT INTO a VALUES (2, 'b'); INSERT INTO b VALUES (-1);
         SAVEPOINT t; UPDATE a SET note = 'c'; RELEASE t; ROLLBACK TO s; INSERT INTO a VALUES (2, 'd'); COMMIT",
    )
    .await;
    sql(&both.client, "BEGIN; INSERT INTO a SELECT i, 'gone' FROM generate_series(3, 100) i; ROLLBACK").await;
    sql(&other, "SAVEPOINT s; DELETE FROM b; ROLLBACK TO s; DELETE FROM b WHERE id > 50; COMMIT").await;
    both.caught_up(3).await;
    let records = both.same(&["public.a", "public.b", "transaction"]).await;
    assert_eq!((records[0].len(), rows_of(&records[1], "id").len()), (2, 50));
    assert!(running.0.output().contains(r#""streaming":"Parallel""#), "{}", running.0.output());
}

/// The rows that a topic leaves behind, by a column.
fn rows_of(records: &[Record], key: &str) -> BTreeMap<String, Json> {
    let mut rows = BTreeMap::new();
    for record in records.iter().filter(|record| !record.value.is_null()) {
        let value = &record.value;
        match value["op"].as_str().unwrap() {
            "d" => rows.remove(&value["before"][key].to_string()),
            _ => rows.insert(value["after"][key].to_string(), value["after"].clone()),
        };
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_subtransactions_come_out_in_order() {
    let both = Both::new(
        "CREATE TABLE a (id int PRIMARY KEY);
         CREATE PROCEDURE many(count int) LANGUAGE plpgsql AS $$
         BEGIN
           FOR i IN 1 .. count LOOP
             BEGIN
               INSERT INTO a VALUES (i);
               IF i % 2 = 0 THEN RAISE EXCEPTION 'away'; END IF;
             EXCEPTION WHEN raise_exception THEN NULL;
             END;
           END LOOP;
         END $$",
    )
    .await;
    let running = both.streamed.start_ready("capture").await;
    sql(&both.client, "CALL many(100000)").await;
    both.streamed.wait_for_records("a", 50_000).await;
    let records = both.streamed.table_records("a").await;
    let ids: Vec<_> = records.iter().map(|record| record.value["after"]["id"].as_u64().unwrap()).collect();
    assert!(ids.into_iter().eq((1..=100_000).step_by(2)));
    let ordinals =
        records.iter().map(|record| record.position.rsplit_once('/').unwrap().1.parse::<u64>().unwrap());
    assert!(ordinals.eq(1..=50_000), "aborted changes have no ordinals");
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_rolled_back_with_its_rows_is_not_seen() {
    let both = Both::new("CREATE TABLE a (id int PRIMARY KEY, note text)").await;
    let running = both.start().await;
    let rows = |from: u32, note: &str| {
        format!(
            "INSERT INTO a (id, note) SELECT i, repeat('{note}', 100) FROM generate_series({from}, {from} + 999) i"
        )
    };
    for from in [1, 10_001, 20_001, 30_001] {
        // A server may fail at the second part of this: then it is asked for it without parts.
        let steps = [
            "BEGIN".to_owned(),
            rows(from, "1"),
            format!("SAVEPOINT s; ALTER TABLE a ADD COLUMN gone int; {}", rows(from + 1000, "2")),
            "UPDATE a SET gone = 1".to_owned(),
            format!("ROLLBACK TO s; {}", rows(from + 1000, "3")),
            "COMMIT".to_owned(),
        ];
        for step in steps {
            sql(&both.client, &step).await;
        }
    }
    both.caught_up(0).await;
    let records = both.same(&["public.a", "ddl", "transaction"]).await;
    assert_eq!(records[0].len(), 8000);
    assert!(
        !records[1].iter().any(|record| record.value.to_string().contains("gone")),
        "rolled back with its rows"
    );
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_may_have_been_rolled_back_is_asked_for_again_without_streaming() {
    let both = Both::new("CREATE TABLE a (id int PRIMARY KEY, note text)").await;
    let mut running = both.start().await;
    sql(
        &both.client,
        "BEGIN; INSERT INTO a SELECT i, repeat('x', 100) FROM generate_series(1, 3000) i; SAVEPOINT s;
         SELECT pg_logical_emit_message(true, 'other', repeat('m', 1000));
         INSERT INTO a SELECT i, repeat('y', 100) FROM generate_series(3001, 6000) i; ROLLBACK TO s;
         INSERT INTO a SELECT i, repeat('z', 100) FROM generate_series(3001, 6000) i; COMMIT; INSERT INTO a VALUES (0)",
    )
    .await;
    both.streamed.wait_for_records("a", 6001).await;
    both.caught_up(1).await;
    both.same(&["public.a", "transaction"]).await;
    assert!(running.0.output().contains("whether it belongs to a subtransaction"), "{}", running.0.output());
    // Passed: the next connection streams again.
    assert!(running.0.terminate().await.success());
    let again = both.streamed.start_ready("capture").await;
    // It may be ready before it says so.
    wait_until(PATIENCE, "it says how it streams", async || again.output().contains(r#""streaming":""#))
        .await;
    assert!(again.output().contains(r#""streaming":"On""#), "{}", again.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_parts_are_in_the_spool_nothing_is_lost_or_doubled() {
    let both =
        Both::new("CREATE TABLE a (id int PRIMARY KEY, note text); CREATE TABLE b (id int PRIMARY KEY)")
            .await;
    let (mut streamed, whole) = both.start().await;
    let (one, two) = (both.server.connect().await, both.server.connect().await);
    sql(&one, "BEGIN").await;
    sql(&two, "BEGIN").await;
    for round in 0..4 {
        let (from, to) = (round * 1000 + 1, round * 1000 + 1000);
        sql(&one, &format!("INSERT INTO a SELECT i, repeat('x', 100) FROM generate_series({from}, {to}) i"))
            .await;
        sql(&two, &format!("INSERT INTO a SELECT -i, repeat('x', 100) FROM generate_series({from}, {to}) i"))
            .await;
        sql(&both.client, &format!("INSERT INTO b VALUES ({round})")).await;
        both.streamed.wait_for_records("b", round + 1).await;
        wait_until(PATIENCE, "parts are in the spool", async || spooled(&streamed) > 0).await;
        // What is acknowledged is beyond the parts that are in the spool alone.
        both.slots_are_at_the_end(&["streamed"]).await;
        streamed.kill();
        streamed = both.streamed.start_ready("capture").await;
        assert_eq!(both.streamed.end("a").await, 0);
    }
    sql(&two, "ROLLBACK").await;
    sql(&one, "COMMIT").await;
    // And within the replay.
    for records in [500, 2000] {
        wait_until(PATIENCE, "a part of the transaction is in the log", async || {
            both.streamed.end("a").await >= records
        })
        .await;
        streamed.kill();
        streamed = both.streamed.start_ready("capture").await;
    }
    both.streamed.wait_for_records("a", 4000).await;
    both.caught_up(1).await;
    both.same(&["public.a", "public.b", "transaction"]).await;
    drop((streamed, whole));
}

/// `tidemark_source_stream_spool_bytes`.
fn spooled(running: &Running) -> u64 {
    let (_, metrics) = running.get("/metrics").unwrap_or_default();
    let line = metrics.lines().find(|line| line.starts_with("tidemark_source_stream_spool_bytes"));
    line.map_or(0, |line| line.split_whitespace().last().unwrap().parse::<f64>().unwrap() as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_of_the_spool_the_server_keeps_the_transaction() {
    let mut both =
        Both::new("CREATE TABLE a (id int PRIMARY KEY, note text); CREATE TABLE b (id int PRIMARY KEY)")
            .await;
    both.streamed.change("source", "stream_spool_bytes_max", 1_048_576);
    let (streamed, whole) = both.start().await;
    let one = both.server.connect().await;
    sql(&one, "BEGIN; INSERT INTO a SELECT i, repeat('x', 1000) FROM generate_series(1, 5000) i").await;
    wait_until(PATIENCE, "the stream is taken up without parts", async || {
        streamed.output().contains(r#""streaming":"Off""#)
    })
    .await;
    assert!(streamed.output().contains("stream_spool_bytes_max = 1048576"), "{}", streamed.output());
    sql(&both.client, "INSERT INTO b VALUES (1)").await;
    both.streamed.wait_for_records("b", 1).await;
    sql(&one, "INSERT INTO a SELECT -i, repeat('x', 1000) FROM generate_series(1, 5000) i; COMMIT").await;
    both.streamed.wait_for_records("a", 10_000).await;
    both.caught_up(0).await;
    both.same(&["public.a", "public.b", "transaction"]).await;
    drop((streamed, whole));
}
