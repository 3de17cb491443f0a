//! That nobody's DDL fails by the trigger, or is told of where it concerns no table.

use std::io::Write;
use std::process::{Command, Stdio};

use tidemark::postgres::ddl::{self, DdlMessage, DdlTrigger};
use tidemark::postgres::pgoutput::{self, Message};

use super::source::{Source, sql};
use crate::support::{MAJORS, Postgres, client_program};

#[tokio::test]
async fn what_concerns_no_table_or_is_not_to_be_told_of_sends_nothing() {
    for major in MAJORS {
        let source = Source::of(major).await;
        let told = source
            .told(&[
                "CREATE TABLE t (id int PRIMARY KEY, x int)",
                "CREATE TEMP TABLE passing (id int); ALTER TABLE passing ADD r float8 DEFAULT random(); \
                 ALTER TABLE passing DROP id; COMMENT ON COLUMN passing.r IS 'c'; DROP TABLE passing",
                "CREATE TEMP TABLE passing AS SELECT 1 AS one; CREATE TEMP TABLE gone (x int) ON COMMIT DROP",
                "CREATE INDEX i ON t (x)",
                "CREATE UNIQUE INDEX CONCURRENTLY u ON t (x)",
                "ALTER INDEX i RENAME TO j; DROP INDEX j; REINDEX TABLE t; ANALYZE t",
                "CREATE VIEW v AS SELECT * FROM t; ALTER VIEW v RENAME TO w; COMMENT ON VIEW w IS 'c'; DROP VIEW w",
                "CREATE MATERIALIZED VIEW m AS SELECT 1 AS one; REFRESH MATERIALIZED VIEW m; DROP MATERIALIZED VIEW m",
                "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
                "CREATE TRIGGER r AFTER INSERT ON t EXECUTE FUNCTION f(); COMMENT ON FUNCTION f() IS 'c'",
                "GRANT SELECT ON t TO PUBLIC; CREATE POLICY p ON t USING (true); CREATE STATISTICS st ON id, x FROM t",
                "CREATE TYPE e AS ENUM ('a'); ALTER TYPE e ADD VALUE 'b'; CREATE SEQUENCE s; ALTER SEQUENCE s RESTART",
                "CREATE PUBLICATION p FOR TABLE t; CREATE SCHEMA empty; ALTER SCHEMA empty RENAME TO still",
                "CREATE EXTENSION file_fdw; CREATE SERVER s FOREIGN DATA WRAPPER file_fdw",
                "CREATE FOREIGN TABLE ft (x int) SERVER s OPTIONS (filename '/dev/null'); ALTER FOREIGN TABLE ft ADD y int",
                "DROP FOREIGN TABLE ft; DROP TYPE e; DROP POLICY p ON t",
                "SET tidemark.ddl = off; CREATE TABLE hidden (id int); ALTER TABLE hidden ADD x float8 DEFAULT random(); DROP TABLE hidden",
                "BEGIN; SET LOCAL tidemark.ddl = 'False'; CREATE TABLE hidden (id int); COMMIT",
                "SET session_replication_role = replica; CREATE TABLE replicated (id int); RESET session_replication_role",
                "RESET tidemark.ddl; SET LOCAL tidemark.ddl = 'on'; CREATE TABLE shown (id int)",
            ])
            .await;
        assert_eq!(told, ["end CREATE TABLE: +t(id x)", "end CREATE TABLE: +shown(id)"], "{major}");
    }
}

#[tokio::test]
async fn a_role_without_any_right_on_the_trigger_still_runs_its_ddl_and_is_told_of() {
    for major in MAJORS {
        let source = Source::of(major).await;
        source
            .run(&[
                "CREATE ROLE weak LOGIN; CREATE SCHEMA own AUTHORIZATION weak",
                "DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' \
                 LOOP EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f); END LOOP; END $$",
                "REVOKE USAGE ON SCHEMA public FROM PUBLIC; REVOKE ALL ON FUNCTION tidemark.ddl() FROM PUBLIC",
            ])
            .await;
        let mut weak = sql(&source.server, "weak", "postgres").await;
        weak.execute("CREATE TABLE own.t (id int)").await.unwrap();
        // Names of its own in front of the system's change nothing.
        for statement in [
            "CREATE FUNCTION own.current_query() RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$",
            "CREATE FUNCTION own.octet_length(text) RETURNS int LANGUAGE sql AS $$ SELECT 1/0 $$",
            "SET search_path = own, pg_catalog; SET temp_buffers = 100; CREATE TEMP TABLE pg_class (oid oid)",
            "ALTER TABLE own.t ADD x int",
        ] {
            weak.execute(statement).await.unwrap();
        }
        let messages = source.messages().await;
        assert_eq!(messages.len(), 2, "{major}");
        assert_eq!(messages[1].statement.as_deref(), Some("ALTER TABLE own.t ADD x int"), "{major}");
        assert_eq!(messages[1].tables[0].schema.as_ref().unwrap().columns.len(), 2, "{major}");
        let error = weak.execute("SELECT tidemark.ddl()").await.unwrap_err();
        assert!(error.to_string().contains("permission denied for schema tidemark"), "{error}");
    }
}

