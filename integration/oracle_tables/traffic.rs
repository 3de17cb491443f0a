//! What happens to a seed's tables: transactions of two sessions, interleaved, with savepoints, changes of schema and
//! statements that fail.

use std::pin::pin;

use bytes::Bytes;
use futures::SinkExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::draw::Draw;
use super::events::Event;
use super::schema::SchemaChange;
use super::tables::{Identity, Table, literal, quoted};
use crate::oracle::source::Kind;
use crate::support::Running;

/// Tables of one seed that its sessions change.
const TABLES: usize = 2;
/// Rows of an INSERT that makes a transaction large.
const MANY: usize = 25;
/// Where the row that is changed stands: any one, the same one for a seed.
const ANY_ROW: &str = "(tableoid, ctid) = (SELECT tableoid, ctid FROM {t} AS whole_row ORDER BY md5(whole_row::text), ctid OFFSET {n} LIMIT 1)";

/// A seed with its tables, and what was done to them.
pub struct Seed {
    pub number: u64,
    pub schema: String,
    pub draw: Draw,
    pub tables: Vec<Table>,
    /// The statements that succeeded, by table.
    pub done: Vec<(String, String)>,
    pub(super) random: StdRng,
    pub(super) labels: usize,
    /// A session in the middle of a transaction; without it, one that was prepared.
    open: Option<Option<Client>>,
    /// Transactions that were prepared.
    prepared: usize,
}

/// What a run does.
pub struct Script<'s> {
    /// Sessions whose transactions meet.
    pub sessions: [&'s Client; 2],
    /// A session for what happens between them.
    pub alone: &'s Client,
    pub running: &'s Running,
    pub changes: &'s [SchemaChange],
    pub events: &'s [Event],
}

impl Seed {
    /// Makes the tables of a seed, with rows.
    pub async fn make(number: u64, draw: Draw, sql: &Client) -> Self {
        let random = StdRng::seed_from_u64(number);
        let schema = format!("s{number}");
        let mut seed = Self {
            number,
            schema: schema.clone(),
            draw,
            tables: Vec::new(),
            done: Vec::new(),
            random,
            labels: 0,
            open: None,
            prepared: 0,
        };
        let made = format!(
            "CREATE SCHEMA {schema}; CREATE TYPE {schema}.mood AS ENUM ('sad', 'ok', 'happy \"day\", it''s');
             CREATE DOMAIN {schema}.price AS numeric(8,2); CREATE DOMAIN {schema}.label0 AS varchar(15);
             CREATE DOMAIN {schema}.label AS {schema}.label0; CREATE TYPE {schema}.pair AS (a int, b text);
             CREATE DOMAIN {schema}.tags AS text[];
             CREATE TYPE {schema}.floats AS RANGE (subtype = float8)"
        );
        seed.run(sql, "", made).await.unwrap();
        for number in 0..TABLES {
            let table = Table::random(&schema, number, draw, &mut seed.random);
            let made = table.sql(&mut seed.random);
            seed.run(sql, &table.name, made).await.unwrap();
            seed.tables.push(table);
            for _ in 0..seed.random.random_range(0..8) {
                let insert = seed.insert(number, 3);
                let name = seed.tables[number].name.clone();
                // Two rows with one key are refused.
                let _ = seed.run(sql, &name, insert).await;
            }
        }
        for (number, name) in ["hub", "spoke"].into_iter().enumerate() {
            let table = Table::of_pair(&schema, TABLES + number, name, draw);
            let made = table.sql(&mut seed.random);
            seed.run(sql, name, made).await.unwrap();
            seed.tables.push(table);
        }
        let refer = format!(
            "INSERT INTO {schema}.hub VALUES (1), (2); INSERT INTO {schema}.spoke VALUES (1, 1), (2, NULL);
             ALTER TABLE {schema}.spoke ADD FOREIGN KEY (hub) REFERENCES {schema}.hub ON DELETE CASCADE ON UPDATE CASCADE"
        );
        seed.run(sql, "", refer).await.unwrap();
        seed
    }

