//! That a message describes a table as the catalog does, and both as Postgres prints it.

use std::collections::BTreeMap;

use tidemark::change::TableSchema;
use tidemark::postgres::catalog;

use super::source::{Source, sql};
use crate::support::MAJORS;

/// Of which every one that concerns a table is compared.
const ODD: &[&str] = &[
    "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree",
    "CREATE TYPE mood AS ENUM ('sad', 'so, \"so\" \\ {}', 'ok'); CREATE DOMAIN money2 AS numeric(12, 2) CHECK (VALUE >= 0)",
    "CREATE DOMAIN price AS money2 NOT NULL; CREATE TYPE pair AS (a int, b text); CREATE DOMAIN ints AS int[]",
    "CREATE TABLE zoo (z text NOT NULL, gone int, id bigint, made int GENERATED ALWAYS AS (1) STORED, m mood, ms mood[], \
     p price, ps price[], ts timestamptz(3), t timestamp(3)[], v varchar(10), c citext, cs citext[], pt point, bx box[], \
     iv int2vector, pr pair, prs pair[], n numeric, l ltree, h hstore, i ints, ii ints[], b bit(3), ch char(2), \
     sd information_schema.sql_identifier, r int4range, rs numrange[], mr int4multirange, q \"char\", PRIMARY KEY (id, z))",
    "ALTER TABLE zoo DROP COLUMN gone, ADD COLUMN added serial, ADD later text DEFAULT 'x' || current_user",
    "CREATE TABLE \"a.b\" (\"c \"\"d\"\" é\" int, \"E\" int NOT NULL); COMMENT ON TABLE \"a.b\" IS E'it''s\\n\"odd\" \\\\ é'",
    "COMMENT ON COLUMN \"a.b\".\"E\" IS 'a column'; CREATE SCHEMA \"S.s\"; ALTER TABLE \"a.b\" SET SCHEMA \"S.s\"",
    "CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE); ALTER TABLE deferred ADD x int",
    "CREATE TABLE whole (id int PRIMARY KEY, x int); ALTER TABLE whole REPLICA IDENTITY FULL",
    "CREATE TABLE chosen (id int PRIMARY KEY, a int NOT NULL, b int NOT NULL)",
    "CREATE UNIQUE INDEX chosen_ba ON chosen (b, a) INCLUDE (id); ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_ba",
    "CREATE TABLE none (id int PRIMARY KEY); ALTER TABLE none REPLICA IDENTITY NOTHING",
    "CREATE TABLE empty (); ALTER TABLE none ALTER id TYPE bigint, ALTER id SET DEFAULT 7",
    "CREATE TABLE parts (id int, d date, PRIMARY KEY (id, d)) PARTITION BY RANGE (d)",
    "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
    "ALTER TYPE mood RENAME VALUE 'ok' TO 'well'; ALTER TYPE mood SET SCHEMA \"S.s\"",
];

#[tokio::test]
async fn a_message_describes_a_table_as_the_catalog_does() {
    for major in MAJORS {
        let mut source = Source::of(major).await;
        let mut compared: BTreeMap<String, u32> = BTreeMap::new();
        for statement in ODD {
            source.run(&[statement]).await;
            let mut told: BTreeMap<u32, Option<TableSchema>> = BTreeMap::new();
            for table in source.messages().await.into_iter().flat_map(|message| message.tables) {
                told.insert(table.oid, table.schema);
            }
            for (oid, schema) in told {
                let catalog = catalog::load_table(&mut source.client, oid).await.unwrap().unwrap();
                assert_eq!(schema.as_ref(), Some(&catalog), "{major}: after {statement}");
                *compared.entry(catalog.name.table).or_default() += 1;
            }
        }
        let names: Vec<_> = compared.keys().map(String::as_str).collect();
        assert_eq!(names.join(" "), "a.b chosen deferred empty none parts parts_1 whole zoo", "{major}");
        assert_eq!(compared["zoo"], 3, "{major}");
    }
}

