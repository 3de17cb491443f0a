//! Schema changes become records of `<name>.ddl`, in order with the rows around them: told by the event trigger, or seen
//! in the server's own descriptions and the catalog. Through the real binary.

use crate::support::{Connector, PATIENCE, Postgres, Running, wait_until};
use serde_json::Value;
use tidemark::change::Position;
use tokio_postgres::Client;

struct World {
    _server: Postgres,
    client: Client,
    connector: Connector,
    running: Running,
}

impl World {
    async fn new(trigger: bool, schema: &str) -> Self {
        let server = Postgres::start().await;
        let client = server.connect().await;
        client.batch_execute("CREATE PUBLICATION tidemark_shop FOR ALL TABLES").await.unwrap();
        client.batch_execute(schema).await.unwrap();
        let connector = Connector::new(&server.url()).set("source", "schema_poll_interval_ms", 200).set(
            "source",
            "ddl_trigger",
            if trigger { "on" } else { "off" },
        );
        let mut setup = connector.start("setup");
        assert_eq!(setup.ended().await.code(), Some(0), "{}", setup.output());
        let running = connector.start_ready("capture").await;
        Self { _server: server, client, connector, running }
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// All that has been committed is in the log.
    async fn settled(&self) {
        let row = self.client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
        let lsn: String = row.get(0);
        wait_until(PATIENCE, "the slot has passed what was committed", async || {
            let sql = format!("SELECT bool_and(confirmed_flush_lsn >= '{lsn}') FROM pg_replication_slots");
            self.client.query_one(&sql, &[]).await.unwrap().get(0)
        })
        .await;
    }

    async fn wait_for(&self, change: &str) {
        wait_until(PATIENCE, change, async || {
            in_short(&self.changes().await).iter().any(|told| told == change)
        })
        .await;
    }

    async fn changes(&self) -> Vec<Value> {
        self.connector.records("shop.ddl").await.into_iter().map(|record| record.value).collect()
    }
}

/// `table: action column (not applied), …` of each change.
fn in_short(changes: &[Value]) -> Vec<String> {
    let action = |action: &Value| {
        let column = action["column"].as_str().map_or_else(String::new, |column| format!(" {column}"));
        let not = if action["applied"] == true { "" } else { " (not applied)" };
        format!("{}{column}{not}", action["action"].as_str().unwrap())
    };
    changes
        .iter()
        .map(|change| {
            let actions: Vec<_> = change["actions"].as_array().unwrap().iter().map(action).collect();
            format!("{}: {}", change["after"]["table"].as_str().unwrap(), actions.join(", "))
        })
        .collect()
}

const TABLE: &str = "CREATE TYPE mood AS ENUM ('sad');
    CREATE TABLE t (id int PRIMARY KEY, a text NOT NULL, n int, m mood);
    INSERT INTO t VALUES (1, 'a', 1, 'sad')";

/// Statements that change the table, and what each is called.
const STEPS: [(&str, &str); 11] = [
    ("ALTER TABLE t ADD c int DEFAULT 7", "t: add_column c"),
    ("ALTER TABLE t ALTER n TYPE bigint", "t: widen_type n"),
    ("ALTER TYPE mood ADD VALUE 'glad'", "t: add_labels m"),
    ("ALTER TABLE t ALTER a DROP NOT NULL", "t: drop_not_null a"),
    ("COMMENT ON COLUMN t.a IS 'of a'", "t: comment a"),
    ("COMMENT ON TABLE t IS 'of t'", "t: comment"),
    ("ALTER TABLE t ALTER c SET DEFAULT 8", "t: change_default c"),
    ("ALTER TABLE t DROP COLUMN c", "t: drop_column c (not applied)"),
    ("ALTER TABLE t RENAME a TO b", "t: rename_column a (not applied)"),
    ("ALTER TABLE t ALTER n TYPE int", "t: narrow_type n (not applied)"),
    ("ALTER TABLE t ALTER b TYPE bytea USING NULL", "t: change_type b (not applied)"),
];

async fn after_all_steps(trigger: bool) -> (Value, Vec<String>) {
    let world = World::new(trigger, TABLE).await;
    for (step, (sql, change)) in STEPS.iter().enumerate() {
        world.sql(sql).await;
        let (columns, values) = if step < 3 { ("id, a", ", 'x'") } else { ("id", "") };
        world.sql(&format!("INSERT INTO t ({columns}) VALUES ({}{values})", 10 + step)).await;
        // The catalog is asked as it is by then.
        world.wait_for(change).await;
    }
    let changes = world.changes().await;
    (changes.last().unwrap()["after"].clone(), in_short(&changes))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_one_record_and_both_ways_come_to_the_same_shape() {
    let (with, told) = after_all_steps(true).await;
    let expected: Vec<String> = STEPS.iter().map(|(_, name)| (*name).to_owned()).collect();
    assert_eq!(told[0], "t: first_seen");
    assert_eq!(told[1..], expected);
    let (without, seen) = after_all_steps(false).await;
    let oid = |mut shape: Value| {
        shape["oid"] = Value::Null;
        shape
    };
    assert_eq!(oid(with), oid(without));
    assert_eq!(seen[1..], expected);
}

/// `in_short` of what a statement has led to.
async fn told_of(world: &World, sql: &str, last: &str) -> Vec<String> {
    let before = world.changes().await.len();
    world.sql(sql).await;
    world.wait_for(last).await;
    in_short(&world.changes().await.split_off(before))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_stands_between_the_rows_of_its_transaction_with_the_statement_that_made_it() {
    let world = World::new(true, TABLE).await;
    world
        .sql(
            "BEGIN; INSERT INTO t VALUES (2, 'x'); ALTER TABLE t ADD d text DEFAULT 'it''s'; INSERT INTO t VALUES (3, 'y');
             COMMIT",
        )
        .await;
    world.settled().await;
    let positions: Vec<_> = world
        .connector
        .table_records("t")
        .await
        .into_iter()
        .skip(1)
        .map(|record| record.position.parse::<Position>().unwrap())
        .collect();
    let change = world.changes().await.pop().unwrap();
    let at: Position = change["position"].as_str().unwrap().parse().unwrap();
    assert!(positions[0] < at && at < positions[1], "{positions:?} {at}");
    assert!(change["statement"].as_str().unwrap().contains("DEFAULT 'it''s'"), "{change}");
    let column = change["after"]["columns"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(column["existing"][0]["holds"]["value"], "it's");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_write_a_statement_is_seen() {
    let world = World::new(true, TABLE).await;
    let one = told_of(&world, "DO $$ BEGIN ALTER TABLE t ADD e int; END $$", "t: add_column e").await;
    assert_eq!(one, ["t: add_column e"]);
    let several = "ALTER TABLE t ADD f int; ALTER TABLE t ADD g int, DROP n";
    let two = told_of(&world, several, "t: drop_column n (not applied), add_column g").await;
    assert_eq!(two, ["t: add_column f", "t: drop_column n (not applied), add_column g"]);
    let made = told_of(&world, "CREATE TABLE made AS SELECT 1 AS id", "made: create_table").await;
    assert_eq!(made, ["made: first_seen", "made: create_table"], "its row comes before the statement's end");
    let empty = told_of(&world, "CREATE TABLE empty (id int PRIMARY KEY)", "empty: create_table").await;
    assert_eq!(empty, ["empty: create_table"], "without any row");
    let rolled_back = "BEGIN; ALTER TABLE t ADD h int; ROLLBACK; ALTER TABLE t ADD i int";
    assert_eq!(told_of(&world, rolled_back, "t: add_column i").await, ["t: add_column i"]);
    let volatile = "ALTER TABLE t ADD j uuid DEFAULT gen_random_uuid()";
    let change = "t: add_column j, rewrite (not applied)";
    assert_eq!(told_of(&world, volatile, change).await, [change]);
    let secret = "CREATE ROLE r PASSWORD 'geheim'; ALTER TABLE t ADD k int";
    assert_eq!(told_of(&world, secret, "t: add_column k").await, ["t: add_column k"]);
    let records = format!("{:?}", world.changes().await);
    assert!(records.contains("CREATE ROLE r PASSWORD") && !records.contains("geheim"), "{records}");
    assert!(!world.running.output().contains("geheim"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_or_renamed_ends_and_the_next_of_its_name_is_another() {
    let world = World::new(true, TABLE).await;
    let renamed = told_of(&world, "ALTER TABLE t RENAME TO u", "u: first_seen").await;
    assert_eq!(renamed, ["t: rename_table (not applied)", "u: first_seen"]);
    let again = told_of(&world, "CREATE TABLE t (id bigint PRIMARY KEY)", "t: recreate_table, drop_column a (not applied), drop_column n (not applied), drop_column m (not applied), widen_type id").await;
    assert_eq!(again.len(), 1, "{again:?}");
    let dropped = told_of(&world, "DROP TABLE u", "u: drop_table (not applied)").await;
    assert_eq!(dropped.len(), 1, "{dropped:?}");
    let (status, health) = world.running.health();
    assert_eq!(status, 200);
    let told = health["reasons"].to_string();
    assert!(told.contains("table dropped") && told.contains("schema"), "{told}");
    let metrics = world.running.get("/metrics").unwrap().1;
    let unapplied = "tidemark_table_schema_changes_unapplied_total{table=\"public.u\"} 1";
    assert!(metrics.contains(unapplied), "{metrics}");
}

async fn rows_after_a_new_column_have_its_values(trigger: bool) {
    let world = World::new(trigger, TABLE).await;
    world.sql("UPDATE t SET n = 2").await;
    world
        .sql(
            "BEGIN; DELETE FROM t; INSERT INTO t (id, a) VALUES (2, 'b'); ALTER TABLE t ADD \"user\" text[];
             INSERT INTO t (id, a, \"user\") VALUES (3, 'c', '{x}'); COMMIT;
             UPDATE t SET \"user\" = '{y}' WHERE id = 2; UPDATE t SET id = 5 WHERE id = 3; ALTER TABLE t ADD later json",
        )
        .await;
    world.settled().await;
    let found: Vec<_> = world
        .connector
        .table_records("t")
        .await
        .into_iter()
        .map(|record| {
            (
                record.value["op"].clone(),
                record.value["after"]["id"].clone(),
                record.value["after"]["user"].clone(),
            )
        })
        .collect();
    let last: Vec<_> = found
        .iter()
        .rev()
        .filter(|(op, ..)| op == "c" || op == "u")
        .take(3)
        .map(|f| f.2.to_string())
        .collect();
    assert_eq!(last, ["[\"x\"]", "[\"y\"]", "[\"x\"]"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_after_a_new_column_have_its_values_with_the_trigger() {
    rows_after_a_new_column_have_its_values(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_after_a_new_column_have_its_values_without_the_trigger() {
    rows_after_a_new_column_have_its_values(false).await;
}
