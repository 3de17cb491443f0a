//! What is asked of the server beside the stream: slots, the catalog, the preflight checks, setup.

use std::process::{Command, Stdio};

use crate::support::{Postgres, PostgresBuilder, Stop};
use tidemark::change::{Column, ColumnType, Lsn, ReplicaIdentity, TableName, TableSchema, TextKind};
use tidemark::postgres::ddl::TriggerUse;
use tidemark::postgres::preflight::{self, Finding, Level, PreflightSettings};
use tidemark::postgres::slot::Failover;
use tidemark::postgres::wire::{Client, ConnectOptions, ReplicationOptions, Session, sqlstate};
use tidemark::postgres::{catalog, setup, slot};
use tidemark::runtime::Class;

fn options(url: &str) -> ConnectOptions {
    ConnectOptions::parse(url, &|_| None).unwrap()
}

async fn sql(server: &Postgres) -> Client {
    Client::connect(&options(&server.url()), Session::Sql).await.unwrap()
}

async fn replication(server: &Postgres) -> Client {
    Client::connect(&options(&server.url()), Session::Replication).await.unwrap()
}

/// Checks with every table wanted but those whose name begins with `no_`, and prints what was found.
async fn check_with(client: &mut Client, create_missing: bool) -> Vec<Finding> {
    let wanted = |name: &TableName| !name.table.starts_with("no_");
    let settings = PreflightSettings {
        slot: "s",
        publication: "p",
        wanted: &wanted,
        copied_where: &|_| None,
        create_missing,
        ddl_trigger: TriggerUse::Auto,
        failover: Failover::Auto,
    };
    let findings = preflight::check(client, &settings).await.unwrap();
    for Finding { level, subject, message, mend } in &findings {
        println!("{level:?} {subject}: {message} [{}]", mend.as_deref().unwrap_or_default());
    }
    findings
}

async fn check(server: &Postgres) -> Vec<Finding> {
    check_with(&mut sql(server).await, true).await
}

/// Asserts one finding, and returns its mend.
fn expect(findings: &[Finding], level: Level, subject: &str, words: &str) -> String {
    let found =
        findings.iter().find(|f| f.level == level && f.subject == subject && f.message.contains(words));
    let found =
        found.unwrap_or_else(|| panic!("no {level:?} for {subject:?} with {words:?} in {findings:#?}"));
    found.mend.clone().unwrap_or_default()
}

fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap()
}

async fn settings_only(builder: PostgresBuilder) -> Vec<Finding> {
    check(&builder.start().await).await
}

#[tokio::test]
async fn slots_are_made_described_and_dropped() {
    let server = Postgres::start().await;
    let mut client = replication(&server).await;
    let oracle = server.connect().await;
    let system = slot::identify_system(&mut client).await.unwrap();
    let row = oracle.query_one("SELECT system_identifier::text FROM pg_control_system()", &[]).await.unwrap();
    assert_eq!(system.system_identifier.to_string(), row.get::<_, String>(0));
    assert_eq!((system.timeline, system.database.as_deref()), (1, Some("postgres")));
    assert_eq!(slot::slot_state(&mut client, "s").await.unwrap(), None);

    oracle.batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    let made = slot::create_slot(&mut client, "s", false, true).await.unwrap();
    oracle.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    let mut reader = sql(&server).await;
    reader
        .execute(&format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'",
            made.snapshot_name.as_deref().unwrap()
        ))
        .await
        .unwrap();
    assert_eq!(reader.query_one("SELECT count(*) FROM public.t").await.unwrap().get(0), Some("1"));
    reader.execute("COMMIT").await.unwrap();

    let state = slot::slot_state(&mut reader, "s").await.unwrap().unwrap();
    assert_eq!((state.plugin.as_deref(), state.database.as_deref()), (Some("pgoutput"), Some("postgres")));
    assert_eq!(state.confirmed_flush_lsn, Some(made.consistent_point));
    assert_eq!(
        (state.temporary, state.active_pid, state.wal_status),
        (false, None, Some(slot::WalStatus::Reserved))
    );
    assert!(state.restart_lsn.unwrap() <= made.consistent_point && state.retained_bytes.unwrap() > 0);
    assert!(made.consistent_point <= slot::current_wal_lsn(&mut reader).await.unwrap());
    let error = slot::create_slot(&mut client, "s", false, false).await.unwrap_err();
    assert_eq!((error.class(), sqlstate(&error)), (Class::Operator, Some("42710")), "{error}");
    let temporary = slot::create_slot(&mut client, "temp", true, false).await.unwrap();
    assert_eq!(temporary.snapshot_name, None);
    assert!(slot::slot_state(&mut reader, "temp").await.unwrap().unwrap().temporary);
    slot::drop_slot(&mut reader, "s").await.unwrap();
    assert_eq!(slot::slot_state(&mut client, "s").await.unwrap(), None);
}

