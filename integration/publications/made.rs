//! What the catalog tells of a partition: whether it was made as one, or brought rows of its own.

use tidemark::postgres::published::{self, KnownParts, Part, Sight};
use tidemark::postgres::wire::{self, ConnectOptions, Session};
use tokio_postgres::Client;

use crate::support::Postgres;

/// Columns of a partitioned table, and what else it has. Those of a fixed width need no TOAST.
const SHAPES: [&str; 9] = [
    "(id int, n int)",
    "(id int)",
    "(id int PRIMARY KEY)",
    "(id int PRIMARY KEY, n int)",
    "(id int NOT NULL, n int NOT NULL DEFAULT 7, CHECK (n > 0))",
    "(id int PRIMARY KEY, n int REFERENCES other)",
    "(id int, n int, note text)",
    "(id int PRIMARY KEY, n int, note text)",
    "(id int PRIMARY KEY, n int, note text, UNIQUE (id, note))",
];

/// What comes before and after the statements: each is a transaction of its own, or all are one.
const TRANSACTIONS: [(&str, &str); 3] =
    [("", ""), ("BEGIN", "COMMIT"), ("BEGIN; SAVEPOINT s", "RELEASE s; COMMIT")];

/// Makes a table of the shape; gives partitions of it, and whether they came without rows.
async fn partitions(client: &Client, root: &str, shape: &str) -> Vec<(String, bool)> {
    let sql = async |statements: [&str; 5]| {
        for statement in statements {
            client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
    };
    client.batch_execute(&format!("CREATE TABLE {root} {shape} PARTITION BY RANGE (id)")).await.unwrap();
    let (mut all, mut id) = (Vec::new(), 0);
    let mut next = |quiet: bool| {
        id += 10;
        let leaf = format!("{root}_{id}");
        all.push((leaf.clone(), quiet));
        (leaf, id, format!("FOR VALUES FROM ({id}) TO ({})", id + 10))
    };
    for (begin, end) in TRANSACTIONS {
        for options in ["", "(id DEFAULT 7)"] {
            let (leaf, id, bounds) = next(true);
            let create = format!("CREATE TABLE {leaf} PARTITION OF {root} {options} {bounds}");
            sql([begin, &create, &format!("INSERT INTO {root} (id) VALUES ({id})"), "", end]).await;
        }
        for like in ["INCLUDING CONSTRAINTS", "INCLUDING ALL"] {
            let (leaf, id, bounds) = next(false);
            let create = format!("CREATE TABLE {leaf} (LIKE {root} {like} INCLUDING DEFAULTS)");
            let insert = format!("INSERT INTO {leaf} (id) VALUES ({id})");
            let attach = format!("ALTER TABLE {root} ATTACH PARTITION {leaf} {bounds}");
            sql([begin, &create, &insert, &attach, end]).await;
            // What is rolled back leaves its commands in the catalog.
            let detach = format!("ALTER TABLE {root} DETACH PARTITION {leaf}");
            sql(["BEGIN", &detach, "ROLLBACK; BEGIN", &format!("DROP TABLE {leaf}"), "ROLLBACK"]).await;
        }
    }
    all
}

async fn look(server: &Postgres) -> Sight {
    let options = ConnectOptions::parse(&server.url(), &|_| None).unwrap();
    let mut session = wire::Client::connect(&options, Session::Sql).await.unwrap();
    published::look(&mut session, "p", &KnownParts::new()).await.unwrap()
}

async fn part(client: &Client, sight: &Sight, leaf: &str) -> Option<Part> {
    let oid: u32 = client.query_one("SELECT $1::text::regclass::oid", &[&leaf]).await.unwrap().get(0);
    let mut roots = sight.tables.values().filter(|table| table.partitioned);
    roots.find_map(|table| table.parts.get(&oid)).copied()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_made_as_one_is_told_from_a_table_with_rows_that_was_attached() {
    for version in 14..=18 {
        let server = Postgres::version(version).start().await;
        let client = server.connect().await;
        client.batch_execute("CREATE TABLE other (n int PRIMARY KEY)").await.unwrap();
        let mut expected = Vec::new();
        for (number, shape) in SHAPES.iter().enumerate() {
            expected.extend(partitions(&client, &format!("root_{number}"), shape).await);
        }
        let publish = "CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root)";
        client.batch_execute(publish).await.unwrap();
        let sight = look(&server).await;
        let mut wrong = Vec::new();
        for (leaf, expected) in expected {
            let found = part(&client, &sight, &leaf).await.map(|part| part.quiet);
            wrong.extend((found != Some(expected)).then_some((leaf, found)));
        }
        assert!(wrong.is_empty(), "PostgreSQL {version}: {wrong:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_truncated_is_told_from_one_that_came_with_another_file() {
    const STATEMENTS: [&str; 8] = [
        "CREATE TABLE root (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)",
        "BEGIN; CREATE UNLOGGED TABLE moved (LIKE root INCLUDING ALL); ALTER TABLE moved SET LOGGED;
         ALTER TABLE root ATTACH PARTITION moved FOR VALUES FROM (0) TO (10); COMMIT",
        "CREATE TABLE emptied (LIKE root INCLUDING ALL); INSERT INTO emptied VALUES (10)",
        "TRUNCATE emptied",
        "ALTER TABLE root ATTACH PARTITION emptied FOR VALUES FROM (10) TO (20)",
        "CREATE TABLE filled PARTITION OF root FOR VALUES FROM (20) TO (30); INSERT INTO root VALUES (20)",
        "TRUNCATE filled",
        "CREATE PUBLICATION p FOR TABLE root WITH (publish_via_partition_root)",
    ];
    for version in 14..=18 {
        let server = Postgres::version(version).start().await;
        let client = server.connect().await;
        for statement in STATEMENTS {
            client.batch_execute(statement).await.unwrap();
        }
        let sight = look(&server).await;
        for (leaf, settled) in [("moved", true), ("emptied", true), ("filled", false)] {
            let part = part(&client, &sight, leaf).await.unwrap();
            assert_eq!(part.settled, settled, "PostgreSQL {version}: {leaf}: {part:?}");
        }
    }
}
