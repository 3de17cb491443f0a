//! Names of tables and columns that mean something to somebody else, or nothing to a reader's file system.

use crate::support::lake::postgres;
use crate::support::{PATIENCE, Scene, wait_until};

const LONG: &str = "sixty_three_bytes_of_a_name_is_what_postgres_allows_and_no_more";

/// Names that change files, envelopes or engines have a meaning for, and two that they have trouble with.
const COLUMNS: [&str; 20] = [
    "__op",
    "__deleted",
    "ds",
    "hour",
    "op",
    "before",
    "after",
    "ts_ms",
    "__sort",
    "__unchanged",
    "__offset",
    "__old_key",
    "__timeline",
    "__commit_lsn",
    "__schema",
    "source",
    "Größe",
    "a.b",
    "with space",
    "tableoid2",
];

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_columns_of_any_name_are_carried_and_two_of_one_topic_never_mix() {
    assert_eq!(LONG.len(), 63);
    let tables = [
        ("\"MiXed Case\"", "public.MiXed%20Case", "public.MiXed_Case"),
        ("\"Größe\".\"Straße\"", "Größe.Straße", "Gr__e.Stra_e"),
        ("\"a.b\".\"c\"", "a%2Eb.c", "a.b.c"),
        ("\"quo\"\"te\".\"ta'b\\le\"", "quo%22te.ta%27b%5Cle", "quo_te.ta_b_le"),
        (
            &format!("{LONG}.{LONG}") as &str,
            &format!("{LONG}.{LONG}") as &str,
            &format!("{LONG}.{LONG}") as &str,
        ),
        ("\"select\"", "public.select", "public.select"),
        ("\"ds=2026-01-01\"", "public.ds%3D2026-01-01", "public.ds_2026-01-01"),
    ];
    let columns: String = COLUMNS.iter().map(|name| format!(", \"{name}\" text")).collect();
    let mut made = format!(
        "CREATE SCHEMA \"Größe\"; CREATE SCHEMA \"a.b\"; CREATE SCHEMA a; CREATE SCHEMA {LONG}; CREATE SCHEMA \"quo\"\"te\";"
    );
    for (name, ..) in tables {
        made += &format!(
            "CREATE TABLE {name} (id int PRIMARY KEY{columns}); INSERT INTO {name} (id, ds, \"__op\") SELECT i, 'd' || i, 'o' || i FROM generate_series(1, 20) i;"
        );
    }
    made += "CREATE TABLE a.\"b.c\" (id int PRIMARY KEY, note text); INSERT INTO a.\"b.c\" VALUES (1, 'another');
        CREATE TABLE by_reserved (\"__op\" text, ds int, \"__unchanged\" text, note text, PRIMARY KEY (ds, \"__op\"));
        INSERT INTO by_reserved SELECT 'o' || i, i, 'u', 'first' FROM generate_series(1, 20) i;
        CREATE PUBLICATION tidemark_shop FOR ALL TABLES";
    let server = crate::support::Postgres::start().await;
    let mut scene = Scene::on(server, &made, |connector| connector.set("source", "tables", ["*.*"])).await;
    for _ in 0..2 {
        for (name, ..) in tables {
            let set: String = COLUMNS[2..]
                .iter()
                .map(|column| format!(", \"{column}\" = coalesce(\"{column}\", '') || 'x'"))
                .collect();
            scene.sql(&format!("UPDATE {name} SET \"__op\" = 'changed'{set} WHERE id % 5 = 0; UPDATE {name} SET id = id + 100 WHERE id = 7; DELETE FROM {name} WHERE id = 8")).await;
        }
        scene.sql("UPDATE by_reserved SET \"__op\" = \"__op\" || 'x' WHERE ds = 3; UPDATE by_reserved SET note = 'second' WHERE ds < 5; DELETE FROM by_reserved WHERE ds = 6").await;
        let ds = scene.cut().await;
        let list: String = COLUMNS.iter().map(|name| format!(", \"{name}\"")).collect();
        for (name, folder, topic) in tables {
            let expected = postgres(&scene.client, &format!("SELECT id{list} FROM {name} ORDER BY id")).await;
            // Of the two that would share a topic, one is carried.
            if topic == "a.b.c"
                && !scene.connector.lake().join(format!("snapshots/shop/{folder}/ds={ds}")).exists()
            {
                let other = scene.read(&ds, "SELECT id, note FROM {a.b%2Ec}");
                assert_eq!(other, [[Some("1".to_owned()), Some("another".to_owned())]]);
                continue;
            }
            let found = scene.read(&ds, &format!("SELECT id{list} FROM {{{folder}}} ORDER BY id"));
            assert_eq!(found, expected, "{name}");
            assert!(!scene.connector.records(&format!("shop.{topic}")).await.is_empty(), "{topic}");
        }
        scene.same(&ds, "by_reserved", "\"__op\", ds, \"__unchanged\", note").await;
    }
    wait_until(PATIENCE, "health tells the table that is not carried", async || {
        scene.running().health().1["reasons"].to_string().contains("share the topic shop.a.b.c")
    })
    .await;
}