fn column<'a>(table: &'a TableSchema, name: &str) -> &'a Column {
    table.columns.iter().find(|column| column.name == name).unwrap()
}

fn key(table: &TableSchema) -> Vec<&str> {
    table.key_columns().map(|column| column.name.as_str()).collect()
}

#[tokio::test]
async fn the_catalog_gives_shapes_types_and_keys() {
    let server = Postgres::start().await;
    let mut client = sql(&server).await;
    client
        .execute(
            "SET search_path = public; CREATE EXTENSION citext; \
             CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TYPE mood ADD VALUE 'so, \"so\"' BEFORE 'ok'; \
             CREATE DOMAIN money2 AS numeric(12, 2) CHECK (VALUE >= 0); CREATE DOMAIN price AS money2 NOT NULL; \
             CREATE TYPE pair AS (a int, b text); \
             CREATE TABLE zoo (z text NOT NULL, gone int, id bigint, made int GENERATED ALWAYS AS (1) STORED, m mood, \
             ms mood[], p price, ps price[], ts timestamptz(3), t timestamp(3)[], v varchar(10), c citext, pt point, \
             iv int2vector, pr pair, prs pair[], n numeric, PRIMARY KEY (id, z)); \
             ALTER TABLE zoo DROP COLUMN gone; \
             CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE); \
             CREATE TABLE whole (id int PRIMARY KEY, x int); ALTER TABLE whole REPLICA IDENTITY FULL; \
             CREATE TABLE bag (x int); ALTER TABLE bag REPLICA IDENTITY FULL; \
             CREATE TABLE chosen (id int PRIMARY KEY, a int NOT NULL, b int NOT NULL); \
             CREATE UNIQUE INDEX chosen_ba ON chosen (b, a) INCLUDE (id); \
             ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_ba; \
             CREATE TABLE none (id int PRIMARY KEY); ALTER TABLE none REPLICA IDENTITY NOTHING; \
             CREATE TABLE empty (); \
             CREATE TABLE parts (id int, d date, PRIMARY KEY (id, d)) PARTITION BY RANGE (d); \
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01'); \
             CREATE PUBLICATION roots FOR ALL TABLES WITH (publish_via_partition_root = true); \
             CREATE PUBLICATION leaves FOR TABLE parts",
        )
        .await
        .unwrap();
    let published = catalog::published_tables(&mut client, "roots").await.unwrap();
    let names: Vec<_> = published.iter().map(|(_, name)| name.table.as_str()).collect();
    assert_eq!(names, ["bag", "chosen", "deferred", "empty", "none", "parts", "whole", "zoo"]);
    let leaves = catalog::published_tables(&mut client, "leaves").await.unwrap();
    assert_eq!(leaves[0].1, TableName::new("public", "parts_1"));
    assert!(catalog::published_tables(&mut client, "nosuch").await.unwrap().is_empty());

    let oids: Vec<_> = published.iter().map(|(oid, _)| *oid).chain([1]).collect();
    let tables = catalog::load_tables(&mut client, &oids, false).await.unwrap();
    assert_eq!(tables.len(), published.len());
    let table = |name: &str| tables.iter().find(|table| table.name.table == name).unwrap();
    let zoo = table("zoo");
    let names: Vec<_> = zoo.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names.join(" "), "z id m ms p ps ts t v c pt iv pr prs n");
    let mood =
        ColumnType::Text { text: TextKind::Enum(vec!["sad".into(), "so, \"so\"".into(), "ok".into()]) };
    let other = ColumnType::Text { text: TextKind::Other };
    let price = ColumnType::Decimal { precision: 12, scale: 2 };
    let array = |element: &ColumnType| ColumnType::Array { element: Box::new(element.clone()) };
    for (name, wanted, type_name) in [
        ("z", ColumnType::TEXT, "text"),
        ("id", ColumnType::Int64, "bigint"),
        ("m", mood.clone(), "public.mood"),
        ("ms", array(&mood), "public.mood[]"),
        ("p", price.clone(), "public.price"),
        ("ps", array(&price), "public.price[]"),
        ("ts", ColumnType::TimestampTz { precision: 3 }, "timestamp(3) with time zone"),
        ("t", array(&ColumnType::Timestamp { precision: 3 }), "timestamp(3) without time zone[]"),
        ("v", ColumnType::TEXT, "character varying(10)"),
        ("c", ColumnType::TEXT, "public.citext"),
        ("pt", other.clone(), "point"),
        ("iv", other.clone(), "int2vector"),
        ("pr", other.clone(), "public.pair"),
        ("prs", array(&other), "public.pair[]"),
        ("n", ColumnType::Numeric, "numeric"),
    ] {
        let column = column(zoo, name);
        assert_eq!((&column.column_type, column.nullable), (&wanted, !matches!(name, "z" | "id")), "{name}");
        // The session that made the types has them in its path; a fresh one names them in full.
        assert_eq!(column.type_name, type_name.trim_start_matches("public."), "{name}");
    }
    for (name, identity, wanted) in [
        ("zoo", ReplicaIdentity::Default, vec!["id", "z"]),
        ("deferred", ReplicaIdentity::Default, vec![]),
        ("whole", ReplicaIdentity::Full, vec!["id"]),
        ("bag", ReplicaIdentity::Full, vec![]),
        ("chosen", ReplicaIdentity::Index, vec!["b", "a"]),
        ("none", ReplicaIdentity::Nothing, vec![]),
        ("empty", ReplicaIdentity::Default, vec![]),
        ("parts", ReplicaIdentity::Default, vec!["id", "d"]),
    ] {
        assert_eq!((table(name).identity, key(table(name))), (identity, wanted), "{name}");
    }
    let mut fresh = sql(&server).await;
    let zoo = catalog::load_table(&mut fresh, zoo.oid).await.unwrap().unwrap();
    assert_eq!(column(&zoo, "m").type_name, "public.mood");
    assert_eq!(catalog::load_table(&mut fresh, 1).await.unwrap(), None);
}

