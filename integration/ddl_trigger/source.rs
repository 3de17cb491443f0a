//! A server with the trigger, and a slot through which its messages are read.

use tidemark::postgres::ddl::{self, DdlEvent, DdlMessage};
use tidemark::postgres::wire::{Client, ConnectOptions, Session};

use crate::support::{Postgres, PostgresBuilder};

/// What the slot gives: a row as `test_decoding` prints it, or a message.
#[derive(Debug)]
pub enum Entry {
    Row(String),
    Ddl(Box<DdlMessage>),
}

/// A server with the trigger installed in its database `postgres`.
pub struct Source {
    pub server: Postgres,
    /// As a superuser, and a user of the database.
    pub user: tokio_postgres::Client,
    /// As Tidemark asks.
    pub client: Client,
}

impl Source {
    pub async fn start(builder: PostgresBuilder) -> Self {
        let server = builder.start().await;
        let user = server.connect().await;
        let mut client = sql(&server, "postgres", "postgres").await;
        client.execute(&ddl::install_sql(client.server_version())).await.unwrap();
        user.batch_execute("SELECT pg_create_logical_replication_slot('s', 'test_decoding')").await.unwrap();
        Self { server, user, client }
    }

    /// Of that major.
    pub async fn of(major: u32) -> Self {
        println!("PostgreSQL {major}");
        Self::start(Postgres::version(major)).await
    }

    /// Runs statements, each by itself.
    pub async fn run(&self, statements: &[&str]) {
        for statement in statements {
            self.user.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }

    /// What has come since the last call, in order.
    pub async fn entries(&self) -> Vec<Entry> {
        let sql = "SELECT data FROM pg_logical_slot_get_changes('s', NULL, NULL, 'include-xids', '0')";
        let rows = self.user.query(sql, &[]).await.unwrap();
        let entry = |data: String| match data.split_once(" content:") {
            Some((head, content)) if head.contains(&format!("transactional: 1 prefix: {},", ddl::PREFIX)) => {
                Entry::Ddl(Box::new(DdlMessage::parse(content.as_bytes()).unwrap()))
            }
            _ => Entry::Row(data),
        };
        let framing = |data: &String| data.starts_with("BEGIN") || data.starts_with("COMMIT");
        rows.iter().map(|row| row.get(0)).filter(|data| !framing(data)).map(entry).collect()
    }

    /// The messages among them.
    pub async fn messages(&self) -> Vec<DdlMessage> {
        let message = |entry| match entry {
            Entry::Ddl(message) => Some(*message),
            Entry::Row(_) => None,
        };
        self.entries().await.into_iter().filter_map(message).collect()
    }

    /// Runs statements and gives their messages, each as a line: `event tag: +created(columns), altered(columns), -dropped`.
    pub async fn told(&self, statements: &[&str]) -> Vec<String> {
        self.run(statements).await;
        self.messages().await.iter().map(line).collect()
    }
}

/// A session as Tidemark has it.
pub async fn sql(server: &Postgres, role: &str, database: &str) -> Client {
    let options = ConnectOptions::parse(&server.url_as(role, database), &|_| None).unwrap();
    Client::connect(&options, Session::Sql).await.unwrap()
}

/// A message in short.
pub fn line(message: &DdlMessage) -> String {
    let event = match message.event {
        DdlEvent::DdlCommandEnd => "end",
        DdlEvent::SqlDrop => "drop",
        DdlEvent::TableRewrite => "rewrite",
    };
    let mut parts = Vec::new();
    for table in &message.tables {
        let columns = table.schema.iter().flat_map(|schema| &schema.columns);
        let columns: Vec<_> = columns.map(|column| column.name.as_str()).collect();
        let mark = if table.is_created { "+" } else { "" };
        parts.push(format!("{mark}{}({})", table.name.table, columns.join(" ")));
    }
    parts.sort();
    let mut gone: Vec<_> = message.dropped.iter().map(|table| format!("-{}", table.name.table)).collect();
    gone.extend(message.dropped_columns.iter().map(|gone| format!("-{}.{}", gone.table.table, gone.name)));
    gone.sort();
    parts.extend(gone);
    format!("{event} {}: {}", message.tag, parts.join(", "))
}
