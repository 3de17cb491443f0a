//! Statements that do more, or other, than they seem to.

use crate::support::Scene;

const TABLES: &str = "
    CREATE TABLE orders (id serial PRIMARY KEY, note text, n int NOT NULL DEFAULT 0);
    CREATE TABLE lines (id serial PRIMARY KEY, order_id int REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE, note text);
    CREATE TABLE other (id int PRIMARY KEY, note text);
    INSERT INTO orders (note) SELECT 'first' FROM generate_series(1, 30);
    INSERT INTO lines (order_id, note) SELECT i, 'line' FROM generate_series(1, 30) i;
    INSERT INTO other VALUES (1, 'other');
    CREATE PUBLICATION tidemark_shop FOR TABLE orders, lines, other;";

#[tokio::test(flavor = "multi_thread")]
async fn rows_written_by_cascades_copies_upserts_and_merges_are_rows() {
    let mut scene = Scene::of(TABLES).await;
    scene
        .sql(
            "DELETE FROM orders WHERE id < 5; UPDATE orders SET id = 1000 + id WHERE id > 25;
             INSERT INTO orders (id, note) SELECT i, 'upsert' FROM generate_series(10, 40) i
                ON CONFLICT (id) DO UPDATE SET note = excluded.note, n = orders.n + 1;
             INSERT INTO orders (id, note) VALUES (10, 'nothing') ON CONFLICT DO NOTHING;
             BEGIN; SAVEPOINT a; INSERT INTO other VALUES (2, 'gone'); ROLLBACK TO a; INSERT INTO other VALUES (3, 'kept'); COMMIT",
        )
        .await;
    if scene.server.major() >= 15 {
        scene
            .sql(
                "MERGE INTO other USING (SELECT i AS id FROM generate_series(1, 5) i) s ON other.id = s.id
                 WHEN MATCHED AND s.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET note = 'merged'
                 WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'made')",
            )
            .await;
    }
    scene
        .sql("COPY lines (order_id, note) FROM PROGRAM 'echo 10,copied; echo 11,; echo 12,a b' (FORMAT csv)")
        .await;
    let ds = scene.cut().await;
    for (table, columns) in
        [("orders", "id, note, n"), ("lines", "id, order_id, note"), ("other", "id, note")]
    {
        scene.same(&ds, table, columns).await;
    }
    scene.sound(&ds);
    // TRUNCATE takes what refers to the table with it, and the next row has the first number again.
    scene.sql("TRUNCATE orders RESTART IDENTITY CASCADE; INSERT INTO orders (note) VALUES ('anew')").await;
    let ds = scene.cut().await;
    for (table, columns) in
        [("orders", "id, note, n"), ("lines", "id, order_id, note"), ("other", "id, note")]
    {
        scene.same(&ds, table, columns).await;
    }
    assert_eq!(scene.read(&ds, "SELECT id FROM {orders}"), [[Some("1".to_owned())]]);
    let last = |records: Vec<crate::support::Record>| records.last().unwrap().value["op"].clone();
    assert_eq!(last(scene.connector.table_records("lines").await), "t", "the cascade is a record of its own");
    scene.sound(&ds);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_as_wide_as_postgres_allows_is_carried() {
    let columns = |with: &dyn Fn(usize) -> String| (2..=1600).map(with).collect::<Vec<_>>().join(", ");
    let made = columns(&|i| format!("c{i} int DEFAULT {i}"));
    let list = format!("id, {}", columns(&|i| format!("c{i}")));
    let mut scene = Scene::of(&format!(
        "CREATE TABLE wide (id int PRIMARY KEY, {made}); INSERT INTO wide SELECT i FROM generate_series(1, 5) i;
         CREATE PUBLICATION tidemark_shop FOR TABLE wide"
    ))
    .await;
    scene.sql("INSERT INTO wide SELECT i FROM generate_series(6, 9) i; UPDATE wide SET c1600 = NULL, c2 = -1 WHERE id = 3").await;
    let ds = scene.cut().await;
    scene.same(&ds, "wide", &list).await;
    scene.sound(&ds);
}
