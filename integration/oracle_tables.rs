//! Tables and traffic made from seeds, on each of the servers that Tidemark speaks to: what arrives is what Postgres has.
//!
//! ```text
//!   seed ──> tables ──> rows ──> traffic, changes of schema ──> cut ──> more ──> cut ──> copies, rows ──> cut
//!                                   │                            │
//!      test_decoding of the same WAL ┴─ equal ─ log      SELECT ─┴─ equal ─ lake, as pyarrow reads it
//! ```
//!
//! A table's oracle is Postgres itself: `test_decoding`, which knows the shape that a table had when a row was written,
//! and the order of commits; and a SELECT at each cut. Rows that are there before the capture begins are inserted into
//! a second table afterwards: a row is encoded to the same bytes whether it was copied or streamed. What happened to a
//! table without events of its rows is followed by a copy, until which a day may lack the table and says so; the last
//! day lacks none, but for a root that is copied to be sure where the stream was taken up again.
//!
//! Seeds share a server in blocks of [`TOGETHER`]; how it is set up is drawn for each block and version (`draw.rs`).
//!
//! `TIDEMARK_TEST_SEED` is the first seed and `ORACLE_SEEDS` their number: `TIDEMARK_TEST_SEED=17 ORACLE_SEEDS=1` replays
//! one. `TIDEMARK_TEST_POSTGRES` chooses one server, `ORACLE_SCHEMA_CHANGES` kinds of changes (see `schema.rs`),
//! `ORACLE_EVENTS` kinds of events (`events.rs`), `ORACLE_DRAW` the setting (`draw.rs`), and `ORACLE_SQL=1` prints the statements of a table that differs, `ORACLE_LOG=1` what the process said.

mod avro;
mod compare_lake;
mod compare_log;
mod decoded;
mod draw;
mod events;
mod schema;
mod tables;
mod traffic;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::time::Instant;

use crate::oracle::reader::{self, Reader};
use crate::support::clock::Clock;
use crate::support::{Connector, MAJORS, NAME, Postgres, Record, Running};
use compare_lake::State;
use compare_log::Shown;
use draw::{Draw, Files, Published};
use events::Event;
use futures::FutureExt as _;
use schema::SchemaChange;
use tables::Table;
use tokio_postgres::Client;
use traffic::{Script, Seed};

/// Seeds that share a server.
const TOGETHER: u64 = 25;
/// Rounds of transactions before the first cut, and between it and the second.
const ROUNDS: [usize; 2] = [10, 5];
/// Rounds of rows alone, once all is copied that has to be.
const LAST_ROUNDS: usize = 2;
/// Days that are cut: ahead of our own clock, by which /health tells what is overdue.
const DAYS: [&str; 3] = ["2036-03-01", "2036-03-02", "2036-03-03"];

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_is_what_postgres_has_whatever_the_tables_and_their_changes() {
    reader::python();
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
    };
    let first = number("TIDEMARK_TEST_SEED", 1);
    let seeds = first..first + number("ORACLE_SEEDS", 5);
    let one = number("TIDEMARK_TEST_POSTGRES", 0) as u32;
    let mut differences = Vec::new();
    let mut start = seeds.start;
    while start < seeds.end {
        let some = start..seeds.end.min(start - start % TOGETHER + TOGETHER);
        start = some.end;
        // Side by side: each waits for its connector most of the time.
        let majors = MAJORS.into_iter().filter(|major| one == 0 || *major == one);
        let all = majors.map(|major| compare_or_say(Draw::new(major, some.start), some.clone()));
        for found in futures::future::join_all(all).await {
            for difference in &found {
                eprintln!("{difference}\n");
            }
            differences.extend(found);
        }
    }
    assert!(differences.is_empty(), "{} tables differ:\n{}", differences.len(), differences.join("\n\n"));
}