/// Types with a constant, whose text is hard to unwrap or depends on the session.
const CONSTANTS: &[(&str, &str)] = &[
    ("text", r#"E'a "q" \\ b\nc\t{,} null'"#),
    ("text", "'NULL'"),
    ("text", "''"),
    ("text", "'\"'"),
    ("text", r"E'\\'"),
    ("text", r#"E'\\"'"#),
    ("text", "'{}'"),
    ("text", "' é 漢 😀 '"),
    ("char(4)", "'a'"),
    ("int", "-7"),
    ("numeric(12,4)", "1.5"),
    ("numeric", "'NaN'"),
    ("float8", "0.1::float8 + 0.2"),
    ("float4", "'-Infinity'"),
    ("bool", "true"),
    ("bytea", r"'\x00ff5c'"),
    ("date", "'0044-03-15 BC'"),
    ("timestamp", "'2026-11-25 01:02:03.000004'"),
    ("timestamptz", "'2026-11-25 01:02:03.4+05:30'"),
    ("timestamptz", "'infinity'"),
    ("timetz", "'01:02:03+04'"),
    ("interval", "'1 year -2 days 03:04:05.6'"),
    ("int[]", "'{1,NULL,3}'"),
    ("int[]", "'[0:1]={1,2}'"),
    ("text[]", r#"'{"a b",NULL,"NULL","\"","\\",""}'"#),
    ("text[]", r#"'{{"a,b","c"},{"{}","d"}}'"#),
    ("box", "'((1,1),(0,0))'"),
    ("box[]", "'{((1,1),(0,0));((2,2),(0,0))}'"),
    ("mood", "'so, \"so\"'"),
    ("mood[]", "ARRAY['so, \"so\"'::mood, 'sad']"),
    ("pair", r#"ROW(1, E'x "y", \\ z')"#),
    ("pair[]", r#"ARRAY[ROW(1, E'x "y", \\ z')::pair, NULL]"#),
    ("ints", "'{4}'"),
    ("jsonb", r#"'{"a": ["\"", "\\", null]}'"#),
    ("xml", "'<a b=\"c\">d</a>'"),
    ("uuid", "'123e4567-e89b-12d3-a456-426614174000'"),
    ("inet", "'10.0.0.1/8'"),
    ("bit(3)", "B'101'"),
    ("tsvector", "'a:1 b''c'"),
    ("int4range", "'[1,5)'"),
    ("regclass", "'public.t'"),
    ("regtype", "'mood'"),
    ("name", "'n'"),
    ("\"char\"", "'c'"),
];

/// What a session can have set that changes how values print, or how functions run.
const STRANGE: &str = "SET DateStyle = 'German, DMY'; SET IntervalStyle = 'sql_standard'; SET bytea_output = 'escape'; \
    SET extra_float_digits = -3; SET TimeZone = 'Asia/Tokyo'; SET quote_all_identifiers = on; \
    SET standard_conforming_strings = off; SET escape_string_warning = off; SET backslash_quote = off; \
    SET array_nulls = off; SET xmlbinary = hex; SET xmloption = document; SET transform_null_equals = on; \
    SET plpgsql.extra_errors = 'all'; SET plpgsql.variable_conflict = 'use_variable'; SET search_path = odd, public; \
    SET default_transaction_isolation = 'serializable'; SET jit_above_cost = 0; SET work_mem = '64kB'; \
    SET row_security = off; SET client_encoding = 'LATIN1'; SET force_parallel_mode = on; SET enable_hashjoin = off";

#[tokio::test]
async fn what_existing_rows_hold_is_told_as_tidemark_would_read_it_from_them() {
    for major in MAJORS {
        let source = Source::of(major).await;
        let adds = (0..).zip(CONSTANTS).map(|(at, (of, value))| format!("ADD c{at} {of} DEFAULT {value}"));
        source
            .run(&[
                "CREATE TYPE mood AS ENUM ('sad', 'so, \"so\"'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN ints AS int[]",
                "CREATE TABLE t (id int); INSERT INTO t VALUES (1)",
                &format!("ALTER TABLE t {}", adds.collect::<Vec<_>>().join(", ")),
            ])
            .await;
        source.messages().await;
        // The same schema, described again in a session where everything prints otherwise.
        let name = if major >= 16 { "debug_parallel_query" } else { "force_parallel_mode" };
        source
            .run(&["CREATE SCHEMA odd; CREATE FUNCTION odd.left(text, int) RETURNS text LANGUAGE sql AS 'SELECT 1/0'"])
            .await;
        let strange = STRANGE.replace("force_parallel_mode", name);
        for statement in strange.split("; ").chain(["COMMENT ON TABLE public.t IS 'described'", "RESET ALL"])
        {
            source.run(&[statement]).await;
        }
        let messages = source.messages().await;
        let told = messages[0].tables[0].schema.as_ref().unwrap();
        let mut fresh = sql(&source.server, "postgres", "postgres").await;
        let row = fresh.query_one("SELECT * FROM public.t").await.unwrap();
        for (at, (of, value)) in CONSTANTS.iter().enumerate() {
            let column = told.columns.iter().find(|column| column.name == format!("c{at}")).unwrap();
            assert_eq!(column.missing.as_deref(), row.get(at + 1), "{major}: {of} DEFAULT {value}");
            assert!(column.missing.is_some(), "{major}: {of} DEFAULT {value}");
        }
        let catalog = catalog::load_table(&mut fresh, told.oid).await.unwrap().unwrap();
        assert_eq!(told, &catalog, "{major}");
    }
}

#[tokio::test]
async fn a_table_tells_the_publications_that_send_its_rows_just_then() {
    for major in MAJORS {
        let source = Source::of(major).await;
        source
            .run(&[
                "CREATE SCHEMA shop; CREATE TABLE root (id int, d int) PARTITION BY LIST (id)",
                "CREATE TABLE mid PARTITION OF root DEFAULT PARTITION BY LIST (d); CREATE TABLE leaf PARTITION OF mid DEFAULT",
                "CREATE UNLOGGED TABLE unlogged (id int); CREATE TABLE plain (id int); CREATE TABLE shop.inside (id int)",
                "CREATE PUBLICATION all_roots FOR ALL TABLES WITH (publish_via_partition_root = true)",
                "CREATE PUBLICATION all_leaves FOR ALL TABLES; CREATE PUBLICATION root_by_leaf FOR TABLE root",
                "CREATE PUBLICATION mid_as_mid FOR TABLE mid, plain WITH (publish_via_partition_root = true)",
                "CREATE PUBLICATION leaf_only FOR TABLE leaf WITH (publish_via_partition_root = true)",
            ])
            .await;
        if major >= 15 {
            source.run(&["CREATE PUBLICATION in_schema FOR TABLES IN SCHEMA shop"]).await;
        }
        source.messages().await;
        for table in ["root", "mid", "leaf", "unlogged", "plain", "shop.inside"] {
            source.run(&[&format!("COMMENT ON TABLE {table} IS 'look'")]).await;
            let messages = source.messages().await;
            let name = table.trim_start_matches("shop.");
            let told = messages[0].tables.iter().find(|told| told.name.table == name).unwrap();
            // What the server's own view has of it.
            let view = "SELECT pubname::text FROM pg_publication_tables WHERE tablename = $1 ORDER BY 1";
            let rows = source.user.query(view, &[&name]).await.unwrap();
            let wanted: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            assert_eq!(told.publications, wanted, "{major}: {table}");
        }
    }
}
