//! Servers and networks that go away and come back.

use std::time::Duration;

use super::leaving::{commit_lsn, confirmed};
use super::{TABLE, assert_each_row_once, insert, walsender};
use crate::support::{Connector, Network, PATIENCE, Postgres, Proxy, Record, Stop, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn an_immediate_restart_of_postgres_is_survived() {
    let mut server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 10).await;
    let connector = Connector::new(&server.url());
    let mut running = connector.start_ready("run").await;
    let mut last = 10;
    for how in [Stop::Immediate, Stop::Fast, Stop::Immediate] {
        let client = server.connect().await;
        insert(&client, last + 1, last + 300).await;
        if last == 10 {
            // They are in the log, and confirmed, which the server forgets.
            assert_each_row_once(&connector, last + 300).await;
        }
        server.stop(how);
        wait_until(PATIENCE, "health tells of it", async || {
            running.health().1["components"]["source"]["state"] == "waiting"
        })
        .await;
        server.start_again().await;
        let client = server.connect().await;
        insert(&client, last + 301, last + 600).await;
        last += 600;
        assert_each_row_once(&connector, last).await;
    }
    assert!(running.is_running());
    assert!(running.output().contains("has to be sent again first"), "{}", running.output());
    wait_until(PATIENCE, "health is well again", async || running.health().1["status"] == "ok").await;
}

/// A server that crashed has forgotten what was confirmed, and sends it again, with the shapes that tables had then.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_crashed_server_sends_again_changes_neither_rows_nor_shapes() {
    for trigger in ["auto", "off"] {
        let mut crashes = 1;
        while !is_sent_again(trigger).await {
            assert!(crashes < 10, "the server forgets nothing");
            crashes += 1;
        }
    }
}

/// Lets a server crash. False: it had saved its slot just before, and had nothing to send again.
async fn is_sent_again(trigger: &str) -> bool {
    let mut server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    client.batch_execute("CREATE PUBLICATION tidemark_shop FOR ALL TABLES").await.unwrap();
    let mut connector = Connector::new(&server.url());
    connector.change("source", "ddl_trigger", trigger);
    let running = connector.start_ready("run").await;
    let changes = "INSERT INTO t VALUES (1, 'a'); UPDATE t SET pad = 'b';
        ALTER TABLE t ADD COLUMN c int DEFAULT 5; INSERT INTO t VALUES (2, 'c', 6);
        ALTER TABLE t DROP COLUMN c; INSERT INTO t VALUES (3, 'd');
        CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1);
        ALTER TABLE u ADD COLUMN note text; INSERT INTO u VALUES (2, 'two')";
    for statement in changes.split(';') {
        client.batch_execute(statement).await.unwrap();
    }
    connector.wait_for_records("t", 4).await;
    if trigger == "auto" {
        connector.wait_for_records("u", 2).await;
    }
    let topics = ["shop.ddl", "shop.public.t", "shop.public.u"];
    let mut before = Vec::new();
    for topic in topics {
        before.push(connector.records(topic).await);
    }
    server.stop(Stop::Immediate);
    server.start_again().await;
    let client = server.connect().await;
    let (last, stands) = (commit_lsn(before[1].last().unwrap()), confirmed(&client).await);
    client.batch_execute("INSERT INTO t VALUES (4, 'e')").await.unwrap();
    connector.wait_for_records("t", 5).await;
    let again = running.output().contains("has to be sent again first");
    assert!(again || stands > last, "{stands} is not beyond {last}: {}", running.output());
    for (topic, before) in topics.into_iter().zip(before) {
        let after = connector.records(topic).await;
        let new = after.len() - before.len();
        let expected = usize::from(topic == "shop.public.t");
        // Without the trigger a table that is made comes in when the catalog is looked at.
        assert!(new == expected || trigger == "off", "{topic}: {:?}", &after[before.len()..]);
        let bytes = |records: &[Record]| records.iter().map(|r| r.bytes.clone()).collect::<Vec<_>>();
        assert_eq!(bytes(&after[..before.len()]), bytes(&before), "{topic}");
    }
    let ddl = connector.records("shop.ddl").await;
    let of_t = |record: &&Record| record.value["topic"] == "shop.public.t";
    let kinds: Vec<String> =
        ddl.iter().filter(of_t).map(|record| record.value["actions"].to_string()).collect();
    let told = kinds.concat();
    assert_eq!(told.matches("add_column").count(), 1, "{told}");
    assert_eq!(told.matches("drop_column").count(), 1, "{told}");
    let row = connector.table_records("t").await.pop().unwrap();
    assert_eq!(row.value["after"], serde_json::json!({"id": 4, "pad": "e", "c": null}));
    again
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_breaks_or_stalls_or_loses_one_side_is_survived() {
    // Longer than the time which a first start gives the server to notice that the former reader is gone.
    let server = Postgres::builder().set("wal_sender_timeout", "18s").start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    insert(&client, 1, 10).await;
    let proxy = Proxy::start(server.port()).await;
    let connector = Connector::new(&format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port()));
    let mut running = connector.start_ready("run").await;

    proxy.set(Network::Cut);
    insert(&client, 11, 20).await;
    wait_until(PATIENCE, "health tells of it", async || {
        running.health().1["components"]["source"]["state"] == "waiting"
    })
    .await;
    proxy.set(Network::Up);
    assert_each_row_once(&connector, 20).await;

    proxy.set(Network::Stalled);
    insert(&client, 21, 30).await;
    wait_until(PATIENCE, "the server gives the connection up", async || walsender(&client).await.is_none())
        .await;
    proxy.set(Network::Up);
    assert_each_row_once(&connector, 30).await;
    // The rows may have come by the connection that the server has given up.
    wait_until(PATIENCE, "it streams by a new connection", async || {
        walsender(&client).await.is_some() && running.health().1["components"]["source"]["state"] == "ok"
    })
    .await;

    proxy.set(Network::HalfOpen);
    insert(&client, 31, 40).await;
    wait_until(Duration::from_secs(15), "our side notices", async || {
        running.health().1["components"]["source"]["state"] == "waiting"
    })
    .await;
    assert!(walsender(&client).await.is_some(), "the server still believes in the former reader");
    assert_each_row_once(&connector, 40).await;
    assert!(running.is_running());
}