    /// The rows that were there before anything was captured, once more into the tables' twins.
    pub async fn fill_twins(&mut self, sql: &Client) {
        for at in 0..self.tables.len() {
            let table = &self.tables[at];
            let (columns, twin) = (table.column_list(), table.quoted_twin());
            let fill = format!("INSERT INTO {twin} ({columns}) SELECT {columns} FROM {}", table.quoted());
            let name = table.name.clone();
            self.run(sql, &name, fill).await.unwrap();
        }
    }

    /// Some rounds of transactions. Those of two sessions meet, on different tables.
    pub async fn rounds(&mut self, count: usize, script: &Script<'_>) {
        for _ in 0..count {
            if let Some(event) = script.events.choose(&mut self.random)
                && self.random.random_bool(0.12)
            {
                event.happen(self, script.alone, script.running).await;
            }
            let first = self.random.random_range(0..TABLES);
            let mut turns = Vec::new();
            for (session, sql) in script.sessions.iter().enumerate() {
                sql.batch_execute("BEGIN").await.unwrap();
                turns.extend(std::iter::repeat_n(session, self.random.random_range(1..5)));
            }
            rand::seq::SliceRandom::shuffle(&mut turns[..], &mut self.random);
            let before = [self.tables[first].clone(), self.tables[1 - first].clone()];
            for session in turns {
                let table = if session == 0 { first } else { 1 - first };
                self.turn(script.sessions[session], table, script.changes).await;
            }
            let last = usize::from(self.random.random_bool(0.5));
            let [one, other] = [1 - last, last].map(|session| script.sessions[session]);
            let one_prepared = self.end(one, &before[1 - last]).await;
            let other_prepared = self.end(other, &before[last]).await;
            for (sql, name, before) in
                [(one, one_prepared, &before[1 - last]), (other, other_prepared, &before[last])]
            {
                if let Some(name) = name {
                    let commit = self.random.random_bool(0.7);
                    let end = if commit { "COMMIT" } else { "ROLLBACK" };
                    sql.batch_execute(&format!("{end} PREPARED '{name}'")).await.unwrap();
                    self.ended(before, commit);
                }
            }
        }
    }

    /// Ends a transaction on a table that was so before. Gives its name if it was only prepared.
    async fn end(&mut self, sql: &Client, before: &Table) -> Option<String> {
        let how = self.random.random_range(0..100);
        if how < 10 {
            let name = self.prepare(sql).await;
            self.done.push((before.name.clone(), format!("-- prepared as {name}")));
            return Some(name);
        }
        let commit = how >= 22;
        sql.batch_execute(if commit { "COMMIT" } else { "ROLLBACK" }).await.unwrap();
        self.ended(before, commit);
        None
    }

    async fn prepare(&mut self, sql: &Client) -> String {
        self.prepared += 1;
        let name = format!("{}_{}", self.schema, self.prepared);
        sql.batch_execute(&format!("PREPARE TRANSACTION '{name}'")).await.unwrap();
        name
    }

    fn ended(&mut self, before: &Table, committed: bool) {
        let what = if committed { "-- committed" } else { "-- rolled back" };
        self.done.push((before.name.clone(), what.to_owned()));
        if !committed {
            let at = self.tables.iter().position(|table| table.name == before.name).unwrap();
            self.tables[at] = before.clone();
        }
    }

    /// Begins a transaction that is still open at the cut, or prepares one.
    pub async fn open(&mut self, sql: Client) {
        sql.batch_execute("BEGIN").await.unwrap();
        for _ in 0..2 {
            // Nothing that keeps others from reading the table.
            let insert = self.insert(0, 3);
            let update = if self.tables[0].identity == Identity::Nothing { None } else { self.update(0) };
            let name = self.tables[0].name.clone();
            sql.batch_execute("SAVEPOINT step").await.unwrap();
            if self.run(&sql, &name, update.unwrap_or(insert)).await.is_err() {
                sql.batch_execute("ROLLBACK TO step").await.unwrap();
            }
        }
        if self.number.is_multiple_of(3) {
            self.prepare(&sql).await;
            self.open = Some(None);
        } else {
            self.open = Some(Some(sql));
        }
    }

