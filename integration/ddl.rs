//! Schema changes become records of `<name>.ddl`, in order with the rows around them: told by the event trigger, or seen
//! in the server's own descriptions and the catalog. Through the real binary.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod support;

use serde_json::Value;
use support::{Connector, PATIENCE, Postgres, Running, wait_until};
use tidemark::postgres::ddl::install_sql;
use tokio_postgres::Client;

struct World {
    _server: Postgres,
    client: Client,
    connector: Connector,
    _running: Running,
}

impl World {
    async fn new(trigger: bool, schema: &str) -> Self {
        let server = Postgres::start().await;
        let client = server.connect().await;
        client.batch_execute("CREATE PUBLICATION tidemark FOR ALL TABLES").await.unwrap();
        client.batch_execute(schema).await.unwrap();
        if trigger {
            let version = client.query_one("SHOW server_version_num", &[]).await.unwrap();
            let version: &str = version.get(0);
            client.batch_execute(&install_sql(version.parse().unwrap())).await.unwrap();
        }
        let connector = Connector::new(&server.url());
        let running = connector.start_ready("capture").await;
        Self { _server: server, client, connector, _running: running }
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
    for (step, (sql, _)) in STEPS.iter().enumerate() {
        world.sql(sql).await;
        let (columns, values) = if step < 3 { ("id, a", ", 'x'") } else { ("id", "") };
        world.sql(&format!("INSERT INTO t ({columns}) VALUES ({}{values})", 10 + step)).await;
        // Without the trigger the catalog is asked as it is when the row comes.
        world.settled().await;
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
