//! What is told, and where it stands among the rows.

use std::os::unix::fs::PermissionsExt;

use tidemark::change::{ColumnType, TextKind};

use super::source::{Entry, Source, line};
use crate::support::{MAJORS, Postgres};

/// Entries in short: a message's line, or a row.
async fn told_among_rows(source: &Source, statements: &[&str]) -> Vec<String> {
    source.run(statements).await;
    let entries = source.entries().await;
    let short = |entry: &Entry| match entry {
        Entry::Ddl(message) => line(message),
        Entry::Row(row) => row.clone(),
    };
    entries.iter().map(short).collect()
}

#[tokio::test]
async fn a_message_stands_just_where_the_statement_was_among_the_rows_of_its_transaction() {
    for major in MAJORS {
        let source = Source::of(major).await;
        let told = told_among_rows(
            &source,
            &[
                "CREATE TABLE t (id int)",
                "BEGIN; INSERT INTO t VALUES (1); ALTER TABLE t ADD b int DEFAULT 7; INSERT INTO t VALUES (2); \
                 SAVEPOINT s; ALTER TABLE t ADD lost int; ROLLBACK TO s; \
                 SAVEPOINT s; ALTER TABLE t RENAME b TO c; RELEASE s; INSERT INTO t VALUES (3); COMMIT",
                "BEGIN; ALTER TABLE t ADD gone int; INSERT INTO t VALUES (4); ROLLBACK",
            ],
        )
        .await;
        assert_eq!(
            told,
            [
                "end CREATE TABLE: +t(id)",
                "table public.t: INSERT: id[integer]:1",
                "end ALTER TABLE: t(id b)",
                "table public.t: INSERT: id[integer]:2 b[integer]:7",
                "end ALTER TABLE: t(id c)",
                "table public.t: INSERT: id[integer]:3 c[integer]:7",
            ],
            "{major}"
        );
    }
}

#[tokio::test]
async fn whatever_the_statement_comes_in_its_tables_are_told() {
    for major in MAJORS {
        let source = Source::of(major).await;
        let told = source
            .told(&[
                "DO $$ BEGIN CREATE TABLE a (x int); EXECUTE 'ALTER TABLE a ADD y int'; END $$",
                "CREATE TABLE b (x int); ALTER TABLE b ADD y int; COMMENT ON COLUMN b.y IS 'why'",
                "CREATE TABLE IF NOT EXISTS b (x int); CREATE TABLE IF NOT EXISTS b AS SELECT 1 AS one",
                "CREATE TABLE c AS SELECT 1 AS one",
                "SELECT 2 AS two INTO d",
                "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'CREATE TABLE e (x int)'",
                "SELECT f()",
                "CREATE SCHEMA s CREATE TABLE inside (x int) CREATE VIEW v AS SELECT 1 AS one",
                "ALTER SCHEMA s RENAME TO s2",
                "ALTER TABLE s2.inside SET SCHEMA public",
                "ALTER INDEX inside RENAME TO outside",
                "ALTER TABLE outside RENAME TO renamed",
                "ALTER TABLE renamed ADD PRIMARY KEY (x)",
                "ALTER TABLE renamed ALTER x TYPE bigint",
                "ALTER TABLE renamed DROP CONSTRAINT renamed_pkey, ADD z int",
                "ALTER TABLE renamed DROP x",
                "DROP TABLE renamed, a",
                "CREATE TABLE s2.last (x int); DROP SCHEMA s2 CASCADE",
            ])
            .await;
        assert_eq!(
            told,
            [
                "end CREATE TABLE: +a(x)",
                "end ALTER TABLE: a(x y)",
                "end CREATE TABLE: +b(x)",
                "end ALTER TABLE: b(x y)",
                "end COMMENT: b(x y)",
                "end CREATE TABLE AS: +c(one)",
                "end SELECT INTO: +d(two)",
                "end CREATE TABLE: +e(x)",
                "end CREATE SCHEMA: +inside(x)",
                "end ALTER SCHEMA: inside(x)",
                "end ALTER TABLE: inside(x)",
                "end ALTER INDEX: outside(x)",
                "end ALTER TABLE: renamed(x)",
                "end ALTER TABLE: renamed(x)",
                "rewrite ALTER TABLE: renamed(x)",
                "end ALTER TABLE: renamed(x)",
                "drop ALTER TABLE: renamed(x z)",
                "end ALTER TABLE: renamed(x z)",
                "drop ALTER TABLE: renamed(z), -renamed.x",
                "end ALTER TABLE: renamed(z)",
                "drop DROP TABLE: -a, -renamed",
                "end CREATE TABLE: +last(x)",
                "drop DROP SCHEMA: -last",
            ],
            "{major}"
        );
    }
}

