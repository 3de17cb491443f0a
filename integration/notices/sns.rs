//! A topic of SNS, on an emulator (moto), and the queues of SQS that have subscribed to it, read by AWS's own client.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Answer, TABLES, Webhook, assert_told, is_of_day, metric, tried};
use crate::support::days::{days, use_rule};
use crate::support::lake::python;
use crate::support::{Connector, PATIENCE, Postgres, free_port, http, wait_until};

/// A running emulator, killed when dropped.
struct Moto {
    port: u16,
    child: Option<Child>,
}

impl Moto {
    /// Nothing answers yet.
    fn new() -> Self {
        Self { port: free_port(), child: None }
    }

    async fn start(&mut self) {
        let program = python().with_file_name("moto_server");
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &self.port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let url = format!("{}/moto-api/", self.url());
        wait_until(PATIENCE, "the emulator serves", async || http().get(&url).call().is_ok()).await;
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn read(&self, queue: &str) -> Vec<Value> {
        serde_json::from_value(script(&["read", &self.url(), queue], "")).unwrap()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What `sns.py` prints.
fn script(arguments: &[&str], input: &str) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/notices/sns.py");
    let mut command = Command::new(python());
    command.arg(script).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Goes to a topic, in the way of an emulator.
fn tell(connector: &mut Connector, topic: &Value, endpoint: &str) {
    for (key, value) in [
        ("topic_arn", topic.clone()),
        ("endpoint_url", json!(endpoint)),
        ("allow_http", json!(true)),
        ("access_key_id", json!("AKID")),
        ("secret_access_key", json!("geheim")),
        ("timeout_ms", json!(20_000)),
    ] {
        connector.change("notices.sns", key, value);
    }
}

/// The notices of messages, each with its id as an attribute.
fn notices(messages: &[Value]) -> Vec<Value> {
    let notice = |message: &Value| {
        let notice: Value = serde_json::from_str(message["Message"].as_str().unwrap()).unwrap();
        assert_eq!(message["MessageAttributes"]["id"], json!({"Type": "String", "Value": notice["id"]}));
        notice
    };
    messages.iter().map(notice).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_subscribed_to_an_sns_topic_is_told_of_every_day_though_sns_was_dead() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let days = days(&client).await;
    let mut moto = Moto::new();
    let mut connector = Connector::new(&server.url());
    let arn = |name: &str| json!(format!("arn:aws:sns:us-east-1:123456789012:{name}"));
    tell(&mut connector, &arn("lake-notices"), &moto.url());
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    running.cut(&days[0]);
    connector.wait_published(&days[0]).await;
    let reason = async |text: &str| {
        wait_until(PATIENCE, &format!("/health tells that {text}"), async || {
            running.health().1["reasons"].to_string().contains(text)
        })
        .await;
    };
    reason("SNS is out of reach").await;
    moto.start().await;
    // The topic is not there yet.
    reason("SNS answers 404 NotFound").await;
    let finding = tried(&running, "notices.sns").await;
    assert_eq!(finding["level"], "fail");
    assert!(finding["message"].to_string().contains("SNS answers 404 NotFound"), "{finding}");
    // A topic takes what is sent to it also while nobody has subscribed.
    running.signal(Signal::STOP);
    let made = script(&["make", &moto.url()], "");
    running.signal(Signal::CONT);
    assert_eq!((&made["topic"], &made["fifo"]), (&arn("lake-notices"), &arn("lake-notices.fifo")));
    wait_until(PATIENCE * 2, "it is told", async || metric(&running, "tidemark_notices_sent_total{") >= 3)
        .await;
    assert_eq!(tried(&running, "notices.sns").await["level"], "ok");
    let told = notices(&moto.read(made["queue"].as_str().unwrap()));
    assert_told(&told, &connector, &client, &days[0]).await;
    assert_eq!(told.len(), 3);
    assert!(!running.output().contains("geheim"), "no secret is told");
    assert!(running.terminate().await.success(), "{}", running.output());

    // In a FIFO topic the order stays.
    tell(&mut connector, &made["fifo"], &moto.url());
    use_rule(&mut connector, 1);
    let mut running = connector.start_ready("run").await;
    client.batch_execute("DELETE FROM orders WHERE id % 3 = 0").await.unwrap();
    running.cut(&days[1]);
    wait_until(PATIENCE * 2, "it is told", async || metric(&running, "tidemark_notices_sent_total{") >= 3)
        .await;
    let told = notices(&moto.read(made["fifo_queue"].as_str().unwrap()));
    assert_told(&told, &connector, &client, &days[1]).await;
    assert!(told.len() == 3 && is_of_day(&told[2], &days[1]), "the day comes after its tables: {told:?}");
    assert!(running.terminate().await.success(), "{}", running.output());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_sns_are_signed_as_by_the_client_of_aws() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let days = days(&client).await;
    let mut sns = Webhook::new();
    sns.start().await;
    let mut connector = Connector::new(&server.url());
    let endpoint = format!("http://127.0.0.1:{}", sns.port);
    tell(&mut connector, &json!("arn:aws:sns:eu-central-1:123456789012:t.fifo"), &endpoint);
    connector.change("notices.sns", "session_token", "a-token");
    use_rule(&mut connector, 0);
    let running = connector.start_ready("run").await;
    running.cut(&days[0]);
    wait_until(PATIENCE * 2, "it has three", async || sns.count(Answer::Ok) >= 3).await;
    let seen = sns.seen.lock().unwrap();
    for (_, headers, body) in &seen.requests {
        let headers: serde_json::Map<String, Value> =
            headers.iter().map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap()))).collect();
        let body = std::str::from_utf8(body).unwrap();
        assert_eq!(headers["x-amz-security-token"], "a-token");
        assert!(body.contains("&MessageDeduplicationId=") && body.contains("&MessageGroupId="), "{body}");
        let request = json!({"url": format!("{endpoint}/"), "headers": headers, "body": body});
        let signature = script(&["signature", "geheim"], &request.to_string());
        assert_eq!(signature["ours"], signature["botocore"], "{request}");
        assert_eq!(signature["service"], "sns");
        let signed: Vec<String> = serde_json::from_value(signature["signed"].clone()).unwrap();
        assert!(
            ["host", "x-amz-date", "x-amz-content-sha256"]
                .iter()
                .all(|name| signed.iter().any(|s| s == name))
        );
    }
}
