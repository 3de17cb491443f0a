//! Days that are made before they end, and the program killed while it does so, or while it makes use of it.

use std::time::{Duration, Instant};

use rand::Rng;
use rustix::process::Signal;

use super::connector::Process;
use super::{CATCH_UP, PATIENCE, Test};

/// Said when files were made.
const MADE: &str = "the next day is made as far as it can be";

impl Test {
    /// A day that all others are made from.
    pub async fn first_day(&mut self) {
        let mut process = self.connector.start("run", 0);
        self.until_streaming(&mut process).await;
        self.until_copied(&mut process).await;
        self.end_day(&process);
        process.kill();
    }

    /// One life of the program, in which something is made of a day before it ends; and its end. The last one ends by
    /// itself, after its day.
    pub async fn premerging_round(&mut self, round: u32, is_last: bool) {
        let mut process = self.connector.start("run", 0);
        self.until_streaming(&mut process).await;
        let start = Instant::now();
        while !process.has_said(MADE) {
            // The day before may have to be made first.
            assert!(start.elapsed() < PATIENCE * 3, "nothing is made of the day:\n{}", process.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let life = Duration::from_millis(self.random.random_range(5..1500));
        let what = match self.random.random_range(0..4) {
            _ if is_last => {
                self.end_day(&process);
                "a day"
            }
            0 => "in the day",
            1 => {
                self.end_day(&process);
                "after it"
            }
            _ => {
                self.clock.set(self.clock.end_of(self.clock.today()));
                "at its end"
            }
        };
        tokio::time::sleep(life).await;
        eprintln!("{:?}: round {round}: {what}, {life:?}, {}", self.began.elapsed(), self.clock.now());
        if is_last {
            process.signal(Signal::TERM);
            let status = process.wait(PATIENCE);
            assert!(status.success(), "SIGTERM ended with {status}:\n{}", process.said());
        } else {
            process.kill();
        }
    }

    /// Ends the day, and waits until it is published.
    fn end_day(&mut self, process: &Process) {
        let day = self.clock.today();
        self.clock.set(self.clock.end_of(day));
        let (there, said) = self.connector.run(&["wait", "--ds", &day.to_string(), "--timeout", CATCH_UP]);
        assert!(there, "wait for {day}: {said}\n{}", process.said());
    }

    /// Changes that were sorted before their days' cuts, of all days that were published.
    pub fn premerged_changes(&self) -> u64 {
        let logs = std::fs::read_dir(&self.connector.dir).unwrap().map(|entry| entry.unwrap().path());
        let logs = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let said: String = logs.map(|path| std::fs::read_to_string(path).unwrap()).collect();
        let counts = said.split("\"premerged_changes\":").skip(1).map(|rest| {
            rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|count| count.parse().ok())
        });
        counts.map(|count| count.unwrap_or(0_u64)).sum()
    }
}
