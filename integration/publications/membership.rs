//! Which tables a publication publishes, beside what Postgres itself says of it, and while tables are locked.

use std::collections::BTreeMap;

use tidemark::postgres::catalog;
use tidemark::postgres::published::{self, KnownParts};
use tidemark::postgres::wire::{self, ConnectOptions, Session};
use tokio_postgres::Client;

use crate::support::{Postgres, Scene};

const TABLES: &str = "
    CREATE SCHEMA other;
    CREATE TABLE plain (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
    CREATE TABLE dropped (id int PRIMARY KEY, gone int, n int); ALTER TABLE dropped DROP gone;
    CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
    CREATE TEMP TABLE temporary (id int PRIMARY KEY);
    CREATE VIEW seen AS SELECT 1; CREATE MATERIALIZED VIEW kept AS SELECT 1;
    CREATE TABLE other.of_schema (id int PRIMARY KEY, n int);
    CREATE TABLE root (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
    CREATE TABLE root_1 PARTITION OF root FOR VALUES FROM (0) TO (10);
    CREATE TABLE root_2 PARTITION OF root FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
    CREATE TABLE root_2a PARTITION OF root_2 FOR VALUES FROM (10) TO (15);
    CREATE UNLOGGED TABLE root_2b PARTITION OF root_2 FOR VALUES FROM (15) TO (20);
    CREATE TABLE other.root_3 PARTITION OF root FOR VALUES FROM (20) TO (30);
    CREATE TABLE other.tree (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE tree_1 PARTITION OF other.tree FOR VALUES FROM (0) TO (10);
    CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);";

/// What is published, for versions from a first one on. Each also by the roots of partitions.
const PUBLICATIONS: [(u32, &str); 14] = [
    (14, "FOR ALL TABLES"),
    (14, ""),
    (14, "FOR TABLE plain, dropped"),
    (14, "FOR TABLE root"),
    (14, "FOR TABLE root, root_2, root_1"),
    (14, "FOR TABLE root_2, other.root_3, plain"),
    (14, "FOR TABLE ONLY parent, other.tree"),
    (15, "FOR TABLE plain (id, n) WHERE (id > 5), root_1 (id), root_2a"),
    (15, "FOR TABLE dropped (id), root (id) WHERE (n > 5), root_1"),
    (15, "FOR TABLES IN SCHEMA other"),
    (15, "FOR TABLES IN SCHEMA public, TABLE other.tree"),
    (15, "FOR TABLES IN SCHEMA other, TABLE other.of_schema WHERE (n > 5), root_2"),
    (18, "FOR TABLE plain (id, twice), root WITH (publish_generated_columns = stored"),
    (18, "FOR TABLE plain, dropped WITH (publish_generated_columns = stored"),
];

const LOCKED: [&str; 4] = ["dropped", "root", "root_1", "other.of_schema"];

/// Names of tables, each with its published columns and its row filter, as Postgres says.
async fn oracle(
    client: &Client,
    publication: &str,
    version: u32,
) -> BTreeMap<String, (String, Option<String>)> {
    let (columns, filter) = if version >= 15 {
        let listed =
            "string_agg(a.attname, ' ' ORDER BY a.attnum) FILTER (WHERE a.attname = ANY (p.attnames))";
        (listed, "p.rowfilter")
    } else {
        ("string_agg(a.attname, ' ' ORDER BY a.attnum)", "NULL::text")
    };
    // 15 also names generated columns, which it does not publish.
    let sent = if version >= 18 { "true" } else { "a.attgenerated = ''" };
    let sql = format!(
        "SELECT n.nspname || '.' || c.relname, {filter}, coalesce((SELECT {columns} FROM pg_attribute a \
           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND {sent}), '') \
         FROM pg_publication_tables p JOIN pg_namespace n ON n.nspname = p.schemaname \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename \
         WHERE p.pubname = '{publication}' AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p'"
    );
    let rows = client.query(&sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), (row.get(2), row.get(1)))).collect()
}

