//! What else may stand within a transaction in progress (unchanged values, statements, the marker of a cut), and what may
//! happen beside it.

use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::error::SqlState;

use super::*;
use crate::support::{SmallDisk, again_in_a_namespace};

/// Installs the event triggers, as an operator would.
pub fn with_triggers(running: &Running) {
    let setup = running.command(&["setup"]);
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_values_statements_and_cuts_in_parts_come_out_as_by_protocol_1() {
    // Each change is a part of its own, that of a marker, too.
    let server = Postgres::version(16).set("debug_logical_replication_streaming", "immediate").start().await;
    let tables = "CREATE TABLE a (id int PRIMARY KEY, note text, large text);
                  ALTER TABLE a ALTER large SET STORAGE EXTERNAL";
    let both = Both::on(server, "on", tables).await;
    let running = both.start().await;
    with_triggers(&running.0);
    sql(&both.client, "INSERT INTO a VALUES (1, 'before', repeat('l', 100000))").await;
    sql(
        &both.client,
        "BEGIN; UPDATE a SET note = 'unchanged'; ALTER TABLE a ADD added int DEFAULT 7;
         UPDATE a SET note = 'with the column'; UPDATE a SET id = 2; INSERT INTO a VALUES (3, 'after', 'short', 8); COMMIT",
    )
    .await;
    let ds = value(&both.client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    running.0.cut(&ds);
    let before = both.streamed.end("a").await;
    sql(&both.client, "INSERT INTO a VALUES (4, 'after the cut', 'short', 9)").await;
    both.caught_up(4).await;
    let records = both.same(&["public.a", "ddl", "transaction"]).await;
    let kept: Vec<_> = records[0]
        .iter()
        .filter(|record| record.value["after"]["id"].as_u64().is_some_and(|id| id < 3))
        .map(|record| record.value["after"].get("large").is_some())
        .collect();
    assert_eq!(kept, [true, false, false, false], "an unchanged value has no field");
    let told =
        records[1].iter().filter(|r| r.value["statement"].as_str().is_some_and(|s| s.contains("ADD added")));
    assert_eq!(told.count(), 1);
    let mut cuts = both.streamed.records(&format!("{NAME}.cuts")).await;
    // A day may have ended by itself.
    cuts.retain(|cut| cut.value["reason"] == "request");
    assert_eq!(cuts.len(), 1);
    let table = &cuts[0].value["tables"][format!("{NAME}.public.a")];
    assert_eq!((before, &table["ends"][0]["end"]), (7, &Json::from(7)), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_the_server_keeps_the_transaction() {
    let Some(disk) = SmallDisk::mount(48 << 20) else {
        return again_in_a_namespace(module_path!(), "on_a_full_disk_the_server_keeps_the_transaction");
    };
    let mut both =
        Both::new("CREATE TABLE a (id int PRIMARY KEY, note text); CREATE TABLE b (id int PRIMARY KEY)")
            .await;
    let log = both.streamed.state().join("log.db");
    both.streamed.change("log.embedded", "path", log.to_str().unwrap());
    both.streamed.change("state", "dir", disk.path().join("state").to_str().unwrap());
    let (streamed, whole) = both.start().await;
    let one = both.server.connect().await;
    sql(&one, "BEGIN; INSERT INTO a SELECT i, repeat('x', 1000) FROM generate_series(1, 60000) i").await;
    wait_until(PATIENCE, "the stream is taken up without parts", async || {
        streamed.output().contains(r#""streaming":"Off""#)
    })
    .await;
    assert!(streamed.output().contains("are left on the disk"), "{}", streamed.output());
    let spool = disk.path().join("state/stream-spool");
    let left = std::fs::read_dir(&spool).map_or(0, Iterator::count);
    assert_eq!(left, 0, "files of transactions that the server keeps now");
    sql(&both.client, "INSERT INTO b VALUES (1)").await;
    both.streamed.wait_for_records("b", 1).await;
    sql(&one, "COMMIT").await;
    both.streamed.wait_for_records("a", 60_000).await;
    both.caught_up(0).await;
    both.same(&["public.a", "public.b", "transaction"]).await;
    drop((streamed, whole));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_a_statement_and_its_append_it_is_told_once() {
    let both = Both::new("CREATE TABLE a (id int PRIMARY KEY)").await;
    let (mut streamed, whole) = both.start().await;
    with_triggers(&streamed);
    sql(&both.client, "INSERT INTO a VALUES (0)").await;
    both.streamed.wait_for_records("a", 1).await;
    let topic = format!("{NAME}.ddl");
    for round in 1..=3 {
        let before = both.streamed.records(&topic).await.len();
        // What has to be asked about the statement has no answer: it is taken from the stream, and not applied.
        let sessions = stopped_and_altered(&both.client, round).await;
        sql(&both.client, &format!("INSERT INTO a VALUES ({round})")).await;
        let end = value(&both.client, "SELECT pg_current_wal_lsn()").await;
        let sent = format!(
            "SELECT count(*) FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid
             WHERE s.slot_name = 'streamed' AND r.sent_lsn >= '{end}'"
        );
        wait_until(PATIENCE, "the statement is sent", async || value(&both.client, &sent).await == "1").await;
        assert_eq!(both.streamed.records(&topic).await.len(), before, "the statement waits");
        streamed.kill();
        send(&sessions, Signal::CONT);
        streamed = both.streamed.start_ready("capture").await;
        both.streamed.wait_for_records("a", round + 1).await;
    }
    both.caught_up(0).await;
    let records = both.same(&["public.a", "ddl", "transaction"]).await;
    let statements: Vec<_> =
        records[1].iter().filter_map(|record| record.value["statement"].as_str()).collect();
    let expected = (1..=3).map(|round| format!("ALTER TABLE a ADD c{round} int DEFAULT {round}"));
    assert!(statements.iter().copied().eq(expected.collect::<Vec<_>>()), "{statements:?}");
    drop((streamed, whole));
}

/// Server processes of the connectors' SQL sessions.
/// Stops the sessions of our processes and alters the table. One that was stopped within a query keeps its locks: it
/// goes on then, and is stopped again.
async fn stopped_and_altered(client: &Client, round: u64) -> Vec<i32> {
    sql(client, "SET lock_timeout = '2s'").await;
    let start = Instant::now();
    loop {
        let sessions = sessions(client).await;
        send(&sessions, Signal::STOP);
        let alter = format!("ALTER TABLE a ADD c{round} int DEFAULT {round}");
        let Err(error) = client.batch_execute(&alter).await else { return sessions };
        send(&sessions, Signal::CONT);
        let locked = error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE);
        assert!(locked && start.elapsed() < PATIENCE, "{error}");
    }
}

async fn sessions(client: &Client) -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tidemark' AND backend_type = 'client backend'";
    let sessions: Vec<i32> = client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(!sessions.is_empty());
    sessions
}

fn send(pids: &[i32], signal: Signal) {
    for pid in pids {
        // One that has ended meanwhile is not there any more.
        let _ = kill_process(Pid::from_raw(*pid).unwrap(), signal);
    }
}
