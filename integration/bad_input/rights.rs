//! Rights, tables and the publication.

use std::process::{Command, Stdio};

use super::connector::{CSV, Connector, Ended, PASSWORD, server_with_table};
use crate::support::{Postgres, client_program};

/// Runs a script with psql as the role `postgres`.
fn psql(server: &Postgres, script: &str) -> Ended {
    let file = server.dir().join("script.sql");
    std::fs::write(&file, script).unwrap();
    let output = Command::new(client_program("psql"))
        .args(["-X", "-q", "-d", &server.url(), "-f"])
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    output.into()
}

fn url(server: &Postgres, role: &str) -> String {
    server.url_as(&format!("{role}:{PASSWORD}"), "postgres")
}

#[tokio::test]
async fn a_role_without_rights_is_told_each_of_them_and_the_dba_s_script_gives_them() {
    let server = server_with_table().await;
    let oracle = server.connect().await;
    oracle.batch_execute("CREATE SCHEMA \"Sales\"; CREATE TABLE \"Sales\".\"Order\" (id int PRIMARY KEY); CREATE ROLE tide LOGIN").await.unwrap();
    let connector = Connector::with_url(&url(&server, "tide"), CSV);
    let words = [
        "the role tide may not replicate",
        "ALTER ROLE \"tide\" REPLICATION",
        "table public.t: tide may not read it",
        "GRANT SELECT ON \"public\".\"t\" TO \"tide\"",
        "publication tidemark_shop: does not exist, and tide may not create it",
        "tidemark setup --print",
    ];
    connector.refused(&["run"], 1, &words);
    connector.refused(&["setup"], 1, &["setup --print"]);

    let script = connector.run(&["setup", "--print"]);
    assert_eq!((script.code, script.err.as_str()), (0, ""));
    println!("{}", script.out);
    let done = psql(&server, &script.out);
    assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", script.out);
    let check = connector.run(&["check"]);
    assert_eq!(check.code, 0, "{}", check.out);
    oracle.batch_execute("INSERT INTO t VALUES (11)").await.unwrap();
    let running = connector.stream();
    oracle.batch_execute("INSERT INTO t VALUES (12); DELETE FROM t WHERE id = 1").await.unwrap();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
    let again = psql(&server, &connector.run(&["setup", "--print"]).out);
    assert_eq!((again.code, again.err.as_str()), (0, ""), "the script of a source that is ready");
}

#[tokio::test]
async fn the_script_for_a_superuser_proposes_a_role_with_the_least_rights_that_works() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    let script = connector.run(&["setup", "--print"]);
    let done = psql(&server, &script.out);
    assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", script.out);
    connector.configure(&url(&server, "tidemark"), CSV);
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
    let superuser =
        "SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = 'tidemark'";
    assert!(!server.connect().await.query_one(superuser, &[]).await.unwrap().get::<_, bool>(0));
}

