//! The replication client against a real server: every way to connect, COPY, the stream, and its feedback.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::support::{Certificates, PATIENCE, Postgres, Stop, wait_until};
use tidemark::change::Lsn;
use tidemark::postgres::slot;
use tidemark::postgres::wire::{
    Client, ConnectOptions, ReplicationMessage, ReplicationOptions, ReplicationStream, Session,
};
use tidemark::runtime::{Class, Error};

fn options(url: &str) -> ConnectOptions {
    ConnectOptions::parse(url, &|_| None).unwrap()
}

async fn connect(url: &str) -> Result<Client, Error> {
    Client::connect(&options(url), Session::Sql).await
}

/// Connects and asks the server whether the session is encrypted.
async fn encrypted(url: &str) -> Result<bool, Error> {
    let mut client = connect(url).await?;
    let row = client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await?;
    Ok(row.is_true(0))
}

async fn refusal(url: &str) -> Error {
    connect(url).await.expect_err("the connection was accepted")
}

#[tokio::test]
async fn queries_return_text_and_settings_print_alike() {
    let server = Postgres::start().await;
    let mut client = connect(&server.url()).await.unwrap();
    let sql = "SELECT interval '1 month 2 days 3 s', bytea '\\x00ff', float8 '0.1' * 3, timestamptz '2000-01-01 00:00+02', \
               NULL, date '0044-03-15 BC'";
    let row = client.query_one(sql).await.unwrap();
    let values: Vec<_> = (0..6).map(|column| row.get(column)).collect();
    assert_eq!(
        values,
        [
            Some("P1M2DT3S"),
            Some("\\x00ff"),
            Some("0.30000000000000004"),
            Some("1999-12-31 22:00:00+00"),
            None,
            Some("0044-03-15 BC")
        ]
    );
    let oracle = server.connect().await.query_one("SHOW server_version_num", &[]).await.unwrap();
    assert_eq!(client.server_version().to_string(), oracle.get::<_, String>(0));
    let error = client.query("SELECT 1; SELECT nosuch").await.unwrap_err();
    assert_eq!(tidemark::postgres::wire::sqlstate(&error), Some("42703"));
    let rows =
        client.query("SELECT 1; SELECT 2 UNION SELECT 3 ORDER BY 1; SET work_mem = '1MB'").await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0).unwrap()).collect::<Vec<_>>(), ["2", "3"]);
    client.close().await;
}