#[tokio::test]
async fn a_good_source_has_no_failure_and_setup_makes_the_rest() {
    let server = Postgres::builder().set("max_slot_wal_keep_size", "1GB").start().await;
    server
        .connect()
        .await
        .batch_execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE no_b (x int)")
        .await
        .unwrap();
    let findings = check(&server).await;
    assert_eq!(worst(&findings), Level::Ok);
    expect(&findings, Level::Ok, "publication p", "will be created");
    expect(&findings, Level::Ok, "slot s", "will be created");
    let mut client = sql(&server).await;
    let findings = check_with(&mut client, false).await;
    expect(&findings, Level::Fail, "publication p", "does not exist");
    expect(&findings, Level::Fail, "slot s", "does not exist");

    let wanted = |name: &TableName| !name.table.starts_with("no_");
    let settings = PreflightSettings {
        slot: "s",
        publication: "p",
        wanted: &wanted,
        copied_where: &|_| None,
        create_missing: true,
        ddl_trigger: TriggerUse::Auto,
        failover: Failover::Auto,
    };
    let plan = setup::plan(&mut client, &settings).await.unwrap();
    assert_eq!(plan.statements.len(), 3);
    setup::apply(&mut client, &plan).await.unwrap();
    assert!(
        setup::plan(&mut client, &settings).await.unwrap().statements.is_empty(),
        "the second time nothing is left"
    );
    let findings = check_with(&mut client, false).await;
    assert_eq!(worst(&findings), Level::Ok);
    expect(&findings, Level::Ok, "publication p", "publishes 1 tables");
    expect(&findings, Level::Ok, "slot s", "ready");
    client.execute("CREATE TABLE public.late (id int PRIMARY KEY)").await.unwrap();
    let mend = expect(&check(&server).await, Level::Warn, "table public.late", "not in the publication");
    let plan = setup::plan(&mut client, &settings).await.unwrap();
    assert_eq!(plan.statements.len(), 1);
    client.execute(&mend).await.unwrap();
    assert_eq!(worst(&check(&server).await), Level::Ok);
}

