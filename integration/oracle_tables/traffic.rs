//! What happens to a seed's tables: transactions of two sessions, interleaved, with savepoints, changes of schema and
//! statements that fail.

use std::pin::pin;

use bytes::Bytes;
use futures::SinkExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio_postgres::Client;

use super::schema::SchemaChange;
use super::tables::{Table, literal, quoted};
use crate::oracle::source::Kind;

/// Tables of one seed.
const TABLES: usize = 2;
/// Where the row that is changed stands: any one, the same one for a seed.
const ANY_ROW: &str = "(tableoid, ctid) = (SELECT tableoid, ctid FROM {t} AS whole_row ORDER BY md5(whole_row::text), ctid OFFSET {n} LIMIT 1)";

/// A seed with its tables, and what was done to them.
pub struct Seed {
    pub number: u64,
    pub schema: String,
    pub tables: Vec<Table>,
    /// The statements that succeeded, by table.
    pub done: Vec<(String, String)>,
    pub(super) random: StdRng,
    pub(super) labels: usize,
    /// A session in the middle of a transaction.
    open: Option<Client>,
}

impl Seed {
    /// Makes the tables of a seed, with rows.
    pub async fn make(number: u64, sql: &Client) -> Self {
        let random = StdRng::seed_from_u64(number);
        let schema = format!("s{number}");
        let mut seed = Self {
            number,
            schema: schema.clone(),
            tables: Vec::new(),
            done: Vec::new(),
            random,
            labels: 0,
            open: None,
        };
        let made = format!(
            "CREATE SCHEMA {schema}; CREATE TYPE {schema}.mood AS ENUM ('sad', 'ok', 'happy \"day\", it''s');
             CREATE DOMAIN {schema}.price AS numeric(8,2); CREATE DOMAIN {schema}.label0 AS varchar(15);
             CREATE DOMAIN {schema}.label AS {schema}.label0; CREATE TYPE {schema}.pair AS (a int, b text)"
        );
        seed.run(sql, "", made).await.unwrap();
        for number in 0..TABLES {
            let table = Table::random(&schema, number, &mut seed.random);
            let made = table.sql(&mut seed.random);
            seed.run(sql, &table.name, made).await.unwrap();
            seed.tables.push(table);
            for _ in 0..seed.random.random_range(0..8) {
                let insert = seed.insert(number);
                let name = seed.tables[number].name.clone();
                // Two rows with one key are refused.
                let _ = seed.run(sql, &name, insert).await;
            }
        }
        seed
    }

    /// The rows that were there before anything was captured, once more into the tables' twins.
    pub async fn fill_twins(&mut self, sql: &Client) {
        for at in 0..self.tables.len() {
            let table = &self.tables[at];
            let fill = format!("INSERT INTO {} SELECT * FROM {}", table.quoted_twin(), table.quoted());
            let name = table.name.clone();
            self.run(sql, &name, fill).await.unwrap();
        }
    }

    /// Some rounds of transactions. Those of two sessions meet, on different tables.
    pub async fn rounds(&mut self, count: usize, sessions: [&Client; 2], changes: &[SchemaChange]) {
        for _ in 0..count {
            let first = self.random.random_range(0..TABLES);
            let mut turns = Vec::new();
            for (session, sql) in sessions.iter().enumerate() {
                sql.batch_execute("BEGIN").await.unwrap();
                turns.extend(std::iter::repeat_n(session, self.random.random_range(1..5)));
            }
            rand::seq::SliceRandom::shuffle(&mut turns[..], &mut self.random);
            let before = [self.tables[first].clone(), self.tables[1 - first].clone()];
            for session in turns {
                let table = if session == 0 { first } else { 1 - first };
                self.step(sessions[session], table, changes).await;
            }
            let last = usize::from(self.random.random_bool(0.5));
            for (session, before) in [(1 - last, &before[1 - last]), (last, &before[last])] {
                if self.random.random_bool(0.12) {
                    sessions[session].batch_execute("ROLLBACK").await.unwrap();
                    self.tables[if session == 0 { first } else { 1 - first }] = before.clone();
                    self.done.push((before.name.clone(), "-- rolled back".to_owned()));
                } else {
                    sessions[session].batch_execute("COMMIT").await.unwrap();
                    self.done.push((before.name.clone(), "-- committed".to_owned()));
                }
            }
        }
    }

