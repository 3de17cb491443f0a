//! Traffic: sessions that write at the same time, each as unkindly as it can.
//!
//! Whatever the server refuses (deadlocks, duplicate keys, a session killed with the server) is part of it:
//! the oracle knows only what was committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, NoTls};

/// A transaction that takes longer waits in a circle.
const DEADLOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Sessions that write until they are told to stop.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    pause_us: Arc<AtomicU64>,
    sessions: Vec<JoinHandle<()>>,
    url: String,
}

impl Traffic {
    /// Starts `count` sessions, each of which rests for `pause` after a transaction.
    pub fn start(url: &str, seed: u64, count: u64, pause: Duration) -> Self {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let pause_us = Arc::new(AtomicU64::new(pause.as_micros() as u64));
        let sessions = (0..count)
            .map(|number| {
                let random = StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number));
                let committed = Arc::clone(&committed);
                let pause_us = Arc::clone(&pause_us);
                let mut session = Session { url: url.to_owned(), number, pause_us, random, committed };
                let stop = Arc::clone(&stop);
                tokio::spawn(async move { session.run(&stop).await })
            })
            .collect();
        Self { stop, committed, pause_us, sessions, url: url.to_owned() }
    }

    /// Each session rests for so long after a transaction, from now on.
    pub fn rest_for(&self, pause: Duration) {
        self.pause_us.store(pause.as_micros() as u64, Ordering::Relaxed);
    }

    /// Transactions committed so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Returns after the last commit, when it is on the disk: with `synchronous_commit = off` a transaction is committed,
    /// and the oracle knows it, while `pg_current_wal_lsn()` has not reached it.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions {
            session.await.unwrap();
        }
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        // It flushes all that was written before it.
        client.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        drop(client);
        let _ = connection.await;
    }
}

struct Session {
    url: String,
    number: u64,
    pause_us: Arc<AtomicU64>,
    random: StdRng,
    committed: Arc<AtomicU64>,
}

