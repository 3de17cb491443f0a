//! Values that an update leaves alone and the server does not send, under each identity and across a change of key.

use crate::support::Scene;

const TABLES: &str = "
    CREATE FUNCTION long(seed int) RETURNS text LANGUAGE sql IMMUTABLE AS
        $$ SELECT string_agg(md5((seed * 1000 + i)::text), '') FROM generate_series(1, 150) i $$;
    CREATE TABLE by_default (id int PRIMARY KEY, n int, big text, more text);
    CREATE TABLE by_index (id int NOT NULL, code text NOT NULL, n int, big text, more text);
    CREATE UNIQUE INDEX by_index_code ON by_index (code, id);
    ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
    CREATE TABLE by_whole (id int PRIMARY KEY, n int, big text, more text);
    ALTER TABLE by_whole REPLICA IDENTITY FULL;
    CREATE TABLE keyless (id int, n int, big text, more text);
    ALTER TABLE keyless REPLICA IDENTITY FULL;
    CREATE TABLE by_nothing (id int PRIMARY KEY, n int, big text, more text);
    CREATE TABLE long_key (id text PRIMARY KEY, n int, big text, more text);
    INSERT INTO by_default SELECT i, 0, long(i), long(-i) FROM generate_series(1, 40) i;
    INSERT INTO by_index SELECT i, 'c' || i, 0, long(i), long(-i) FROM generate_series(1, 40) i;
    INSERT INTO by_whole SELECT * FROM by_default; INSERT INTO keyless SELECT * FROM by_default;
    INSERT INTO keyless SELECT * FROM by_default WHERE id <= 10;
    INSERT INTO by_nothing SELECT * FROM by_default;
    INSERT INTO long_key SELECT i || left(long(i), 2300), 0, long(i), long(-i) FROM generate_series(1, 40) i;
    CREATE PUBLICATION tidemark_shop FOR TABLE by_default, by_index, by_whole, keyless, long_key, by_nothing;";

/// What is done to each table which takes updates; `KEY` is what moves a row.
const DONE: &str = "
    UPDATE t SET n = n + 1 WHERE n = 0 AND id::text < '2';
    UPDATE t SET KEY WHERE id IN (SELECT max(id) FROM t);
    UPDATE t SET KEY, more = 'replaced' WHERE id IN (SELECT min(id) FROM t);
    UPDATE t SET more = NULL WHERE id::text LIKE '3%';
    BEGIN; UPDATE t SET n = 7 WHERE id IN (SELECT id FROM t ORDER BY id LIMIT 3 OFFSET 5);
    UPDATE t SET KEY WHERE id IN (SELECT id FROM t ORDER BY id LIMIT 1 OFFSET 6);
    UPDATE t SET n = 8 WHERE n = 7; COMMIT;
    DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY id LIMIT 2 OFFSET 12);
    DELETE FROM t WHERE ctid IN (SELECT ctid FROM t ORDER BY id, ctid LIMIT 1);
    INSERT INTO t (id, n, CODE big) SELECT ID, 1, CODEVALUE long(i) FROM generate_series(900, 903) i;";

const MOVED: &[(&str, &str)] = &[
    ("by_default", "id = id + 100"),
    ("by_index", "code = code || '+'"),
    ("by_whole", "id = id + 100"),
    ("keyless", "id = id + 100"),
    ("long_key", "id = id || '+'"),
];

#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_not_sent_are_kept_under_every_identity_and_across_changes_of_key() {
    let mut scene = Scene::of(TABLES).await;
    scene.sql("ALTER TABLE by_nothing REPLICA IDENTITY NOTHING; INSERT INTO by_nothing VALUES (100)").await;
    scene.copied("by_nothing", 1).await;
    for round in 0..2 {
        for (table, moves) in MOVED {
            let (id, code, value) = match *table {
                "by_index" => (format!("i + {round} * 10"), "code, ", format!("'n{round}' || i, ")),
                "long_key" => (format!("(i + {round} * 10) || long(i)::varchar(2300)"), "", String::new()),
                _ => (format!("i + {round} * 10"), "", String::new()),
            };
            let done = DONE
                .replace("FROM t", &format!("FROM {table}"))
                .replace("UPDATE t", &format!("UPDATE {table}"))
                .replace("INTO t", &format!("INTO {table}"))
                .replace("CODEVALUE ", &value)
                .replace("CODE ", code)
                .replace("KEY", moves)
                .replace("ID,", &format!("{id},"));
            scene.sql(&done).await;
        }
        scene.sql("INSERT INTO by_nothing SELECT max(id) + 1, 5, long(5) FROM by_nothing").await;
        let ds = scene.cut().await;
        for (table, _) in MOVED.iter().chain(&[("by_nothing", "")]) {
            scene.same(&ds, table, "md5(id::text), n, md5(big), md5(more)").await;
        }
        scene.sound(&ds);
    }
    // The log, too, tells them as not sent: the field is not there.
    let updates = scene.connector.table_records("by_default").await;
    let left_alone =
        |record: &&crate::support::Record| record.value["op"] == "u" && record.value["after"]["n"] == 8;
    let update = updates.iter().find(left_alone).expect("an update which leaves the large values alone");
    let after = update.value["after"].as_object().unwrap();
    assert!(!after.contains_key("big") && !after.contains_key("more"), "{after:?}");
}
