//! Commands which ask for what cannot be.

use std::time::{Duration, Instant};

use super::connector::{CSV, Connector, server_with_table};

#[tokio::test]
async fn cuts_are_made_once_and_only_for_today() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    for command in ["status", "cut"] {
        connector.refused(&[command], 1, &["nothing answers at", "[ops] listen", "Start `tidemark run`"]);
    }
    let running = connector.stream();
    let today = "SELECT (now() AT TIME ZONE 'UTC')::date + $1::int";
    let oracle = server.connect().await;
    let day = async |ahead: i32| -> String {
        let sql = today.replace("$1", &ahead.to_string());
        oracle.query_one(&format!("SELECT ({sql})::text"), &[]).await.unwrap().get(0)
    };
    let (yesterday, now, tomorrow) = (day(-1).await, day(0).await, day(1).await);
    connector.refused(&["cut", "--ds", &yesterday], 1, &[&yesterday, "the first day held is", &now]);
    connector.refused(&["cut", "--ds", &tomorrow], 1, &[&tomorrow, "it has not begun", &now, "UTC"]);
    let start = Instant::now();
    let ended = connector.refused(
        &["wait", "--ds", &now, "--timeout", "1s"],
        1,
        &[&now, "was not published within 1s"],
    );
    assert!(ended.out.is_empty() && start.elapsed() < Duration::from_secs(30));
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    connector.refused(&["cut"], 1, &[&now, "made once and never changes"]);
    connector.refused(&["cut", "--ds", &now], 1, &[&now, "made once and never changes"]);
    connector.refused(&["verify", "--ds", &yesterday], 1, &[&yesterday]);
    let wait = connector.run(&["wait", "--ds", &now, "--table", "public.t", "--timeout", "0s"]);
    assert_eq!(wait.code, 0, "{wait:?}");
    running.stop();
}

#[tokio::test]
async fn copies_are_made_of_captured_tables_only() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    connector.refused(&["backfill", "public.t"], 1, &["nothing answers at", "Start `tidemark run`"]);
    let wrong = connector.run(&["backfill", "t"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
    let running = connector.stream();
    server.connect().await.batch_execute("CREATE TABLE later (id int PRIMARY KEY)").await.unwrap();
    connector.refused(
        &["backfill", "public.t", "public.none", "public.later", "pg_catalog.pg_class"],
        1,
        &[
            "no table public.none in database",
            "table public.later is not in the publication",
            "table pg_catalog.pg_class is left out by [source] tables",
            "Nothing was asked for",
        ],
    );
    let asked = connector.run(&["backfill", "--json", "public.*"]);
    assert_eq!(asked.code, 0, "{asked:?}");
    assert!(asked.out.contains("\"asked\"") && asked.out.contains("\"t\""), "{asked:?}");
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}