/// The same as we see it.
async fn found(
    session: &mut wire::Client,
    client: &Client,
    publication: &str,
) -> BTreeMap<String, (String, Option<String>)> {
    let sight = published::look(session, publication, &KnownParts::new()).await.unwrap();
    let mut tables = BTreeMap::new();
    for (name, table) in sight.tables {
        let sql = "SELECT coalesce(string_agg(attname, ' ' ORDER BY attnum), '') FROM pg_attribute
                    WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attnum <> ALL ($2)";
        let columns: String = client.query_one(sql, &[&table.oid, &table.unpublished]).await.unwrap().get(0);
        tables.insert(name.to_string(), (columns, table.filter));
    }
    tables
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_publishes_what_postgres_says_and_asking_waits_for_no_lock() {
    for version in 14..=18 {
        let server = Postgres::version(version).start().await;
        let client = server.connect().await;
        client.batch_execute(TABLES).await.unwrap();
        let options = ConnectOptions::parse(&server.url(), &|_| None).unwrap();
        let mut session = wire::Client::connect(&options, Session::Sql).await.unwrap();
        let mut published = BTreeMap::new();
        let of_version = PUBLICATIONS.iter().filter(|(since, _)| *since <= version);
        for (number, (_, what)) in of_version.enumerate() {
            // Postgres takes neither list nor filter of a root that is published by its leaves.
            for root in if what.contains("root (id)") { &[true][..] } else { &[false, true] } {
                let name = format!("p_{number}_{root}");
                let with = if what.contains("WITH") { "," } else { "WITH (" };
                let sql =
                    format!("CREATE PUBLICATION {name} {what} {with} publish_via_partition_root = {root})");
                client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
                let expected = oracle(&client, &name, version).await;
                assert_eq!(
                    found(&mut session, &client, &name).await,
                    expected,
                    "PostgreSQL {version}: {sql}"
                );
                let tables = catalog::published_tables(&mut session, &name).await.unwrap();
                let names: Vec<String> = tables.into_iter().map(|(_, name)| name.to_string()).collect();
                assert!(names.iter().eq(expected.keys()), "PostgreSQL {version}: {sql}: {names:?}");
                published.insert(name, expected);
            }
        }
        assert_eq!(found(&mut session, &client, "nosuch").await, BTreeMap::new());

        let mut locker = server.connect().await;
        let lock = locker.transaction().await.unwrap();
        let sql = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", LOCKED.join(", "));
        lock.batch_execute(&sql).await.unwrap();
        session.execute("SET lock_timeout = '1s'").await.unwrap();
        for (name, expected) in published {
            // Whoever prints a row filter opens its table.
            let opens = |(table, (_, filter)): (&String, &(String, Option<String>))| {
                filter.is_some() && LOCKED.iter().any(|locked| table.ends_with(locked))
            };
            if !expected.iter().any(opens) {
                let found = found(&mut session, &client, &name).await;
                assert_eq!(found, expected, "PostgreSQL {version}: {name} while tables are locked");
            }
        }
        lock.rollback().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_locked_holds_up_neither_start_nor_cut_nor_the_changes_of_others() {
    const SQL: &str = "
        CREATE TABLE still (id int PRIMARY KEY, note text); CREATE TABLE busy (id int PRIMARY KEY, note text);
        INSERT INTO still VALUES (1, 'still'); INSERT INTO busy VALUES (1, 'first');
        CREATE PUBLICATION tidemark_shop FOR ALL TABLES";
    let mut scene = Scene::on(Postgres::version(18).start().await, SQL, |connector| connector).await;
    scene.caught_up().await;
    let mut locker = scene.server.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE still IN ACCESS EXCLUSIVE MODE").await.unwrap();
    scene.sql("UPDATE busy SET note = 'second'").await;
    let ds = scene.cut().await;
    scene.same(&ds, "busy", "id, note").await;
    // Another process has begun meanwhile.
    scene.sql("INSERT INTO busy VALUES (2, 'third')").await;
    scene.caught_up().await;
    let ds = scene.cut().await;
    scene.same(&ds, "busy", "id, note").await;
    lock.rollback().await.unwrap();
    scene.same(&ds, "still", "id, note").await;
    scene.sound(&ds);
}
