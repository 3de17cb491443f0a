//! The client against a stub that answers as it is told, and remembers what it was asked.

use std::sync::atomic::{AtomicU16, Ordering};

use axum::Router;
use axum::http::{HeaderMap, Method, StatusCode, Uri};

use super::*;
use crate::runtime::Class;

#[derive(Clone, Default)]
struct Stub {
    status: Arc<AtomicU16>,
    body: Arc<Mutex<String>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    /// Starts it; gives its address.
    async fn start(&self) -> String {
        let stub = self.clone();
        let answer = move |method: Method, uri: Uri, headers: HeaderMap, body: String| async move {
            let authorization = headers.get("authorization").map_or("", |value| value.to_str().unwrap());
            stub.asked.lock().unwrap().push(format!("{method} {uri} {authorization} {body}"));
            let status = StatusCode::from_u16(stub.status.load(Ordering::Relaxed)).unwrap();
            (status, stub.body.lock().unwrap().clone())
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}/api/")
    }

    fn answers(&self, status: u16, body: &str) {
        self.status.store(status, Ordering::Relaxed);
        body.clone_into(&mut self.body.lock().unwrap());
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn options(urls: Vec<String>) -> RegistryOptions {
    RegistryOptions {
        urls,
        credentials: Some(("me".to_owned(), "geheim".to_owned())),
        ca_file: None,
        timeout: Duration::from_secs(10),
        auto_register: true,
        naming: SubjectNaming::TopicName,
    }
}

async fn stub() -> (Stub, Registry) {
    let stub = Stub::default();
    let url = stub.start().await;
    (stub, Registry::new(options(vec![url])).unwrap())
}

fn refused(answer: Answer) -> Error {
    match answer {
        Answer::Refused(error) => error,
        Answer::Id(id) => panic!("id {id}"),
    }
}

#[tokio::test]
async fn a_schema_is_asked_for_once_with_our_name() {
    let (stub, registry) = stub().await;
    stub.answers(200, r#"{"id":7,"version":1}"#);
    for _ in 0..3 {
        assert!(matches!(registry.id("shop.a b-value", "\"long\"").await.unwrap(), Answer::Id(7)));
    }
    let expected =
        "POST /api/subjects/shop.a%20b-value/versions Basic bWU6Z2VoZWlt {\"schema\":\"\\\"long\\\"\"}";
    assert_eq!(stub.asked(), [expected]);
    registry.id("other-value", "\"long\"").await.unwrap();
    assert_eq!(stub.asked().len(), 1, "another subject is another question");
    assert!(!format!("{registry:?}").contains("geheim"));
}

#[tokio::test]
async fn what_it_refuses_is_told_from_its_being_away_and_from_its_refusing_us() {
    let (stub, registry) = stub().await;
    stub.answers(409, r#"{"error_code":409,"message":"READER_FIELD_MISSING_DEFAULT_VALUE"}"#);
    let error = refused(registry.id("s-value", "{}").await.unwrap());
    assert!(error.message().contains("subject s-value, since it is not compatible"), "{error}");
    assert!(error.message().contains("READER_FIELD_MISSING_DEFAULT_VALUE"), "{error}");
    assert!(error.mend_text().unwrap().contains("/config/s-value"), "{error}");
    stub.answers(422, r#"{"error_code":42201,"message":"bad name"}"#);
    assert!(
        refused(registry.id("s-value", "{}").await.unwrap()).message().contains("not valid there: bad name")
    );
    for status in [500, 503, 429] {
        stub.answers(status, r#"{"error_code":50003,"message":"no leader"}"#);
        let error = registry.id("s-value", "{}").await.unwrap_err();
        assert_eq!(error.class(), Class::Retry, "{error}");
        assert!(error.message().contains("no leader"), "{error}");
    }
    stub.answers(401, "");
    let error = registry.id("s-value", "{}").await.unwrap_err();
    assert_eq!(error.class(), Class::Operator);
    assert!(error.mend_text().unwrap().contains("user and password"), "{error}");
    for (status, body) in [(404, "<html>"), (200, "<html>")] {
        stub.answers(status, body);
        let error = registry.id("s-value", "{}").await.unwrap_err();
        assert_eq!(error.class(), Class::Operator);
        assert!(error.mend_text().unwrap().contains("[envelope.registry] url"), "{error}");
    }
    stub.answers(200, r#"{"id":9}"#);
    assert!(matches!(registry.id("s-value", "{}").await.unwrap(), Answer::Id(9)), "nothing of it is kept");
}

#[tokio::test]
async fn without_leave_to_register_it_is_only_looked_up() {
    let stub = Stub::default();
    let url = stub.start().await;
    let registry = Registry::new(RegistryOptions { auto_register: false, ..options(vec![url]) }).unwrap();
    stub.answers(404, r#"{"error_code":40403,"message":"Schema not found"}"#);
    let error = refused(registry.id("s-key", "\"int\"").await.unwrap());
    assert!(error.message().contains("no such schema under subject s-key"), "{error}");
    assert!(error.mend_text().unwrap().contains("auto_register"), "{error}");
    stub.answers(200, r#"{"subject":"s-key","id":3,"version":1,"schema":"\"int\""}"#);
    assert!(matches!(registry.id("s-key", "\"int\"").await.unwrap(), Answer::Id(3)));
    assert!(stub.asked().iter().all(|asked| asked.starts_with("POST /api/subjects/s-key Basic")));
}

#[tokio::test]
async fn of_several_addresses_the_one_that_answers_is_asked() {
    let (bad, good) = (Stub::default(), Stub::default());
    let urls = vec!["http://127.0.0.1:9/".to_owned(), bad.start().await, good.start().await];
    bad.answers(503, "");
    good.answers(200, r#"["a","b"]"#);
    let registry = Registry::new(options(urls)).unwrap();
    assert_eq!(registry.subjects().await.unwrap(), 2);
    assert_eq!(registry.subjects().await.unwrap(), 2);
    assert_eq!((bad.asked().len(), good.asked().len()), (1, 2), "the second time the good one comes first");
    good.answers(503, "");
    assert_eq!(registry.subjects().await.unwrap_err().class(), Class::Retry);
}

#[test]
fn subjects_are_named_as_confluent_does() {
    let subject = |naming: SubjectNaming| naming.subject("t", "key", "n.Key");
    assert_eq!(subject(SubjectNaming::TopicName), "t-key");
    assert_eq!(subject(SubjectNaming::RecordName), "n.Key");
    assert_eq!(subject(SubjectNaming::TopicRecordName), "t-n.Key");
}
