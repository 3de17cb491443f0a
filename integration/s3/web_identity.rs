//! A web identity, as pods of EKS have: `AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_ARN`.
//!
//! `SeaweedFS` is the security token service (with TLS, as `object_store` wants it) as well as the store. Its keys are good
//! for seconds; what was asked with which of them is what a proxy has seen.

use std::collections::BTreeSet;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::binary::{TABLES, assert_same, end_day};
use crate::support::days::{days, use_rule};
use crate::support::{Connector, PATIENCE, Postgres, S3, S3Proxy, wait_until};

/// Keys for a while, by what their token says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Session {
    id: String,
    /// For whom the web identity was signed.
    subject: String,
    /// In seconds of Unix.
    expires: u64,
}

/// The sessions by whose keys the store has carried out something, or refused it.
fn sessions(proxy: &S3Proxy) -> BTreeSet<Session> {
    let token = |head: &str, target: &str| {
        let header = head.lines().find_map(|line| line.strip_prefix("x-amz-security-token: "));
        let query = || target.split(['?', '&']).find_map(|part| part.strip_prefix("X-Amz-Security-Token="));
        header.or_else(query).expect("a token").trim().to_owned()
    };
    let carried = proxy.carried();
    let tokens: BTreeSet<_> = carried.iter().map(|one| token(&one.head, &one.target)).collect();
    tokens.iter().map(|token| session(token)).collect()
}

fn session(token: &str) -> Session {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("a JWT")).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    let text = |name: &str| claims[name].as_str().unwrap().to_owned();
    Session { id: text("sid"), subject: text("ext_uid"), expires: claims["exp"].as_u64().unwrap() }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// A connector that has no keys but a web identity, in a file of its folder.
fn connector(server: &Postgres, bucket: &str, port: u16, token: &str) -> Connector {
    let store = S3::shared();
    let mut connector = Connector::new(&server.url());
    S3::lake_in(&mut connector, bucket, port);
    for key in ["access_key_id", "secret_access_key"] {
        connector.remove("lake.s3", key);
    }
    connector.change("lake.s3", "ca_file", store.authority().to_str().unwrap());
    let file = connector.folder().join("token");
    std::fs::write(&file, token).unwrap();
    connector.environment(&[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file.to_str().unwrap().to_owned()),
        ("AWS_ROLE_ARN", S3::ROLE.to_owned()),
        ("AWS_ENDPOINT_URL_STS", format!("https://localhost:{}", store.https_port())),
    ]);
    connector
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_web_identity_are_fetched_again_before_they_expire_with_the_token_as_it_is_then() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute(TABLES).await.unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let proxy = S3Proxy::start(store.port(), 1).await;
    let mut connector = connector(&server, &bucket, proxy.port(), &store.web_identity("first").await);
    connector.change("lake", "part_bytes_max", 16_384);
    let days = days(&client).await;
    use_rule(&mut connector, 0);
    let mut running = connector.start_ready("run").await;
    let first = sessions(&proxy);
    assert!(!first.is_empty() && first.iter().all(|session| session.subject == "first"), "{first:?}");

    // A cluster writes another token long before the first one is over; then the keys that were given for that are over.
    std::fs::write(connector.folder().join("token"), store.web_identity("second").await).unwrap();
    let last =
        || sessions(&proxy).into_iter().filter(|one| one.subject == "first").map(|one| one.expires).max();
    wait_until(PATIENCE, "the first keys are over", async || last() < Some(now())).await;
    end_day(&running, &bucket, &days[0]).await;
    assert_same(&bucket, &client, &days[0]).await;
    assert!(sessions(&proxy).iter().any(|session| session.subject == "second"), "{:?}", sessions(&proxy));
    assert!(running.terminate().await.success(), "{}", running.output());
    for request in proxy.carried() {
        assert!(
            !matches!(request.status, 401 | 403),
            "{} {}: {}",
            request.method,
            request.target,
            request.status
        );
    }
}

/// Nothing is shown of a token, not even of one that is good for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_identity_that_is_refused_is_told_and_never_shown() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let store = S3::shared();
    let bucket = store.bucket().await;
    let good = store.web_identity("somebody").await;
    let (signed, _) = good.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{}", URL_SAFE_NO_PAD.encode([7; 256]));
    let connector = connector(&server, &bucket, store.port(), &forged);
    let output = connector.command(&["check"]);
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("AWS_WEB_IDENTITY_TOKEN_FILE"), "{told}");
    for part in forged.split('.') {
        assert!(!told.contains(part), "{told}");
    }
}