#[tokio::test]
async fn unix_sockets_and_passwords_in_every_way() {
    let hba = "local all all trust\nhost all md5user all md5\nhost all clear all password\n\
               host all all all scram-sha-256\n";
    let server = Postgres::builder().hba(hba).start().await;
    let socket =
        format!("postgres://postgres@/postgres?host={}&port={}", server.dir().display(), server.port());
    let mut admin = connect(&socket).await.unwrap();
    admin
        .execute(
            "CREATE ROLE alice LOGIN PASSWORD 'p:w'; CREATE ROLE clear LOGIN PASSWORD 'c'; \
             SET password_encryption = md5; CREATE ROLE md5user LOGIN PASSWORD 'm'",
        )
        .await
        .unwrap();
    for credentials in ["alice:p%3Aw", "md5user:m", "clear:c"] {
        assert!(!encrypted(&server.url_as(credentials, "postgres")).await.unwrap(), "{credentials}");
    }
    let error = refusal(&server.url_as("alice:hunter2", "postgres")).await;
    assert_eq!((error.class(), error.to_string().contains("28P01")), (Class::Operator, true), "{error}");
    assert!(error.to_string().contains("password authentication failed for user \"alice\""), "{error}");
    assert!(!error.to_string().contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error:?}");
    let error = refusal(&server.url_as("alice", "postgres")).await;
    assert!(error.to_string().contains("asks for a password"), "{error}");
    let error = refusal(&server.url_as("alice:p%3Aw", "nosuch")).await;
    assert_eq!(tidemark::postgres::wire::sqlstate(&error), Some("3D000"));
    let error = refusal(&server.url_as("alice:p%3Aw", "postgres?channel_binding=require")).await;
    assert!(error.to_string().contains("Channel binding needs TLS"), "{error}");

    let given = options(&server.url_as("alice:wrong", "postgres")).with_password("p:w");
    Client::connect(&given, Session::Sql).await.unwrap();

    let pgpass = server.dir().join("pgpass");
    std::fs::write(&pgpass, format!("elsewhere:*:*:*:x\n127.0.0.1:{}:*:alice:p\\:w\n", server.port()))
        .unwrap();
    let url = server.url_as("alice", &format!("postgres?passfile={}", pgpass.display()));
    std::fs::set_permissions(&pgpass, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refusal(&url).await.to_string().contains("asks for a password"), "others may read the file");
    std::fs::set_permissions(&pgpass, std::fs::Permissions::from_mode(0o600)).unwrap();
    connect(&url).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_away_is_worth_trying_again() {
    let mut server = Postgres::start().await;
    let url = server.url();
    let mut client = connect(&url).await.unwrap();
    server.stop(Stop::Fast);
    assert_eq!(client.query("SELECT 1").await.unwrap_err().class(), Class::Retry);
    let error = refusal(&url).await;
    assert_eq!(error.class(), Class::Retry);
    assert!(error.to_string().contains(&format!("127.0.0.1:{}", server.port())), "{error}");
    server.start_again().await;
    connect(&url).await.unwrap();
}

const TLS_HBA: &str = "local all all trust\nhostnossl all tlsonly all reject\nhostssl all plainonly all reject\n\
                       hostssl certdb alice all cert\nhost all trusted all trust\nhost all md5user all md5\n\
                       host all all all scram-sha-256\n";

async fn tls_server(certificate: &str) -> (Postgres, Certificates) {
    let mut server = Postgres::builder().hba(TLS_HBA).start().await;
    let certificates = server.use_tls(certificate).await;
    let socket =
        format!("postgres://postgres@/postgres?host={}&port={}", server.dir().display(), server.port());
    let mut admin = connect(&socket).await.unwrap();
    admin
        .execute(
            "CREATE ROLE alice LOGIN REPLICATION PASSWORD 'pw'; CREATE ROLE tlsonly LOGIN PASSWORD 'pw'; \
             CREATE ROLE plainonly LOGIN PASSWORD 'pw'; CREATE ROLE trusted LOGIN; \
             SET password_encryption = md5; CREATE ROLE md5user LOGIN PASSWORD 'pw'",
        )
        .await
        .unwrap();
    admin.execute("CREATE DATABASE certdb").await.unwrap();
    (server, certificates)
}

#[tokio::test]
async fn sslmode_means_what_libpq_says() {
    let (mut server, certificates) = tls_server("server").await;
    let file = |name: &str| certificates.path(name).display().to_string();
    let (ca, other) = (file("ca.crt"), file("other-ca.crt"));
    let url = |role: &str, host: &str, rest: &str| {
        format!("postgres://{role}:pw@{host}:{}/postgres?{rest}", server.port())
    };
    for (role, rest, tls) in [
        ("alice", "sslmode=disable".to_owned(), false),
        ("alice", "sslmode=allow".to_owned(), false),
        ("tlsonly", "sslmode=allow".to_owned(), true),
        ("alice", String::new(), true),
        ("plainonly", "sslmode=prefer".to_owned(), false),
        ("alice", "sslmode=require".to_owned(), true),
        ("alice", format!("sslmode=require&sslrootcert={ca}"), true),
        ("alice", format!("sslmode=verify-ca&sslrootcert={ca}"), true),
        ("alice", format!("sslmode=verify-full&sslrootcert={ca}"), true),
        ("alice", "channel_binding=require".to_owned(), true),
        ("alice", "channel_binding=disable".to_owned(), true),
        ("md5user", "sslmode=require".to_owned(), true),
    ] {
        for host in ["localhost", "127.0.0.1"] {
            assert_eq!(encrypted(&url(role, host, &rest)).await.unwrap(), tls, "{role} {host} {rest}");
        }
    }
    for (role, rest, words) in [
        ("tlsonly", "sslmode=disable".to_owned(), "pg_hba.conf"),
        ("plainonly", "sslmode=require".to_owned(), "pg_hba.conf"),
        ("alice", format!("sslmode=require&sslrootcert={other}"), "not issued by a root in sslrootcert"),
        ("alice", format!("sslmode=verify-ca&sslrootcert={other}"), "not issued by a root in sslrootcert"),
        ("alice", format!("sslmode=verify-full&sslrootcert={other}"), "not issued by a root in sslrootcert"),
        ("alice", "sslmode=verify-full".to_owned(), "no root certificate"),
        ("alice", "sslmode=require&sslrootcert=/nosuch/root.crt".to_owned(), "/nosuch/root.crt"),
        ("alice", "sslrootcert=system".to_owned(), ""),
        ("trusted", "channel_binding=require".to_owned(), "channel_binding=require"),
        ("md5user", "channel_binding=require".to_owned(), "channel_binding=require"),
    ] {
        let error = refusal(&url(role, "localhost", &rest)).await;
        assert_eq!(error.class(), Class::Operator, "{role} {rest}: {error}");
        assert!(error.to_string().contains(words), "{role} {rest}: {error}");
    }

    server.use_certificate(&certificates, "wrong").await;
    let port = server.port();
    let url =
        |rest: &str| format!("postgres://alice:pw@localhost:{port}/postgres?sslrootcert={ca}&sslmode={rest}");
    assert!(encrypted(&url("verify-ca")).await.unwrap());
    let error = refusal(&url("verify-full")).await;
    assert!(error.to_string().contains("for another host name"), "{error}");
    server.use_certificate(&certificates, "cn").await;
    assert!(
        encrypted(&url("verify-full")).await.unwrap(),
        "the common name counts without alternative names"
    );

    server.use_certificate(&certificates, "self").await;
    let own = file("self.crt");
    let url = |root: &str| {
        format!(
            "postgres://alice:pw@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={root}&channel_binding=require"
        )
    };
    assert!(
        encrypted(&url(&own)).await.unwrap(),
        "a certificate in the root file is trusted; SHA-384 binding"
    );
    assert_eq!(refusal(&url(&ca)).await.class(), Class::Operator);
}

#[tokio::test]
async fn client_certificates_and_tls_replication_sessions() {
    let (server, certificates) = tls_server("server").await;
    let file = |name: &str| certificates.path(name).display().to_string();
    let base = format!(
        "postgres://alice@localhost:{}/certdb?sslmode=verify-full&sslrootcert={}",
        server.port(),
        file("ca.crt")
    );
    for key in ["client.key", "client-pkcs1.key"] {
        let url = format!("{base}&sslcert={}&sslkey={}", file("client.crt"), file(key));
        assert!(encrypted(&url).await.unwrap(), "{key}");
        let mut client = Client::connect(&options(&url), Session::Replication).await.unwrap();
        let system = slot::identify_system(&mut client).await.unwrap();
        assert_eq!(system.database.as_deref(), Some("certdb"));
    }
    let error = refusal(&base).await;
    assert_eq!(
        (error.class(), error.to_string().contains("certificate")),
        (Class::Operator, true),
        "{error}"
    );
    let error = refusal(&format!("{base}&sslcert={}", file("client.crt"))).await;
    assert!(error.to_string().contains("without a key"), "{error}");
    std::fs::set_permissions(certificates.path("client.key"), std::fs::Permissions::from_mode(0o644))
        .unwrap();
    let error =
        refusal(&format!("{base}&sslcert={}&sslkey={}", file("client.crt"), file("client.key"))).await;
    assert!(error.to_string().contains("read by others"), "{error}");
}

#[tokio::test]
async fn copy_out_gives_every_row_and_leaves_the_session_usable() {
    let server = Postgres::start().await;
    let mut client = connect(&server.url()).await.unwrap();
    client.execute("CREATE TABLE public.t AS SELECT i, repeat('x', i % 3000) AS text FROM generate_series(1, 20000) i").await.unwrap();
    let (mut rows, mut bytes) = (0_u64, 0_u64);
    let mut copy = client.copy_out("COPY public.t TO STDOUT").await.unwrap();
    while let Some(row) = copy.next().await.unwrap() {
        assert_eq!(row.last(), Some(&b'\n'));
        rows += 1;
        bytes += row.len() as u64;
    }
    assert_eq!(copy.next().await.unwrap(), None, "the end stays the end");
    let wanted = client
        .query_one("SELECT count(*), sum(length(i::text) + 1 + length(text) + 1) FROM public.t")
        .await
        .unwrap();
    assert_eq!((rows, bytes), (wanted.parse(0).unwrap(), wanted.parse(1).unwrap()));
    assert!(client.copy_out("COPY public.nosuch TO STDOUT").await.is_err());
    let mut copy = client.copy_out("COPY (SELECT 1 / (10 - i) FROM public.t) TO STDOUT").await.unwrap();
    let error = loop {
        match copy.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the division by zero was lost"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("division by zero"), "{error}");
    assert_eq!(client.query_one("SELECT 7").await.unwrap().get(0), Some("7"));
    let _unfinished = client.copy_out("COPY public.t TO STDOUT").await.unwrap();
    assert!(client.query("SELECT 1").await.unwrap_err().to_string().contains("middle of a statement"));
}

#[tokio::test]
async fn a_value_of_100_mb_passes_through() {
    let server = Postgres::start().await;
    let mut client = connect(&server.url()).await.unwrap();
    let mut copy = client.copy_out("COPY (SELECT repeat('x', 100000000)) TO STDOUT").await.unwrap();
    assert_eq!(copy.next().await.unwrap().unwrap().len(), 100_000_001);
    assert_eq!(copy.next().await.unwrap(), None);
}

/// A server with a table, a publication and a slot.
async fn with_slot(settings: &[(&str, &str)]) -> Postgres {
    let mut builder = Postgres::builder();
    for (name, value) in settings {
        builder = builder.set(name, value);
    }
    let server = builder.start().await;
    let oracle = server.connect().await;
    oracle
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, text text); CREATE PUBLICATION p FOR TABLE t;")
        .await
        .unwrap();
    oracle.batch_execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await.unwrap();
    server
}

async fn stream(
    server: &Postgres,
    change: impl FnOnce(&mut ReplicationOptions),
) -> Result<ReplicationStream, Error> {
    stream_url(&server.url(), change).await
}

async fn stream_url(
    url: &str,
    change: impl FnOnce(&mut ReplicationOptions),
) -> Result<ReplicationStream, Error> {
    let client = Client::connect(&options(url), Session::Replication).await?;
    let mut wanted = ReplicationOptions::new("s", Lsn::ZERO, "p");
    change(&mut wanted);
    client.start_replication(&wanted).await
}

/// Reads until so many commits have come; returns the kinds of all messages, and where the last commit ends.
async fn read_commits(stream: &mut ReplicationStream, commits: usize) -> (String, Lsn) {
    let mut kinds = String::new();
    let mut last = Lsn::ZERO;
    let mut left = commits;
    while left > 0 {
        match stream.next_message().unwrap() {
            Some(ReplicationMessage::XLogData { wal_start, data, .. }) => {
                kinds.push(char::from(data[0]));
                left -= usize::from(data[0] == b'C');
                last = wal_start;
            }
            Some(ReplicationMessage::Keepalive { .. }) => {}
            None => {
                let filled = tokio::time::timeout(PATIENCE, stream.fill()).await;
                filled.expect("no data").unwrap();
            }
        }
    }
    (kinds, last)
}

async fn slot_column(oracle: &tokio_postgres::Client, column: &str) -> Option<String> {
    let sql = format!("SELECT ({column})::text FROM pg_replication_slots WHERE slot_name = 's'");
    oracle.query_one(&sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn the_stream_brings_changes_and_the_flushed_position_moves_the_slot() {
    let server = with_slot(&[]).await;
    let oracle = server.connect().await;
    oracle
        .batch_execute("INSERT INTO t VALUES (1, 'a'); SELECT pg_logical_emit_message(true, 'p', 'hello'); DELETE FROM t;")
        .await
        .unwrap();
    let mut running = stream(&server, |_| ()).await.unwrap();
    let (kinds, end) = read_commits(&mut running, 1).await;
    assert_eq!(kinds, "BRIMDC", "relation, insert, message, delete in one transaction");
    let before = slot_column(&oracle, "confirmed_flush_lsn").await;
    let feedback = running.feedback();
    feedback.set_flushed(end);
    feedback.send_now();
    wait_until(PATIENCE, "the slot has moved", async || {
        slot_column(&oracle, "confirmed_flush_lsn").await == Some(end.to_string())
    })
    .await;
    assert_ne!(before, Some(end.to_string()));
    running.stop().await.unwrap();
    assert_eq!(slot_column(&oracle, "active").await.as_deref(), Some("false"), "stop releases the slot");
    let mut running = stream(&server, |options| options.start = end).await.unwrap();
    oracle.batch_execute("INSERT INTO t VALUES (2, 'b')").await.unwrap();
    assert_eq!(read_commits(&mut running, 1).await.0, "BRIC", "what was acknowledged does not come again");
}

#[tokio::test]
async fn dropping_the_stream_releases_the_slot() {
    let server = with_slot(&[]).await;
    let oracle = server.connect().await;
    let running = stream(&server, |_| ()).await.unwrap();
    let _outlives = running.feedback();
    let error = stream(&server, |_| ()).await.unwrap_err();
    assert_eq!(
        (error.class(), tidemark::postgres::wire::sqlstate(&error)),
        (Class::Retry, Some("55006")),
        "{error}"
    );
    drop(running);
    wait_until(PATIENCE, "the slot is free", async || {
        slot_column(&oracle, "active").await.as_deref() == Some("false")
    })
    .await;
}

#[tokio::test]
async fn a_stuck_reader_keeps_its_walsender() {
    let server = with_slot(&[("wal_sender_timeout", "12s")]).await;
    let oracle = server.connect().await;
    // 200 MB: far more than all socket buffers together.
    oracle
        .batch_execute("INSERT INTO t SELECT i, repeat(md5(i::text), 300) FROM generate_series(1, 20000) i")
        .await
        .unwrap();
    for url in [
        server.url(),
        format!("postgres://postgres@/postgres?host={}&port={}", server.dir().display(), server.port()),
    ] {
        let mut running =
            stream_url(&url, |options| options.status_interval = Duration::from_millis(300)).await.unwrap();
        running.fill().await.unwrap();
        let pid = slot_column(&oracle, "active_pid").await.expect("the slot is active");
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            assert_eq!(
                slot_column(&oracle, "active_pid").await.as_ref(),
                Some(&pid),
                "the walsender has gone"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(
            read_commits(&mut running, 1).await.0.matches('I').count(),
            20_000,
            "the rest still comes"
        );
        drop(running);
        wait_until(PATIENCE, "the slot is free", async || slot_column(&oracle, "active_pid").await.is_none())
            .await;
    }
}

#[tokio::test]
async fn a_keepalive_that_asks_is_answered_at_once() {
    let server = with_slot(&[("wal_sender_timeout", "12s")]).await;
    let oracle = server.connect().await;
    // The timer alone would be far too late.
    let mut running =
        stream(&server, |options| options.status_interval = Duration::from_secs(3600)).await.unwrap();
    let start = Instant::now();
    let mut asked = 0;
    while start.elapsed() < Duration::from_secs(30) {
        match running.next_message().unwrap() {
            Some(ReplicationMessage::Keepalive { reply_requested, server_time_us, .. }) => {
                asked += u32::from(reply_requested);
                let now =
                    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros()
                        as i64;
                assert!((now - server_time_us).abs() < 60_000_000, "the server's clock is {server_time_us}");
            }
            Some(_) => {}
            None => {
                let _ = tokio::time::timeout(Duration::from_millis(100), running.fill())
                    .await
                    .map(Result::unwrap);
            }
        }
    }
    assert!(asked >= 2, "the server asked {asked} times");
    assert_eq!(slot_column(&oracle, "active").await.as_deref(), Some("true"));
}

#[tokio::test]
async fn a_silent_server_is_asked_and_then_given_up() {
    let server = with_slot(&[("wal_sender_timeout", "0")]).await;
    let oracle = server.connect().await;
    let mut running = stream(&server, |options| options.silence_max = Duration::from_secs(10)).await.unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(35) {
        while running.next_message().unwrap().is_some() {}
        running.fill().await.expect("an idle server that is asked answers");
    }
    let pid: i32 = slot_column(&oracle, "active_pid").await.unwrap().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let error = loop {
        while running.next_message().unwrap().is_some() {}
        if let Err(error) = running.fill().await {
            break error;
        }
    };
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert_eq!((error.class(), error.to_string().contains("silent")), (Class::Retry, true), "{error}");
}

#[tokio::test]
async fn tls_streams_bring_the_same() {
    let (server, certificates) = tls_server("server").await;
    let oracle = {
        let config =
            format!("host={} port={} user=postgres dbname=postgres", server.dir().display(), server.port());
        let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    };
    oracle
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, text text); CREATE PUBLICATION p FOR TABLE t")
        .await
        .unwrap();
    oracle.batch_execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await.unwrap();
    oracle
        .batch_execute("INSERT INTO t SELECT i, repeat('x', i % 100) FROM generate_series(1, 50000) i")
        .await
        .unwrap();
    let root = certificates.path("ca.crt").display().to_string();
    let url = format!(
        "postgres://alice:pw@localhost:{}/postgres?sslmode=verify-full&channel_binding=require&sslrootcert={root}",
        server.port()
    );
    let mut running = stream_url(&url, |_| ()).await.unwrap();
    let (kinds, _) = read_commits(&mut running, 1).await;
    assert_eq!(kinds.matches('I').count(), 50_000);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn errors_of_the_stream_say_who_can_mend_them() {
    let mut server = with_slot(&[]).await;
    let error = stream(&server, |options| options.slot = "nosuch".into()).await.unwrap_err();
    assert_eq!((error.class(), error.to_string().contains("nosuch")), (Class::Operator, true), "{error}");
    let oracle = server.connect().await;
    // Whatever the role's settings say: PostgreSQL 18 tells it by no more than a warning.
    oracle.batch_execute("ALTER ROLE postgres SET client_min_messages = error").await.unwrap();
    let mut running = stream(&server, |options| options.publications = vec!["missing".into()]).await.unwrap();
    oracle.batch_execute("INSERT INTO t VALUES (1, 'a')").await.unwrap();
    let error = end_of(&mut running).await;
    assert_eq!((error.class(), error.to_string().contains("missing")), (Class::Operator, true), "{error}");
    drop(running);
    drop(oracle);
    server.stop(Stop::Immediate);
    server.start_again().await;
    let mut running = stream(&server, |_| ()).await.unwrap();
    server.stop(Stop::Immediate);
    assert_eq!(end_of(&mut running).await.class(), Class::Retry);
}

async fn end_of(stream: &mut ReplicationStream) -> Error {
    loop {
        match stream.next_message() {
            Ok(Some(_)) => {}
            Ok(None) => {
                if let Err(error) = stream.fill().await {
                    return error;
                }
            }
            Err(error) => return error,
        }
    }
}

/// A URL that names several servers.
fn url_of(servers: &[&Postgres], parameters: &str) -> String {
    let hosts: Vec<_> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
    format!("postgres://postgres@{}/postgres{parameters}", hosts.join(","))
}

#[tokio::test]
async fn of_several_hosts_the_first_that_is_wanted_is_taken_and_an_error_names_them_all() {
    let (mut gone, writes) = (Postgres::start().await, Postgres::start().await);
    // Its sessions begin read-only, which is what read-write asks about.
    let reads = Postgres::builder().set("default_transaction_read_only", "on").start().await;
    gone.stop(Stop::Fast);
    let port = async |url: &str| -> u16 {
        let mut client = connect(url).await.unwrap();
        client.query_one("SHOW port").await.unwrap().parse(0).unwrap()
    };
    let all = [&gone, &reads, &writes];
    assert_eq!(port(&url_of(&all, "")).await, reads.port(), "a primary is wanted, and the second is one");
    assert_eq!(port(&url_of(&all, "?target_session_attrs=any")).await, reads.port());
    assert_eq!(port(&url_of(&all, "?target_session_attrs=read-write")).await, writes.port());
    assert_eq!(port(&url_of(&[&writes, &reads], "?target_session_attrs=read-only")).await, reads.port());
    assert_eq!(port(&url_of(&all, "?target_session_attrs=prefer-standby")).await, reads.port());
    let error = refusal(&url_of(&all, "?target_session_attrs=standby")).await;
    assert_eq!(error.class(), Class::Retry);
    for (server, why) in [(&gone, "cannot connect"), (&reads, "is a primary"), (&writes, "is a primary")] {
        let text = error.to_string();
        assert!(text.contains(&format!("127.0.0.1:{}", server.port())) && text.contains(why), "{text}");
    }
}