#[tokio::test]
async fn tables_as_wide_and_as_many_as_they_come_are_told_in_messages_of_bounded_size() {
    for major in [14, 18] {
        let source = Source::of(major).await;
        let columns: Vec<_> = (0..1600).map(|at| format!("{}{at} mood", "c".repeat(59))).collect();
        source
            .run(&[
                "CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE few (id int)",
                &format!("CREATE TABLE wide ({})", columns.join(", ")),
                "SET tidemark.ddl = off; CREATE SCHEMA many; DO $$ BEGIN FOR i IN 1..1500 LOOP \
                 EXECUTE format('CREATE TABLE many.many_%s (m mood)', i); END LOOP; END $$; RESET tidemark.ddl",
            ])
            .await;
        source.messages().await;
        source.run(&["ALTER TYPE mood ADD VALUE 'ok'"]).await;
        let messages = source.messages().await;
        let tables: Vec<_> = messages.iter().flat_map(|message| &message.tables).collect();
        assert_eq!(tables.len(), 1501, "{major}");
        assert!((2..20).contains(&messages.len()), "{major}: {} messages", messages.len());
        let wide = tables.iter().find(|table| table.name.table == "wide").unwrap();
        assert_eq!(wide.schema.as_ref().unwrap().columns.len(), 1600);
        // Defaults that fit the catalog only since they compress so well.
        let adds: Vec<_> = (0..50).map(|at| format!("ADD d{at} text DEFAULT repeat('x', 400000)")).collect();
        source.run(&[&format!("ALTER TABLE few {}", adds.join(", "))]).await;
        let messages = source.messages().await;
        assert_eq!(messages[0].tables[0].schema, None, "{major}: too long, and said so");
        source.run(&["DROP SCHEMA many CASCADE"]).await;
        let messages = source.messages().await;
        assert_eq!((messages.len(), messages[0].dropped.len()), (1, 1500), "{major}");
    }
}

#[tokio::test]
async fn ddl_goes_on_whatever_the_servers_wal_level_and_in_prepared_transactions() {
    for (level, senders) in [("replica", "10"), ("minimal", "0")] {
        let builder = Postgres::builder().set("wal_level", level).set("max_wal_senders", senders);
        let server = builder.start().await;
        let mut client = sql(&server, "postgres", "postgres").await;
        client.execute(&ddl::install_sql(client.server_version())).await.unwrap();
        let user = server.connect().await;
        let statement = "CREATE TABLE t (id int); ALTER TABLE t ADD x float8 DEFAULT random(); DROP TABLE t";
        user.batch_execute(statement).await.unwrap();
    }
    for major in MAJORS {
        let source = Source::of(major).await;
        let told = source
            .told(&[
                "BEGIN; CREATE TABLE kept (id int); PREPARE TRANSACTION 'kept'",
                "BEGIN; CREATE TABLE gone (id int); PREPARE TRANSACTION 'gone'",
                "COMMIT PREPARED 'kept'",
                "ROLLBACK PREPARED 'gone'",
            ])
            .await;
        assert_eq!(told, ["end CREATE TABLE: +kept(id)"], "{major}");
    }
}

