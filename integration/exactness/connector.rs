//! The real program, and the ways in which it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tidemark::change::Lsn;

use crate::oracle::source::PUBLICATION;
use crate::support::free_port;

/// The connector's name: the first part of its topics and folders.
pub const NAME: &str = "exact";

/// Where one connector keeps everything. Several configuration files, so that several processes can listen.
pub struct Connector {
    /// Folder of log, coordinator, lake and what the processes say.
    pub dir: PathBuf,
    configs: Vec<PathBuf>,
    started: usize,
}

/// A running process. Killed when dropped.
pub struct Process {
    child: Child,
    /// What it says.
    pub output: PathBuf,
}

impl Connector {
    /// Writes the configuration, with `more` sections.
    pub fn new(dir: &Path, url: &str, time_zone: &str, at: &str, more: &str) -> Self {
        let dir = dir.to_owned();
        fs::create_dir_all(&dir).unwrap();
        let shown = dir.display();
        let configs = (0..3)
            .map(|number| {
                let path = dir.join(format!("connector-{number}.toml"));
                let text = format!(
                    "[source]\nname = \"{NAME}\"\nurl = \"{url}\"\ntables = [\"public.*\"]\n\
                     slot = \"{PUBLICATION}\"\npublication = \"{PUBLICATION}\"\n\
                     [log]\nappend_bytes_max = 65_536\nlinger_ms = 2\n\
                     [log.embedded]\nretention_ms = 3_000_000_000_000\nretention_bytes = 1_000_000_000_000\n\
                     [envelope]\nprovide_transaction_metadata = true\n\
                     [state]\ndir = \"{shown}/state\"\n\
                     [lake]\nurl = \"file://{shown}/lake\"\npart_bytes_max = 32_768\n\
                     stage_bytes_max = 65_536\nmemory_bytes_max = 33_554_432\n\
                     premerge_interval_ms = 20\npremerge_table_bytes_min = 0\n\
                     [cut]\nat = \"{at}\"\ntime_zone = \"{time_zone}\"\n\
                     [coordinator]\nlease_ttl_ms = 1_000\n\
                     [ops]\nlisten = \"127.0.0.1:{}\"\nlog_format = \"json\"\n{more}",
                    free_port()
                );
                fs::write(&path, text).unwrap();
                path
            })
            .collect();
        Self { dir, configs, started: 0 }
    }

    /// Another one with the same settings in another folder.
    pub fn again(other: &Self, dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let (from, to) = (other.dir.display().to_string(), dir.display().to_string());
        let copy = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap().replace(&from, &to);
            let path = dir.join(path.file_name().unwrap());
            fs::write(&path, text).unwrap();
            path
        };
        Self { dir: dir.to_owned(), configs: other.configs.iter().map(copy).collect(), started: 0 }
    }

    /// The lake.
    pub fn lake(&self) -> PathBuf {
        self.dir.join("lake")
    }

    /// The log's file.
    pub fn log(&self) -> PathBuf {
        self.dir.join("state/log.db")
    }

    /// Where the first stream of all processes began, as they say.
    pub fn first_streamed_from(&self) -> Option<Lsn> {
        let files = fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path());
        let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let said: Vec<String> = logs.map(|path| fs::read_to_string(path).unwrap()).collect();
        let lines = said.iter().flat_map(|said| said.lines());
        let streaming = lines.filter(|line| line.contains("\"message\":\"streaming\""));
        let from = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["from"].as_str().unwrap().parse().unwrap()
        };
        streaming.map(from).min()
    }

    fn command(&self, arguments: &[&str], config: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        command.args(arguments).arg("--config").arg(&self.configs[config]).stdin(Stdio::null());
        for name in ["RUST_LOG", "TIDEMARK_LOG", "NO_COLOR"] {
            command.env_remove(name);
        }
        command
    }

    /// Starts `run`, `capture` or `deliver` with the configuration of that number.
    pub fn start(&mut self, what: &str, config: usize) -> Process {
        self.started += 1;
        let output = self.dir.join(format!("{what}-{:03}.log", self.started));
        let file = fs::File::create(&output).unwrap();
        let child = self
            .command(&[what], config)
            .env("RUST_BACKTRACE", "1")
            .env("TIDEMARK_LOG", "info,tidemark::pipeline::deliver::premerge=debug")
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Process { child, output }
    }

    /// Asks for a cut of the day that is now and does not wait for the answer.
    pub fn ask_for_cut(&self) -> Child {
        self.command(&["cut"], 0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Runs a command to its end; whether it left with 0, and what it said.
    pub fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.command(arguments, 0).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

impl Process {
    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself meanwhile.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Kills it at once.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(start.elapsed() < deadline, "{} did not end within {deadline:?}", self.output.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything it has said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Whether it has said this.
    pub fn has_said(&self, text: &str) -> bool {
        self.said().contains(text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
