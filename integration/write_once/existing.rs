//! Rows from before a change of their table's shape hold in each day what Postgres says they hold at its cut, though
//! nobody has written them since. The oracle is a copy which Postgres itself makes of the table at each cut, in a table
//! that had all the columns from the beginning: its rows come as events, each with all its values.

use std::fmt::Write as _;

use super::{DAYS, World};
use crate::support::lake::{duckdb, postgres, published};
use crate::support::{NAME, PATIENCE, wait_until};

/// Columns with a constant default of each kind of type, and its type once more, for the copies.
const ADDED: [(&str, &str, &str); 18] = [
    ("c_bool", "boolean", "true"),
    ("c_int2", "smallint", "-7"),
    ("c_int8", "bigint", "9223372036854775807"),
    ("c_float4", "real", "0.1"),
    ("c_float8", "double precision", "'-0'"),
    ("c_numeric", "numeric(12,2)", "-12.5"),
    ("c_digits", "numeric", "'12345678901234567890.10'"),
    ("c_text", "text", r#"E'it''s "quoted",\n and \\ more'"#),
    ("c_empty", "varchar(9)", "''"),
    ("c_bytes", "bytea", r"'\x00ff27'"),
    ("c_date", "date", "'infinity'"),
    ("c_time", "time(3)", "'23:59:59.123'"),
    ("c_at", "timestamptz", "'2026-11-20 10:15:30.123456+04'"),
    ("c_interval", "interval", "'1 month -2 days 3.5 seconds'"),
    ("c_ints", "int[]", "'{1,NULL,-3}'"),
    ("c_texts", "text[]", r#"'{"a,\"b",NULL,"NULL",""}'"#),
    ("c_mood", "mood", "'so-so'"),
    ("c_json", "jsonb", r#"'{"a": [1, "it''s é"]}'"#),
];

/// A long value which does not compress, so that it stands outside of its row.
const LONG: &str = "(SELECT string_agg(md5(i::text || 'x'), '') FROM generate_series(1, 400) i)";

fn tables() -> String {
    let added = ADDED.iter().fold(String::new(), |mut sql, (name, kind, _)| {
        // Writing to a string cannot fail.
        let _ = write!(sql, ", {name} {kind}");
        sql
    });
    let copy = |name: &str, columns: &str| {
        format!("CREATE TABLE {name} ({columns}); ALTER TABLE {name} REPLICA IDENTITY FULL;")
    };
    let of = |table: &str, day: usize, columns: &str| copy(&format!("{table}_{day}"), columns);
    format!(
        "CREATE TYPE mood AS ENUM ('sad', 'so-so');
         CREATE TABLE t (id int PRIMARY KEY, n int, big text);
         ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE k (n int, big text);
         ALTER TABLE k REPLICA IDENTITY FULL;
         INSERT INTO t SELECT i, i, CASE WHEN i % 2 = 0 THEN {LONG} || i ELSE 'short' || i END FROM generate_series(1, 40) i;
         INSERT INTO k SELECT i % 40, 'k' || i % 2 FROM generate_series(1, 120) i;
         {} {} {} {} {} {}",
        of("t", 0, &format!("id int, n int, big text{added}")),
        of("k", 0, &format!("n int, big text{added}")),
        of("t", 1, "id int, n int, large text, c_numeric text, c_int8 bigint, c_json jsonb"),
        of("k", 1, "n int, large text, c_numeric text, c_int8 bigint, c_json jsonb"),
        of("t", 2, "ident int, n text, large bigint, c_numeric numeric(14,2), c_at timestamptz"),
        of("k", 2, "n text, large bigint, c_numeric numeric(14,2), c_at timestamptz"),
    )
}

impl World {
    /// Copies tables `t` and `k` as they are, ends the day and compares: every column that a copy has.
    async fn end_day_and_compare(&mut self, day: usize, running: &crate::support::Running) {
        self.settled(running).await;
        self.sql(&format!(
            "INSERT INTO t_{day} SELECT {0} FROM t; INSERT INTO k_{day} SELECT {1} FROM k",
            self.columns(&format!("t_{day}")).await,
            self.columns(&format!("k_{day}")).await
        ))
        .await;
        self.end_day(day, running).await;
        for table in ["t", "k"] {
            let copy = format!("{table}_{day}");
            let columns = self.columns(&copy).await;
            let rows = |table: &str| format!("SELECT {columns} FROM {{{table}}}");
            let lost =
                duckdb(&self.connector, DAYS[day], &format!("{} EXCEPT ALL {}", rows(&copy), rows(table)));
            let made =
                duckdb(&self.connector, DAYS[day], &format!("{} EXCEPT ALL {}", rows(table), rows(&copy)));
            let few = |rows: &[Vec<Option<String>>]| {
                format!("{:.600}", format!("{:?}", rows.iter().take(3).collect::<Vec<_>>()))
            };
            assert!(
                lost.is_empty() && made.is_empty(),
                "{table} on {}: lost {}, made {}",
                DAYS[day],
                few(&lost),
                few(&made)
            );
            let ours = duckdb(&self.connector, DAYS[day], &format!("SELECT count(*) FROM {{{table}}}"));
            assert_eq!(ours, postgres(&self.client, &format!("SELECT count(*) FROM {table}")).await);
        }
    }

    /// What was committed is in the log. Some changes are followed by a copy; until that is whole, days lack the table.
    async fn settled(&self, running: &crate::support::Running) {
        let lsn = postgres(&self.client, "SELECT pg_current_wal_insert_lsn()").await[0][0].clone().unwrap();
        let sql = format!("SELECT bool_and(confirmed_flush_lsn >= '{lsn}') FROM pg_replication_slots");
        wait_until(PATIENCE, "what was committed is in the log", async || {
            postgres(&self.client, &sql).await[0][0].as_deref() == Some("t")
        })
        .await;
        wait_until(PATIENCE, "copies are whole", async || {
            let health = running.health().1;
            let tables = health["tables"].as_object().unwrap();
            tables.values().all(|table| table["lacking"].is_null() && table["state"] == "streaming")
        })
        .await;
    }

    /// The first statement, and when its rows are in the log the others: all in one string, or each change of rows after
    /// the one before is in the log. Without the event trigger, what a table was between two descriptions of it is not
    /// seen.
    async fn steps(&self, table: &str, steps: &[String], at_once: bool) {
        let (first, others) = steps.split_first().unwrap();
        self.step(table, first).await;
        if at_once {
            return self.sql(&others.join(";\n")).await;
        }
        for step in others {
            self.step(table, step).await;
        }
    }

    /// A statement; if it changes rows, until they are in the log.
    async fn step(&self, table: &str, sql: &str) {
        let before = self.connector.end(table).await;
        self.sql(sql).await;
        if ["INSERT", "UPDATE", "DELETE"].iter().any(|word| sql.starts_with(word)) {
            self.connector.wait_for_records(table, before + 1).await;
        }
    }

    /// Names of a table's columns, quoted, with commas between them.
    async fn columns(&self, table: &str) -> String {
        let sql = format!(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute \
             WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped"
        );
        postgres(&self.client, &sql).await[0][0].clone().unwrap()
    }
}

async fn rows_from_before_are_right(trigger: bool) {
    let mut world = World::new(&tables()).await;
    world.connector.change("source", "ddl_trigger", if trigger { "on" } else { "off" });
    world.connector.change("source", "schema_poll_interval_ms", 200);
    let running = world.connector.start_ready("run").await;

    // Columns with defaults; rows before, between and after, with large values left alone.
    let added = ADDED
        .iter()
        .map(|(name, kind, default)| format!("ADD COLUMN {name} {kind} NOT NULL DEFAULT {default}"));
    let added = added.collect::<Vec<_>>().join(", ");
    for table in ["t", "k"] {
        let (id, value) = if table == "t" { ("id, ", "1000 + i, ") } else { ("", "") };
        let steps = [
            format!("UPDATE {table} SET n = n + 100 WHERE n = 1"),
            format!("ALTER TABLE {table} {added}"),
            format!("UPDATE {table} SET n = n + 200 WHERE n IN (2, 3, 4)"),
            format!("DELETE FROM {table} WHERE n = 0 OR n = 38"),
            format!(
                "INSERT INTO {table} ({id}n, big) SELECT {value}1000 + i, 'new' FROM generate_series(1, 3) i"
            ),
        ];
        world.steps(table, &steps, trigger).await;
    }
    world.end_day_and_compare(0, &running).await;
    let text =
        "SELECT n, c_int2, c_int8, c_numeric, c_digits, c_text, c_empty, c_mood FROM TABLE ORDER BY n, big";
    world.assert_same(0, "t", text).await;

    // A name that becomes another column's; a column dropped and added again as another one; values left alone which
    // stand in rows from before both, also in one whose key changes.
    for table in ["t", "k"] {
        let mut steps = vec![
            format!("UPDATE {table} SET n = n + 1000 WHERE n = 12 OR n = 1"),
            format!("ALTER TABLE {table} RENAME big TO large"),
            format!("ALTER TABLE {table} DROP COLUMN c_numeric, ADD COLUMN c_numeric text DEFAULT 'again'"),
            format!("UPDATE {table} SET n = n + 1000 WHERE n IN (14, 15, 1012, 204)"),
            format!("DELETE FROM {table} WHERE n = 16 OR n = 3"),
            format!("UPDATE {table} SET c_numeric = NULL WHERE n = 17"),
            format!("ALTER TABLE {table} DROP COLUMN c_int8, DROP COLUMN c_json"),
            format!("ALTER TABLE {table} ADD COLUMN c_json jsonb, ADD COLUMN c_int8 bigint DEFAULT 8"),
            format!("UPDATE {table} SET n = n + 1 WHERE n IN (20, 21)"),
        ];
        if table == "t" {
            steps.insert(3, "UPDATE t SET id = id + 5000 WHERE id IN (6, 7, 10)".to_owned());
        }
        world.steps(table, &steps, trigger).await;
    }
    world.end_day_and_compare(1, &running).await;
    world.assert_same(1, "t", "SELECT id, n, large, c_numeric, c_int8 FROM TABLE ORDER BY id").await;

    // Columns that take each other's names, and the key's own.
    for table in ["t", "k"] {
        let key = if table == "t" { "ALTER TABLE t RENAME id TO ident;" } else { "" };
        let mut steps = vec![
            format!("UPDATE {table} SET n = n + 1 WHERE n IN (26, 27)"),
            format!(
                "BEGIN;
                 ALTER TABLE {table} RENAME n TO tmp; ALTER TABLE {table} RENAME large TO n;
                 ALTER TABLE {table} RENAME c_int8 TO large; {key}
                 ALTER TABLE {table} DROP COLUMN c_numeric, ADD COLUMN c_numeric numeric(14,2) DEFAULT 0.5;
                 COMMIT"
            ),
            format!("UPDATE {table} SET large = large + 1 WHERE tmp IN (30, 31)"),
            format!("DELETE FROM {table} WHERE tmp = 33 OR tmp = 4"),
        ];
        if table == "t" {
            steps.insert(2, "UPDATE t SET ident = ident + 9000 WHERE ident IN (22, 24)".to_owned());
        }
        world.steps(table, &steps, trigger).await;
    }
    world.end_day_and_compare(2, &running).await;

    // Each day comes out the same from the log alone, with all shapes in between, whatever was in the lake.
    let mut running = running;
    assert!(running.terminate().await.success());
    let before: Vec<_> = DAYS[..3].iter().map(|day| published(&world.connector, day)).collect();
    std::fs::remove_dir_all(world.connector.lake()).unwrap();
    let mut deliver = world.connector.start_ready("deliver").await;
    for (day, before) in DAYS.iter().zip(&before) {
        world.connector.wait_published(day).await;
        assert_eq!(&published(&world.connector, day), before, "{day}");
    }
    assert!(deliver.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_from_before_a_change_of_shape_hold_what_postgres_says_with_the_event_trigger() {
    rows_from_before_are_right(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_from_before_a_change_of_shape_hold_what_postgres_says_without_the_event_trigger() {
    rows_from_before_are_right(false).await;
}

/// Types of which another one writes the same value otherwise, as keys; without `USING`, so that nothing but the type says it.
const WRITTEN_OTHERWISE: [(&str, &str, &str, &str); 6] = [
    ("padded", "char(6)", "char(9)", "'k' || i"),
    ("scaled", "numeric(42,2)", "numeric(45,4)", "i * 1.5"),
    ("trimmed", "char(6)", "text", "'k' || i"),
    ("longer", "macaddr", "macaddr8", "lpad(to_hex(i), 12, '0')::macaddr"),
    ("masked", "inet", "text", "'10.0.0.0'::inet + i"),
    ("spoken", "interval", "text", "i * interval '1 hour'"),
];

/// Rows of before, and changes that come after, are found by keys of one form, and hold their values in it.
#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_keys_are_written_otherwise_since_are_found_by_them() {
    keys_written_otherwise(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_keys_are_written_otherwise_since_are_found_by_them_with_the_event_trigger() {
    keys_written_otherwise(true).await;
}

async fn keys_written_otherwise(trigger: bool) {
    let mut schema = "CREATE TYPE mood AS ENUM ('bad', 'ok');
        CREATE TABLE moods (id int, m mood, n int, pad text, PRIMARY KEY (id, m));
        INSERT INTO moods SELECT i, (ARRAY['bad', 'ok'])[1 + i % 2]::mood, i, repeat(md5(i::text), 9)
            FROM generate_series(1, 400) i;"
        .to_owned();
    for (table, from, _, key) in WRITTEN_OTHERWISE {
        let _ = write!(
            schema,
            "CREATE TABLE {table} (id {from} PRIMARY KEY, other {from}, n int, pad text);
             INSERT INTO {table} SELECT {key}, {key}, i, repeat(md5(i::text), 9) FROM generate_series(1, 400) i;"
        );
    }
    let mut world = World::new(&schema).await;
    // Several files, each with keys of its own.
    world.connector.change("lake", "part_bytes_max", 4096);
    world.connector.change("source", "ddl_trigger", if trigger { "on" } else { "off" });
    world.connector.change("source", "schema_poll_interval_ms", 200);
    let running = world.connector.start_ready("run").await;
    world.end_day(0, &running).await;
    for (table, _, to, _) in WRITTEN_OTHERWISE {
        world.sql(&format!("ALTER TABLE {table} ALTER id TYPE {to}, ALTER other TYPE {to}")).await;
        world
            .sql(&format!("UPDATE {table} SET n = -n WHERE n % 3 = 0; DELETE FROM {table} WHERE n % 3 = 1"))
            .await;
    }
    world.sql("ALTER TYPE mood RENAME VALUE 'ok' TO 'well'").await;
    wait_until(PATIENCE, "the labels' new names are known", async || {
        let told = world.connector.records(&format!("{NAME}.ddl")).await;
        told.iter().any(|record| record.value.to_string().contains("labels were renamed"))
    })
    .await;
    world.sql("UPDATE moods SET n = -n WHERE n % 3 = 0; DELETE FROM moods WHERE n % 3 = 1").await;
    world.settled(&running).await;
    world.end_day(1, &running).await;
    for (table, ..) in WRITTEN_OTHERWISE {
        world.assert_same(1, table, "SELECT id, other, n FROM TABLE ORDER BY n").await;
    }
    world.assert_same(1, "moods", "SELECT id, m, n FROM TABLE ORDER BY n").await;
}
