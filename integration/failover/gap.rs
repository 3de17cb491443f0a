//! What cannot go on: the range is told within a second of reconnecting, and `accept-gap` leads on, to tables that are
//! whole.

use tidemark::change::Lsn;

use super::pair::{Days, Pair, captured, primary, range_in, switch_point};
use crate::support::lake::value;
use crate::support::{Postgres, Running, Stop};

const FLUSHED: &str =
    "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'";

/// The gap is accepted, every table is copied, and the next day is what Postgres holds; a cut before that names what is
/// lacking.
async fn accept_and_go_on(days: &mut Days, server: &Postgres, range: &str, new_slot: bool) -> Running {
    let client = server.connect().await;
    let taken = days.accept(range);
    let (out, err) = (String::from_utf8_lossy(&taken.stdout), String::from_utf8_lossy(&taken.stderr));
    assert!(taken.status.success(), "{err}");
    assert!(out.contains(range) && out.contains("a new slot was made") == new_slot, "{out}");
    let again = days.accept(range);
    assert!(!again.status.success(), "there is nothing left to accept");
    let running = days.connector.start_ready("run").await;
    client.batch_execute("INSERT INTO t VALUES (9000000, 3, 'after the gap')").await.unwrap();
    days.whole(&running, &["t", "calm"]).await;
    captured(&days.connector, "t", 9_000_000).await;
    days.log_is_exact("t").await;
    running
}

