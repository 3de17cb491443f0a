//! Transactions that are prepared: they come out once, at COMMIT PREPARED, by every kind of slot.

use super::*;

/// The same server, the slot that streams made with `two_phase`.
async fn with_two_phase() -> Both {
    let both =
        Both::new("CREATE TABLE a (id int PRIMARY KEY, note text); CREATE TABLE b (id int PRIMARY KEY)")
            .await;
    sql(
        &both.client,
        "SELECT pg_drop_replication_slot('streamed');
         SELECT pg_create_logical_replication_slot('streamed', 'pgoutput', false, true)",
    )
    .await;
    both
}

async fn end(both: &Both, one: &str, other: &str, id: u32) {
    for statement in [one, other, &format!("INSERT INTO b VALUES ({id})")] {
        sql(&both.client, statement).await;
    }
}

/// Prepares large and small transactions, ends them in another order, and gives how many rows `a` has.
async fn traffic(both: &Both, mut between: impl AsyncFnMut()) -> u64 {
    let rows = |from: u32, to: u32| {
        format!("INSERT INTO a SELECT i, repeat('x', 100) FROM generate_series({from}, {to}) i")
    };
    sql(&both.client, &format!("BEGIN; {}; PREPARE TRANSACTION 'large'", rows(1, 3000))).await;
    sql(&both.client, &format!("BEGIN; {}; PREPARE TRANSACTION 'small'", rows(10_001, 10_003))).await;
    sql(&both.client, "INSERT INTO b VALUES (1)").await;
    both.streamed.wait_for_records("b", 1).await;
    between().await;
    sql(&both.client, &format!("BEGIN; {}; PREPARE TRANSACTION 'large, rolled back'", rows(20_001, 23_000)))
        .await;
    sql(&both.client, &format!("BEGIN; {}; PREPARE TRANSACTION 'small, rolled back'", rows(30_001, 30_003)))
        .await;
    end(both, "COMMIT PREPARED 'small'", "ROLLBACK PREPARED 'large, rolled back'", 2).await;
    both.streamed.wait_for_records("b", 2).await;
    between().await;
    end(both, "COMMIT PREPARED 'large'", "ROLLBACK PREPARED 'small, rolled back'", 3).await;
    both.streamed.wait_for_records("b", 3).await;
    3003
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_two_phase_has_them_at_commit_prepared() {
    let both =
        Both::new("CREATE TABLE a (id int PRIMARY KEY, note text); CREATE TABLE b (id int PRIMARY KEY)")
            .await;
    let running = both.start().await;
    let rows = traffic(&both, async || {}).await;
    both.caught_up(1).await;
    let records = both.same(&["public.a", "public.b", "transaction"]).await;
    assert_eq!(records[0].len() as u64, rows);
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_with_two_phase_has_them_at_commit_prepared_too() {
    let both = with_two_phase().await;
    let running = both.start().await;
    let rows = traffic(&both, async || {}).await;
    both.caught_up(1).await;
    let records = both.same(&["public.a", "public.b", "transaction"]).await;
    assert_eq!(records[0].len() as u64, rows);
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_prepare_and_commit_prepared_nothing_is_lost_or_doubled() {
    let both = with_two_phase().await;
    let (streamed, whole) = both.start().await;
    let streamed = std::cell::RefCell::new(streamed);
    let rows = traffic(&both, async || {
        streamed.borrow_mut().kill();
        let again = both.streamed.start_ready("capture").await;
        *streamed.borrow_mut() = again;
    })
    .await;
    both.caught_up(0).await;
    let records = both.same(&["public.a", "public.b", "transaction"]).await;
    assert_eq!(records[0].len() as u64, rows);
    drop((streamed, whole));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_stops_although_a_transaction_is_prepared() {
    let mut both = with_two_phase().await;
    let (streamed, whole) = both.start().await;
    sql(
        &both.client,
        "BEGIN; INSERT INTO a VALUES (1, 'prepared'); PREPARE TRANSACTION 'p'; INSERT INTO b VALUES (1)",
    )
    .await;
    both.streamed.wait_for_records("b", 1).await;
    both.server.stop(Stop::Fast);
    assert!(both.server.log().contains("database system is shut down"), "the server had to be killed");
    both.server.start_again().await;
    both.client = both.server.connect().await;
    sql(&both.client, "COMMIT PREPARED 'p'").await;
    both.streamed.wait_for_records("a", 1).await;
    both.whole.wait_for_records("a", 1).await;
    both.same(&["public.a", "public.b"]).await;
    drop((streamed, whole));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_prepared_and_rolled_back_leaves_no_trace() {
    for triggers in [false, true] {
        let both = with_two_phase().await;
        let running = both.start().await;
        if triggers {
            within::with_triggers(&running.0);
        }
        sql(&both.client, "INSERT INTO a VALUES (1, 'before')").await;
        let prepared = |column: &str, id: u32| {
            format!(
                "BEGIN; ALTER TABLE a ADD {column} int; INSERT INTO a VALUES ({id}, '{column}', 1); PREPARE TRANSACTION '{column}'"
            )
        };
        sql(&both.client, &prepared("gone", 2)).await;
        sql(&both.client, "INSERT INTO b VALUES (1)").await;
        both.streamed.wait_for_records("b", 1).await;
        sql(&both.client, "ROLLBACK PREPARED 'gone'").await;
        sql(&both.client, "INSERT INTO a VALUES (2, 'in the shape of before')").await;
        sql(&both.client, &prepared("stays", 3)).await;
        sql(&both.client, "INSERT INTO b VALUES (2)").await;
        both.streamed.wait_for_records("b", 2).await;
        sql(&both.client, "COMMIT PREPARED 'stays'").await;
        sql(&both.client, "INSERT INTO a VALUES (4, 'after', 2)").await;
        both.caught_up(0).await;
        let records = both.same(&["public.a", "public.b", "ddl", "transaction"]).await;
        assert_eq!(records[0].len(), 4, "triggers: {triggers}");
        let told = records[2].iter().map(|record| record.value.to_string()).collect::<Vec<_>>();
        assert!(!told.iter().any(|record| record.contains("gone")), "{told:?}");
        assert!(told.iter().any(|record| record.contains("stays")), "{told:?}");
    }
}
