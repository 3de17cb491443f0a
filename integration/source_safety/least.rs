//! A role with no more rights than the README says, from the first copy to a restart.

use std::process::{Command, Stdio};

use super::{MB, settle_wal};
use crate::support::days::{days, use_rule};
use crate::support::lake::{duckdb, postgres, value};
use crate::support::{Connector, PATIENCE, Postgres, Running, client_program, wait_until};

/// What `tidemark setup --print` says, run by a DBA with psql.
fn set_up(server: &Postgres, connector: &Connector) {
    let print = connector.command(&["setup", "--print"]);
    assert!(print.status.success(), "{}", String::from_utf8_lossy(&print.stderr));
    let file = server.dir().join("setup.sql");
    std::fs::write(&file, &print.stdout).unwrap();
    let done = Command::new(client_program("psql"))
        .args(["-X", "-q", "-d", &server.url(), "-f"])
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && errors.is_empty(), "{errors}");
}

async fn same(connector: &Connector, client: &tokio_postgres::Client, ds: &str) {
    for table in ["t", "parts"] {
        let rows = duckdb(connector, ds, &format!("SELECT id, pad FROM {{{table}}} ORDER BY id"));
        let expected = postgres(client, &format!("SELECT id, pad FROM {table} ORDER BY id")).await;
        assert!(!rows.is_empty());
        assert_eq!(rows, expected, "{table} on ds={ds}");
    }
}

async fn cut(connector: &Connector, running: &Running, client: &tokio_postgres::Client, ds: &str) {
    running.cut(ds);
    connector.wait_published(ds).await;
    same(connector, client, ds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_of_the_script_suffices_for_first_copy_stream_cut_later_copy_and_restart() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "REVOKE ALL ON DATABASE postgres FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC;
             CREATE TABLE t (id bigint PRIMARY KEY, pad text);
             CREATE TABLE parts (id bigint PRIMARY KEY, pad text) PARTITION BY HASH (id);
             CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
             INSERT INTO t SELECT i, i FROM generate_series(1, 100) i;
             INSERT INTO parts SELECT i, i FROM generate_series(1, 100) i",
        )
        .await
        .unwrap();
    let days = days(&client).await;
    let mut connector = Connector::new(&server.url());
    set_up(&server, &connector);
    connector.change("source", "url", server.url_as("tidemark", "postgres"));
    use_rule(&mut connector, 0);
    let check = connector.command(&["check"]);
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success() && !said.contains("superuser "), "{said}");

    let mut running = connector.start_ready("run").await;
    client
        .batch_execute("UPDATE t SET pad = 'changed' WHERE id <= 10; DELETE FROM parts WHERE id <= 10; INSERT INTO t VALUES (101, 'x')")
        .await
        .unwrap();
    cut(&connector, &running, &client, &days[0]).await;
    assert!(running.terminate().await.success());

    client.batch_execute("INSERT INTO parts VALUES (201, 'while it was away')").await.unwrap();
    use_rule(&mut connector, 1);
    let mut running = connector.start_ready("run").await;
    let asked = running.command(&["backfill", "public.t"]);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    wait_until(PATIENCE, "the table is copied again", async || {
        running.output().contains("copied: the next cut takes it")
    })
    .await;
    client.batch_execute("ALTER TABLE t ADD more int; INSERT INTO t VALUES (102, 'y', 3)").await.unwrap();
    cut(&connector, &running, &client, &days[1]).await;
    assert_eq!(running.health().1["status"], "ok", "{}", running.health().1["reasons"]);
    running.kill();
    let rights = value(
        &client,
        "SELECT (rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls)::text || (SELECT count(*) FROM pg_auth_members m
         WHERE m.member = r.oid) FROM pg_roles r WHERE rolname = 'tidemark'",
    )
    .await;
    assert_eq!(rights, "false0", "the role has more rights than it should");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_leave_messages_an_idle_database_still_keeps_no_wal_and_check_names_the_grant() {
    let server = Postgres::builder().set("max_wal_size", "128MB").start().await;
    let client = server.connect().await;
    client
        .batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, pad text); INSERT INTO t VALUES (1, 'x')")
        .await
        .unwrap();
    let mut connector = Connector::new(&server.url());
    set_up(&server, &connector);
    connector.change("source", "url", server.url_as("tidemark", "postgres"));
    connector.change("source", "heartbeat_interval_ms", 1000);
    let of = "SELECT string_agg(p.oid::regprocedure::text, ', ') FROM pg_proc p \
              WHERE proname = 'pg_logical_emit_message' AND proargtypes[2] = 'text'::regtype";
    let function = value(&client, of).await;
    client.batch_execute(&format!("REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")).await.unwrap();
    let check = connector.command(&["check"]);
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(said.contains("GRANT EXECUTE ON FUNCTION") && said.contains("pg_logical_emit_message"), "{said}");
    let running = connector.start_ready("capture").await;
    client.batch_execute("CREATE DATABASE busy").await.unwrap();
    let busy = server.connect_to("busy").await;
    busy.batch_execute("CREATE TABLE noise (pad text)").await.unwrap();
    for _ in 0..40 {
        let rows = "INSERT INTO noise SELECT repeat(md5(i::text), 60) FROM generate_series(1, 2000) i";
        busy.batch_execute(rows).await.unwrap();
    }
    let kept = settle_wal(&client, 8 * MB).await;
    eprintln!("heartbeats without the right to them: the slot keeps {kept} bytes");
    wait_until(PATIENCE, "a heartbeat is refused", async || {
        running.output().contains("permission denied for function pg_logical_emit_message")
    })
    .await;
    // The grant that check names is the one that it takes.
    let grant = said.lines().find_map(|line| Some(&line[line.find("GRANT EXECUTE")?..])).unwrap();
    client.batch_execute(grant).await.unwrap();
    let check = connector.command(&["check"]);
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(!said.contains("GRANT EXECUTE"), "{said}");
}