/// What differs among these seeds on one server: a panic is a difference of them all, and the others go on.
async fn compare_or_say(draw: Draw, numbers: Range<u64>) -> Vec<String> {
    let compared = std::panic::AssertUnwindSafe(compare(draw, numbers.clone())).catch_unwind().await;
    compared.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let text = text.unwrap_or_default().chars().take(4000).collect::<String>();
        vec![format!("PostgreSQL {}, seeds {numbers:?}, panicked: {text}", draw.major)]
    })
}

/// Lets the seeds happen on one server, and gives what differs.
async fn compare(draw: Draw, numbers: Range<u64>) -> Vec<String> {
    let (began, named) = (Instant::now(), format!("PostgreSQL {}, seeds {numbers:?}", draw.major));
    eprintln!("{named}: {draw:?}");
    let (changes, events) = (SchemaChange::chosen(draw), Event::chosen(draw));
    let mut world = World::start(draw).await;
    let mut seeds = Vec::new();
    for number in numbers {
        seeds.push(Seed::make(number, draw, &world.client).await);
    }
    world.publish(&seeds).await;
    decoded::begin(&world.client).await;
    let mut running = world.connector.start_ready("run").await;
    let sessions = [world.server.connect().await, world.server.connect().await];
    for session in &sessions {
        // No statement of one session waits for the other: that would be a mistake of this test.
        session.batch_execute("SET lock_timeout = '120s'").await.unwrap();
    }
    let alone = world.server.connect().await;
    let mut script = Script {
        sessions: [&sessions[0], &sessions[1]],
        alone: &alone,
        running: &running,
        changes: &changes,
        events: &events,
    };
    for seed in &mut seeds {
        seed.fill_twins(&world.client).await;
        seed.rounds(ROUNDS[0], &script).await;
        if seed.number % 3 != 1 {
            seed.open(world.server.connect().await).await;
        }
    }
    let mut states = vec![world.cut(0, &running, &seeds).await];
    for seed in &mut seeds {
        seed.close(&world.client).await;
        seed.rounds(ROUNDS[1], &script).await;
    }
    states.push(world.cut(1, &running, &seeds).await);
    let (cut, waits) = (began.elapsed(), Instant::now());
    world.wait_copied(&running).await;
    let copied = waits.elapsed();
    (script.changes, script.events) = (&[], &[]);
    for seed in &mut seeds {
        // What is copied is whole: the last day may lack what the last rounds take from it, and nothing else.
        seed.tables.iter_mut().for_each(|table| table.may_lack = None);
        seed.rounds(LAST_ROUNDS, &script).await;
    }
    states.push(world.cut(2, &running, &seeds).await);
    assert!(running.terminate().await.success(), "{}", running.output());
    if std::env::var_os("ORACLE_LOG").is_some() {
        eprintln!("{}", running.output());
    }
    // What a stream had told of a TRUNCATE is not known to the next one.
    let forgets = running.output().matches(r#""message":"streaming""#).count() > 1;
    let (found, lacked) = world.differences(&seeds, &states, forgets).await;
    let (count, elapsed) = (found.len(), began.elapsed());
    eprintln!(
        "{named}: {count} differences, {lacked} snapshots not yet copied, {elapsed:?} (two days {cut:?}, copies {copied:?})"
    );
    found
}

/// A server whose days the test ends, and its connector.
struct World {
    draw: Draw,
    server: Postgres,
    client: Client,
    clock: Clock,
    connector: Connector,
    _clock_folder: tempfile::TempDir,
}

impl World {
    async fn start(draw: Draw) -> Self {
        let folder = crate::support::clock_folder();
        let noon = format!("{}T12:00:00Z", DAYS[0]).parse().unwrap();
        let clock = Clock::new(folder.path(), noon, jiff::civil::Time::MIN, "UTC");
        let mut builder = draw
            .server(Postgres::version(draw.major))
            .set("max_connections", "60")
            .set("max_prepared_transactions", "60")
            .set("max_locks_per_transaction", "1000");
        for (name, value) in clock.environment() {
            builder = builder.env(name, &value);
        }
        let server = builder.start().await;
        let client = server.connect().await;
        client
            .batch_execute(
                "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET intervalstyle = 'iso_8601'; SET bytea_output = 'hex';
                 CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree",
            )
            .await
            .unwrap();
        let registry = if draw.avro { Some(avro::registry().await.url()) } else { None };
        let connector =
            draw.connector(Connector::new(&server.url()).set("source", "tables", ["s*.*"]), registry);
        Self { draw, server, client, clock, connector, _clock_folder: folder }
    }

    /// Makes the publication, where the connector does not.
    async fn publish(&self, seeds: &[Seed]) {
        let published: Vec<_> =
            seeds.iter().flat_map(|seed| &seed.tables).map(tables::Table::published).collect();
        let what = match self.draw.published {
            Published::Listed => return,
            Published::All => "ALL TABLES".to_owned(),
            Published::Filtered => format!("TABLE {}", published.join(", ")),
        };
        let generated = if self.draw.sends_generated() { ", publish_generated_columns = stored" } else { "" };
        let sql = format!(
            "CREATE PUBLICATION tidemark_{NAME} FOR {what} WITH (publish_via_partition_root = true{generated})"
        );
        self.client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Waits until nothing has to be copied any more. The last cut has looked for what does.
    async fn wait_copied(&self, running: &Running) {
        let lacking = || {
            let health = running.health().1;
            // A partition that was a table of its own for a while is not published as one any more.
            let lacks = |(name, table): (&String, &serde_json::Value)| {
                let lacking = &table["lacking"];
                (!lacking.is_null() && !name.contains(".leaf")).then(|| format!("{name}: {lacking}"))
            };
            health["tables"].as_object().unwrap().iter().filter_map(lacks).collect::<Vec<_>>()
        };
        let start = Instant::now();
        while !lacking().is_empty() {
            assert!(start.elapsed() < crate::support::PATIENCE, "never copied: {:?}", lacking());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Ends a day, and gives what the server has at its cut: nobody commits meanwhile.
    async fn cut(&mut self, day: usize, running: &Running, seeds: &[Seed]) -> Vec<State> {
        let mut states = Vec::new();
        for table in seeds.iter().flat_map(|seed| &seed.tables) {
            states.push(State::load(&self.client, table, self.draw.triggers).await);
        }
        running.cut(DAYS[day]);
        self.connector.wait_published(DAYS[day]).await;
        self.clock.step_ms(24 * 3600 * 1000);
        states
    }

    /// What differs, and how many snapshots days lack. `forgets`: the last one may lack a root.
    async fn differences(
        &self,
        seeds: &[Seed],
        states: &[Vec<State>],
        forgets: bool,
    ) -> (Vec<String>, usize) {
        let decoded = decoded::take(&self.client).await;
        let records = self.records().await;
        let (mut reader, mut found, mut lacked) = (Reader::start(), Vec::new(), 0);
        let made = seeds
            .iter()
            .flat_map(|seed| &seed.tables)
            // A partition that the server describes beside its root has a topic without records so far.
            .flat_map(|table| {
                let names = [table.name.as_str(), &table.twin, events::BETWEEN];
                table.leaves.iter().map(String::as_str).chain(names).map(|name| (&table.schema, name))
            });
        let made: BTreeSet<_> = made.map(|(schema, name)| (schema.clone(), name.to_owned())).collect();
        let others: Vec<_> = records.keys().filter(|name| !made.contains(*name)).collect();
        if !others.is_empty() {
            found.push(format!("PostgreSQL {}: nobody publishes these tables: {others:?}", self.draw.major));
        }
        for seed in seeds {
            for table in &seed.tables {
                let mut note = |result: Result<(), String>| {
                    found.extend(result.err().map(|error| self.difference(seed, table, &error)));
                };
                let none = Vec::new();
                let of = |name: &str| records.get(&(table.schema.clone(), name.to_owned())).unwrap_or(&none);
                note(self.log_differs(table, &decoded, of(&table.name), of(&table.twin)).await);
                for (ds, states) in DAYS.iter().zip(states) {
                    let state =
                        states.iter().find(|s| s.table.schema == table.schema && s.table.name == table.name);
                    let is_orc = self.draw.lake == Files::Orc;
                    let forgets = forgets && *ds == DAYS[2];
                    let checked = state.unwrap().check(&mut reader, &self.connector, ds, is_orc, forgets);
                    lacked += usize::from(matches!(checked, Ok(false)));
                    note(checked.map(drop));
                }
            }
        }
        (found, lacked)
    }

    async fn log_differs(
        &self,
        table: &Table,
        decoded: &decoded::Decoded,
        records: &[Record],
        twin: &[Record],
    ) -> Result<(), String> {
        let changes = compare_log::published(table, decoded::of_table(decoded, table));
        let mut shown = Shown::new(self.draw.major);
        shown.load(&self.client, table, &changes).await;
        // A value of another form than its type's is a panic, which says so.
        let checked = std::panic::catch_unwind(|| compare_log::check(table, &shown, &changes, records));
        let checked = checked.unwrap_or_else(|panic| Err(format!("{:?}", panic.downcast_ref::<String>())));
        let mut copied = checked.map_err(|error| format!("log: {error}"))?;
        let mut streamed: Vec<_> =
            twin.iter().filter_map(|r| r.bytes.as_deref()).map(compare_log::after_text).collect();
        copied.sort_unstable();
        streamed.sort_unstable();
        if copied != streamed {
            let differ = copied.iter().zip(&streamed).find(|(copied, streamed)| copied != streamed);
            return Err(format!(
                "{} rows copied, {} streamed; the first that differ: {differ:?}",
                copied.len(),
                streamed.len()
            ));
        }
        Ok(())
    }

    /// The records of each table, by schema and name.
    async fn records(&self) -> BTreeMap<(String, String), Vec<Record>> {
        let day = Connector::json(&self.connector.day(DAYS[DAYS.len() - 1]));
        let mut records = BTreeMap::new();
        for table in
            day["tables"].as_array().unwrap().iter().chain(day["missing"].as_array().into_iter().flatten())
        {
            let name = |part: &str| table["table"][part].as_str().unwrap().to_owned();
            let topic = table["topic"].as_str().unwrap();
            assert!(topic.starts_with(NAME));
            let found = if self.draw.avro {
                avro::records(&self.connector, topic).await
            } else {
                self.connector.records(topic).await
            };
            records.insert((name("schema"), name("table")), found);
        }
        records
    }

    fn difference(&self, seed: &Seed, table: &Table, error: &str) -> String {
        let mut text = format!(
            "TIDEMARK_TEST_SEED={} ORACLE_SEEDS=1 TIDEMARK_TEST_POSTGRES={} {} (key {:?}, {:?}): ",
            seed.number,
            self.draw.major,
            table.quoted(),
            table.key,
            table.identity
        );
        // Wide values make long lines.
        text.extend(error.lines().flat_map(|line| line.chars().take(3000).chain(['\n'])));
        if std::env::var_os("ORACLE_SQL").is_some() {
            for (_, sql) in seed.done.iter().filter(|(of, _)| *of == table.name || of.is_empty()) {
                write!(text, "\n    {};", short(sql)).unwrap();
            }
        }
        text
    }
}

/// A statement on one line, with the beginning of each long text.
fn short(sql: &str) -> String {
    let line = sql.replace('\n', "\\n");
    let parts: Vec<String> = line
        .split('\'')
        .map(|part| {
            if part.len() > 100 {
                part.chars().take(20).chain("…".chars()).collect()
            } else {
                part.to_owned()
            }
        })
        .collect();
    parts.join("'").chars().take(1500).collect()
}