#[tokio::test]
async fn setup_twice_finds_nothing_missing_the_second_time() {
    let server = server_with_table().await;
    let connector = Connector::new(&server, CSV);
    let first = connector.run(&["setup"]);
    assert_eq!(first.code, 0, "{first:?}");
    assert!(first.out.contains("CREATE PUBLICATION") && first.out.ends_with("Done.\n"), "{}", first.out);
    let second = connector.run(&["setup"]);
    assert_eq!((second.code, second.out.as_str()), (0, "Nothing was missing.\n"));
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn a_role_without_select_on_one_table_is_refused_with_the_grant() {
    let server = server_with_table().await;
    let oracle = server.connect().await;
    oracle
        .batch_execute(
            "CREATE TABLE hidden (id int PRIMARY KEY); INSERT INTO hidden VALUES (1); \
             CREATE ROLE reader LOGIN REPLICATION; GRANT SELECT ON t TO reader; \
             CREATE PUBLICATION tidemark_shop FOR TABLE t, hidden",
        )
        .await
        .unwrap();
    let connector = Connector::with_url(&url(&server, "reader"), CSV);
    let ended = connector.refused(
        &["run"],
        1,
        &["public.hidden: reader may not read it", "GRANT SELECT ON \"public\".\"hidden\" TO \"reader\""],
    );
    assert!(!ended.error().contains("public.t:"), "{}", ended.error());
    oracle.batch_execute("GRANT SELECT ON hidden TO reader").await.unwrap();
    let running = connector.stream();
    connector.publishes_what_postgres_holds(&server, &["t", "hidden"]).await;
    running.stop();
}

#[tokio::test]
async fn a_table_without_identity_is_refused_or_left_out() {
    let server = server_with_table().await;
    let oracle = server.connect().await;
    oracle.batch_execute("CREATE TABLE audit (id int); INSERT INTO audit VALUES (1), (1)").await.unwrap();
    let connector = Connector::new(&server, CSV);
    let words = [
        "public.audit",
        "no primary key and no other replica identity",
        "ALTER TABLE \"public\".\"audit\" REPLICA IDENTITY FULL",
        "`exclude`",
    ];
    for command in ["run", "setup"] {
        connector.refused(&[command], 1, &words);
    }
    connector.configure(&url(&server, "postgres"), &format!("exclude = [\"public.audit\"]\n{CSV}"));
    let running = connector.stream();
    oracle.batch_execute("UPDATE audit SET id = 2").await.expect("the source's own writes go on");
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn a_table_that_lost_its_identity_later_does_not_keep_the_others_from_starting() {
    let server = server_with_table().await;
    let oracle = server.connect().await;
    oracle.batch_execute("CREATE TABLE other (id int PRIMARY KEY)").await.unwrap();
    let connector = Connector::new(&server, CSV);
    connector.stream().stop();
    oracle
        .batch_execute("ALTER TABLE other DROP CONSTRAINT other_pkey; CREATE TABLE fresh (x int); INSERT INTO t VALUES (11)")
        .await
        .unwrap();
    let mut running = connector.stream();
    let said = running.err();
    assert!(said.contains("table public.other") && said.contains("REPLICA IDENTITY FULL"), "{said}");
    // Its rows are identified otherwise than before: it is copied anew.
    running.wait_for("copied: the next cut takes it");
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn partitions_come_as_their_root_and_unlogged_tables_are_left_out_with_a_warning() {
    let server = server_with_table().await;
    server
        .connect()
        .await
        .batch_execute(
            "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); \
             CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE TABLE p_high PARTITION OF p DEFAULT; \
             INSERT INTO p VALUES (1), (2), (11), (12); CREATE UNLOGGED TABLE u (id int PRIMARY KEY)",
        )
        .await
        .unwrap();
    let connector = Connector::new(&server, CSV);
    let running = connector.stream();
    assert!(running.err().contains("table public.u: is unlogged"), "{}", running.err());
    server
        .connect()
        .await
        .batch_execute("INSERT INTO p VALUES (3), (13); DELETE FROM p WHERE id = 11")
        .await
        .unwrap();
    connector.publishes_what_postgres_holds(&server, &["t", "p"]).await;
    running.stop();
}

#[tokio::test]
async fn a_publication_that_was_dropped_while_we_were_down_is_missed_and_comes_back_by_setup() {
    let server = server_with_table().await;
    let oracle = server.connect().await;
    let connector = Connector::new(&server, CSV);
    connector.stream().stop();
    oracle.batch_execute("DROP PUBLICATION tidemark_shop").await.unwrap();
    connector.refused(&["run"], 1, &["publication tidemark_shop: does not exist", "tidemark setup"]);
    let setup = connector.run(&["setup"]);
    assert_eq!(setup.code, 0, "{setup:?}");
    oracle.batch_execute("INSERT INTO t VALUES (11)").await.unwrap();
    let mut running = connector.stream();
    // Whether there were changes meanwhile nobody knows: the table is copied anew.
    running.wait_for("copied: the next cut takes it");
    connector.publishes_what_postgres_holds(&server, &["t"]).await;
    running.stop();
}

#[tokio::test]
async fn changes_made_while_there_was_no_publication_are_told_as_lost() {
    let server = server_with_table().await;
    let oracle = server.connect().await;
    let connector = Connector::new(&server, CSV);
    connector.stream().stop();
    oracle.batch_execute("DROP PUBLICATION tidemark_shop; INSERT INTO t VALUES (11)").await.unwrap();
    assert_eq!(connector.run(&["setup"]).code, 0);
    let words = ["publication \"tidemark_shop\"", "not exist", "before the publication was made again"];
    connector.refused(&["run"], 1, &words);
}