    /// Begins a transaction that is still open at the cut.
    pub async fn open(&mut self, sql: Client) {
        sql.batch_execute("BEGIN").await.unwrap();
        for _ in 0..2 {
            // Nothing that keeps others from reading the table.
            let insert = self.insert(0);
            let update = self.update(0).unwrap_or(insert);
            let name = self.tables[0].name.clone();
            sql.batch_execute("SAVEPOINT step").await.unwrap();
            if self.run(&sql, &name, update).await.is_err() {
                sql.batch_execute("ROLLBACK TO step").await.unwrap();
            }
        }
        self.open = Some(sql);
    }

    /// Ends it.
    pub async fn close(&mut self) {
        if let Some(sql) = self.open.take() {
            sql.batch_execute("COMMIT").await.unwrap();
        }
    }

    /// One or a few statements on a table, sometimes within a savepoint that is given up.
    async fn step(&mut self, sql: &Client, at: usize, changes: &[SchemaChange]) {
        let before = self.tables[at].clone();
        let name = before.name.clone();
        let given_up = self.random.random_bool(0.1);
        sql.batch_execute("SAVEPOINT step").await.unwrap();
        let statement = match self.random.random_range(0..100) {
            0..12 if !changes.is_empty() => {
                let change = *changes.choose(&mut self.random).unwrap();
                change.apply(self, at)
            }
            0..40 => Some(self.insert(at)),
            40..48 => self.copy(sql, at).await,
            48..68 => self.update(at),
            68..76 => self.move_key(at),
            76..86 => Some(self.on_any_row(at, "DELETE FROM {t} WHERE ")),
            86..93 => self.upsert(at),
            93..98 => self.update_all(at),
            _ => Some(format!("TRUNCATE {}", self.tables[at].quoted())),
        };
        let succeeded = match statement {
            Some(statement) => self.run(sql, &name, statement).await.is_ok(),
            None => true,
        };
        if given_up || !succeeded {
            sql.batch_execute("ROLLBACK TO step").await.unwrap();
            self.tables[at] = before;
            self.done.push((name, "-- and back".to_owned()));
        }
    }

    pub(super) async fn run(&mut self, sql: &Client, table: &str, statement: String) -> Result<(), ()> {
        let done = sql.batch_execute(&statement).await;
        if let Err(error) = &done {
            use tokio_postgres::error::SqlState as State;
            // Keys that are there already, and partitions: what else fails is a mistake of this test.
            let expected =
                [State::UNIQUE_VIOLATION, State::CARDINALITY_VIOLATION, State::UNSAFE_NEW_ENUM_VALUE_USAGE];
            assert!(
                error.code().is_some_and(|code| expected.contains(code)),
                "seed {}: {statement}: {error:?}",
                self.number
            );
        } else {
            self.done.push((table.to_owned(), statement));
        }
        done.map_err(drop)
    }

    fn insert(&mut self, at: usize) -> String {
        let count = self.random.random_range(1..4);
        let rows: Vec<_> = (0..count).map(|_| self.values(at)).collect();
        let table = &self.tables[at];
        format!("INSERT INTO {} ({}) VALUES {}", table.quoted(), table.column_list(), rows.join(", "))
    }

    fn values(&mut self, at: usize) -> String {
        let row = self.tables[at].row(&mut self.random);
        format!("({})", row.iter().map(|value| sql_value(value.as_ref())).collect::<Vec<_>>().join(", "))
    }

