//! Where a day ends: at midnight by the server's commit times, between two transactions, once, and for every
//! table at the same place. Through the real binary; Postgres tells what had been committed.

mod busy;

use std::time::Duration;

use crate::support::clock::Clock;
use crate::support::{Connector, NAME, PATIENCE, Postgres, Running, wait_until};
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};
use serde_json::Value;

/// A server with a clock of its own, and a connector whose days end by that clock.
struct World {
    server: Postgres,
    client: tokio_postgres::Client,
    clock: Clock,
    connector: Connector,
    _clock_folder: tempfile::TempDir,
}

impl World {
    /// The server's clock stands `before` the end of 2036-03-01, which is at `at` in `zone`.
    async fn new(at: &str, zone: &str, before: Duration) -> Self {
        let folder = crate::support::clock_folder();
        let mut clock = Clock::new(folder.path(), Timestamp::UNIX_EPOCH, at.parse().unwrap(), zone);
        clock.set(clock.end_of(day(0)) - before);
        let mut builder = Postgres::builder().set("track_commit_timestamp", "on");
        for (name, value) in clock.environment() {
            builder = builder.env(name, &value);
        }
        let server = builder.start().await;
        let client = server.connect().await;
        let url = server.url();
        let connector = Connector::new(&url).set("cut", "at", at).set("cut", "time_zone", zone);
        Self { server, client, clock, connector, _clock_folder: folder }
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Starts a process that is ready before `end`, to which little time is left then.
    async fn start_before(&mut self, end: Timestamp) -> Running {
        let running = self.connector.start_ready("run").await;
        let now = self.clock.now();
        assert!(now < end, "the machine is too slow for this test");
        if now < end - SOON {
            self.clock.set((now + STEP_MAX).min(end - SOON));
            // The process hears of the step with what comes next in the stream.
            self.sql("SELECT pg_logical_emit_message(true, 'test', '')").await;
        }
        running
    }

    /// The records of `<name>.cuts`, each of which must agree with the lake's.
    async fn cuts(&self) -> Vec<Value> {
        let records = self.connector.records(&format!("{NAME}.cuts")).await;
        for record in &records {
            let ds = record.value["ds"].as_str().unwrap();
            self.connector.wait_published(ds).await;
            let day = crate::support::Connector::json(&self.connector.day(ds));
            assert_eq!(day["cut"], record.value, "the record and cuts/{NAME}/ds={ds}.json");
            for table in day["tables"].as_array().unwrap() {
                let manifest = crate::support::Connector::json(
                    &self.connector.lake().join(table["manifest"].as_str().unwrap()),
                );
                assert_eq!(manifest["cut"]["lsn"], record.value["lsn"], "all tables at the same place");
            }
        }
        records.into_iter().map(|record| record.value).collect()
    }
}

/// So long before the end of the day a process is started, which has to be ready by then.
const BEFORE: Duration = Duration::from_secs(75);
/// So long before it the clock is set to, at the latest, once the process is ready.
const SOON: Duration = Duration::from_secs(10);
/// The server takes a step of its clock for silence: with the interval of a process's answers, 10 s, it has to stay
/// below `wal_sender_timeout`, a minute.
const STEP_MAX: Duration = Duration::from_secs(45);

/// The days of these tests, from the one in which the server's clock starts.
fn day(number: i64) -> Date {
    jiff::civil::date(2036, 3, 1) + number.days()
}

/// A world whose server runs and has a table.
async fn idle_world(at: &str, zone: &str) -> World {
    let world = World::new(at, zone, Duration::from_secs(3600)).await;
    world.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    world
}

async fn an_idle_database(mut world: World, at: &str, zone: &str) {
    let end = world.clock.end_of(day(0));
    world.clock.set(end - BEFORE);
    let running = world.start_before(end).await;
    wait_until(PATIENCE, "the day is cut", async || world.connector.day(&day(0).to_string()).exists()).await;
    let late = world.clock.now().duration_since(end);
    eprintln!("{zone} {at}: published {late:?} after the end of the day");
    assert!(late.as_secs() < 30, "published {late:?} after the end of the day");
    let cuts = world.cuts().await;
    assert_eq!(cuts.len(), 1);
    assert_eq!(cuts[0]["ds"], day(0).to_string());
    assert_eq!(cuts[0]["at"], end.to_string());
    assert_eq!(cuts[0]["reason"], "midnight");
    assert_eq!(cuts[0]["time_zone"], zone);
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_database_gets_its_cut_on_time_in_its_own_zone() {
    let ((at, zone), (other_at, other_zone)) = (("00:00", "Asia/Dubai"), ("03:15", "America/St_Johns"));
    let (world, other) = tokio::join!(idle_world(at, zone), idle_world(other_at, other_zone));
    tokio::join!(an_idle_database(world, at, zone), an_idle_database(other, other_at, other_zone));
}

#[tokio::test(flavor = "multi_thread")]
async fn days_on_which_nothing_ran_get_their_cuts_at_the_next_start() {
    let mut world = World::new("00:00", "Asia/Dubai", Duration::from_secs(3600)).await;
    world.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    let mut running = world.connector.start_ready("run").await;
    world.sql("INSERT INTO t VALUES (2)").await;
    assert!(running.terminate().await.success());
    world.clock.step_ms(3 * 24 * 3600 * 1000);
    let running = world.connector.start_ready("run").await;
    for number in 0..3 {
        world.connector.wait_published(&day(number).to_string()).await;
    }
    world.sql("INSERT INTO t VALUES (3)").await;
    let cuts = world.cuts().await;
    let days: Vec<_> = cuts.iter().map(|cut| cut["ds"].as_str().unwrap().to_owned()).collect();
    assert_eq!(days, [0, 1, 2].map(|number| day(number).to_string()));
    assert!(cuts.iter().all(|cut| cut["lsn"] == cuts[0]["lsn"]), "{cuts:?}");
    for number in 0..3 {
        let rows = crate::support::lake::duckdb(
            &world.connector,
            &day(number).to_string(),
            "SELECT id FROM {t} ORDER BY 1",
        );
        assert_eq!(rows, [[Some("1".to_owned())], [Some("2".to_owned())]]);
    }
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_is_cut_once_whoever_asks_again_and_also_after_a_restart_or_midnight() {
    let mut world = World::new("00:00", "Asia/Dubai", Duration::from_secs(3600)).await;
    world.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    let mut running = world.connector.start_ready("run").await;
    let today = day(0).to_string();
    running.cut(&today);
    let made = world.cuts().await;
    world.sql("INSERT INTO t VALUES (2)").await;
    let refuse = |running: &crate::support::Running, ds: &str, why: &str| {
        let output = running.command(&["cut", "--ds", ds]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(why) && error.contains(ds), "{error}");
    };
    refuse(&running, &today, "cannot be cut");
    refuse(&running, &day(1).to_string(), "it has not begun");
    refuse(&running, &day(-1).to_string(), "cannot be cut");
    assert!(running.terminate().await.success());
    let running = world.connector.start_ready("run").await;
    refuse(&running, &today, "cannot be cut");
    // Midnight of a day which was cut in the evening.
    world.clock.step_ms(2 * 3600 * 1000);
    world.sql("INSERT INTO t VALUES (3)").await;
    refuse(&running, &today, "cannot be cut");
    world.connector.wait_for_records("t", 3).await;
    assert_eq!(world.cuts().await, made);
    // A clock that was set back over midnight does not cut again, or reopen the day.
    world.clock.step_ms(-3 * 3600 * 1000);
    world.sql("INSERT INTO t VALUES (4)").await;
    world.connector.wait_for_records("t", 4).await;
    refuse(&running, &today, "cannot be cut");
    assert_eq!(world.cuts().await, made);
    let rows = crate::support::lake::duckdb(&world.connector, &today, "SELECT id FROM {t}");
    assert_eq!(rows, [[Some("1".to_owned())]]);
}