/// Feeds psql with bytes as they are; panics where a statement fails.
fn psql(server: &Postgres, database: &str, encoding: &str, script: &[u8]) {
    let mut psql = Command::new(client_program("psql"))
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &server.url_as("postgres", database)])
        .env("PGCLIENTENCODING", encoding)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    psql.stdin.take().unwrap().write_all(script).unwrap();
    let output = psql.wait_with_output().unwrap();
    assert!(output.status.success(), "{database}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The messages of a slot of pgoutput, decoded by our own decoder.
async fn messages(server: &Postgres, database: &str) -> Vec<DdlMessage> {
    let client = server.connect_to(database).await;
    let changes = "SELECT data FROM pg_logical_slot_get_binary_changes($1::text::name, NULL, NULL, \
        'proto_version', '1', 'publication_names', 'p', 'messages', 'true')";
    let rows = client.query(changes, &[&format!("s_{database}")]).await.unwrap();
    let message = |row: &tokio_postgres::Row| match pgoutput::decode(row.get(0)).unwrap() {
        Message::Logical { prefix: ddl::PREFIX, content, .. } => Some(DdlMessage::parse(content).unwrap()),
        _ => None,
    };
    rows.iter().filter_map(message).collect()
}

/// Encoding, a table's name, a byte that Unicode does not have there, and both as they are told.
type Case = (&'static str, &'static [u8], &'static [u8], &'static str, &'static str);

#[tokio::test]
async fn in_databases_of_every_encoding_ddl_goes_on_and_is_told_in_utf_8() {
    let server = Postgres::start().await;
    let user = server.connect().await;
    let cases: [Case; 5] = [
        ("utf8", "é漢".as_bytes(), "😀".as_bytes(), "é漢", "😀"),
        ("latin1", b"\xe9", b"\x81", "é", "\u{81}"),
        ("win1252", b"\xe9\x80", b"\x81", "é€", "?"),
        ("euc_jp", b"\xb4\xc1", b"\x8f\xa2\xa1", "漢", "?"),
        ("sql_ascii", b"\xe9\xff", b"\xff", "\u{fffd}\u{fffd}", "\u{fffd}"),
    ];
    for (encoding, name, odd, told_name, told_odd) in cases {
        let create = format!(
            "CREATE DATABASE {encoding} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        );
        user.batch_execute(&create).await.unwrap();
        let mut client = sql(&server, "postgres", encoding).await;
        client.execute(&ddl::install_sql(client.server_version())).await.unwrap();
        client.execute("CREATE PUBLICATION p FOR ALL TABLES").await.unwrap();
        client
            .execute(&format!("SELECT pg_create_logical_replication_slot('s_{encoding}', 'pgoutput')"))
            .await
            .unwrap();
        let script = [b"CREATE TABLE \"", name, b"\" (id int) /* ", odd, b" */;\n"].concat();
        psql(&server, encoding, encoding, &script);
        let messages = messages(&server, encoding).await;
        assert_eq!(messages.len(), 1, "{encoding}");
        let statement = messages[0].statement.as_deref().unwrap();
        assert_eq!(messages[0].tables[0].name.table, told_name, "{encoding}");
        assert!(statement.contains(told_odd), "{encoding}: {statement}");
        client.execute(&format!("SELECT pg_drop_replication_slot('s_{encoding}')")).await.unwrap();
    }
}

#[tokio::test]
async fn a_dump_of_the_database_restores_into_another_with_the_trigger_working() {
    // pg_dump refuses a server that is newer than itself, and the programs that are installed are of 15.
    let source = Source::start(Postgres::version(15)).await;
    source
        .run(&[
            "CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE t (id int PRIMARY KEY, m mood DEFAULT 'sad'); INSERT INTO t VALUES (1)",
            "CREATE TABLE parts (id int) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parts DEFAULT",
            "CREATE DATABASE restored",
        ])
        .await;
    let dump = Command::new(client_program("pg_dump")).args(["-d", &source.server.url()]).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    source.messages().await;
    psql(&source.server, "restored", "UTF8", &dump.stdout);
    let mut restored = sql(&source.server, "postgres", "restored").await;
    assert_eq!(DdlTrigger::load(&mut restored).await.unwrap(), DdlTrigger::Current);
    restored.execute("ALTER TABLE public.t ADD x int").await.unwrap();
    // Restored once more over itself, statement by statement, with the trigger firing.
    let again = Command::new(client_program("pg_dump"))
        .args(["--clean", "--if-exists", "-d", &source.server.url()])
        .output()
        .unwrap();
    psql(&source.server, "restored", "UTF8", &again.stdout);
    assert_eq!(DdlTrigger::load(&mut restored).await.unwrap(), DdlTrigger::Current);
    assert!(source.messages().await.is_empty(), "another database's DDL is not in this one's stream");
}

/// Runs statements so often; what one of them fails by is an error of the trigger's, since they concern each other not.
async fn repeat(server: &Postgres, times: usize, statements: Vec<String>) {
    let client = server.connect().await;
    for round in 0..times {
        for statement in &statements {
            let statement = statement.replace("{round}", &round.to_string());
            let done = client.batch_execute(&statement).await;
            done.unwrap_or_else(|error| panic!("{statement}: {:?}", error.as_db_error()));
        }
    }
}

#[tokio::test]
async fn an_altered_type_does_not_fail_by_what_others_drop_at_the_same_time() {
    for major in [14, 18] {
        let source = Source::of(major).await;
        source.run(&["CREATE TYPE mood AS ENUM ('a')"]).await;
        let alter = (0..2).map(|at| vec![format!("ALTER TYPE mood ADD VALUE 'v{at}_{{round}}'")]);
        let tables = (0..3).map(|at| {
            [
                "CREATE FUNCTION f#() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE TYPE ty# AS ENUM ('x')",
                "CREATE TABLE t# (id serial, m mood, d int DEFAULT f#())",
                "ALTER TABLE t# ADD z int DEFAULT 4, ADD e ty# DEFAULT 'x'; COMMENT ON TABLE t# IS 'c'",
                "DROP TYPE ty# CASCADE",
                "DROP FUNCTION f#() CASCADE",
                "DROP TABLE t#",
            ]
            .map(|statement| statement.replace('#', &at.to_string()))
            .to_vec()
        });
        let work = alter.chain(tables).map(|statements| repeat(&source.server, 100, statements));
        futures::future::join_all(work).await;
    }
}