#[tokio::test]
async fn a_statement_is_told_as_it_was_sent_and_long_ones_are_cut() {
    let source = Source::of(15).await;
    let statement = "CREATE TABLE \"Odd \\ 'n' ä\" (\"x\"\"y\" int, -- a comment\n\tz text)";
    source.run(&[statement]).await;
    let messages = source.messages().await;
    assert_eq!(messages[0].statement.as_deref(), Some(statement));
    let long = format!("/* {} */ CREATE TABLE long (id int)", "ä".repeat(200_000));
    source.run(&[&long]).await;
    let messages = source.messages().await;
    let cut: String = long.chars().take(100_000).collect();
    assert_eq!(messages[0].statement.as_deref(), Some(cut.as_str()));
}

#[tokio::test]
async fn an_altered_type_tells_every_table_that_has_it_in_whatever_form() {
    for major in MAJORS {
        let source = Source::of(major).await;
        source
            .run(&[
                "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN moods AS mood[]; CREATE DOMAIN feeling AS mood",
                "CREATE TYPE pair AS (a int, m feeling); CREATE TYPE span AS RANGE (subtype = mood)",
                "CREATE TABLE plain (m mood); CREATE TABLE arrays (id int, m mood[]); CREATE TABLE domain (m moods)",
                "CREATE TABLE feel (m feeling[]); CREATE TABLE composite (p pair[]); CREATE TABLE range (s span)",
                "CREATE TABLE row_of (p plain); CREATE TABLE other (id int, t text); CREATE VIEW v AS SELECT * FROM plain",
            ])
            .await;
        source.messages().await;
        source.run(&["ALTER TYPE mood ADD VALUE 'in between' BEFORE 'ok'"]).await;
        let messages = source.messages().await;
        let told =
            "end ALTER TYPE: arrays(id m), composite(p), domain(m), feel(m), plain(m), range(s), row_of(p)";
        assert_eq!(messages.iter().map(line).collect::<Vec<_>>(), [told], "{major}");
        let plain = messages[0].tables.iter().find(|table| table.name.table == "plain").unwrap();
        let labels = vec!["sad".to_owned(), "in between".to_owned(), "ok".to_owned()];
        let mood = ColumnType::Text { text: TextKind::Enum(labels) };
        assert_eq!(plain.schema.as_ref().unwrap().columns[0].column_type, mood);
        let told = source
            .told(&[
                "ALTER TYPE pair ADD ATTRIBUTE more int CASCADE",
                "ALTER TYPE mood RENAME TO humour",
                "ALTER DOMAIN feeling SET DEFAULT 'sad'",
                "COMMENT ON TYPE humour IS 'tells nothing of tables'",
                "DROP DOMAIN moods CASCADE",
            ])
            .await;
        let all = "arrays(id m), composite(p), domain(m), feel(m), plain(m), range(s), row_of(p)";
        assert_eq!(
            told,
            [
                "end ALTER TYPE: composite(p)",
                &format!("end ALTER TYPE: {all}"),
                "end ALTER DOMAIN: composite(p), feel(m)",
                "drop DROP DOMAIN: domain(), -domain.m",
            ],
            "{major}"
        );
    }
}

#[tokio::test]
async fn partitions_attached_and_detached_tell_the_root() {
    for major in MAJORS {
        let source = Source::of(major).await;
        source
            .run(&[
                "CREATE TABLE root (id int, d int) PARTITION BY LIST (d)",
                "CREATE TABLE mid PARTITION OF root FOR VALUES IN (1, 2) PARTITION BY LIST (id)",
                "CREATE TABLE leaf PARTITION OF mid FOR VALUES IN (1)",
                "CREATE TABLE late (id int, d int)",
            ])
            .await;
        let messages = source.messages().await;
        let created = |name: &str| {
            let tables = messages.iter().flat_map(|message| &message.tables);
            tables.filter(|table| table.name.table == name && table.is_created).count()
        };
        let made = ["root", "mid", "leaf", "late"].map(created);
        assert_eq!(made, [1; 4], "{major}: a root is told with its partitions, and made but once");
        let statements = [
            "ALTER TABLE mid ATTACH PARTITION late FOR VALUES IN (2)",
            "ALTER TABLE mid DETACH PARTITION leaf",
            "ALTER TABLE root DETACH PARTITION mid CONCURRENTLY",
        ];
        let mut partitions = Vec::new();
        for statement in statements {
            source.run(&[statement]).await;
            let messages = source.messages().await;
            let root =
                messages.last().unwrap().tables.iter().find(|table| table.name.table == "root").unwrap();
            partitions.push(root.partitions.as_ref().unwrap().len());
        }
        assert_eq!(partitions, [3, 2, 0], "{major}");
    }
}

