//! Others are told of published days: at least once, by the same id, whoever was dead meanwhile; and days are published
//! all the same.
//!
//! The webhook is a server of the test, signatures are checked by Python's `hmac`; what is in Kafka is read by Kafka's own
//! console consumer, what went by SNS by AWS's client; counts are Postgres's, checksums are those of the files.

mod sns;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::days::{days, use_rule};
use crate::support::lake::{python, value};
use crate::support::{Connector, Kafka, NAME, PATIENCE, Postgres, Running, free_port, wait_until};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, a text); CREATE TABLE lines (id int PRIMARY KEY);
    INSERT INTO orders SELECT i, md5(i::text) FROM generate_series(1, 700) i; INSERT INTO lines VALUES (1), (2), (3)";

/// How the webhook answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Ok,
    Error,
    /// It has the message, and says so too late.
    Late,
}

#[derive(Debug)]
struct Webhook {
    port: u16,
    seen: Arc<Mutex<Seen>>,
    serving: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Seen {
    answer: Answer,
    /// How it answered, and what came.
    requests: Vec<(Answer, HeaderMap, Bytes)>,
}

impl Webhook {
    /// Nothing answers yet.
    fn new() -> Self {
        let seen = Arc::new(Mutex::new(Seen { answer: Answer::Ok, requests: Vec::new() }));
        Self { port: free_port(), seen, serving: None }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook?token=geheim", self.port)
    }

    async fn start(&mut self) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let router = Router::new()
            .route("/hook", post(take))
            .route("/", post(take))
            .with_state(Arc::clone(&self.seen));
        self.serving = Some(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
    }

    async fn stop(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        let _ = serving.await;
    }

    fn answer(&self, answer: Answer) {
        self.seen.lock().unwrap().answer = answer;
    }

    fn count(&self, answer: Answer) -> usize {
        self.seen.lock().unwrap().requests.iter().filter(|(answered, _, _)| *answered == answer).count()
    }

