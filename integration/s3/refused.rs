//! What is wrong with a bucket is said before anything runs, with what to do.

use serde_json::Value;

use crate::support::{Connector, Postgres, S3, S3Proxy};

/// A connector of a table, with its lake in a bucket.
async fn connector(server: &Postgres, bucket: &str, port: u16) -> Connector {
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)").await.unwrap();
    let mut connector = Connector::new(&server.url());
    S3::lake_in(&mut connector, bucket, port);
    connector
}

/// What `run` leaves with: its code and what it said.
fn run(connector: &Connector) -> (i32, String) {
    let output = connector.command(&["run"]);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Lines of `check` about the lake: level, subject, message.
fn check(connector: &Connector) -> Vec<(String, String, String)> {
    let output = connector.command(&["check", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
    let findings = told["findings"].as_array().unwrap().iter();
    findings
        .map(|one| (text(&one["level"]), text(&one["subject"]), text(&one["message"])))
        .filter(|(_, subject, _)| subject.starts_with("lake"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_tells_of_bucket_region_and_rights_a_line_each() {
    let server = Postgres::start().await;
    let store = S3::shared();
    let bucket = store.bucket().await;
    let mut connector = connector(&server, &bucket, store.port()).await;
    let told = check(&connector);
    let subjects: Vec<_> = told.iter().map(|(level, subject, _)| format!("{level} {subject}")).collect();
    let all =
        ["ok lake bucket", "ok lake list", "ok lake put", "ok lake create", "ok lake get", "ok lake delete"];
    assert_eq!(subjects, all, "{told:?}");
    assert!(told[0].2.contains(&bucket) && told[0].2.contains("us-east-1"), "{told:?}");
    assert!(super::faults::in_bucket(&bucket).await.is_empty(), "the trial's object is gone");

    // Who may only read.
    connector.change("lake.s3", "access_key_id", S3::READER);
    let told = check(&connector);
    let level = |subject: &str| told.iter().find(|one| one.1 == subject).map(|one| one.0.as_str());
    assert_eq!((level("lake list"), level("lake put")), (Some("ok"), Some("fail")), "{told:?}");
    assert_eq!(level("lake delete"), Some("fail"), "{told:?}");
    let (code, said) = run(&connector);
    assert!(code == 1 && said.contains("s3:PutObject"), "{code}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_conditional_create_is_refused() {
    let server = Postgres::start().await;
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    proxy.ignore_conditions();
    let connector = connector(&server, &bucket, proxy.port()).await;
    let (code, said) = run(&connector);
    assert!(
        code == 1 && said.contains("no conditional create") && said.contains("If-None-Match"),
        "{code}: {said}"
    );
    let told = check(&connector);
    assert!(told.iter().any(|(level, subject, _)| level == "fail" && subject == "lake create"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_not_there_and_keys_that_are_wrong_are_told_and_never_shown() {
    let server = Postgres::start().await;
    let store = S3::shared();
    let mut connector = connector(&server, "no-such-bucket", store.port()).await;
    let (code, said) = run(&connector);
    assert!(code == 1 && said.contains("Create the bucket"), "{code}: {said}");
    // Nor is it a lake without days.
    let output = connector.command(&["verify", "--ds", "2026-11-20"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("NoSuchBucket"), "{said}");

    let bucket = store.bucket().await;
    S3::lake_in(&mut connector, &bucket, store.port());
    connector.change("lake.s3", "secret_access_key", "a-wrong-secret");
    let (code, said) = run(&connector);
    assert!(code == 1 && said.contains("secret_access_key"), "{code}: {said}");
    assert!(!said.contains("a-wrong-secret"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_from_the_environment_where_the_file_has_none() {
    let server = Postgres::start().await;
    let store = S3::shared();
    let bucket = store.bucket().await;
    let mut connector = connector(&server, &bucket, store.port()).await;
    for key in ["access_key_id", "secret_access_key", "endpoint_url"] {
        connector.remove("lake.s3", key);
    }
    connector.environment(&[
        ("AWS_ACCESS_KEY_ID", S3::KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", S3::SECRET.to_owned()),
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", store.port())),
        ("AWS_REGION", "eu-central-1".to_owned()),
        // Empty, as a compose file passes on what is not set.
        ("AWS_ENDPOINT_URL_S3", String::new()),
        ("AWS_SESSION_TOKEN", String::new()),
        ("AWS_ROLE_ARN", String::new()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", String::new()),
        // What the client itself would obey.
        ("AWS_ENDPOINT", "http://192.0.2.1".to_owned()),
        ("AWS_SKIP_SIGNATURE", "true".to_owned()),
        ("AWS_CONDITIONAL_PUT", "disabled".to_owned()),
    ]);
    let mut checked = connector.start("check");
    checked.ended().await;
    let told = checked.output();
    assert!(told.contains("region eu-central-1") && told.contains("credentials of the AWS chain"), "{told}");
    assert!(told.lines().any(|line| line.starts_with("ok") && line.contains("lake create")), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_of_the_environment_that_cannot_be_used_is_told_with_its_name() {
    let server = Postgres::start().await;
    let store = S3::shared();
    let mut connector = connector(&server, &store.bucket().await, store.port()).await;
    connector.remove("lake.s3", "endpoint_url");
    for (allow_http, force_path_style, value, expected) in [
        (true, true, "https://me:my-secret@localhost:9000", "expected scheme, host and port"),
        (true, false, "https://127.0.0.1:9000", "force_path_style is false with an address of numbers"),
        (false, true, "http://127.0.0.1:9000", "found an address without TLS"),
    ] {
        connector.change("lake.s3", "allow_http", allow_http);
        connector.change("lake.s3", "force_path_style", force_path_style);
        connector.environment(&[("AWS_ENDPOINT_URL", value.to_owned())]);
        let (code, said) = run(&connector);
        let named = said.contains("AWS_ENDPOINT_URL of the environment") && said.contains(expected);
        assert!(code != 0 && named && !said.contains("my-secret"), "{value}: {code}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_with_tls_is_trusted_by_its_authority_alone() {
    let server = Postgres::start().await;
    let store = S3::shared();
    let bucket = store.bucket().await;
    let mut connector = connector(&server, &bucket, store.port()).await;
    connector.change("lake.s3", "endpoint_url", format!("https://localhost:{}", store.https_port()));
    connector.remove("lake.s3", "allow_http");
    let told = check(&connector);
    let level = |told: &[(String, String, String)]| {
        told.iter().find(|one| one.1 == "lake put").map(|one| (one.0.clone(), one.2.clone()))
    };
    let (before, message) = level(&told).unwrap();
    assert!(before == "fail" && message.contains("certificate"), "{told:?}");
    connector.change("lake.s3", "ca_file", store.authority().to_str().unwrap());
    let told = check(&connector);
    assert_eq!(level(&told).unwrap().0, "ok", "{told:?}");
}
