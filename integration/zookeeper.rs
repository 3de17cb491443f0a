//! The coordinator on a real ZooKeeper: its conformance, and what becomes of leases when connections, sessions and servers
//! are lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark::coord::{Coordinator, Lease, ZookeeperCoordinator, ZookeeperOptions, conformance};
use tidemark::runtime::{Class, Result};

use crate::support::{Connector, Network, PATIENCE, Proxy, Zookeeper, wait_until};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

fn options(port: u16, root: &str, session_timeout: Duration) -> ZookeeperOptions {
    let servers = vec![format!("127.0.0.1:{port}")];
    ZookeeperOptions { servers, root: root.to_owned(), session_timeout, credentials: None }
}

fn open(port: u16, root: &str, session_timeout: Duration) -> ZookeeperCoordinator {
    ZookeeperCoordinator::new(options(port, root, session_timeout))
}

/// A server that has answered: one that has only just started is slow to, and a client gives a connection up after two
/// fifths of its session.
async fn started() -> Zookeeper {
    let server = Zookeeper::start();
    let first = open(server.port(), "/warm", Duration::from_secs(60));
    answered(async || first.probe().await).await;
    server
}

/// Breaks all connections.
async fn cut(proxy: &Proxy) {
    proxy.set(Network::Cut);
    wait_until(PATIENCE, "all connections are broken", async || proxy.connections() == 0).await;
    proxy.set(Network::Up);
}

/// Asks until there is an answer.
async fn answered<T>(ask: impl AsyncFn() -> Result<T>) -> T {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => {
                assert_eq!(error.class(), Class::Retry, "{error}");
                assert!(began.elapsed() < PATIENCE, "no answer: {error}");
            }
        }
    }
}

/// Whether a lease is still its holder's.
async fn is_kept(coordinator: &ZookeeperCoordinator, lease: &Lease) -> bool {
    let kept = answered(async || coordinator.renew(std::slice::from_ref(lease), LONG).await).await;
    kept == [lease.clone()]
}

