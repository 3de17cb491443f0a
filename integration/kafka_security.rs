//! Kafka behind TLS, passwords, certificates and rights, through the real binary: what works, and what is told when it
//! does not. Whatever was refused is mended, and then nothing may be missing.

use std::process::Command;

use crate::support::days::{days, use_rule};
use crate::support::lake::postgres;
use crate::support::{Connector, Kafka, PATIENCE, Postgres, Running, wait_until};
use serde_json::{Value, json};

const TABLE: &str = "CREATE TABLE orders (id int PRIMARY KEY, total numeric(12,2), note text);
    INSERT INTO orders SELECT i, i * 1.25, md5(i::text) FROM generate_series(1, 1000) i";

const WRONG: &str = "geheim-7f3a";

/// A connector with a name of its own, so that its topics are.
fn connector(url: &str, name: &str, address: &str, properties: &[(&str, &str)]) -> Connector {
    let connector = Connector::new(url)
        .set("source", "name", name)
        .set("log", "kind", "kafka")
        .set("log.kafka", "brokers", json!([address]))
        .set("log.kafka", "partitions", 2);
    properties
        .iter()
        .fold(connector, |c, (key, value)| c.set("log.kafka.properties", &format!("\"{key}\""), *value))
}

async fn source() -> (Postgres, tokio_postgres::Client) {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLE).await.unwrap();
    (server, client)
}

/// What a command that ends by itself has said, on one line, and its exit code.
async fn told(connector: &Connector, command: &str) -> (i32, String) {
    let mut running = connector.start(command);
    let code = running.ended().await.code().unwrap();
    (code, running.output().split_whitespace().collect::<Vec<_>>().join(" "))
}

/// `check` and `capture` both leave with 1, and say all of it; neither says a secret.
async fn refused(connector: &Connector, words: &[&str]) {
    for command in ["check", "capture"] {
        let (code, told) = told(connector, command).await;
        assert_eq!(code, 1, "{command}: {told}");
        for word in words {
            assert!(told.contains(word), "{command} does not say {word:?}: {told}");
        }
        for secret in [WRONG, Kafka::PASSWORD, "PRIVATE KEY"] {
            assert!(!told.contains(secret), "{command} says a secret: {told}");
        }
    }
}

/// The ids in the table's topic as consumers see it are those in Postgres, each once.
async fn all_are_there_once(kafka: &Kafka, name: &str, client: &tokio_postgres::Client) {
    let rows = postgres(client, "SELECT id FROM orders ORDER BY id").await;
    let lines = kafka.committed(&format!("{name}.public.orders"), rows.len());
    let mut ids: Vec<i64> = lines
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["after"]["id"].as_i64().unwrap())
        .collect();
    ids.sort_unstable();
    let ids: Vec<_> = ids.into_iter().map(|id| vec![Some(id.to_string())]).collect();
    assert_eq!(ids, rows);
}

/// Waits until the server may forget everything that has been written.
async fn slot_has_passed(client: &tokio_postgres::Client, name: &str) {
    let written = &postgres(client, "SELECT pg_current_wal_lsn()").await[0][0].clone().unwrap();
    let sql = format!(
        "SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots WHERE slot_name = 'tidemark_{name}'"
    );
    wait_until(PATIENCE, "the slot has passed what was written", async || {
        postgres(client, &sql).await[0][0].as_deref() == Some("t")
    })
    .await;
}

fn log(running: &Running) -> Value {
    running.health().1["components"]["log"].clone()
}

