//! What the catalog tells of a partition: whether it was made as one, or brought rows of its own.

use tidemark::postgres::published::{self, KnownParts, Sight};
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
        let (leaf, id, bounds) = next(true);
        let create = format!("CREATE TABLE {leaf} PARTITION OF {root} {bounds}");
        sql([begin, &create, &format!("INSERT INTO {root} (id) VALUES ({id})"), "", end]).await;
        for like in ["INCLUDING CONSTRAINTS", "INCLUDING ALL"] {
            let (leaf, id, bounds) = next(false);
            let create = format!("CREATE TABLE {leaf} (LIKE {root} {like} INCLUDING DEFAULTS)");
            let insert = format!("INSERT INTO {leaf} (id) VALUES ({id})");
            let attach = format!("ALTER TABLE {root} ATTACH PARTITION {leaf} {bounds}");
            sql([begin, &create, &insert, &attach, end]).await;
        }
    }
    all
}

fn quiet(sight: &Sight, leaf: u32) -> Option<bool> {
    let roots = sight.tables.values().filter(|table| table.partitioned);
    roots.filter_map(|table| table.parts.get(&leaf)).map(|part| part.quiet).next()
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
        let options = ConnectOptions::parse(&server.url(), &|_| None).unwrap();
        let mut session = wire::Client::connect(&options, Session::Sql).await.unwrap();
        let sight = published::look(&mut session, "p", &KnownParts::new()).await.unwrap();
        let mut wrong = Vec::new();
        for (leaf, expected) in expected {
            let oid: u32 = client.query_one("SELECT $1::text::regclass::oid", &[&leaf]).await.unwrap().get(0);
            let found = quiet(&sight, oid);
            wrong.extend((found != Some(expected)).then_some((leaf, found)));
        }
        assert!(wrong.is_empty(), "PostgreSQL {version}: {wrong:#?}");
    }
}