impl Session {
    async fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let Ok((client, connection)) = tokio_postgres::connect(&self.url, NoTls).await else {
                // The server is away: it comes back.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let connection = tokio::spawn(connection);
            self.talk(&client, stop).await;
            drop(client);
            let _ = connection.await;
        }
    }

    async fn talk(&mut self, client: &Client, stop: &AtomicBool) {
        // A transaction which the last session left prepared would hold up every new slot.
        let _ = client.batch_execute(&format!("ROLLBACK PREPARED 's{}'", self.number)).await;
        while !stop.load(Ordering::Relaxed) && !client.is_closed() {
            // Under a clock that steps the server may never notice a deadlock.
            let cancel = client.cancel_token();
            let watchdog = tokio::spawn(async move {
                tokio::time::sleep(DEADLOCK_PATIENCE).await;
                drop(cancel.cancel_query(NoTls).await);
            });
            let done = self.transaction(client).await;
            watchdog.abort();
            let pause = Duration::from_micros(self.pause_us.load(Ordering::Relaxed));
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            match done {
                Ok(()) => drop(self.committed.fetch_add(1, Ordering::Relaxed)),
                Err(_) => {
                    drop(client.batch_execute("ROLLBACK").await);
                    // One that stays prepared would keep a new slot from ever being made.
                    drop(client.batch_execute(&format!("ROLLBACK PREPARED 's{}'", self.number)).await);
                }
            }
        }
    }

    async fn transaction(&mut self, client: &Client) -> Result<(), Error> {
        let lazy = if self.random.random_ratio(1, 5) { "SET LOCAL synchronous_commit = off;" } else { "" };
        match self.random.random_range(0..4000) {
            0..5 => return client.batch_execute(&self.large()).await,
            5..1200 => {
                return client.batch_execute(&format!("BEGIN; {lazy} {}; COMMIT", self.change())).await;
            }
            _ => {}
        }
        client.batch_execute(&format!("BEGIN; {lazy}")).await?;
        for step in 0..self.random.random_range(1..12) {
            let change = self.change();
            // Each step is a message of its own, so that transactions of the sessions interleave.
            match self.random.random_range(0..12) {
                0 => {
                    let undone = self.change();
                    client
                        .batch_execute(&format!(
                            "SAVEPOINT s{step}; {undone}; SAVEPOINT inner_s; {change}; RELEASE inner_s; ROLLBACK TO s{step}"
                        ))
                        .await?;
                }
                1 => client.batch_execute(&format!("SAVEPOINT s{step}; {change}; RELEASE s{step}")).await?,
                _ => client.batch_execute(&change).await?,
            }
        }
        match self.random.random_range(0..20) {
            0 => client.batch_execute("ROLLBACK").await,
            1 => {
                let name = format!("s{}", self.number);
                client.batch_execute(&format!("PREPARE TRANSACTION '{name}'")).await?;
                let between = self.change();
                // It may wait for a lock which the prepared transaction holds: not for ever.
                let _ = client.batch_execute(&format!("SET lock_timeout = '20ms'; {between}")).await;
                let end = if self.random.random() { "COMMIT" } else { "ROLLBACK" };
                client.batch_execute("RESET lock_timeout").await?;
                // Not in one message with anything else: it cannot run inside a transaction.
                client.batch_execute(&format!("{end} PREPARED '{name}'")).await
            }
            _ => client.batch_execute("COMMIT").await,
        }
    }

    /// Thousands of rows in one transaction.
    fn large(&mut self) -> String {
        let from = self.random.random_range(0..3000);
        match self.random.random_range(0..5) {
            0 => format!("UPDATE items SET price = coalesce(price, 0) + 1 WHERE id BETWEEN {from} AND {}", from + 2000),
            1 => "INSERT INTO journal (at, text) SELECT instant(g), 'line ' || g FROM generate_series(1, 5000) g".into(),
            2 => format!(
                "BEGIN; DELETE FROM items WHERE id > 6000; INSERT INTO items (id, body, tags)
                 SELECT g, CASE WHEN g % 10 = 0 THEN wide(g) END, ARRAY[g] FROM generate_series(6001, 8000) g
                 ON CONFLICT DO NOTHING; UPDATE items SET id = id + 10000 WHERE id BETWEEN 6001 AND 6100;
                 DELETE FROM items WHERE id > {from} + 6000; COMMIT"
            ),
            3 => "INSERT INTO bag SELECT g % 5, 'b' || g % 3, g % 2, CASE WHEN g % 4 = 0 THEN wide(g % 2) END
                  FROM generate_series(1, 1500) g".into(),
            _ => "DELETE FROM bag WHERE a IN (1, 2)".into(),
        }
    }

    fn change(&mut self) -> String {
        let r = &mut self.random;
        // Half of it meets on a few hot rows.
        let id = if r.random() { r.random_range(1..40) } else { r.random_range(1..4500) };
        let (seed, small) = (r.random_range(0..100_000), r.random_range(1..60));
        match r.random_range(0..108) {
            0..10 => format!(
                "INSERT INTO items VALUES ({id}, {seed} / 7.0, instant({seed}), '{{\"k\": [{seed}, null, \"ü\\\"\"]}}',
                 '{{{seed},NULL}}', 'ok', '\\x00ff{small:02}', wide({seed}))
                 ON CONFLICT (id) DO UPDATE SET price = excluded.price, at = excluded.at"
            ),
            10..25 => format!("UPDATE items SET price = {seed} / 3.0, at = instant({seed}) WHERE id = {id}"),
            25..30 => format!("UPDATE items SET body = wide({seed}), mood = 'happy \"day\"' WHERE id = {id}"),
            30..34 => format!("UPDATE items SET body = NULL, doc = NULL, tags = NULL WHERE id = {id}"),
            34..39 => format!("DELETE FROM items WHERE id = {id}"),
            39..45 => format!("UPDATE items SET id = {} WHERE id = {id}", r.random_range(1..4500)),
            // A swap, and a chain: every row moves on by one, unchanged TOAST and all.
            45..49 => format!(
                "UPDATE items SET id = -{id} WHERE id = {id}; UPDATE items SET id = {id} WHERE id = {small};
                 UPDATE items SET id = {small} WHERE id = -{id}"
            ),
            49..52 => format!(
                "DELETE FROM whole WHERE id = {small} + 3; UPDATE whole SET id = id + 1 WHERE id = {small} + 2;
                 UPDATE whole SET id = id + 1 WHERE id = {small} + 1; UPDATE whole SET id = id + 1 WHERE id = {small}"
            ),
            52..56 => format!(
                "INSERT INTO pairs VALUES (wide({seed}), {small} % 3, code({small}), '{}', date '2026-01-01' + {seed} % 900)
                 ON CONFLICT (code, num) DO UPDATE SET num = pairs.num + 3",
                ["NaN", "0.10", "-12345678901234567890.123456789", "1e-20", "Infinity"][small as usize % 5]
            ),
            56..60 => format!("UPDATE pairs SET \"any\" = {seed} / 7.0 WHERE code = code({small})"),
            60..63 => format!("UPDATE pairs SET code = code({seed} % 400) WHERE code = code({small}) AND num = {seed} % 3"),
            63..65 => format!("DELETE FROM pairs WHERE code = code({small})"),
            65..69 => format!(
                "INSERT INTO tokens VALUES (token({id}), true, instant({seed}), wide({seed}), {seed})
                 ON CONFLICT (id) DO UPDATE SET hits = tokens.hits + 1"
            ),
            69..72 => format!("UPDATE tokens SET hits = coalesce(hits, 0) + 1, live = NOT live WHERE id = token({id})"),
            72..74 => format!("UPDATE tokens SET id = token({seed}) WHERE id = token({id})"),
            74..76 => format!("DELETE FROM tokens WHERE id = token({id})"),
            76..80 => format!("INSERT INTO bag VALUES ({small} % 5, 'b' || {small} % 3, {small} % 2, wide({small} % 2))"),
            80..83 => format!(
                "UPDATE bag SET price = price + 1 WHERE ctid IN (SELECT ctid FROM bag WHERE a = {small} % 5 LIMIT 3)"
            ),
            83..85 => format!("DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = {small} % 5 LIMIT 2)"),
            85..87 => format!("INSERT INTO whole VALUES ({small}, 'new {seed}', wide({seed})) ON CONFLICT (id) DO UPDATE SET note = excluded.note"),
            87..89 => format!("UPDATE whole SET note = 'n{seed}' WHERE id BETWEEN {small} AND {small} + 3"),
            89..91 => format!("INSERT INTO indexed VALUES ('p{seed}', {small} % 7, {small}, wide({seed})) ON CONFLICT (k1, k2) DO UPDATE SET pad = 'again'"),
            91..92 => format!("UPDATE indexed SET k2 = k2 + 7, pad = NULL WHERE k1 = {small}"),
            92..93 => format!("DELETE FROM indexed WHERE k1 = {small}"),
            93..96 => format!("INSERT INTO journal (at, text) VALUES (instant({seed}), 'line {seed}')"),
            96..97 => format!("SELECT noise({small})"),
            97..98 => format!("SELECT pg_logical_emit_message(false, 'noise', 'n{seed}')"),
            // One statement that changes two tables.
            98 => format!(
                "WITH gone AS (DELETE FROM tokens WHERE id = token({id}) RETURNING hits)
                 INSERT INTO journal (at, text) SELECT instant({seed}), 'moved ' || hits FROM gone"
            ),
            100..102 => format!(
                "INSERT INTO parts VALUES ({small}, {seed} % 4, instant({seed}), wide({seed}), 'p{seed}')
                 ON CONFLICT (id, region) DO UPDATE SET note = excluded.note"
            ),
            // From leaf to leaf, with values that do not change.
            102..105 => format!(
                "UPDATE parts SET region = (region + {seed} % 3 + 1) % 4, note = 'moved' WHERE id BETWEEN {small} AND {small} + 2
                   AND NOT EXISTS (SELECT FROM parts p WHERE p.id = parts.id AND p.region <> parts.region)"
            ),
            105..106 => format!("UPDATE parts SET id = {} WHERE id = {small} AND region = 2", r.random_range(1..600)),
            106..107 => format!("UPDATE parts SET note = 'n{seed}' WHERE id BETWEEN {id} AND {id} + 30"),
            107 => format!("DELETE FROM parts WHERE id = {small} + 1"),
            _ => match r.random_range(0..8) {
                0 => "TRUNCATE whole".into(),
                1 => "TRUNCATE bag; INSERT INTO bag VALUES (1, 'after', 1, wide(1)), (1, 'after', 1, wide(1))".into(),
                2 => format!("SET LOCAL oracle.many = '{seed}'; TRUNCATE indexed, whole; SET LOCAL oracle.many = ''"),
                3 => "INSERT INTO indexed SELECT 'pad', g % 7, g, wide(g) FROM generate_series(100, 160) g ON CONFLICT DO NOTHING".into(),
                _ => format!("UPDATE items SET tags = '{{}}' WHERE id BETWEEN {id} AND {id} + 30"),
            },
        }
    }
}
