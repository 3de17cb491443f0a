//! Beside Debezium itself: the same database and the same statements, both into one broker, topics compared record by
//! record and in order.
//!
//! ```text
//!   Postgres ──┬─ Kafka Connect + Debezium ──> typed_d.*, plain_d.* ──┐
//!              └─ tidemark capture ──────────> typed_t.*, plain_t.* ──┴─ equal, but for `allowed.rs`
//! ```
//!
//! `typed`: JSON with embedded schemas, so that types are compared, too; `plain`: without. Names, versions and times
//! may differ. Every other difference has to be in the list of `debezium/allowed.rs`, with its reason, and each entry of
//! it has to be met: one that is not needed any more fails the test.

mod allowed;
mod compare;
mod connect;

use crate::support::{Connector, Kafka, PATIENCE, Postgres, Running, wait_until};
use allowed::Allowed;
use compare::{Topic, last_ended};
use connect::Connect;
use serde_json::json;

const TABLES: &str = include_str!("debezium/tables.sql");
const CHANGES: &str = include_str!("debezium/changes.sql");

/// The tables of `tables.sql`.
const TOPICS: [&str; 9] = [
    "public.types",
    "public.orders",
    "public.pairs",
    "public.whole",
    "public.bag",
    "public.Odd_Name",
    "public.uniq",
    "public.ended",
    "transaction",
];

/// JSON with schemas, and without.
const FORMS: [(&str, bool); 2] = [("typed", true), ("plain", false)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debezium_writes_the_same_records_but_for_what_is_listed() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let kafka = Kafka::start();
    let mut connect = Connect::start(&kafka, &server, &FORMS);
    let mut tidemarks = Vec::new();
    for (form, schemas) in FORMS {
        let connector = tidemark(&server, &kafka, form, schemas);
        let running = connector.start_ready("capture").await;
        tidemarks.push((connector, running));
    }
    connect.streaming(&client, FORMS.len()).await;

    let statements = CHANGES.lines().filter(|line| !line.is_empty() && !line.starts_with("--"));
    for statement in statements {
        client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    for (form, _) in FORMS {
        for connector in ["d", "t"] {
            let name = format!("{form}_{connector}");
            wait_until(2 * PATIENCE, &format!("{name} has the last transaction"), || {
                connect.assert_running();
                std::future::ready(last_ended(&kafka, &name))
            })
            .await;
        }
    }
    // Nothing is on its way any more.
    connect.stop();
    for (_, running) in &mut tidemarks {
        end(running).await;
    }

    let mut allowed = Allowed::default();
    let mut unexpected = Vec::new();
    for (form, _) in FORMS {
        for topic in TOPICS {
            let [theirs, ours] =
                ["d", "t"].map(|which| Topic::read(&kafka, &format!("{form}_{which}"), topic));
            assert!(!theirs.records.is_empty(), "Debezium wrote nothing to {form}_d.{topic}");
            let differences = compare::differences(&theirs, &ours);
            unexpected.extend(differences.into_iter().filter(|difference| !allowed.takes(difference)));
        }
    }
    let shown: Vec<_> = unexpected.iter().map(ToString::to_string).collect();
    assert!(shown.is_empty(), "{} differences from Debezium:\n{}", shown.len(), shown.join("\n"));
    let stale = allowed.not_met();
    assert!(stale.is_empty(), "differences that are allowed and are not there: {stale:?}");
}

fn tidemark(server: &Postgres, kafka: &Kafka, form: &str, schemas: bool) -> Connector {
    let name = format!("{form}_t");
    Connector::new(&server.url())
        .set("source", "name", name.as_str())
        .set("source", "slot", name.as_str())
        .set("source", "publication", "everything")
        .set("log", "kind", "kafka")
        .set("log.kafka", "brokers", json!([kafka.address()]))
        .set("envelope", "schemas_enable", schemas)
        .set("envelope", "provide_transaction_metadata", true)
}

async fn end(running: &mut Running) {
    let status = running.terminate().await;
    assert!(status.success(), "{}", running.output());
}
