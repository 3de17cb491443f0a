//! Which tables are in the publication, and with which rows and columns.

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{PATIENCE, Postgres, Scene, wait_until};

const TABLES: &str = "
    CREATE TABLE first (id int PRIMARY KEY, note text);
    CREATE TABLE second (id int PRIMARY KEY, note text);
    CREATE TABLE third (id int PRIMARY KEY, note text);
    INSERT INTO first SELECT i, 'first' FROM generate_series(1, 50) i;
    INSERT INTO second SELECT i, 'second' FROM generate_series(1, 50) i;
    INSERT INTO third SELECT i, 'third' FROM generate_series(1, 50) i;
    CREATE PUBLICATION tidemark_shop FOR TABLE first, third;";

/// A server that knows row filters, column lists and schemas in publications.
async fn since_15() -> Postgres {
    let server = Postgres::start().await;
    if server.major() >= 15 { server } else { Postgres::version(15).start().await }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_added_to_the_publication_is_copied_and_one_taken_out_is_missing_from_the_days() {
    let mut scene = Scene::of(TABLES).await;
    scene.sql("ALTER PUBLICATION tidemark_shop ADD TABLE second").await;
    scene.copied("second", 1).await;
    scene.sql("UPDATE second SET note = 'changed' WHERE id < 5; INSERT INTO second VALUES (51, 'new')").await;
    scene.sql("ALTER PUBLICATION tidemark_shop DROP TABLE third; DELETE FROM third WHERE id < 10").await;
    scene.lacks("third", "not in the publication").await;
    let ds = scene.cut().await;
    for table in ["first", "second"] {
        scene.same(&ds, table, "id, note").await;
    }
    let reason = scene.missing(&ds, "third").expect("nobody knows what it holds");
    assert!(reason.contains("not in the publication"), "{reason}");

    scene.sql("ALTER PUBLICATION tidemark_shop ADD TABLE third; ALTER TABLE first RENAME TO renamed").await;
    scene.copied("third", 1).await;
    scene.copied("renamed", 1).await;
    scene
        .sql("UPDATE renamed SET note = 'again' WHERE id = 3; UPDATE third SET note = 'again' WHERE id = 30")
        .await;
    let ds = scene.cut().await;
    for table in ["second", "third", "renamed"] {
        scene.same(&ds, table, "id, note").await;
    }
    assert!(!scene.connector.snapshot("first", &ds).exists(), "there is no such table any more");
    assert_eq!(scene.missing(&ds, "first"), None, "and nobody waits for it");
    scene.sound(&ds);
    assert_eq!((scene.copies("first"), scene.copies("second")), (0, 1));

    // One that the configuration leaves out for a while is in no day meanwhile, and copied when it is back.
    scene.connector.change("source", "exclude", serde_json::json!(["public.third"]));
    scene.again().await;
    wait_until(PATIENCE, "the table is left out", async || {
        scene.output().contains("excluded by the configuration")
    })
    .await;
    scene.sql("DELETE FROM third WHERE id < 20").await;
    scene.caught_up().await;
    scene.connector.change("source", "exclude", serde_json::json!([]));
    scene.again().await;
    scene.copied("third", 2).await;
    let ds = scene.cut().await;
    for table in ["second", "third", "renamed"] {
        scene.same(&ds, table, "id, note").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_filters_and_column_lists_hold_for_copies_as_for_changes() {
    const ROWS: &str = "
        CREATE TABLE filtered (id int PRIMARY KEY, amount int, note text, secret text);
        CREATE TABLE listed (id int PRIMARY KEY, note text, secret text);
        CREATE TABLE split (id int, region text, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
        CREATE TABLE split_a PARTITION OF split FOR VALUES IN ('a');
        CREATE TABLE split_b PARTITION OF split FOR VALUES IN ('b');
        ALTER TABLE filtered REPLICA IDENTITY FULL;
        INSERT INTO filtered SELECT i, nullif(i % 20, 0), 'first', 'hidden' FROM generate_series(1, 100) i;
        INSERT INTO listed SELECT i, 'first', 'hidden' FROM generate_series(1, 100) i;
        INSERT INTO split SELECT i, CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END, 'first' FROM generate_series(1, 100) i;
        CREATE PUBLICATION tidemark_shop FOR TABLE filtered WHERE (amount > 10), listed (id, note), split WHERE (id > 50)
        WITH (publish_via_partition_root = true);";
    let mut scene = Scene::on(since_15().await, ROWS, |connector| connector).await;
    scene
        .sql(
            "UPDATE filtered SET amount = 30 WHERE id = 1; UPDATE filtered SET amount = 1 WHERE id = 15;
             UPDATE filtered SET amount = NULL WHERE id = 16; UPDATE filtered SET note = 'both' WHERE id = 17;
             DELETE FROM filtered WHERE id IN (2, 18); INSERT INTO filtered VALUES (200, 11, 'in'), (201, 10, 'out');
             UPDATE listed SET secret = 'other'; UPDATE listed SET note = 'second' WHERE id = 7;
             UPDATE split SET id = id + 1000 WHERE id IN (1, 2); UPDATE split SET id = id - 90 WHERE id IN (91, 92);
             UPDATE split SET region = 'b' WHERE id = 60",
        )
        .await;
    let ds = scene.cut().await;
    scene.same_where(&ds, "filtered", "id, amount, note, secret", "amount > 10").await;
    scene.same(&ds, "listed", "id, note").await;
    scene.same_where(&ds, "split", "id, region, note", "id > 50").await;
    let columns = scene.read(&ds, "SELECT column_name FROM (DESCRIBE SELECT * FROM {listed})");
    assert!(!columns.iter().flatten().any(|name| name.as_deref() == Some("secret")), "{columns:?}");
    assert_eq!(["filtered", "listed", "split"].map(|table| scene.copies(table)), [0, 0, 0]);
    // An update that carries a row into the filter is an insert, one that carries it out a delete.
    let ops: Vec<_> =
        scene.connector.table_records("filtered").await.into_iter().map(|record| record.value).collect();
    let of = |id: i32| -> Vec<String> {
        let row = |value: &&serde_json::Value| value["after"]["id"] == id || value["before"]["id"] == id;
        ops.iter().filter(row).map(|value| value["op"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (of(1), of(15), of(17)),
        (vec!["c".into()], vec!["r".into(), "d".into()], vec!["r".into(), "u".into()])
    );

    scene
        .sql(
            "ALTER PUBLICATION tidemark_shop SET TABLE filtered WHERE (amount > 5), listed, split WHERE (id > 50);
             ALTER TABLE split ADD more int DEFAULT 4",
        )
        .await;
    scene.copied("filtered", 1).await;
    scene.copied("listed", 1).await;
    scene.sql("UPDATE filtered SET note = 'third' WHERE id % 3 = 0; UPDATE listed SET secret = 'seen' WHERE id = 9").await;
    let ds = scene.cut().await;
    scene.same_where(&ds, "filtered", "id, amount, note, secret", "amount > 5").await;
    scene.same(&ds, "listed", "id, note, secret").await;
    scene.same_where(&ds, "split", "id, region, note", "id > 50").await;
    assert_eq!(scene.copies("split"), 0);
    scene.sound(&ds);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_comes_into_the_filter_without_its_large_value_is_in_the_days_again_after_a_copy() {
    const ROWS: &str = "
        CREATE TABLE orders (id int, state text, body text, PRIMARY KEY (id, state));
        ALTER TABLE orders ALTER body SET STORAGE EXTERNAL;
        INSERT INTO orders SELECT i, CASE WHEN i % 2 = 0 THEN 'open' ELSE 'new' END, repeat(i::text || ' ', 3000) FROM generate_series(1, 10) i;
        CREATE PUBLICATION tidemark_shop FOR TABLE orders WHERE (state = 'open');";
    let mut scene = Scene::on(since_15().await, ROWS, |connector| connector).await;
    let ds = scene.cut().await;
    scene.same_where(&ds, "orders", "id, state, md5(body)", "state = 'open'").await;

    scene.sql("UPDATE orders SET state = 'open' WHERE id = 3; UPDATE orders SET body = 'short', state = 'open' WHERE id = 5").await;
    scene.copied("orders", 1).await;
    let ds = scene.cut().await;
    scene.same_where(&ds, "orders", "id, state, md5(body)", "state = 'open'").await;

    // The whole old row is logged: the server completes the new one.
    scene
        .sql("ALTER TABLE orders REPLICA IDENTITY FULL; UPDATE orders SET state = 'open' WHERE id = 7")
        .await;
    let ds = scene.cut().await;
    scene.same_where(&ds, "orders", "id, state, md5(body)", "state = 'open'").await;
    assert_eq!(scene.copies("orders"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_made_in_a_published_schema_is_carried_if_the_wal_has_it() {
    const TABLES: &str = "
        CREATE TABLE parent (id int PRIMARY KEY, note text);
        CREATE TABLE child (more text, PRIMARY KEY (id)) INHERITS (parent);
        CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, note text);
        INSERT INTO parent SELECT i, 'parent' FROM generate_series(1, 20) i;
        INSERT INTO child SELECT i, 'child', 'more' FROM generate_series(101, 120) i;
        INSERT INTO unlogged VALUES (1, 'unlogged');
        CREATE PUBLICATION tidemark_shop FOR TABLES IN SCHEMA public WITH (publish_via_partition_root = true);";
    let mut scene = Scene::on(since_15().await, TABLES, |connector| connector).await;
    scene
        .sql(
            "UPDATE parent SET note = 'both' WHERE id IN (3, 103); DELETE FROM parent WHERE id IN (4, 104);
             CREATE TEMP TABLE passing (id int PRIMARY KEY); INSERT INTO passing VALUES (1);
             CREATE TABLE made (id int PRIMARY KEY, note text); INSERT INTO made VALUES (1, 'made');
             CREATE TABLE made_as AS SELECT 7 AS id, 'rows' AS note; ALTER TABLE made_as ADD PRIMARY KEY (id);
             SELECT 8 AS id, 'into' AS note INTO made_into;
             UPDATE made SET note = 'changed'; UPDATE made_as SET note = 'changed';
             ALTER TABLE unlogged SET LOGGED; INSERT INTO unlogged VALUES (2, 'logged')",
        )
        .await;
    for table in ["made", "made_as", "made_into", "unlogged"] {
        scene.copied(table, 1).await;
    }
    let ds = scene.cut().await;
    for table in ["made", "made_as", "made_into", "unlogged"] {
        scene.same(&ds, table, "id, note").await;
    }
    scene.same_where(&ds, "parent", "id, note", "tableoid = 'parent'::regclass").await;
    scene.same(&ds, "child", "id, note, more").await;
    assert!(!scene.connector.snapshot("passing", &ds).exists());
    scene.sound(&ds);
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_carried_where_they_are_published_and_only_there() {
    const TABLES: &str = "
        CREATE TABLE made (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED, note text);
        INSERT INTO made (id, n, note) SELECT i, i * 10, 'first' FROM generate_series(1, 20) i;
        CREATE PUBLICATION tidemark_shop FOR TABLE made";
    let server = Postgres::version(18).start().await;
    let mut scene = Scene::on(server, TABLES, |connector| connector.set("source", "ddl_trigger", "on")).await;
    scene.sql("UPDATE made SET n = 1 WHERE id = 3; INSERT INTO made (id, n) VALUES (21, 5)").await;
    let ds = scene.cut().await;
    scene.same(&ds, "made", "id, n, note").await;
    assert!(!scene.manifest(&ds, "made").to_string().contains("twice"));
    scene.sql("ALTER PUBLICATION tidemark_shop SET (publish_generated_columns = stored)").await;
    scene.copied("made", 1).await;
    scene.sql("UPDATE made SET n = 7 WHERE id = 4; UPDATE made SET note = 'same' WHERE id = 5; DELETE FROM made WHERE id = 6").await;
    let ds = scene.cut().await;
    scene.same(&ds, "made", "id, n, twice, note").await;
    scene.sound(&ds);
    scene.sql("UPDATE made SET n = 8 WHERE id = 5; INSERT INTO made (id, n) VALUES (22, 6)").await;
    // What the trigger tells has the generated columns, too: nothing is left to ask of the table.
    scene.sql("ALTER TABLE made ADD more int DEFAULT 4; ALTER TABLE made RENAME note TO remark").await;
    let ds = scene.cut().await;
    scene.same(&ds, "made", "id, n, twice, remark, more").await;
    assert_eq!(scene.copies("made"), 1);
    scene.sound(&ds);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_swap_their_names_have_each_others_rows_in_the_next_day_with_triggers_and_without() {
    for triggers in ["on", "off"] {
        let tables = "CREATE TABLE one (id int PRIMARY KEY, note text); CREATE TABLE two (id int PRIMARY KEY, note text, more int);
                      INSERT INTO one VALUES (1, 'first'), (2, 'first'); INSERT INTO two VALUES (1, 'second', 7)";
        let server = Postgres::start().await;
        let mut scene =
            Scene::on(server, tables, |connector| connector.set("source", "ddl_trigger", triggers)).await;
        scene.sql("UPDATE one SET note = 'changed' WHERE id = 1").await;
        let ds = scene.cut().await;
        scene.same(&ds, "one", "id, note").await;
        scene
            .sql(
                "BEGIN; ALTER TABLE one RENAME TO between; ALTER TABLE two RENAME TO one; ALTER TABLE between RENAME TO two; COMMIT;
                 INSERT INTO one VALUES (3, 'of one', 8); UPDATE two SET note = 'of two' WHERE id = 2",
            )
            .await;
        for table in ["one", "two"] {
            wait_until(PATIENCE, &format!("{table} is copied, triggers {triggers}"), async || {
                scene.copies(table) > 0 && scene.lacking(table).is_null()
            })
            .await;
        }
        scene.sql("DELETE FROM two WHERE id = 1; UPDATE one SET more = 9 WHERE id = 1").await;
        let ds = scene.cut().await;
        scene.same(&ds, "one", "id, note, more").await;
        scene.same(&ds, "two", "id, note").await;
        scene.sound(&ds);
        // There and back: the server describes a table of which no row came meanwhile as it did before.
        let swap = "BEGIN; ALTER TABLE one RENAME TO between; ALTER TABLE two RENAME TO one; \
                    ALTER TABLE between RENAME TO two; COMMIT";
        scene.sql(&format!("{swap}; INSERT INTO one VALUES (4, 'of two')")).await;
        let last = "INSERT INTO one VALUES (5, 'of one', 8); INSERT INTO two VALUES (6, 'of two')";
        scene.sql(&format!("{swap}; {last}")).await;
        wait_until(PATIENCE, &format!("the last row has come, triggers {triggers}"), async || {
            let records = scene.connector.table_records("two").await;
            records.iter().any(|record| record.value["after"]["id"] == 6)
        })
        .await;
        wait_until(PATIENCE, &format!("both are copied again, triggers {triggers}"), async || {
            ["one", "two"].iter().all(|table| scene.lacking(table).is_null())
        })
        .await;
        scene.sql("UPDATE two SET note = 'changed' WHERE id = 6; UPDATE one SET more = 9 WHERE id = 5").await;
        let ds = scene.cut().await;
        scene.same(&ds, "one", "id, note, more").await;
        scene.same(&ds, "two", "id, note").await;
        scene.sound(&ds);
        let told = scene.connector.records("shop.ddl").await;
        let text = told.iter().any(|record| {
            record.value["statement"].as_str().is_some_and(|s| s.contains("RENAME TO between"))
        });
        assert_eq!(text, triggers == "on", "only triggers tell the statement");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_came_and_went_before_anybody_looked_leaves_no_values_in_its_successor() {
    for triggers in ["on", "off"] {
        let table = "CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'first')";
        let server = Postgres::start().await;
        let mut scene =
            Scene::on(server, table, |connector| connector.set("source", "ddl_trigger", triggers)).await;
        scene.sql("UPDATE t SET note = 'changed' WHERE id = 1").await;
        scene.cut().await;
        scene.running().signal(rustix::process::Signal::STOP);
        // The catalog is ahead of the stream when this is read: both columns have one name and one type.
        scene
            .sql(
                "ALTER TABLE t ADD more cidr; INSERT INTO t VALUES (2, 'before', '10.0.0.0/8');
                 ALTER TABLE t DROP more; ALTER TABLE t ADD more cidr; INSERT INTO t VALUES (3, 'after', '10.0.0.0/9')",
            )
            .await;
        scene.running().signal(rustix::process::Signal::CONT);
        if triggers == "off" {
            scene.copied("t", 1).await;
        }
        let ds = scene.cut().await;
        scene.same(&ds, "t", "id, note, more").await;
        scene.sound(&ds);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_not_copied_where_their_changes_are_not_sent() {
    const TABLES: &str = "
        CREATE TABLE made (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
        INSERT INTO made (id, n) SELECT i, i * 10 FROM generate_series(1, 20) i;
        CREATE PUBLICATION tidemark_shop FOR TABLE made";
    // The first version that names a publication's columns; it names these, too.
    let mut scene = Scene::on(Postgres::version(15).start().await, TABLES, |connector| connector).await;
    scene.sql("UPDATE made SET n = 1 WHERE id = 3").await;
    let ds = scene.cut().await;
    scene.same(&ds, "made", "id, n").await;
    assert!(!scene.manifest(&ds, "made").to_string().contains("twice"));
    scene.sound(&ds);
}

/// Waits until somebody has looked at the publication who began after now.
pub async fn looked_anew(scene: &Scene) {
    // The last statements of two looks: the first may have begun before.
    let last_look = "SELECT query_start FROM pg_stat_activity
                     WHERE query LIKE '%ELSE pg_current_wal_insert_lsn%' AND pid <> pg_backend_pid() AND query_start > ";
    for _ in 0..2 {
        let now: String =
            scene.client.query_one("SELECT quote_literal(clock_timestamp())", &[]).await.unwrap().get(0);
        let looked = format!("{last_look}{now}");
        wait_until(PATIENCE, "the publication is looked at", async || {
            !scene.client.query(&looked, &[]).await.unwrap().is_empty()
        })
        .await;
    }
}

/// The server's process that answers whoever looks.
pub async fn looker(scene: &Scene) -> Pid {
    let sql = "SELECT pid FROM pg_stat_activity
                WHERE query LIKE '%ELSE pg_current_wal_insert_lsn%' AND pid <> pg_backend_pid() ORDER BY query_start DESC LIMIT 1";
    let looker: i32 = scene.client.query_one(sql, &[]).await.unwrap().get(0);
    Pid::from_raw(looker).unwrap()
}

/// Stops what sends the stream, or lets it go on.
pub async fn send(scene: &Scene, signal: Signal) {
    let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'tidemark_shop'";
    let sender: i32 = scene.client.query_one(sql, &[]).await.unwrap().get(0);
    kill_process(Pid::from_raw(sender).unwrap(), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_made_anew_after_a_look_at_the_publication_is_not_taken_for_one_that_has_left_it() {
    let mut scene = Scene::of(TABLES).await;
    scene.caught_up().await;
    // The stream stands still meanwhile, so that it passes the look and the table at once.
    send(&scene, Signal::STOP).await;
    scene.sql("DROP TABLE first").await;
    looked_anew(&scene).await;
    scene
        .sql(
            "CREATE TABLE first (id int PRIMARY KEY, note text, more int); INSERT INTO first VALUES (1, 'anew', 1);
             ALTER PUBLICATION tidemark_shop ADD TABLE first",
        )
        .await;
    send(&scene, Signal::CONT).await;
    scene.sql("INSERT INTO first VALUES (2, 'anew', 2)").await;
    scene.copied("first", 1).await;
    let ds = scene.cut().await;
    for (table, columns) in [("first", "id, note, more"), ("third", "id, note")] {
        scene.same(&ds, table, columns).await;
    }
    looked_anew(&scene).await;
    let output = scene.output();
    let left: Vec<_> =
        output.lines().filter(|line| line.contains("not in the publication any more")).collect();
    assert!(left.is_empty(), "it was there all the time: {left:?}");
    assert_eq!(scene.copies("first"), 1, "one copy is enough");

    // One that was there for a moment only is told, although no look has seen it.
    send(&scene, Signal::STOP).await;
    scene.sql("DROP TABLE first").await;
    looked_anew(&scene).await;
    scene
        .sql(
            "CREATE TABLE first (id int PRIMARY KEY); ALTER PUBLICATION tidemark_shop ADD TABLE first;
             INSERT INTO first VALUES (1)",
        )
        .await;
    scene.sql("ALTER PUBLICATION tidemark_shop DROP TABLE first").await;
    send(&scene, Signal::CONT).await;
    scene.lacks("first", "not in the publication").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_asked_for_before_anybody_has_looked_at_the_publication_is_the_only_one() {
    let mut scene = Scene::of(TABLES).await;
    looked_anew(&scene).await;
    scene.sql("ALTER PUBLICATION tidemark_shop ADD TABLE second").await;
    scene.running().asks(&["backfill", "public.second"]);
    scene.copied("second", 1).await;
    looked_anew(&scene).await;
    scene.sql("UPDATE second SET note = 'changed' WHERE id < 5").await;
    let ds = scene.cut().await;
    scene.same(&ds, "second", "id, note").await;
    assert_eq!(scene.copies("second"), 1, "{}", scene.output());
    assert!(!scene.output().contains("not in the publication any more"), "{}", scene.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_table_got_while_it_was_unlogged_are_in_the_next_day() {
    let tables = "CREATE TABLE t (id int PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'logged');
                  CREATE PUBLICATION tidemark_shop FOR ALL TABLES";
    let mut scene =
        Scene::on(Postgres::start().await, tables, |connector| connector.set("source", "ddl_trigger", "on"))
            .await;
    scene
        .sql("ALTER TABLE t SET UNLOGGED; INSERT INTO t VALUES (2, 'unlogged'); ALTER TABLE t SET LOGGED")
        .await;
    scene.sql("INSERT INTO t VALUES (3, 'logged')").await;
    scene.copied("t", 1).await;
    let ds = scene.cut().await;
    scene.same(&ds, "t", "id, note").await;
    scene.sound(&ds);
}