/// What README says are the least rights.
fn allow_all(kafka: &Kafka, principal: &str, name: &str) {
    let topics = ["--topic", &format!("{name}."), "--resource-pattern-type", "prefixed"];
    kafka.allow(principal, &["Read", "Write", "DescribeConfigs", "Create"], &topics);
    let (id, check) = (format!("tidemark-{name}"), format!("tidemark-{name}-check"));
    kafka.allow(principal, &["Write"], &["--transactional-id", &id, "--transactional-id", &check]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_and_the_least_rights_are_enough_for_everything() {
    let kafka = Kafka::shared();
    let (server, client) = source().await;
    allow_all(kafka, Kafka::CERTIFIED, "mtls");
    let file = |name: &str| kafka.certificate(name).display().to_string();
    // The key is locked, and its password is in a file of its own.
    let (locked, password) = (file("client-locked.key"), file("client-locked.password"));
    std::fs::write(&password, format!("{WRONG}\n")).unwrap();
    let done = Command::new("openssl")
        .args(["pkcs8", "-topk8", "-in", &file("client.key"), "-out", &locked])
        .args(["-passout", &format!("pass:{WRONG}")])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let properties = [
        ("security.protocol", "ssl"),
        ("ssl.ca.location", &file("ca.crt")),
        ("ssl.certificate.location", &file("client.crt")),
        ("ssl.key.location", &locked),
        ("ssl.key.password_file", &password),
    ];
    let days = days(&client).await;
    let mut mtls = connector(&server.url(), "mtls", &kafka.certificate_address(), &properties);
    use_rule(&mut mtls, 0);
    let (code, said) = told(&mtls, "check").await;
    assert_eq!(code, 0, "{said}");
    for found in ["kafka brokers", "kafka topics", "kafka new topics", "kafka writing", "kafka transactions"]
    {
        assert!(said.contains(&format!("ok {found}")), "{found} is missing: {said}");
    }
    let mut running = mtls.start_ready("run").await;
    client
        .batch_execute("INSERT INTO orders SELECT i, i, 'streamed' FROM generate_series(2001, 2500) i")
        .await
        .unwrap();
    slot_has_passed(&client, "mtls").await;
    all_are_there_once(kafka, "mtls", &client).await;
    let ds = &days[0];
    running.cut(ds);
    let waited = running.command(&["wait", "--ds", ds, "--timeout", "3m"]);
    assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    assert_eq!(running.terminate().await.code(), Some(0), "{}", running.output());
    assert!(!running.output().contains(WRONG));

    // Certificates and key as texts: the key's from a file, which stands for its value.
    let inline = [
        ("security.protocol", "ssl"),
        ("ssl.ca.pem", &std::fs::read_to_string(file("ca.crt")).unwrap()),
        ("ssl.certificate.pem", &std::fs::read_to_string(file("client.crt")).unwrap()),
        ("ssl.key.pem_file", &file("client.key")),
    ];
    let mut again = connector(&server.url(), "mtls", &kafka.certificate_address(), &inline);
    again.change("state", "dir", mtls.state().to_str().unwrap());
    use_rule(&mut again, 0);
    let mut running = again.start_ready("capture").await;
    client.batch_execute("INSERT INTO orders VALUES (3000, 1, 'by texts')").await.unwrap();
    slot_has_passed(&client, "mtls").await;
    // While it runs: what it has kept on its disk would stay there.
    all_are_there_once(kafka, "mtls", &client).await;
    assert_eq!(running.terminate().await.code(), Some(0), "{}", running.output());
    assert!(!running.output().contains("PRIVATE KEY"));
    assert!(mtls.lake().join(format!("cuts/mtls/ds={ds}.json")).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_let_in_is_told_why_by_check_and_capture_and_once_mended_nothing_is_missing() {
    let kafka = Kafka::shared();
    let file = |name: &str| kafka.certificate(name).display().to_string();
    let (ca, other_ca, right, wrong) = (file("ca.crt"), file("other-ca.crt"), file("right"), file("wrong"));
    std::fs::write(&right, format!("{}\n", Kafka::PASSWORD)).unwrap();
    std::fs::write(&wrong, format!("{WRONG}\n")).unwrap();
    let (key, certificate) = (file("client.key"), file("client.crt"));
    let by = |mechanism: &'static str, ca, password| {
        vec![
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", mechanism),
            ("sasl.username", "app"),
            ("sasl.password_file", password),
            ("ssl.ca.location", ca),
        ]
    };
    let certified = vec![
        ("security.protocol", "ssl"),
        ("ssl.ca.location", &*ca),
        ("ssl.certificate.location", &*certificate),
        ("ssl.key.location", &*key),
    ];
    let passwords = ["\"sasl.username\"", "\"sasl.password\"", "Authentication failed"];
    let authority = ["\"ssl.ca.location\"", "certificate verify failed", "host names in [log.kafka] brokers"];
    let ours = ["\"ssl.certificate.location\"", "certificate"];
    let (tls, mtls, elsewhere) =
        (kafka.tls_address(), kafka.certificate_address(), kafka.elsewhere_address());
    allow_all(kafka, Kafka::CERTIFIED, "host");
    allow_all(kafka, Kafka::CERTIFIED, "uncertified");
    for (name, wrongly, at, words, rightly, mended_at) in [
        (
            "scram",
            by("SCRAM-SHA-256", &ca, &wrong),
            &tls,
            &passwords[..],
            by("SCRAM-SHA-256", &ca, &right),
            &tls,
        ),
        ("plain", by("PLAIN", &ca, &wrong), &tls, &passwords[..], by("PLAIN", &ca, &right), &tls),
        ("untrusted", by("PLAIN", &other_ca, &right), &tls, &authority[..], by("PLAIN", &ca, &right), &tls),
        ("host", certified.clone(), &elsewhere, &authority[..], certified.clone(), &mtls),
        ("uncertified", certified[..2].to_vec(), &mtls, &ours[..], certified.clone(), &mtls),
    ] {
        let (server, client) = source().await;
        let bad = connector(&server.url(), name, at, &wrongly);
        refused(&bad, words).await;
        let mut good = connector(&server.url(), name, mended_at, &rightly);
        good.change("state", "dir", bad.state().to_str().unwrap());
        let running = good.start_ready("capture").await;
        client.batch_execute("INSERT INTO orders VALUES (2000, 1, 'after')").await.unwrap();
        slot_has_passed(&client, name).await;
        all_are_there_once(kafka, name, &client).await;
        assert!(!running.output().contains(Kafka::PASSWORD));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_named_with_the_command_that_gives_it_and_nothing_is_lost() {
    let kafka = Kafka::shared();
    let (server, client) = source().await;
    let ca = kafka.certificate("ca.crt").display().to_string();
    let properties = [
        ("security.protocol", "sasl_ssl"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "limited"),
        ("sasl.password", Kafka::PASSWORD),
        ("ssl.ca.location", &ca),
    ];
    let limited = connector(&server.url(), "limited", &kafka.tls_address(), &properties);
    let topics = ["--topic", "limited.", "--resource-pattern-type", "prefixed"];
    let commands = [
        "kafka-acls.sh --bootstrap-server",
        "--operation Read --operation Write --operation DescribeConfigs --operation Create --topic limited. \
         --resource-pattern-type prefixed",
        "--operation Write --transactional-id tidemark-limited --transactional-id tidemark-limited-check",
    ];
    let all = |words: &[&'static str]| [&commands[..], words].concat();
    refused(&limited, &all(&["topic limited.state"])).await;
    // All of what is missing at once.
    let (_, said) = told(&limited, "check").await;
    for failure in
        ["fail kafka topics", "fail kafka new topics", "fail kafka writing", "fail kafka transactions"]
    {
        assert!(said.contains(failure), "{failure} is missing: {said}");
    }
    let principal = "User:limited";
    kafka.allow(principal, &["Describe", "DescribeConfigs"], &topics);
    refused(&limited, &all(&["cannot create topic limited.state"])).await;
    kafka.allow(principal, &["Create"], &topics);
    refused(&limited, &all(&["cannot", "tidemark-limited"])).await;
    kafka.allow(principal, &["Read"], &topics);
    let ids = ["--transactional-id", "tidemark-limited", "--transactional-id", "tidemark-limited-check"];
    kafka.allow(principal, &["Write"], &ids);
    refused(&limited, &all(&["limited.state"])).await;
    kafka.allow(principal, &["Write"], &["--topic", "limited.state"]);
    // The state may be written to and no other topic: capture comes as far as the first of those.
    let (code, said) = told(&limited, "capture").await;
    assert!(
        code == 1 && said.contains("cannot append to the log") && said.contains("limited."),
        "{code}: {said}"
    );
    kafka.allow(principal, &["Write"], &topics);
    let running = limited.start_ready("capture").await;
    client.batch_execute("INSERT INTO orders VALUES (2000, 1, 'after')").await.unwrap();
    slot_has_passed(&client, "limited").await;
    all_are_there_once(kafka, "limited", &client).await;
    assert!(!running.output().contains(Kafka::PASSWORD));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_the_brokers_no_longer_take_is_waited_for_like_brokers_that_are_away() {
    let mut kafka = Kafka::start();
    let (server, client) = source().await;
    let ca = kafka.certificate("ca.crt").display().to_string();
    let properties = [
        ("security.protocol", "sasl_ssl"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "limited"),
        ("sasl.password", Kafka::PASSWORD),
        ("ssl.ca.location", &ca),
        ("transaction.timeout.ms", "5000"),
    ];
    allow_all(&kafka, "User:limited", "rotated");
    let rotated = connector(&server.url(), "rotated", &kafka.tls_address(), &properties);
    let mut running = rotated.start_ready("capture").await;
    kafka.kill();
    kafka.set_password_of_limited("another");
    kafka.start_again();
    client.batch_execute("INSERT INTO orders VALUES (2000, 1, 'meanwhile')").await.unwrap();
    wait_until(PATIENCE, "/health tells why", async || {
        log(&running).to_string().contains("Authentication failed")
    })
    .await;
    // It is kept on the local disk, and the slot goes on.
    slot_has_passed(&client, "rotated").await;
    assert!(running.is_running(), "{}", running.output());
    eprintln!("refused by the broker: {} times", kafka.log().matches("Failed authentication").count());
    kafka.kill();
    kafka.set_password_of_limited(Kafka::PASSWORD);
    kafka.start_again();
    wait_until(PATIENCE, "the log is well again", async || log(&running)["state"] == "ok").await;
    client.batch_execute("INSERT INTO orders VALUES (2001, 1, 'after')").await.unwrap();
    slot_has_passed(&client, "rotated").await;
    let (_, health) = running.health();
    assert!(!health.to_string().contains(Kafka::PASSWORD), "{health}");
    // While it runs: what it has kept on its disk would stay there.
    all_are_there_once(&kafka, "rotated", &client).await;
    assert_eq!(running.terminate().await.code(), Some(0), "{}", running.output());
    assert!(!running.output().contains(Kafka::PASSWORD));
}
