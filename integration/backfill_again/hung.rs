//! Commits that hang between their WAL and the moment in which others see them: a synchronous standby does not answer.
//! The stream has such a transaction long before the catalog and any ordinary snapshot do.

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::support::lake::value;
use crate::support::{PATIENCE, Postgres, Scene, wait_until};

/// A transaction whose COMMIT hangs.
struct Hung {
    pid: i32,
    xid: String,
    session: JoinHandle<()>,
}

/// Sessions that ask for it wait for a standby that is not there; all others do not.
async fn server() -> Postgres {
    Postgres::builder()
        .set("synchronous_standby_names", "nobody")
        .set("synchronous_commit", "local")
        .set("log_statement", "all")
        .start()
        .await
}

/// Commits, and waits until that hangs.
async fn hang(scene: &Scene, sql: &str) -> Hung {
    let session = scene.server.connect().await;
    session.batch_execute(&format!("SET synchronous_commit = on; BEGIN; {sql}")).await.unwrap();
    let row =
        session.query_one("SELECT pg_backend_pid(), pg_current_xact_id()::xid::text", &[]).await.unwrap();
    let (pid, xid) = (row.get(0), row.get(1));
    // Its wait is cancelled in the end, which is a warning.
    let session = tokio::spawn(async move { session.batch_execute("COMMIT").await.unwrap() });
    let hangs = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'");
    wait_until(PATIENCE, "the commit hangs", async || value(&scene.client, &hangs).await == "1").await;
    Hung { pid, xid, session }
}

impl Hung {
    /// Lets others see it.
    async fn release(self, client: &Client) {
        client.query_one("SELECT pg_cancel_backend($1)", &[&self.pid]).await.unwrap();
        self.session.await.unwrap();
    }

    /// Waits until a new slot waits for it.
    async fn is_waited_for(&self, client: &Client) {
        let sql = format!(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted AND transactionid = '{}'",
            self.xid
        );
        wait_until(PATIENCE, "a slot waits for the transaction", async || value(client, &sql).await != "0")
            .await;
    }
}

/// How many records of `t` have that note after the change.
async fn told(scene: &Scene, note: &str) -> usize {
    let records = scene.connector.table_records("t").await;
    records.iter().filter(|record| record.value["after"]["note"] == note).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_snapshot_is_taken_while_commits_hang_has_each_of_their_rows_once() {
    const SQL: &str = "
        CREATE TABLE t (id int PRIMARY KEY, note text);
        INSERT INTO t SELECT g, 'first' FROM generate_series(1, 1000) g;
        CREATE PUBLICATION tidemark_shop FOR TABLE t";
    let mut scene = Scene::on(server().await, SQL, |connector| connector).await;
    // A copy's snapshot comes about in three steps, each of which waits for what is open: one commit hangs before each.
    let first =
        hang(&scene, "UPDATE t SET note = 'hung 1' WHERE id <= 10; DELETE FROM t WHERE id = 20").await;
    wait_until(PATIENCE, "the stream has what nobody sees", async || told(&scene, "hung 1").await == 10)
        .await;
    assert_eq!(value(&scene.client, "SELECT count(*) FROM t WHERE note = 'hung 1'").await, "0");
    let asked = scene.running().command(&["backfill", "public.t"]);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    first.is_waited_for(&scene.client).await;
    let second = hang(&scene, "UPDATE t SET note = 'hung 2' WHERE id BETWEEN 31 AND 40").await;
    first.release(&scene.client).await;
    second.is_waited_for(&scene.client).await;
    // Its commit record lies below the copy's point, and it hangs until long after.
    let third = "UPDATE t SET note = 'hung 3' WHERE id BETWEEN 51 AND 60; DELETE FROM t WHERE id = 70;
                 INSERT INTO t VALUES (2000, 'hung 3'); UPDATE t SET id = 3000 WHERE id = 80";
    let third = hang(&scene, third).await;
    second.release(&scene.client).await;
    scene.copied("t", 1).await;
    assert_eq!(
        value(&scene.client, "SELECT count(*) FROM t WHERE note = 'hung 3'").await,
        "0",
        "it hangs yet"
    );
    scene.sql("UPDATE t SET note = 'after' WHERE id IN (1, 2, 90)").await;
    third.release(&scene.client).await;
    scene.caught_up().await;
    let ds = scene.cut().await;
    scene.same(&ds, "t", "id, note").await;
    scene.sound(&ds);
    assert_eq!(
        (told(&scene, "hung 1").await, told(&scene, "hung 2").await, told(&scene, "hung 3").await),
        (10, 10, 11)
    );
    let copied = scene.connector.records("shop.backfill-public.t").await;
    assert_eq!(copied.len(), 999, "the table as it was at the point: 1,000, two gone, one new");
    let waited = scene.server.log().matches("pg_visible_in_snapshot").count();
    assert!(waited > 1, "nothing was read while what the snapshot shows had not ended: asked {waited} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_is_believed_only_once_it_shows_a_commit_that_hangs() {
    const SQL: &str = "
        CREATE TABLE t (id int PRIMARY KEY, note text);
        INSERT INTO t SELECT g, 'first' FROM generate_series(1, 100) g;
        CREATE PUBLICATION tidemark_shop FOR ALL TABLES";
    let mut scene =
        Scene::on(server().await, SQL, |connector| connector.set("source", "ddl_trigger", "off")).await;
    let hung = hang(
        &scene,
        "ALTER TABLE t ADD COLUMN c int DEFAULT 7; INSERT INTO t VALUES (1001, 'hung', 9);
         CREATE TABLE fresh (id int PRIMARY KEY, v text); INSERT INTO fresh VALUES (1, 'hung')",
    )
    .await;
    wait_until(PATIENCE, "the catalog was asked, and did not show it in time", async || {
        scene.output().contains("did not answer a question about table")
    })
    .await;
    assert_eq!(told(&scene, "hung").await, 0, "nothing is described by what was before");
    hung.release(&scene.client).await;
    scene.sql("UPDATE t SET c = 8 WHERE id = 5; INSERT INTO fresh VALUES (2, 'after')").await;
    scene.caught_up().await;
    // A table that is seen first by its rows is copied.
    wait_until(PATIENCE, "nothing is missing", async || {
        ["t", "fresh"].iter().all(|table| scene.lacking(table).is_null())
    })
    .await;
    let ds = scene.cut().await;
    scene.same(&ds, "t", "id, note, c").await;
    scene.same(&ds, "fresh", "id, v").await;
    scene.sound(&ds);
    assert_eq!(told(&scene, "hung").await, 1);
}