    /// Ends it.
    pub async fn close(&mut self, sql: &Client) {
        match self.open.take() {
            Some(Some(sql)) => sql.batch_execute("COMMIT").await.unwrap(),
            Some(None) => {
                let commit = format!("COMMIT PREPARED '{}_{}'", self.schema, self.prepared);
                sql.batch_execute(&commit).await.unwrap();
            }
            None => {}
        }
    }

    /// A step, or two of them within a savepoint of their own.
    async fn turn(&mut self, sql: &Client, at: usize, changes: &[SchemaChange]) {
        if !self.random.random_bool(0.12) {
            return self.step(sql, at, changes).await;
        }
        let before = self.tables[at].clone();
        sql.batch_execute("SAVEPOINT turn").await.unwrap();
        self.step(sql, at, changes).await;
        self.step(sql, at, changes).await;
        if self.random.random_bool(0.4) {
            sql.batch_execute("ROLLBACK TO turn").await.unwrap();
            self.done.push((before.name.clone(), "-- and both back".to_owned()));
            self.tables[at] = before;
        } else {
            sql.batch_execute("RELEASE turn").await.unwrap();
        }
    }

    /// One or a few statements on a table, sometimes within a savepoint that is given up.
    async fn step(&mut self, sql: &Client, at: usize, changes: &[SchemaChange]) {
        let before = self.tables[at].clone();
        let name = before.name.clone();
        let given_up = self.random.random_bool(0.1);
        sql.batch_execute("SAVEPOINT step").await.unwrap();
        let kind = self.random.random_range(0..106);
        let statement = match kind {
            0..9 if !changes.is_empty() => {
                let change = *changes.choose_weighted(&mut self.random, |change| change.weight()).unwrap();
                change.apply(self, at)
            }
            0..40 => Some(self.insert(at, 3)),
            40..48 => self.copy(sql, at).await,
            100..103 => Some(self.insert(at, MANY) + " ON CONFLICT DO NOTHING"),
            48..98 | 103.. if self.tables[at].identity == Identity::Nothing => None,
            103.. => self.merge(at),
            48..68 => self.update(at),
            68..76 => self.move_key(at),
            76..86 => Some(self.on_any_row(at, "DELETE FROM {t} WHERE ")),
            86..93 => self.upsert(at),
            93..98 => self.update_all(at),
            _ if changes.is_empty() && !self.tables[at].leaves.is_empty() => None,
            _ => Some(self.truncate(at)),
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
            assert!(is_expected(error), "seed {}: {statement}: {error:?}", self.number);
        } else {
            self.done.push((table.to_owned(), statement));
        }
        done.map_err(drop)
    }

