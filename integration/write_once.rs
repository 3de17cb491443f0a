//! A published object never changes, whoever works on the lake and however often; and what is published is
//! right for every kind of table. Through the real binary, read back by DuckDB and pandas.

mod deliver;
mod existing;
mod objects;
mod premerged;
mod schema;
mod tables;
mod tail;

use crate::support::clock::Clock;
use crate::support::{Connector, Postgres, Running};
use jiff::Timestamp;
use tokio_postgres::Client;

/// Noon of the first day of a test's server: ahead of our own clock, by which /health tells what is overdue.
const NOON: &str = "2036-03-01T12:00:00Z";
/// That day, and those after it.
const DAYS: [&str; 5] = ["2036-03-01", "2036-03-02", "2036-03-03", "2036-03-04", "2036-03-05"];

/// A server whose days the test ends, and its connector.
struct World {
    _server: Postgres,
    client: Client,
    clock: Clock,
    connector: Connector,
    _clock_folder: tempfile::TempDir,
}

impl World {
    /// With these tables.
    async fn new(schema: &str) -> Self {
        let folder = crate::support::clock_folder();
        let clock =
            Clock::new(folder.path(), NOON.parse::<Timestamp>().unwrap(), jiff::civil::Time::MIN, "UTC");
        let mut builder = Postgres::builder();
        for (name, value) in clock.environment() {
            builder = builder.env(name, &value);
        }
        let server = builder.start().await;
        let client = server.connect().await;
        client.batch_execute(schema).await.unwrap();
        let connector = Connector::new(&server.url());
        Self { _server: server, client, clock, connector, _clock_folder: folder }
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Ends day number `day`: cuts it, waits until it is published, and moves the server's clock to the next noon.
    async fn end_day(&mut self, day: usize, capture: &Running) {
        self.cut_day(day, capture);
        self.connector.wait_published(DAYS[day]).await;
    }

    /// Cuts day number `day`, and moves the server's clock to the next noon.
    fn cut_day(&mut self, day: usize, capture: &Running) {
        capture.cut(DAYS[day]);
        self.clock.step_ms(24 * 3600 * 1000);
    }

    /// The rows that a query finds on a day and those in Postgres now are the same. `TABLE` stands for the table.
    async fn assert_same(&self, day: usize, table: &str, query: &str) {
        let ours = crate::support::lake::duckdb(
            &self.connector,
            DAYS[day],
            &query.replace("TABLE", &format!("{{{table}}}")),
        );
        let theirs = crate::support::lake::postgres(&self.client, &query.replace("TABLE", table)).await;
        assert_eq!(ours, theirs, "{table} on {}", DAYS[day]);
    }
}
