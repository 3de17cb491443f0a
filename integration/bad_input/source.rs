//! The server: where it is, who it is, and how it is set up.

use std::time::{Duration, Instant};

use super::connector::{CSV, Connector, PASSWORD, make_table, server_with_table};
use crate::support::{Postgres, Stop, free_port};

#[test]
fn a_port_where_nobody_listens_is_told_at_once() {
    let port = free_port();
    let connector = Connector::with_url(&format!("postgres://me:{PASSWORD}@127.0.0.1:{port}/shop"), "");
    let start = Instant::now();
    for command in ["run", "setup"] {
        let address = format!("127.0.0.1:{port}");
        connector.refused(&[command], 1, &[&address, "refused", "Check host and port"]);
    }
    assert!(start.elapsed() < Duration::from_secs(60), "it took {:?}", start.elapsed());
    let check = connector.run(&["check"]);
    assert_eq!(check.code, 1);
    assert!(
        check.out.contains("fail  source") && check.out.contains("→ Check host and port"),
        "{}",
        check.out
    );
    assert!(check.out.contains("ok    lake"), "the rest is tried, too: {}", check.out);
}

#[test]
fn an_unknown_host_is_told_at_once() {
    let connector = Connector::with_url(&format!("postgres://me:{PASSWORD}@no-such-host.invalid/shop"), "");
    connector.refused(&["run"], 1, &["no-such-host.invalid:5432", "→ Check host and port"]);
}

#[test]
fn what_listens_and_is_no_postgres_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        use std::io::Write as _;
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let connector = Connector::with_url(&format!("postgres://me:{PASSWORD}@127.0.0.1:{port}/shop"), "");
    connector.refused(&["run"], 1, &[&format!("127.0.0.1:{port}"), "PostgreSQL"]);
}

#[tokio::test]
async fn a_wrong_password_is_told_and_no_password_is_printed() {
    let hba = "local all all trust\nhost all postgres all trust\nhost all all all scram-sha-256\n";
    let server = Postgres::builder().hba(hba).start().await;
    make_table(&server).await;
    let role = "CREATE ROLE owner LOGIN REPLICATION SUPERUSER PASSWORD 'the-right-one'";
    server.connect().await.batch_execute(role).await.unwrap();
    let connector = Connector::with_url(&server.url_as(&format!("owner:{PASSWORD}"), "postgres"), CSV);
    for command in ["run", "setup"] {
        connector.refused(
            &[command],
            1,
            &["owner", "password authentication failed", "Check user and password"],
        );
    }
    let mut trace = connector.command(&["run"]);
    trace.env("RUST_LOG", "trace");
    let ended = connector.start_command(trace).ended();
    assert_eq!(ended.code, 1);

    let file = connector.folder().join("password");
    std::fs::write(&file, "the-right-one\n").unwrap();
    let more = format!("password_file = \"{}\"\n{CSV}", file.display());
    connector.configure(&server.url_as("owner", "postgres"), &more);
    let mut trace = connector.command(&["run"]);
    trace.env("RUST_LOG", "trace");
    let mut running = connector.start_command(trace);
    running.wait_for("\"message\":\"streaming\"");
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    let ended = running.stop();
    assert!(!ended.err.contains("the-right-one"), "the password is in the trace");
}

#[tokio::test]
async fn a_role_or_database_that_is_missing_is_named() {
    let server = Postgres::start().await;
    let url = |role: &str, database| server.url_as(&format!("{role}:{PASSWORD}"), database);
    let connector = Connector::with_url(&url("nobody_knows", "postgres"), "");
    connector.refused(&["run"], 1, &["nobody_knows", "does not exist"]);
    connector.configure(&url("postgres", "no_such_database"), "");
    connector.refused(&["run"], 1, &["no_such_database", "Check the database's name"]);
}

#[tokio::test]
async fn wal_level_replica_is_refused_before_anything_is_made_at_the_source() {
    let mut server = Postgres::builder().set("wal_level", "replica").start().await;
    make_table(&server).await;
    let connector = Connector::new(&server, CSV);
    let words = ["wal_level is replica", "ALTER SYSTEM SET wal_level = logical", "restart the server"];
    connector.refused(&["run"], 1, &words);
    let check = connector.run(&["check"]);
    assert_eq!(check.code, 1);
    assert!(check.out.contains("fail  wal_level") && check.out.contains(words[1]), "{}", check.out);
    let made = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots)";
    let row = server.connect().await.query_one(made, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0, "something was made");

    server.connect().await.batch_execute("ALTER SYSTEM SET wal_level = logical").await.unwrap();
    server.stop(Stop::Fast);
    server.start_again().await;
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn a_server_that_goes_away_is_waited_for_and_one_that_starts_is_given_time() {
    let mut server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    let mut running = connector.stream();
    server.stop(Stop::Immediate);
    running.wait_for("capture was interrupted: trying again");
    server.start_again().await;
    running.wait_for_times("\"message\":\"streaming\"", 2);
    server.connect().await.batch_execute("INSERT INTO t VALUES (11)").await.unwrap();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn another_database_system_behind_the_same_url_is_refused() {
    let mut server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    connector.stream().stop();
    server.stop(Stop::Fast);
    let other = Postgres::builder().own_initdb().start().await;
    make_table(&other).await;
    let url = |server: &Postgres| server.url_as(&format!("postgres:{PASSWORD}"), "postgres");
    connector.configure(&url(&other), CSV);
    connector.refused(&["run"], 1, &["another database system", "[source] url", "[source] name"]);
    server.start_again().await;
    connector.configure(&url(&server), CSV);
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn check_with_everything_wrong_tells_everything_at_once() {
    let server = Postgres::builder().set("wal_level", "replica").start().await;
    let sql = "CREATE TABLE a (x int); CREATE TABLE b (x int); CREATE ROLE weak LOGIN; \
               CREATE UNLOGGED TABLE u (id int PRIMARY KEY); \
               CREATE TABLE p (id int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p DEFAULT";
    server.connect().await.batch_execute(sql).await.unwrap();
    let connector = Connector::with_url(&server.url_as(&format!("weak:{PASSWORD}"), "postgres"), "");
    std::fs::write(connector.state(), "in the way").unwrap();
    let check = connector.run(&["check"]);
    println!("{}", check.out);
    assert_eq!((check.code, check.err.as_str()), (1, ""));
    let lines: Vec<_> = check.out.lines().collect();
    for subject in [
        "wal_level",
        "role",
        "table public.a",
        "table public.b",
        "table public.p",
        "publication tidemark_shop",
        "log",
        "coordinator",
        "lake",
    ] {
        let found =
            lines.iter().any(|line| line.starts_with("fail") && line.contains(&format!(" {subject} ")));
        assert!(found, "{subject} is missing in\n{}", check.out);
    }
    let unlogged = lines.iter().any(|line| line.starts_with("warn") && line.contains("table public.u"));
    assert!(unlogged, "{}", check.out);
    let fails = lines.iter().filter(|line| line.starts_with("fail")).count();
    let mends = lines.windows(2).filter(|two| two[0].starts_with("fail") && two[1].contains("→ ")).count();
    assert_eq!(fails, mends, "a failure has no mend:\n{}", check.out);
    let json: serde_json::Value = serde_json::from_str(&connector.run(&["check", "--json"]).out).unwrap();
    assert_eq!(json["ok"], false);
}