    pub(super) fn insert(&mut self, at: usize, most: usize) -> String {
        let count = if most == MANY { most } else { self.random.random_range(1..=most) };
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
        let copy = format!("COPY {} ({}) FROM STDIN", table.quoted(), table.column_list());
        let text: String = rows
            .iter()
            .map(|row| {
                row.iter().map(|value| copy_value(value.as_ref())).collect::<Vec<_>>().join("\t") + "\n"
            })
            .collect();
        let mut sink = pin!(sql.copy_in::<_, Bytes>(&copy).await.unwrap());
        sink.send(Bytes::from(text.clone())).await.unwrap();
        let Err(error) = sink.finish().await else {
            self.done.push((self.tables[at].name.clone(), format!("{copy};\n{text}\\.")));
            return None;
        };
        assert!(is_expected(&error), "seed {}: {copy}\n{text}{error:?}", self.number);
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
            .written()
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

    fn truncate(&mut self, at: usize) -> String {
        let table = &mut self.tables[at];
        if !table.leaves.is_empty() {
            // Within a savepoint it has another transaction's number than the stream tells.
            table.may_lack = Some("partitions were emptied");
        }
        format!("TRUNCATE {}", table.quoted())
    }

    fn update_all(&mut self, at: usize) -> Option<String> {
        let set = self.assignments(at, false)?;
        Some(format!("UPDATE {} SET {set}", self.tables[at].quoted()))
    }

    fn upsert(&mut self, at: usize) -> Option<String> {
        let values = self.values(at);
        let table = &self.tables[at];
        let key: Vec<_> = table.key.iter().map(|name| quoted(name)).collect();
        let others = table.written().filter(|column| !table.key.contains(&column.name));
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

    /// MERGE of one row.
    fn merge(&mut self, at: usize) -> Option<String> {
        let row = self.tables[at].row(&mut self.random);
        let delete = self.random.random_bool(0.3);
        let table = &self.tables[at];
        if self.draw.major < 15 || table.key.is_empty() {
            return None;
        }
        let of = |alias: &str, names: &[&str]| -> Vec<String> {
            names.iter().map(|name| format!("{alias}{}", quoted(name))).collect()
        };
        let names: Vec<&str> = table.written().map(|column| column.name.as_str()).collect();
        let value = |(column, value): (&super::tables::Column, Option<String>)| {
            format!("{}::{} AS {}", sql_value(value.as_ref()), column.sql, quoted(&column.name))
        };
        let values: Vec<_> = table.written().zip(row).map(value).collect();
        let on: Vec<_> = table.key.iter().map(|name| format!("t.{0} = s.{0}", quoted(name))).collect();
        let others = names.iter().filter(|name| !table.key.iter().any(|key| key == *name));
        let set: Vec<_> = others.map(|name| format!("{0} = s.{0}", quoted(name))).collect();
        let matched = match (delete, set.is_empty()) {
            (true, _) => "DELETE".to_owned(),
            (false, true) => "DO NOTHING".to_owned(),
            (false, false) => format!("UPDATE SET {}", set.join(", ")),
        };
        Some(format!(
            "MERGE INTO {} AS t USING (SELECT {}) AS s ON {} WHEN MATCHED THEN {matched} WHEN NOT MATCHED THEN INSERT ({}) VALUES ({})",
            table.quoted(),
            values.join(", "),
            on.join(" AND "),
            of("", &names).join(", "),
            of("s.", &names).join(", ")
        ))
    }

    /// Columns that may be dropped, renamed or changed: not of the key.
    pub(super) fn loose(&mut self, at: usize, wide: bool) -> Option<usize> {
        let table = &self.tables[at];
        let loose: Vec<_> = (0..table.columns.len())
            .filter(|place| {
                let column = &table.columns[*place];
                !table.key.contains(&column.name)
                    && column.from.is_none()
                    && !table.columns.iter().any(|other| other.from.as_ref() == Some(&column.name))
                    && (wide || column.of.kind != Kind::Wide)
                    // What a dropped column's own type was made of, the catalog does not say any more.
                    && (self.draw.triggers || !(column.of.sql.contains("{s}") || column.of.sql == "citext[]"))
            })
            .collect();
        loose.choose(&mut self.random).copied()
    }
}

/// Keys that are there already, partitions, and labels that are too new: what else fails is a mistake of this test.
fn is_expected(error: &Error) -> bool {
    let expected = [
        SqlState::UNIQUE_VIOLATION,
        SqlState::CARDINALITY_VIOLATION,
        SqlState::CHECK_VIOLATION,
        SqlState::UNSAFE_NEW_ENUM_VALUE_USAGE,
    ];
    error.code().is_some_and(|code| expected.contains(code))
}

fn sql_value(value: Option<&String>) -> String {
    value.map_or_else(|| "NULL".to_owned(), |text| literal(text))
}

fn copy_value(value: Option<&String>) -> String {
    let Some(text) = value else { return "\\N".to_owned() };
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}