async fn acquired(coordinator: &ZookeeperCoordinator, name: &str) -> Lease {
    let began = Instant::now();
    loop {
        if let Ok(Some(lease)) = coordinator.acquire(name, LONG).await {
            return lease;
        }
        assert!(began.elapsed() < PATIENCE, "{name} never came free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let server = started().await;
    conformance::run(|name: String| {
        let coordinator = open(server.port(), &format!("/deep/er/{name}"), Duration::from_secs(20));
        async move { Arc::new(coordinator) as Arc<dyn Coordinator> }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_outlive_a_cut_connection_and_a_server_that_is_started_again() {
    let mut server = started().await;
    let proxy = Proxy::start(server.port()).await;
    let ours = open(proxy.port(), "/t", Duration::from_secs(30));
    let other = open(server.port(), "/t", Duration::from_secs(30));
    let lease = ours.acquire("x", LONG).await.unwrap().unwrap();
    assert!(ours.set(&lease, "k", None, b"1").await.unwrap());
    for version in 1..4 {
        cut(&proxy).await;
        assert!(is_kept(&ours, &lease).await);
        assert_eq!(acquire_now(&other, "x").await, None);
        assert!(ours.set(&lease, "k", Some(version), b"cut").await.unwrap());
    }
    server.kill();
    server.start_again();
    assert!(is_kept(&ours, &lease).await, "the session is resumed");
    assert_eq!(acquire_now(&other, "x").await, None);
    assert_eq!(other.get("k").await.unwrap().unwrap().version, 4, "and the state is still there");
    ours.release(&lease).await.unwrap();
    assert!(acquired(&other, "x").await.epoch > lease.epoch, "epochs go on after a restart");
}

/// Tries once that comes through.
async fn acquire_now(coordinator: &ZookeeperCoordinator, name: &str) -> Option<Lease> {
    answered(async || coordinator.acquire(name, LONG).await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_expires_ends_its_leases_and_their_holder_learns_it() {
    let server = started().await;
    let proxy = Proxy::start(server.port()).await;
    let ours = open(proxy.port(), "/t", Duration::from_secs(5));
    let other = open(server.port(), "/t", Duration::from_secs(30));
    let lost = acquired(&ours, "x").await;
    let set = answered(async || ours.set(&lost, "k", None, b"ours").await).await;
    // One without an answer may have come through.
    assert!(set || other.get("k").await.unwrap().unwrap().value == b"ours");

    proxy.set(Network::Stalled);
    let began = Instant::now();
    let lease = acquired(&other, "x").await;
    println!("taken over {:?} after the silence began, with a session timeout of 5 s", began.elapsed());
    assert!(lease.epoch > lost.epoch);
    assert!(other.set(&lease, "k", Some(1), b"theirs").await.unwrap());
    proxy.set(Network::Up);

    assert!(!is_kept(&ours, &lost).await, "the former holder learns it");
    let late = answered(async || ours.set(&lost, "k", Some(2), b"late").await).await;
    assert!(!late, "nothing is set under a lease that was lost");
    ours.release(&lost).await.unwrap();
    assert!(is_kept(&other, &lease).await, "a late release takes nothing from the new holder");
    let held = answered(async || ours.get("k").await).await;
    assert_eq!(held.unwrap().value, b"theirs");
    // It goes on in a session of its own.
    acquired(&ours, "y").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broken_connection_left_in_doubt_comes_free() {
    let server = started().await;
    let proxy = Proxy::start(server.port()).await;
    let (ours, other) = (
        open(proxy.port(), "/t", Duration::from_secs(20)),
        open(server.port(), "/t", Duration::from_secs(20)),
    );
    for round in 0..20 {
        let name = format!("x{round}");
        // Connections break around the transaction, before it or after it.
        let cutting = async {
            tokio::time::sleep(Duration::from_micros(round * 200)).await;
            cut(&proxy).await;
        };
        let (taken, ()) = tokio::join!(ours.acquire(&name, LONG), cutting);
        if let Ok(Some(lease)) = taken {
            assert!(is_kept(&ours, &lease).await);
            ours.release(&lease).await.unwrap_or_else(|error| assert_eq!(error.class(), Class::Retry));
        }
        acquired(&other, &name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_under_a_user_is_that_users_alone() {
    let server = started().await;
    let session = Duration::from_secs(60);
    let user = |name: &str| {
        let credentials = Some((name.to_owned(), format!("{name}-secret")));
        ZookeeperCoordinator::new(ZookeeperOptions {
            credentials,
            ..options(server.port(), "/bank", session)
        })
    };
    let (ours, theirs) = (user("tidemark"), user("mallory"));
    assert!(!format!("{ours:?}").contains("secret"));
    ours.probe().await.unwrap();
    let error = theirs.probe().await.unwrap_err();
    assert_eq!(error.class(), Class::Operator, "{error}");
    assert!(
        error.to_string().contains("does not allow it") && error.to_string().contains("/bank"),
        "{error}"
    );
    let error = open(server.port(), "/bank", session).probe().await.unwrap_err();
    assert_eq!(error.class(), Class::Operator, "{error}");
    ours.probe().await.unwrap();
}

#[tokio::test]
async fn check_tells_whether_zookeeper_answers() {
    let mut server = started().await;
    let mut connector = Connector::new("postgresql://nobody@127.0.0.1:1/none")
        .set("coordinator", "kind", "zookeeper")
        .set("coordinator.zookeeper", "servers", [server.address()])
        .set("coordinator.zookeeper", "session_timeout_ms", 10_000);
    let told = |connector: &Connector| {
        let output = connector.command(&["check"]);
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat()
    };
    let line =
        |text: &str| text.lines().find(|line| line.contains("coordinator")).unwrap_or_default().to_owned();
    let well = "ZooKeeper answers, and all rights are there under /tidemark";
    wait_until(PATIENCE, "it answers", async || line(&told(&connector)).contains(well)).await;
    server.kill();
    connector.change("coordinator.zookeeper", "session_timeout_ms", 1000);
    let text = told(&connector);
    assert!(line(&text).contains("no answer from ZooKeeper"), "{text}");
    server.start_again();
    connector.change("coordinator.zookeeper", "session_timeout_ms", 10_000);
    wait_until(PATIENCE, "it answers again", async || line(&told(&connector)).contains(well)).await;
}
