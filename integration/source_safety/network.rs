//! Servers and networks that go away and come back.

use std::time::Duration;

use crate::support::{Connector, Network, PATIENCE, Postgres, Proxy, Stop, wait_until};
use crate::{TABLE, assert_each_row_once, insert, walsender};

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

    proxy.set(Network::HalfOpen);
    insert(&client, 31, 40).await;
    wait_until(Duration::from_secs(5), "our side notices", async || {
        running.health().1["components"]["source"]["state"] == "waiting"
    })
    .await;
    assert!(walsender(&client).await.is_some(), "the server still believes in the former reader");
    assert_each_row_once(&connector, 40).await;
    assert!(running.is_running());
}
