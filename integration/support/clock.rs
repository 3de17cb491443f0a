//! The server's wall clock, which the test moves so that days pass within seconds.
//!
//! Only the clock is moved, not its speed: commit times step over midnight, forwards and now and then back, as
//! they do where somebody sets a clock. Tidemark's own clock stays as it is.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// A clock made of a file and a small library that the server loads.
pub struct Clock {
    file: fs::File,
    library: PathBuf,
    path: PathBuf,
    moved_us: i64,
    /// When days end.
    pub at: Time,
    /// Where.
    pub zone: TimeZone,
}

impl Clock {
    /// Makes the clock in `dir`, which the server's user can read, and sets it.
    pub fn new(dir: &Path, start: Timestamp, at: Time, zone: &str) -> Self {
        let (path, library) = (dir.join("clock"), dir.join("clock.so"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/support/clock.c");
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
        assert!(command.status().unwrap().success(), "cc could not build the server's clock");
        fs::write(&path, [0; 8]).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let zone = TimeZone::get(zone).unwrap();
        let mut clock = Self { file, library, path, moved_us: 0, at, zone };
        clock.set(start);
        clock
    }

    /// What the server's environment needs.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        [("LD_PRELOAD", self.library.display().to_string()), ("TEST_CLOCK", self.path.display().to_string())]
    }

    /// The server's time.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(Timestamp::now().as_microsecond() + self.moved_us).unwrap()
    }

    /// Sets the clock.
    pub fn set(&mut self, to: Timestamp) {
        self.moved_us = to.as_microsecond() - Timestamp::now().as_microsecond();
        self.file.write_all_at(&self.moved_us.to_ne_bytes(), 0).unwrap();
    }

    /// Moves the clock.
    pub fn step_ms(&mut self, ms: i64) {
        self.set(self.now() + ms.milliseconds());
    }

    /// The day that is now.
    pub fn today(&self) -> jiff::civil::Date {
        let mut day = self.zone.to_datetime(self.now()).date().yesterday().unwrap();
        while self.end_of(day) <= self.now() {
            day = day.tomorrow().unwrap();
        }
        day
    }

    /// When a day ends.
    pub fn end_of(&self, day: jiff::civil::Date) -> Timestamp {
        let end = day.tomorrow().unwrap().to_datetime(self.at);
        self.zone.to_ambiguous_zoned(end).compatible().unwrap().timestamp()
    }
}