#[tokio::test]
async fn the_printed_script_is_enough_for_a_role_with_the_least_rights() {
    let server = Postgres::builder().set("max_slot_wal_keep_size", "1GB").start().await;
    let oracle = server.connect().await;
    oracle
        .batch_execute("CREATE TABLE a (id int PRIMARY KEY); CREATE SCHEMA \"Odd\"; CREATE TABLE \"Odd\".\"T t\" (id int PRIMARY KEY)")
        .await
        .unwrap();
    let mut client = sql(&server).await;
    let settings = PreflightSettings {
        slot: "s",
        publication: "p",
        wanted: &|_| true,
        copied_where: &|_| None,
        create_missing: true,
        ddl_trigger: TriggerUse::Auto,
        failover: Failover::Auto,
    };
    let script = setup::plan(&mut client, &settings).await.unwrap().script();
    println!("{script}");
    for _role_exists_the_second_time in 0..2 {
        let mut psql = Command::new("psql")
            .args(["-X", "-q", "-d", &server.url()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql is needed: apt-get install postgresql-client");
        std::io::Write::write_all(&mut psql.stdin.take().unwrap(), script.as_bytes()).unwrap();
        let output = psql.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        oracle.batch_execute("DROP PUBLICATION p; SELECT pg_drop_replication_slot('s')").await.unwrap();
    }
    let plan = setup::plan(&mut client, &settings).await.unwrap();
    setup::apply(&mut client, &plan).await.unwrap();
    let url = server.url_as("tidemark", "postgres");
    let mut client = Client::connect(&options(&url), Session::Sql).await.unwrap();
    assert_eq!(worst(&check_with(&mut client, false).await), Level::Ok);
    client.query("SELECT * FROM \"Odd\".\"T t\"").await.unwrap();
    let client = Client::connect(&options(&url), Session::Replication).await.unwrap();
    let stream = client.start_replication(&ReplicationOptions::new("s", Lsn::ZERO, "p")).await.unwrap();
    stream.stop().await.unwrap();
}

#[tokio::test]
async fn server_settings_that_stand_in_the_way_are_named_with_the_mend() {
    let findings = settings_only(
        Postgres::builder()
            .set("wal_level", "replica")
            .set("max_replication_slots", "0")
            .set("max_wal_senders", "1")
            .set("wal_sender_timeout", "1s"),
    )
    .await;
    assert!(
        expect(&findings, Level::Fail, "wal_level", "replica")
            .contains("ALTER SYSTEM SET wal_level = logical")
    );
    expect(&findings, Level::Fail, "max_replication_slots", "0 of 0");
    expect(&findings, Level::Warn, "max_wal_senders", "0 of 1");
    expect(&findings, Level::Warn, "wal_sender_timeout", "less than 5 s");
    expect(&findings, Level::Warn, "max_slot_wal_keep_size", "fills the server's disk");
    expect(&findings, Level::Fail, "tables", "none of");
    let findings = settings_only(Postgres::builder().set("wal_sender_timeout", "0")).await;
    expect(&findings, Level::Warn, "wal_sender_timeout", "switched off");
}

#[tokio::test]
async fn missing_rights_are_named_with_the_grant() {
    let server = Postgres::start().await;
    let oracle = server.connect().await;
    oracle
        .batch_execute(
            "CREATE ROLE weak LOGIN; CREATE SCHEMA locked; CREATE TABLE locked.t (id int PRIMARY KEY); \
             CREATE TABLE shown (id int PRIMARY KEY); ALTER TABLE shown ENABLE ROW LEVEL SECURITY; \
             GRANT SELECT ON shown TO weak",
        )
        .await
        .unwrap();
    let url = server.url_as("weak", "postgres");
    let mut client = Client::connect(&options(&url), Session::Sql).await.unwrap();
    let findings = check_with(&mut client, true).await;
    let mut mends = vec![expect(&findings, Level::Fail, "role", "may not replicate")];
    mends.push(expect(&findings, Level::Fail, "table locked.t", "may not read"));
    mends.push(expect(&findings, Level::Fail, "table public.shown", "row-level security"));
    expect(&findings, Level::Fail, "publication p", "no CREATE right");
    for mend in &mends {
        let statement = mend.split(" On Amazon").next().unwrap();
        oracle.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    oracle.batch_execute("GRANT CREATE ON DATABASE postgres TO weak").await.unwrap();
    let mut client = Client::connect(&options(&url), Session::Sql).await.unwrap();
    let findings = check_with(&mut client, true).await;
    expect(&findings, Level::Fail, "publication p", "does not own");
    assert_eq!(findings.iter().filter(|finding| finding.level == Level::Fail).count(), 1, "the mends mend");
}

#[tokio::test]
async fn tables_that_would_break_or_be_missing_are_named() {
    let server = Postgres::start().await;
    let oracle = server.connect().await;
    oracle
        .batch_execute(
            "CREATE TABLE keyless (x int); CREATE TABLE almost (x int NOT NULL, UNIQUE (x)); \
             CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE); CREATE TABLE bag (x int); \
             ALTER TABLE bag REPLICA IDENTITY FULL; CREATE UNLOGGED TABLE fast (id int PRIMARY KEY); \
             CREATE TABLE no_thanks (id int PRIMARY KEY); CREATE TABLE part (id int, d int) PARTITION BY LIST (d); \
             CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1); \
             CREATE TABLE filtered (id int PRIMARY KEY)",
        )
        .await
        .unwrap();
    let findings = check(&server).await;
    for table in ["keyless", "almost", "deferred", "part"] {
        expect(&findings, Level::Fail, &format!("table public.{table}"), "cannot be published");
    }
    expect(&findings, Level::Warn, "table public.fast", "unlogged");

    let mut client = sql(&server).await;
    let wanted = |name: &TableName| !name.table.starts_with("no_");
    let settings = PreflightSettings {
        slot: "s",
        publication: "p",
        wanted: &wanted,
        copied_where: &|_| None,
        create_missing: true,
        ddl_trigger: TriggerUse::Auto,
        failover: Failover::Auto,
    };
    let error = setup::plan(&mut client, &settings).await.unwrap_err();
    assert_eq!(error.class(), Class::Operator);
    for words in
        ["public.keyless", "REPLICA IDENTITY USING INDEX \"almost_x_key\"", "DEFERRABLE", "public.part_1"]
    {
        assert!(error.to_string().contains(words), "{words} is not in: {error}");
    }
    let row_filters = server.major() >= 15;
    let filter = if row_filters { "WHERE (id > 1)" } else { "" };
    oracle
        .batch_execute(&format!(
            "CREATE PUBLICATION p FOR TABLE keyless, almost, deferred, bag, no_thanks, part, filtered {filter}",
        ))
        .await
        .unwrap();
    let findings = check(&server).await;
    for (table, lack) in [
        ("keyless", "no primary key"),
        ("almost", "no primary key"),
        ("deferred", "DEFERRABLE"),
        ("part_1", "no primary"),
    ] {
        let subject = format!("table public.{table}");
        expect(&findings, Level::Fail, &subject, "UPDATE and DELETE on it fails at the source");
        expect(&findings, Level::Fail, &subject, lack);
    }
    // The oracle: that is what the server does.
    let refused = oracle.batch_execute("INSERT INTO almost VALUES (1); UPDATE almost SET x = 2").await;
    assert_eq!(refused.unwrap_err().code().map(tokio_postgres::error::SqlState::code), Some("55000"));
    expect(&findings, Level::Warn, "table public.no_thanks", "excluded");
    if row_filters {
        expect(&findings, Level::Warn, "table public.filtered", "row filter");
    }
    expect(&findings, Level::Warn, "publication p", "partitions one by one");
    oracle
        .batch_execute(
            "ALTER TABLE almost REPLICA IDENTITY USING INDEX almost_x_key; ALTER TABLE keyless REPLICA IDENTITY FULL; \
             ALTER PUBLICATION p DROP TABLE deferred, part, filtered; UPDATE almost SET x = 2",
        )
        .await
        .unwrap();
    oracle.batch_execute("ALTER PUBLICATION p SET (publish = 'insert')").await.unwrap();
    let findings = check(&server).await;
    expect(&findings, Level::Warn, "publication p", "does not publish update, delete, truncate");
    assert_ne!(worst(&findings), Level::Fail, "an append-only publication needs no identity");
}

/// Before 18 generated columns were passed over; from then on they count as part of the identity.
#[tokio::test]
async fn generated_columns_that_would_make_changes_fail_are_named() {
    let server = Postgres::version(18).start().await;
    let oracle = server.connect().await;
    oracle
        .batch_execute(
            "CREATE TABLE stored (x int, y int GENERATED ALWAYS AS (x * 2) STORED); CREATE TABLE plain (id int PRIMARY KEY); \
             CREATE TABLE keyed (x int, y int GENERATED ALWAYS AS (x * 2) STORED PRIMARY KEY); \
             CREATE TABLE virtual (x int, y int GENERATED ALWAYS AS (x * 2) VIRTUAL); \
             CREATE TABLE beside (id int PRIMARY KEY, y int GENERATED ALWAYS AS (id * 2) VIRTUAL); \
             ALTER TABLE stored REPLICA IDENTITY FULL; ALTER TABLE virtual REPLICA IDENTITY FULL; \
             INSERT INTO stored VALUES (1); INSERT INTO keyed VALUES (1); INSERT INTO virtual VALUES (1)",
        )
        .await
        .unwrap();
    let failing = |findings: &[Finding]| -> Vec<String> {
        let failed = findings.iter().filter(|f| f.level == Level::Fail && f.subject.starts_with("table"));
        failed.map(|finding| finding.subject.clone()).collect()
    };
    // The publication that we make sends what is stored.
    let findings = check(&server).await;
    expect(&findings, Level::Fail, "table public.virtual", "virtual generated columns");
    assert_eq!(failing(&findings), ["table public.virtual"]);

    oracle
        .batch_execute("CREATE PUBLICATION p FOR TABLE stored, keyed, virtual, plain, beside")
        .await
        .unwrap();
    let findings = check(&server).await;
    let named = ["table public.keyed", "table public.stored", "table public.virtual"];
    assert_eq!(failing(&findings), named);
    let mend = "ALTER PUBLICATION \"p\" SET (publish_generated_columns = stored);";
    assert!(findings.iter().any(|finding| finding.mend.as_deref() == Some(mend)), "{findings:?}");
    // The oracle: the server refuses the changes of just these.
    for table in ["stored", "keyed", "virtual", "plain", "beside"] {
        let refused = oracle.batch_execute(&format!("DELETE FROM {table}")).await.is_err();
        assert_eq!(refused, named.contains(&format!("table public.{table}").as_str()), "{table}");
    }
    oracle.batch_execute(mend).await.unwrap();
    assert_eq!(failing(&check(&server).await), ["table public.virtual"]);
    oracle.batch_execute("DELETE FROM stored; DELETE FROM keyed").await.unwrap();
}

#[tokio::test]
async fn slots_that_are_of_no_use_are_named() {
    let server =
        Postgres::builder().set("max_slot_wal_keep_size", "1MB").set("wal_keep_size", "0").start().await;
    let oracle = server.connect().await;
    oracle.batch_execute("CREATE DATABASE other").await.unwrap();
    oracle
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
        .await
        .unwrap();
    let make = "SELECT pg_create_logical_replication_slot('s', 'pgoutput')";
    let drop_it = "SELECT pg_drop_replication_slot('s')";
    oracle.batch_execute("SELECT pg_create_logical_replication_slot('s', 'test_decoding')").await.unwrap();
    expect(&check(&server).await, Level::Fail, "slot s", "test_decoding");
    oracle.batch_execute(drop_it).await.unwrap();
    oracle.batch_execute("SELECT pg_create_physical_replication_slot('s')").await.unwrap();
    expect(&check(&server).await, Level::Fail, "slot s", "physical");
    oracle.batch_execute(drop_it).await.unwrap();
    let other = server.connect_to("other").await;
    other.batch_execute(make).await.unwrap();
    expect(&check(&server).await, Level::Fail, "slot s", "database other");
    other.batch_execute(drop_it).await.unwrap();

    oracle.batch_execute(make).await.unwrap();
    let stream = replication(&server)
        .await
        .start_replication(&ReplicationOptions::new("s", Lsn::ZERO, "p"))
        .await
        .unwrap();
    let pid: i32 = oracle.query_one("SELECT active_pid FROM pg_replication_slots", &[]).await.unwrap().get(0);
    expect(&check(&server).await, Level::Warn, "slot s", &format!("in use by the server process {pid}"));
    stream.stop().await.unwrap();
    for _ in 0..4 {
        oracle.batch_execute("SELECT pg_logical_emit_message(false, 'x', 'x')").await.unwrap();
        oracle.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        oracle.batch_execute("CHECKPOINT").await.unwrap();
    }
    let mend = expect(&check(&server).await, Level::Fail, "slot s", "invalidated (wal_removed)");
    assert!(mend.contains("pg_drop_replication_slot('s')"));
    let error =
        replication(&server).await.start_replication(&ReplicationOptions::new("s", Lsn::ZERO, "p")).await;
    let error = error.unwrap_err();
    assert_eq!(error.class(), Class::Operator, "{error}");
}

#[tokio::test]
async fn a_standby_is_recognised() {
    let mut server = Postgres::start().await;
    server.stop(Stop::Fast);
    std::fs::write(server.data().join("standby.signal"), "").unwrap();
    server.configure(&[("hot_standby", "on")]);
    server.start_again().await;
    let mut client = sql(&server).await;
    let findings = check_with(&mut client, true).await;
    let level = if client.server_version() < 160_000 { Level::Fail } else { Level::Warn };
    expect(&findings, level, "recovery", "standby");
}

#[tokio::test]
async fn a_table_with_thousands_of_partitions_is_checked_without_a_lock_on_each() {
    let server = Postgres::builder()
        .set("max_locks_per_transaction", "10")
        .set("max_connections", "10")
        .set("max_wal_senders", "5")
        .start()
        .await;
    let oracle = server.connect().await;
    oracle
        .batch_execute("CREATE TABLE big (id int PRIMARY KEY, pad text) PARTITION BY LIST (id)")
        .await
        .unwrap();
    for number in 0..2000 {
        let part = format!("CREATE TABLE big_{number} PARTITION OF big FOR VALUES IN ({number})");
        oracle.batch_execute(&part).await.unwrap();
    }
    oracle.batch_execute("ALTER TABLE ONLY big_1234 REPLICA IDENTITY NOTHING").await.unwrap();
    oracle.batch_execute("CREATE PUBLICATION p WITH (publish_via_partition_root = true)").await.unwrap();
    let locks = oracle.query("SELECT count(*) FROM pg_partition_tree('big')", &[]).await;
    assert!(locks.is_err(), "the server has room for a lock on each partition: the test shows nothing");
    let findings = check(&server).await;
    let lack = "its partition public.big_1234 has no primary key and no other replica identity";
    expect(&findings, Level::Fail, "table public.big", lack);
}
