//! Keys of every type: each update and each delete finds its row.

use crate::support::Scene;

/// Type of the key, and values which are different keys: five to begin with, one to insert, one to move to.
const KEYS: &[(&str, &str, &str)] = &[
    (
        "bool2",
        "boolean, part int",
        "ROW(true, 1); ROW(false, 1); ROW(true, 2); ROW(false, 2); ROW(true, 3); ROW(false, 3); ROW(false, 4)",
    ),
    ("small", "smallint", "-32768; 0; 1; 2; 3; 32767; 7"),
    ("big", "bigint", "-9223372036854775808; 0; 1; 2; 3; 9223372036854775807; 9007199254740993"),
    (
        "plain",
        "numeric",
        "1.0; 10.500; -0.00; 1e40; 'NaN'; 'Infinity'; 12345678901234567890123456789012345678901234567890.1",
    ),
    ("scaled", "numeric(12,4)", "1; 1.5; -0.0001; 99999999.9999; 2; 3; 4.4"),
    ("zeros", "numeric", "1.00; 2.000; 3; 4.50; 5; 100; 1.0000000001"),
    ("real4", "real", "0; 'NaN'; 'Infinity'; '1e-38'; '3.4e38'; '0.1'; '0.2'"),
    ("real8", "double precision", "0; 'NaN'; '-Infinity'; '5e-324'; '1.7e308'; '0.1'; '0.30000000000000004'"),
    ("texts", "text COLLATE \"C\"", "''; ' '; 'a'; 'A'; E'tab\\tnew\\nline\"quote''\\\\'; 'ü'; E'u\\u0308'"),
    ("blanks", "char(6)", "'a'; 'a b'; '123456'; 'ü'; 'b   '; 'c'; 'z'"),
    ("limited", "varchar(10)", "'a '; 'a'; '\"'; '{}'; '[1]'; 'null'; 'NULL'"),
    ("bytes", "bytea", "''; '\\x00'; '\\x5c78'; '\\xff'; '\\x0000'; '\\xdeadbeef'; '\\x01'"),
    (
        "uuids",
        "uuid",
        "'00000000-0000-0000-0000-000000000000'; '11111111-1111-1111-1111-111111111111'; 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'; 'ffffffff-ffff-ffff-ffff-ffffffffffff'; '22222222-2222-2222-2222-222222222222'; '33333333-3333-3333-3333-333333333333'; '44444444-4444-4444-4444-444444444444'",
    ),
    (
        "dates",
        "date",
        "'2026-11-26'; '4713-01-01 BC'; '5874897-12-31'; 'infinity'; '-infinity'; '1970-01-01'; '0001-01-01'",
    ),
    ("times", "time", "'00:00'; '24:00'; '23:59:59.999999'; '00:00:00.000001'; '12:00'; '13:00'; '14:00'"),
    (
        "stamps",
        "timestamptz",
        "'2026-03-29 01:30:00+00'; '2026-03-29 01:30:00+01'; 'infinity'; '-infinity'; '4713-01-01 00:00:00+00 BC'; '294276-12-31 23:59:59.999999+00'; '1999-01-08 04:05:06.789-08'",
    ),
    (
        "local",
        "timestamp(3)",
        "'2026-03-29 01:30'; '1970-01-01'; '1969-12-31 23:59:59.999'; 'infinity'; '-infinity'; '2000-01-01'; '1900-01-01'",
    ),
    (
        "spans",
        "interval",
        "'1 mon'; '30 days 00:00:01'; '-1 year'; '00:00:00'; '1 day -00:00:01'; '2 mons'; '3 mons'",
    ),
    ("lists", "int[]", "'{}'; '{1,2}'; '{NULL}'; '{{1,2},{3,4}}'; '[0:1]={1,2}'; '{5}'; '{6,7}'"),
    ("words", "text[]", "'{}'; '{\"\"}'; '{NULL,\"NULL\"}'; '{\"a,b\",\"c\\\"d\"}'; '{ä}'; '{x}'; '{y}'"),
    ("moods", "mood", "'sad'; 'ok'; 'happy'; 'it''s'; 'a,b'; '\"'; ''"),
    (
        "pairs",
        "pair",
        "'(1,a)'::pair; '(,)'::pair; '(2,\"a,b\")'::pair; '(3,\"\"\"\")'::pair; '(4,\"\")'::pair; '(5,x)'::pair; '(6,y)'::pair",
    ),
    (
        "nets",
        "inet",
        "'10.0.0.1'; '10.0.0.0/8'; '::1'; '2001:db8::/32'; '10.0.0.1/31'; '192.168.0.1'; '127.0.0.1'",
    ),
    ("spread", "int4range", "'empty'; '[1,2]'; '(,)'; '[5,)'; '(,0]'; '[7,9]'; '[10,11]'"),
    ("bits", "bit varying", "''; B'0'; B'00'; B'1'; B'10101010101'; B'11'; B'111'"),
    ("short", "positive", "1; 2; 3; 4; 5; 6; 7"),
    ("docs", "jsonb", "'{}'; '[]'; 'null'; '{\"a\": 1.0}'; '\"x\"'; '{\"b\": [1, 2]}'; '1e2'"),
];

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_found_by_keys_of_every_type() {
    let mut made = String::from(
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy', 'it''s', 'a,b', '\"', '');
         CREATE TYPE pair AS (a int, b text); CREATE DOMAIN positive AS int CHECK (VALUE > 0);",
    );
    let (mut changes, mut names) = (String::new(), Vec::new());
    for (name, key, values) in KEYS {
        let values: Vec<String> = values
            .split("; ")
            .map(|value| {
                value
                    .strip_prefix("ROW(")
                    .map_or_else(|| value.to_owned(), |row| row.trim_end_matches(')').to_owned())
            })
            .collect();
        let (columns, key_columns) =
            if key.contains("part") { ("id, part", "id, part") } else { ("id", "id") };
        made += &format!("CREATE TABLE {name} (id {key}, note text, PRIMARY KEY ({key_columns}));\n");
        for (number, value) in values[..5].iter().enumerate() {
            made += &format!("INSERT INTO {name} ({columns}, note) VALUES ({value}, 'first {number}');\n");
        }
        // One is changed, one goes, one comes, one moves, and one comes back after it has gone.
        let of =
            |number: usize| format!("({columns}) = ROW({})", values[number]).replace("(id) = ROW(", "id = (");
        let typed =
            |number: usize| if columns == "id" { format!("id = {}", values[number]) } else { of(number) };
        let set = |number: usize| {
            if columns == "id" {
                format!("id = {}", values[number])
            } else {
                format!("({columns}) = ROW({})", values[number])
            }
        };
        changes += &format!(
            "UPDATE {name} SET note = 'changed' WHERE {}; DELETE FROM {name} WHERE {};
             INSERT INTO {name} ({columns}, note) VALUES ({}, 'new'); UPDATE {name} SET {} WHERE {};
             DELETE FROM {name} WHERE {}; INSERT INTO {name} ({columns}, note) VALUES ({}, 'back');\n",
            typed(0),
            typed(1),
            values[5],
            set(6),
            typed(2),
            typed(3),
            values[3],
        );
        names.push(*name);
    }
    made += &format!("CREATE PUBLICATION tidemark_shop FOR TABLE {}", names.join(", "));
    let mut scene = Scene::of(&made).await;
    scene.sql(&changes).await;
    // What is equal to Postgres and has other digits, or another sign, is one row all the same.
    scene
        .sql(
            "UPDATE zeros SET id = 1.000 WHERE id = 1; UPDATE zeros SET note = 'same' WHERE id = 1;
             UPDATE real8 SET id = '-0' WHERE id = 0; UPDATE real8 SET note = 'minus zero' WHERE id = 0;
             UPDATE real4 SET id = '-0' WHERE id = 0; DELETE FROM real4 WHERE id = 0;
             INSERT INTO zeros VALUES (3.0, 'upsert') ON CONFLICT (id) DO UPDATE SET note = 'upsert';
             UPDATE plain SET id = 0 WHERE id = 0",
        )
        .await;
    let ds = scene.cut().await;
    for name in &names {
        scene.same(&ds, name, "note").await;
    }
    scene.sound(&ds);
    // Once more, from the rows of the day before.
    scene
        .sql(&names.iter().map(|name| format!("UPDATE {name} SET note = note || '!';")).collect::<String>())
        .await;
    scene.sql("DELETE FROM zeros WHERE id = 3; DELETE FROM real8 WHERE id = 0").await;
    let ds = scene.cut().await;
    for name in &names {
        scene.same(&ds, name, "note").await;
    }
    scene.sound(&ds);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_are_a_multiset() {
    const TABLES: &str = "
        CREATE TABLE bag (n int, note text, x numeric); ALTER TABLE bag REPLICA IDENTITY FULL;
        CREATE TABLE lines (note text); ALTER TABLE lines REPLICA IDENTITY FULL;
        INSERT INTO bag SELECT i % 5, nullif('line', CASE WHEN i % 7 = 0 THEN 'line' END), i % 3 FROM generate_series(1, 200) i;
        INSERT INTO lines SELECT 'again' FROM generate_series(1, 10);
        CREATE PUBLICATION tidemark_shop FOR TABLE bag, lines;";
    let mut scene = Scene::of(TABLES).await;
    // From here on it takes inserts only.
    scene.sql("ALTER TABLE lines REPLICA IDENTITY NOTHING").await;
    for _ in 0..2 {
        scene
            .sql(
                "DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE n = 1 LIMIT 3);
                 UPDATE bag SET n = 2 WHERE ctid IN (SELECT ctid FROM bag WHERE n = 3 LIMIT 4);
                 UPDATE bag SET x = x + 0.00 WHERE ctid IN (SELECT ctid FROM bag WHERE x = 1 LIMIT 5);
                 INSERT INTO bag VALUES (1, NULL, NULL), (1, NULL, NULL), (1, '', 0.0); DELETE FROM bag WHERE n = 4;
                 INSERT INTO bag SELECT 4, 'came back', 1 FROM generate_series(1, 3);
                 BEGIN; INSERT INTO bag VALUES (9, 'passing', 1), (9, 'passing', 1);
                 DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE n = 9 LIMIT 1); COMMIT;
                 INSERT INTO lines VALUES ('again'), (NULL)",
            )
            .await;
        let ds = scene.cut().await;
        scene.same(&ds, "bag", "n, note, x::text").await;
        scene.same(&ds, "lines", "note").await;
        scene.sound(&ds);
    }
}