    /// COPY of new rows; done at once.
    async fn copy(&mut self, sql: &Client, at: usize) -> Option<String> {
        let rows: Vec<_> = (0..3).map(|_| self.tables[at].row(&mut self.random)).collect();
        let table = &self.tables[at];
        let keyless = table.key.is_empty();
        let copy = format!("COPY {} ({}) FROM STDIN", table.quoted(), table.column_list());
        let text: String = rows
            .iter()
            .map(|row| {
                row.iter().map(|value| copy_value(value.as_ref())).collect::<Vec<_>>().join("\t") + "\n"
            })
            .collect();
        let mut sink = pin!(sql.copy_in::<_, Bytes>(&copy).await.unwrap());
        sink.send(Bytes::from(text.clone())).await.unwrap();
        let copied = sink.finish().await;
        if copied.is_ok() {
            self.done.push((self.tables[at].name.clone(), format!("{copy};\n{text}\\.")));
            return None;
        }
        assert!(!keyless, "seed {}: {copy}\n{text}{:?}", self.number, copied.unwrap_err());
        // The caller gives the savepoint up only for a statement that fails.
        sql.batch_execute("ROLLBACK TO step; SAVEPOINT step").await.unwrap();
        None
    }

    fn on_any_row(&mut self, at: usize, statement: &str) -> String {
        let place = self.random.random_range(0..6).to_string();
        format!("{statement}{ANY_ROW}").replace("{n}", &place).replace("{t}", &self.tables[at].quoted())
    }

    /// `"name" = value` for one or two columns, of the key or not.
    fn assignments(&mut self, at: usize, of_key: bool) -> Option<String> {
        let row = self.tables[at].row(&mut self.random);
        let table = &self.tables[at];
        let columns: Vec<_> = table
            .columns
            .iter()
            .zip(row)
            .filter(|(column, _)| table.key.contains(&column.name) == of_key)
            .map(|(column, value)| format!("{} = {}", quoted(&column.name), sql_value(value.as_ref())))
            .collect();
        let chosen: Vec<_> = columns.choose_multiple(&mut self.random, 2).map(String::as_str).collect();
        (!chosen.is_empty()).then(|| chosen.join(", "))
    }

    fn update(&mut self, at: usize) -> Option<String> {
        let set = self.assignments(at, false)?;
        let place = self.on_any_row(at, "");
        Some(format!("UPDATE {} SET {set} WHERE {place}", self.tables[at].quoted()))
    }

    fn move_key(&mut self, at: usize) -> Option<String> {
        let set = self.assignments(at, true)?;
        let place = self.on_any_row(at, "");
        Some(format!("UPDATE {} SET {set} WHERE {place}", self.tables[at].quoted()))
    }

    fn update_all(&mut self, at: usize) -> Option<String> {
        let set = self.assignments(at, false)?;
        Some(format!("UPDATE {} SET {set}", self.tables[at].quoted()))
    }

    fn upsert(&mut self, at: usize) -> Option<String> {
        let values = self.values(at);
        let table = &self.tables[at];
        let key: Vec<_> = table.key.iter().map(|name| quoted(name)).collect();
        let others = table.columns.iter().filter(|column| !table.key.contains(&column.name));
        let set: Vec<_> = others.map(|c| format!("{0} = EXCLUDED.{0}", quoted(&c.name))).collect();
        let action =
            if set.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", set.join(", ")) };
        let insert = format!(
            "INSERT INTO {} ({}) VALUES {values} ON CONFLICT ({}) DO {action}",
            table.quoted(),
            table.column_list(),
            key.join(", ")
        );
        (!key.is_empty()).then_some(insert)
    }

    /// Columns that may be dropped, renamed or changed: not of the key.
    pub(super) fn loose(&mut self, at: usize, wide: bool) -> Option<usize> {
        let table = &self.tables[at];
        let loose: Vec<_> = (0..table.columns.len())
            .filter(|place| {
                let column = &table.columns[*place];
                !table.key.contains(&column.name) && (wide || column.of.kind != Kind::Wide)
            })
            .collect();
        loose.choose(&mut self.random).copied()
    }
}

fn sql_value(value: Option<&String>) -> String {
    value.map_or_else(|| "NULL".to_owned(), |text| literal(text))
}

fn copy_value(value: Option<&String>) -> String {
    let Some(text) = value else { return "\\N".to_owned() };
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}