async fn a_promotion_without_the_slot(major: u32) {
    let mut pair = Pair::start(major).await;
    let client = pair.primary.connect().await;
    let mut days = Days::of(&pair.url(), &client).await;
    days.connector.change("source", "failover", "off");
    let mut running = days.connector.start_ready("run").await;
    client.batch_execute("INSERT INTO t VALUES (1000, 1, 'before')").await.unwrap();
    captured(&days.connector, "t", 1000).await;
    let check = running.command(&["check"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));

    pair.fail_over().await;
    let client = pair.standby.connect().await;
    client
        .batch_execute("INSERT INTO t VALUES (1001, 1, 'in the gap'); DELETE FROM t WHERE id < 20")
        .await
        .unwrap();
    assert_eq!(running.ended().await.code(), Some(1));
    let said = running.output();
    assert!(said.contains("does not exist any more"), "{said}");
    let range = range_in(&said);
    assert!(range.ends_with(".."), "{range}: open, up to where a slot begins");
    // Exactly after the last change that the log holds.
    let last = days.log_is_exact("t").await;
    let from: Lsn = range.trim_end_matches('.').parse().unwrap();
    assert!(from > last.commit_lsn && from <= switch_point(&pair.standby), "{from} {last}");

    let running = accept_and_go_on(&mut days, &pair.standby, &range, true).await;
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_without_the_slot_is_told_with_the_exact_range_and_ends_with_whole_tables_17() {
    a_promotion_without_the_slot(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_without_the_slot_is_told_with_the_exact_range_and_ends_with_whole_tables_18() {
    a_promotion_without_the_slot(18).await;
}

/// A backup is taken, changes are captured after it, and the backup is restored; what Tidemark says of that.
async fn restored(major: u32, recovery: bool) -> (Postgres, Days, Lsn, String) {
    let (server, days, backed_up) = restored_unseen(major, recovery).await;
    let said = days.refused().await;
    (server, days, backed_up, said)
}

async fn restored_unseen(major: u32, recovery: bool) -> (Postgres, Days, Lsn) {
    let mut server = primary(major).await;
    let client = server.connect().await;
    let days = Days::of(&server.url(), &client).await;
    let mut running = days.connector.start_ready("run").await;
    client.batch_execute("INSERT INTO t VALUES (1000, 1, 'before')").await.unwrap();
    captured(&days.connector, "t", 1000).await;
    assert!(running.terminate().await.success());
    server.stop(Stop::Fast);
    server.back_up();
    server.start_again().await;
    let client = server.connect().await;
    let backed_up: Lsn = value(&client, "SELECT pg_current_wal_lsn()").await.parse().unwrap();
    let mut running = days.connector.start_ready("run").await;
    client
        .batch_execute("INSERT INTO t SELECT i, 1, 'undone' FROM generate_series(2000, 2500) i; DELETE FROM t WHERE id = 1")
        .await
        .unwrap();
    captured(&days.connector, "t", 2500).await;
    assert!(running.terminate().await.success());
    server.stop(Stop::Fast);
    server.restore(recovery);
    server.start_again().await;
    (server, days, backed_up)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_to_an_earlier_point_is_told_with_what_never_happened_and_can_be_given_up() {
    for major in [17, 18] {
        let (server, mut days, backed_up, said) = restored(major, true).await;
        let range = range_in(&said);
        assert!(said.contains("never happened on this server"), "{said}");
        let from: Lsn = range.split("..").next().unwrap().parse().unwrap();
        assert_eq!(from, switch_point(&server), "{range}");
        assert!(from <= backed_up, "{from} {backed_up}");
        // The slot of the backup is there, and still serves on the new timeline.
        let running = accept_and_go_on(&mut days, &server, &range, false).await;
        let client = server.connect().await;
        let ds = days.cut(running).await;
        days.same(&client, &ds, &["t", "calm"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_set_back_within_its_timeline_stays_refused_after_it_has_outgrown_the_log() {
    let (server, mut days, _, said) = restored(17, false).await;
    assert!(said.contains("was set back"), "{said}");
    let range = range_in(&said);
    let client = server.connect().await;
    let to: Lsn = range.split("..").nth(1).unwrap().parse().unwrap();
    // Now its WAL goes beyond the log's end, and nothing of the server shows what happened.
    client
        .batch_execute("INSERT INTO t SELECT i, 2, repeat('x', 100) FROM generate_series(3000, 9000) i")
        .await
        .unwrap();
    let now: Lsn = value(&client, "SELECT pg_current_wal_lsn()").await.parse().unwrap();
    assert!(now > to, "{now} {to}");
    assert_eq!(range_in(&days.refused().await), range, "the same range as before");
    let running = accept_and_go_on(&mut days, &server, &range, true).await;
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}

/// Nobody looked in between. Its slot is what shows it: that does not have what the log has.
async fn outgrown(major: u32, idle: bool) {
    let (server, mut days, backed_up) = restored_unseen(major, false).await;
    let client = server.connect().await;
    if idle {
        client.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        client.batch_execute("CHECKPOINT; SELECT pg_switch_wal()").await.unwrap();
    } else {
        let insert = "INSERT INTO t SELECT i, 2, repeat('x', 1000) FROM generate_series(3000, 9000) i";
        client.batch_execute(insert).await.unwrap();
    }
    let now: Lsn = value(&client, "SELECT pg_current_wal_lsn()").await.parse().unwrap();
    let log = days.log_is_exact("t").await.commit_lsn;
    // What was confirmed without a change is far less.
    assert!(now.bytes_since(log) > 2 << 20, "{now} {log}");
    let said = days.refused().await;
    assert!(said.contains("was set back"), "{said}");
    let range = range_in(&said);
    let from: Lsn = range.split("..").next().unwrap().parse().unwrap();
    assert!(from <= backed_up, "{range} begins where the backup was taken, {backed_up}, or before");
    assert_eq!(range_in(&days.refused().await), range, "the same range as before");
    let running = accept_and_go_on(&mut days, &server, &range, true).await;
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_set_back_and_has_outgrown_the_log_unseen_is_known_by_its_slot() {
    for (major, idle) in [(14, false), (17, true)] {
        outgrown(major, idle).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_system_is_told_by_its_identifier_and_can_take_the_place_of_the_former() {
    let former = primary(17).await;
    let client = former.connect().await;
    let mut days = Days::of(&former.url(), &client).await;
    let mut running = days.connector.start_ready("run").await;
    client.batch_execute("INSERT INTO t VALUES (1000, 1, 'before')").await.unwrap();
    captured(&days.connector, "t", 1000).await;
    assert!(running.terminate().await.success());

    // As after an upgrade by dump and restore.
    let server = Postgres::version(18).own_initdb().start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "CREATE TABLE other (a int); CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL, note text);
             CREATE TABLE calm (id bigint PRIMARY KEY, n int NOT NULL, note text);
             INSERT INTO t VALUES (1000, 1, 'before'), (1001, 1, 'in the gap'); DROP TABLE other;
             INSERT INTO calm SELECT i, 0, 'first' FROM generate_series(1, 10) i;
             CREATE PUBLICATION tidemark_shop FOR TABLE t, calm",
        )
        .await
        .unwrap();
    days.connector.change("source", "url", server.url());
    let said = days.refused().await;
    let range = range_in(&said);
    let system = value(&client, "SELECT system_identifier FROM pg_control_system()").await;
    assert!(
        said.contains("another database system") && range.ends_with(&format!("..system:{system}")),
        "{said}"
    );
    let running = accept_and_go_on(&mut days, &server, &range, true).await;
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_moved_on_is_kept_and_only_what_it_passed_is_given_up() {
    let server = primary(17).await;
    let client = server.connect().await;
    let mut days = Days::of(&server.url(), &client).await;
    let mut running = days.connector.start_ready("run").await;
    assert!(running.terminate().await.success());
    let before = value(&client, FLUSHED).await;
    client
        .batch_execute("INSERT INTO t VALUES (1001, 1, 'in the gap'); DELETE FROM t WHERE id = 2")
        .await
        .unwrap();
    let moved = "SELECT end_lsn FROM pg_replication_slot_advance('tidemark_shop', pg_current_wal_lsn())";
    let after = value(&client, moved).await;
    let range = range_in(&days.refused().await);
    assert_eq!(range, format!("{before}..{after}"));
    let running = accept_and_go_on(&mut days, &server, &range, false).await;
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_that_is_cut_before_the_copies_are_whole_names_each_table_as_lacking_with_the_range() {
    let server = primary(17).await;
    let client = server.connect().await;
    let mut days = Days::of(&server.url(), &client).await;
    let mut running = days.connector.start_ready("run").await;
    assert!(running.terminate().await.success());
    client
        .batch_execute(
            "SELECT pg_drop_replication_slot('tidemark_shop'); INSERT INTO t VALUES (1001, 1, 'in the gap')",
        )
        .await
        .unwrap();
    let range = range_in(&days.refused().await);
    let taken = days.accept(&range);
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    // A copy waits for the transactions that are open when it begins.
    let mut other = server.connect().await;
    let open = other.transaction().await.unwrap();
    open.batch_execute("SELECT txid_current()").await.unwrap();
    let running = days.connector.start_ready("run").await;
    let ds = days.cut(running).await;
    for table in ["t", "calm"] {
        let reason = days.missing(&ds, table).unwrap_or_default();
        assert!(reason.contains(&format!("the range {range} was given up")), "{table}: {reason}");
    }
    open.rollback().await.unwrap();
    // A restart in between forgets nothing.
    let running = days.connector.start_ready("run").await;
    days.whole(&running, &["t", "calm"]).await;
    let ds = days.cut(running).await;
    days.same(&client, &ds, &["t", "calm"]).await;
}