    /// What it has taken, in order.
    fn taken(&self) -> Vec<Value> {
        let seen = self.seen.lock().unwrap();
        let taken = seen.requests.iter().filter(|(answered, _, _)| *answered == Answer::Ok);
        taken.map(|(_, _, body)| serde_json::from_slice(body).unwrap()).collect()
    }
}

async fn take(State(seen): State<Arc<Mutex<Seen>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let answer = {
        let mut seen = seen.lock().unwrap();
        let answer = seen.answer;
        seen.requests.push((answer, headers, body));
        answer
    };
    match answer {
        Answer::Ok => StatusCode::NO_CONTENT,
        Answer::Error => StatusCode::INTERNAL_SERVER_ERROR,
        Answer::Late => {
            tokio::time::sleep(Duration::from_secs(15)).await;
            StatusCode::OK
        }
    }
}

fn is_of_day(notice: &Value, ds: &str) -> bool {
    notice["ds"] == ds && notice["kind"] == "day"
}

/// The notices of a day are those of its tables and then of the day, with what is in the lake and in Postgres.
async fn assert_told(notices: &[Value], connector: &Connector, client: &tokio_postgres::Client, ds: &str) {
    let mut by_id: BTreeMap<String, Value> = BTreeMap::new();
    for notice in notices.iter().filter(|notice| notice["ds"] == ds) {
        let id = notice["id"].as_str().unwrap().to_owned();
        assert!(by_id.insert(id, notice.clone()).is_none_or(|before| before == *notice), "{notice}");
    }
    assert_eq!(by_id.len(), 3, "{by_id:?}");
    let lake = format!("file://{}", connector.lake().display());
    let checksum = |path: &str| tidemark::lake::sha256(&std::fs::read(connector.lake().join(path)).unwrap());
    let mut all = 0;
    for table in ["orders", "lines"] {
        let folder = format!("snapshots/{NAME}/public.{table}/ds={ds}");
        let rows: u64 = value(client, &format!("SELECT count(*) FROM {table}")).await.parse().unwrap();
        all += rows;
        let told = by_id.values().find(|notice| notice["table"]["table"] == table).unwrap();
        let sha256 = checksum(&format!("{folder}/_manifest.json"));
        let expected = json!({
            "notice_version": 1, "id": format!("{NAME}/public.{table}/ds={ds}/{}", &sha256[..16]), "kind": "table",
            "name": NAME, "database": "postgres", "table": { "schema": "public", "table": table }, "ds": ds,
            "location": format!("{lake}/{folder}"), "manifest": format!("{lake}/{folder}/_manifest.json"),
            "manifest_sha256": sha256, "rows": rows
        });
        assert_eq!(*told, expected);
    }
    let day = by_id.values().find(|notice| is_of_day(notice, ds)).unwrap();
    assert_eq!(day["manifest_sha256"], checksum(&format!("cuts/{NAME}/ds={ds}.json")));
    assert_eq!((&day["rows"], &day["location"]), (&json!(all), &json!(format!("{lake}/snapshots/{NAME}"))));
}

fn metric(running: &Running, name: &str) -> u64 {
    let (_, text) = running.get("/metrics").unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// What `tidemark check` finds of an endpoint.
async fn tried(running: &Running, subject: &str) -> Value {
    let output = running.command(&["check", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("geheim"), "no secret is told");
    let findings: Value = serde_json::from_str(&text).unwrap();
    let mut findings = findings["findings"].as_array().unwrap().iter();
    findings
        .find(|finding| finding["subject"] == subject)
        .unwrap_or_else(|| panic!("{subject}: {text}"))
        .clone()
}

/// What Python makes of the bodies under the key.
fn python_signatures(key: &str, bodies: &[Bytes]) -> Vec<String> {
    let script = "import hashlib, hmac, json, sys\n\
        for body in json.load(sys.stdin): print(hmac.new(sys.argv[1].encode(), body.encode(), hashlib.sha256).hexdigest())";
    let texts: Vec<_> = bodies.iter().map(|body| std::str::from_utf8(body).unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bodies.json");
    std::fs::write(&file, serde_json::to_vec(&texts).unwrap()).unwrap();
    let output = Command::new(python())
        .args(["-c", script, key])
        .stdin(std::fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(|line| format!("sha256={line}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_is_told_of_every_day_though_it_was_dead_failed_and_answered_late_and_we_were_killed() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let days = days(&client).await;
    let mut webhook = Webhook::new();
    let mut connector = Connector::new(&server.url());
    connector.change("notices.webhook", "url", webhook.url());
    connector.change("notices.webhook", "bearer_token", "a-token");
    connector.change("notices.webhook", "hmac_key", "a key");
    connector.change("notices.webhook", "timeout_ms", 3000);
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    running.cut(&days[0]);
    connector.wait_published(&days[0]).await;
    wait_until(PATIENCE, "/health tells of it", async || {
        let health = running.health().1;
        health["reasons"].as_array().unwrap().iter().any(|reason| reason["subject"] == "notices.webhook")
    })
    .await;
    let (code, health) = running.health();
    assert_eq!((code, &health["status"]), (200, &json!("degraded")), "it is a warning");
    assert!(
        !running.output().contains("geheim") && !health.to_string().contains("geheim"),
        "no secret is told"
    );
    assert!(metric(&running, "tidemark_notices_failed_total{") > 0);
    let finding = tried(&running, "notices.webhook").await;
    assert_eq!(finding["level"], "fail");
    assert!(finding["message"].to_string().contains("is out of reach"), "{finding}");
    assert_eq!(metric(&running, "tidemark_notices_pending_days{"), 1);

    webhook.answer(Answer::Error);
    webhook.start().await;
    wait_until(PATIENCE, "it has answered 500", async || webhook.count(Answer::Error) > 0).await;
    webhook.answer(Answer::Late);
    wait_until(PATIENCE, "it has answered too late", async || webhook.count(Answer::Late) > 0).await;
    webhook.answer(Answer::Ok);
    let told = async |webhook: &Webhook, ds: &str| {
        wait_until(PATIENCE * 2, &format!("it is told of {ds}"), async || {
            webhook.taken().iter().any(|notice| is_of_day(notice, ds))
        })
        .await;
    };
    told(&webhook, &days[0]).await;
    assert_eq!(tried(&running, "notices.webhook").await["level"], "ok");
    assert_told(&webhook.taken(), &connector, &client, &days[0]).await;
    wait_until(PATIENCE, "/health is well again", async || running.health().1["status"] == "ok").await;
    assert_eq!(metric(&running, "tidemark_notices_pending_days{"), 0);
    assert_eq!(metric(&running, "tidemark_notices_sent_total{"), 3);
    {
        let seen = webhook.seen.lock().unwrap();
        let (headers, bodies): (Vec<_>, Vec<_>) =
            seen.requests.iter().map(|(_, headers, body)| (headers.clone(), body.clone())).unzip();
        let signatures = python_signatures("a key", &bodies);
        assert_eq!(signatures.len(), headers.len());
        for (headers, signature) in headers.iter().zip(signatures) {
            assert_eq!(headers["authorization"], "Bearer a-token");
            assert_eq!(headers["x-tidemark-signature-256"], signature);
        }
    }

    // Published, and killed before anybody could be told.
    webhook.stop().await;
    assert!(running.terminate().await.success());
    use_rule(&mut connector, 1);
    let mut running = connector.start_ready("run").await;
    client.batch_execute("INSERT INTO lines VALUES (4)").await.unwrap();
    running.cut(&days[1]);
    connector.wait_published(&days[1]).await;
    running.kill();
    let before = webhook.taken().len();
    webhook.start().await;
    let mut running = connector.start_ready("run").await;
    told(&webhook, &days[1]).await;
    assert_told(&webhook.taken(), &connector, &client, &days[1]).await;
    let all_of = |taken: &[Value], ds: &str| taken.iter().all(|notice| notice["ds"] == ds);
    assert!(all_of(&webhook.taken()[before..], &days[1]), "what was told before is not told again");

    // And what was told stays told, once that is noted.
    wait_until(PATIENCE, "it is noted", async || metric(&running, "tidemark_notices_pending_days{") == 0)
        .await;
    let before = webhook.taken().len();
    assert!(running.terminate().await.success());
    use_rule(&mut connector, 2);
    let running = connector.start_ready("run").await;
    running.cut(&days[2]);
    told(&webhook, &days[2]).await;
    let ids: BTreeSet<String> = webhook.taken().iter().map(|notice| notice["id"].to_string()).collect();
    assert_eq!(ids.len(), 9);
    assert!(all_of(&webhook.taken()[before..], &days[2]), "what was told before is not told again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_is_told_of_days_that_come_and_not_of_those_that_were_there_before() {
    let kafka = Kafka::shared();
    let topic = "lake-notices";
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.address()).create().unwrap();
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let days = days(&client).await;
    let mut connector = Connector::new(&server.url());
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    running.cut(&days[0]);
    connector.wait_published(&days[0]).await;
    assert!(running.terminate().await.success());
    connector.change("notices.kafka", "brokers", [kafka.address()]);
    connector.change("notices.kafka", "topic", topic);
    connector.change("notices.kafka", "timeout_ms", 10_000);
    use_rule(&mut connector, 1);
    let mut running = connector.start_ready("run").await;
    client.batch_execute("DELETE FROM orders WHERE id % 3 = 0").await.unwrap();
    running.cut(&days[1]);
    connector.wait_published(&days[1]).await;
    // The topic is not there, and the brokers do not make it.
    wait_until(PATIENCE, "/health tells of it", async || {
        running.health().1["components"]["notices.kafka"]["state"] == "waiting"
    })
    .await;
    let finding = tried(&running, "notices.kafka").await;
    assert_eq!(finding["level"], "warn");
    assert_eq!(finding["message"], "the brokers answer, and show no topic lake-notices");
    let new = [NewTopic::new(topic, 1, TopicReplication::Fixed(1))];
    admin.create_topics(&new, &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    wait_until(PATIENCE * 2, "it is told", async || metric(&running, "tidemark_notices_sent_total{") >= 3)
        .await;
    assert_eq!(tried(&running, "notices.kafka").await["level"], "ok");
    let told: Vec<Value> =
        kafka.console_consumer(topic, 3).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_told(&told, &connector, &client, &days[1]).await;
    assert!(told.iter().all(|notice| notice["ds"] == days[1].as_str()), "{told:?}");
    assert!(is_of_day(&told[2], &days[1]), "the day comes after its tables");
    assert!(running.terminate().await.success(), "{}", running.output());
}
