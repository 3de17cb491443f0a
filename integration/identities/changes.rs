//! Keys that become others: the rows held under the one cannot be matched with changes under the other, so the table is
//! copied anew, once, and days in between lack it.

use crate::support::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_key_becomes_another_is_copied_anew() {
    const TABLES: &str = "
        CREATE TABLE pk (id int PRIMARY KEY, a int NOT NULL, note text);
        CREATE TABLE unique_index (id int PRIMARY KEY, a int NOT NULL, note text);
        CREATE UNIQUE INDEX unique_index_a ON unique_index (a);
        CREATE TABLE none (id int NOT NULL, a int NOT NULL, note text); ALTER TABLE none REPLICA IDENTITY FULL;
        CREATE TABLE typed (id int PRIMARY KEY, a int NOT NULL, note text);
        INSERT INTO pk SELECT i, 1000 + i, 'first' FROM generate_series(1, 30) i;
        INSERT INTO unique_index SELECT * FROM pk; INSERT INTO none SELECT * FROM pk; INSERT INTO typed SELECT * FROM pk;
        CREATE PUBLICATION tidemark_shop FOR TABLE pk, unique_index, none, typed;";
    let mut scene = Scene::of(TABLES).await;
    scene.sql("UPDATE pk SET note = 'second' WHERE id < 5; DELETE FROM none WHERE id = 2; UPDATE typed SET id = 100 WHERE id = 1").await;
    scene
        .sql(
            "BEGIN; ALTER TABLE pk DROP CONSTRAINT pk_pkey;
             ALTER TABLE pk ADD PRIMARY KEY (a); COMMIT; UPDATE pk SET id = 1 WHERE a < 1005; DELETE FROM pk WHERE a = 1010;
             ALTER TABLE unique_index REPLICA IDENTITY USING INDEX unique_index_a;
             UPDATE unique_index SET a = a + 100, note = 'moved' WHERE id < 4; DELETE FROM unique_index WHERE id = 9;
             ALTER TABLE none ADD PRIMARY KEY (id); UPDATE none SET note = 'keyed' WHERE id = 3; DELETE FROM none WHERE id = 4;
             ALTER TABLE typed ALTER id TYPE bigint; INSERT INTO typed VALUES (5000000000, 1, 'wide');
             UPDATE typed SET id = id + 5000000000 WHERE id = 100; DELETE FROM typed WHERE id = 7",
        )
        .await;
    for table in ["pk", "unique_index", "none"] {
        scene.copied(table, 1).await;
    }
    let ds = scene.cut().await;
    for table in ["pk", "unique_index", "none"] {
        scene.same(&ds, table, "id, a, note").await;
    }
    if scene.missing(&ds, "typed").is_none() {
        scene.same(&ds, "typed", "id, a, note").await;
    }
    // The key goes altogether, and rows may be doubled.
    scene
        .sql(
            "ALTER TABLE pk DROP CONSTRAINT pk_pkey; ALTER TABLE pk REPLICA IDENTITY FULL;
             INSERT INTO pk SELECT * FROM pk WHERE a < 1008; DELETE FROM pk WHERE ctid IN (SELECT ctid FROM pk WHERE a = 1001 LIMIT 1)",
        )
        .await;
    scene.copied("pk", 2).await;
    scene.sql("UPDATE pk SET note = 'late' WHERE ctid IN (SELECT ctid FROM pk WHERE a = 1002 LIMIT 1)").await;
    scene.sql("DELETE FROM typed WHERE id > 20 AND id < 25").await;
    let ds = scene.cut().await;
    for table in ["pk", "unique_index", "none", "typed"] {
        scene.same(&ds, table, "id, a, note").await;
    }
    scene.sound(&ds);
    assert_eq!((scene.copies("unique_index"), scene.copies("none")), (1, 1));
}