#[tokio::test]
async fn children_are_told_with_their_parent() {
    let source = Source::of(15).await;
    source
        .run(&[
            "CREATE TABLE parent (id int); CREATE TABLE child (x int) INHERITS (parent)",
            "CREATE TABLE root (id int) PARTITION BY LIST (id); CREATE TABLE leaf PARTITION OF root DEFAULT",
        ])
        .await;
    source.messages().await;
    let told = source
        .told(&[
            "ALTER TABLE parent ADD y int",
            "ALTER TABLE root ADD y int",
            "CREATE PUBLICATION leaves FOR TABLE root",
            "ALTER TABLE root ADD z int",
        ])
        .await;
    assert_eq!(
        told,
        [
            "end ALTER TABLE: child(id x y), parent(id y)",
            // Without a publication of partitions their own shape is nobody's concern.
            "end ALTER TABLE: root(id y)",
            "end ALTER TABLE: leaf(id y z), root(id y z)",
        ]
    );
}

#[tokio::test]
async fn a_rewrite_says_whether_rows_hold_other_values_afterwards() {
    for major in MAJORS {
        let source = Source::of(major).await;
        source.run(&["CREATE UNLOGGED TABLE t (id int); INSERT INTO t VALUES (1)"]).await;
        source.messages().await;
        let mut rewrites: Vec<Vec<(bool, bool)>> = Vec::new();
        for statement in [
            "ALTER TABLE t SET LOGGED",
            "ALTER TABLE t ADD fixed timestamptz DEFAULT now()",
            "ALTER TABLE t ADD random float8 DEFAULT random()",
            "ALTER TABLE t ALTER id TYPE text USING 'other'",
            "ALTER TABLE t ALTER id TYPE varchar",
        ] {
            source.run(&[statement]).await;
            let messages = source.messages().await;
            let rewritten: Vec<_> = messages.iter().flat_map(|message| &message.rewritten).collect();
            rewrites.push(rewritten.iter().map(|r| (r.changes_values(), r.changes_persistence())).collect());
        }
        let wanted: [Vec<(bool, bool)>; 5] =
            [vec![(false, true)], vec![], vec![(true, false)], vec![(true, false)], vec![]];
        assert_eq!(rewrites, wanted, "{major}");
    }
}

#[tokio::test]
async fn what_an_extension_creates_alters_and_drops_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let extension = folder.path().join("extension");
    std::fs::create_dir(&extension).unwrap();
    for (name, text) in [
        ("shop.control", "default_version = '1'\nrelocatable = true\n"),
        (
            "shop--1.sql",
            "CREATE TABLE stock (id int); CREATE TEMP TABLE passing (x int); DROP TABLE passing; CREATE TABLE more AS SELECT 1 AS one;",
        ),
        ("shop--1--2.sql", "ALTER TABLE stock ADD COLUMN held int;"),
    ] {
        std::fs::write(extension.join(name), text).unwrap();
    }
    let path = format!("{}:$system", folder.path().display());
    let source = Source::start(Postgres::version(18).set("extension_control_path", &path)).await;
    let told = source
        .told(&[
            "CREATE EXTENSION shop",
            "ALTER EXTENSION shop UPDATE TO '2'",
            "CREATE SCHEMA elsewhere; ALTER EXTENSION shop SET SCHEMA elsewhere",
            "DROP EXTENSION shop",
        ])
        .await;
    assert_eq!(
        told,
        [
            "end CREATE TABLE: +stock(id)",
            "end CREATE TABLE AS: +more(one)",
            "end ALTER TABLE: stock(id held)",
            "end ALTER EXTENSION: more(one), stock(id held)",
            "end ALTER EXTENSION: more(one), stock(id held)",
            "drop DROP EXTENSION: -more, -stock",
        ]
    );
}
