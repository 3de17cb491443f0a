//! A connector under test: its folder, its configuration, its processes, and what they published.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::days::pass_midnight;
use crate::support::{Postgres, free_port};

/// In every URL; never in anything that is printed.
pub const PASSWORD: &str = "geheim-4711";

/// Longer than anything here takes; a test that gets there has failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// A folder with a `connector.toml` for the database `postgres` of a server.
pub struct Connector {
    folder: tempfile::TempDir,
    /// What its processes said; beside the folder, which a test may make unwritable.
    said: tempfile::TempDir,
    listen: u16,
    runs: AtomicU32,
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Connector {
    /// For the role `postgres`; `more` is put behind `[source] url` and may begin other sections.
    pub fn new(server: &Postgres, more: &str) -> Self {
        Self::with_url(&server.url_as(&format!("postgres:{PASSWORD}"), "postgres"), more)
    }

    /// For any URL. Its days end at midnight by UTC, which is minutes away at least.
    pub fn with_url(url: &str, more: &str) -> Self {
        pass_midnight();
        let folder = tempfile::Builder::new().prefix("tidemark-bad-").tempdir().unwrap();
        let said = tempfile::Builder::new().prefix("tidemark-bad-said-").tempdir().unwrap();
        let made = Self { folder, said, listen: free_port(), runs: AtomicU32::new(0) };
        made.configure(url, more);
        made
    }

    /// Writes the configuration again.
    pub fn configure(&self, url: &str, more: &str) {
        let text = format!(
            "[source]\nurl = \"{url}\"\nname = \"shop\"\n{more}\n[ops]\nlisten = \"127.0.0.1:{}\"\n",
            self.listen
        );
        std::fs::write(self.folder().join("connector.toml"), text).unwrap();
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub const fn listen(&self) -> u16 {
        self.listen
    }

    /// The state folder, which is made by the first run.
    pub fn state(&self) -> PathBuf {
        self.folder().join("tidemark-data")
    }

    /// The binary with arguments, in the connector's folder, without the environment's settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
        command.current_dir(self.folder()).args(arguments).stdin(Stdio::null());
        for name in ["RUST_LOG", "TIDEMARK_LOG", "NO_COLOR", "PGPASSWORD", "PGPASSFILE"] {
            command.env_remove(name);
        }
        command
    }

    /// Starts a process whose output goes to files.
    pub fn start(&self, arguments: &[&str]) -> Running {
        self.start_command(self.command(arguments))
    }

    pub fn start_command(&self, mut command: Command) -> Running {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let path = |what: &str| self.said.path().join(format!("{run}.{what}"));
        let (out, err) = (path("out"), path("err"));
        let child = command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        Running { child: Some(child.spawn().unwrap()), out, err }
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).ended()
    }

    /// Starts `tidemark run` and waits until it streams.
    pub fn stream(&self) -> Running {
        let mut running = self.start(&["run"]);
        running.wait_for("\"message\":\"streaming\"");
        running
    }

    /// Expects a command to fail with a code, and each of the words on stderr.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) -> Ended {
        let ended = self.run(arguments);
        ended.says(code, words);
        ended
    }

    /// Has today cut by the running process and published.
    pub fn publish(&self) -> String {
        let cut = self.run(&["cut", "--json"]);
        assert_eq!(cut.code, 0, "{cut:?}");
        let day: serde_json::Value = serde_json::from_str(&cut.out).unwrap();
        let ds = day["ds"].as_str().unwrap().to_owned();
        self.wait_published(&ds);
        let verify = self.run(&["verify", "--ds", &ds]);
        assert_eq!(verify.code, 0, "{verify:?}");
        ds
    }

    /// Waits until a day is published.
    pub fn wait_published(&self, ds: &str) {
        let wait = self.run(&["wait", "--ds", ds, "--timeout", "280s"]);
        assert_eq!(wait.code, 0, "{wait:?}");
    }

    /// Publishes today and compares the tables of `public` named, each of one column of integers, with Postgres.
    pub async fn publishes_what_postgres_holds(&self, server: &Postgres, tables: &[&str]) {
        let ds = self.publish();
        let all: Vec<_> = tables.iter().map(|table| (*table, "true")).collect();
        self.holds(server, &ds, &all).await;
    }

    /// Compares a published day with rows of Postgres: tables, each with a condition.
    pub async fn holds(&self, server: &Postgres, ds: &str, tables: &[(&str, &str)]) {
        let oracle = server.connect().await;
        for (table, condition) in tables {
            let sql = format!("SELECT id::text FROM public.{table} WHERE {condition}");
            let rows = oracle.query(&sql, &[]).await.unwrap();
            let mut expected: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            expected.sort();
            assert_eq!(self.published(table, ds), expected, "public.{table} in ds={ds}");
        }
    }

    /// The first column of a published table, sorted as text. The lake's format has to be CSV.
    fn published(&self, table: &str, ds: &str) -> Vec<String> {
        let folder = self.lake().join(format!("snapshots/shop/public.{table}/ds={ds}"));
        let mut rows = Vec::new();
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let path = entry.unwrap().path();
            if !path.file_name().unwrap().to_string_lossy().starts_with("part-") {
                continue;
            }
            let mut text = String::new();
            flate2::read::MultiGzDecoder::new(File::open(&path).unwrap()).read_to_string(&mut text).unwrap();
            rows.extend(text.lines().skip(1).map(|line| line.split(',').next().unwrap().to_owned()));
        }
        rows.sort();
        rows
    }

    /// Where the lake is, as the configuration says.
    fn lake(&self) -> PathBuf {
        let text = std::fs::read_to_string(self.folder().join("connector.toml")).unwrap();
        let url = text.lines().find_map(|line| line.strip_prefix("url = \"file://")?.strip_suffix('"'));
        url.map_or_else(|| self.state().join("lake"), PathBuf::from)
    }
}

/// The lake's format in these tests: readable without an engine.
pub const CSV: &str = "[lake]\nformat = \"csv\"\n";

/// A process.
pub struct Running {
    child: Option<Child>,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    pub fn err(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// Waits until stderr has the text.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        self.wait_for_times(text, 1);
    }

    #[track_caller]
    pub fn wait_for_times(&mut self, text: &str, times: usize) {
        let start = Instant::now();
        while self.err().matches(text).count() < times {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "it ended ({ended:?}) before it said {text}:\n{}", self.err());
            assert!(start.elapsed() < PATIENCE, "it did not say {text}:\n{}", self.err());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(mut self) -> Ended {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "it did not end:\n{}", self.err());
            std::thread::sleep(Duration::from_millis(5));
        };
        self.child = None;
        let read = |path: &Path| String::from_utf8(std::fs::read(path).unwrap()).unwrap();
        let ended = Ended { code: status.code().unwrap_or(-1), out: read(&self.out), err: read(&self.err) };
        ended.has_no_secret();
        ended
    }

    /// Asks it to stop; it drains and leaves with 0.
    #[track_caller]
    pub fn stop(self) -> Ended {
        kill_process(self.pid(), Signal::TERM).unwrap();
        let ended = self.ended();
        assert_eq!(ended.code, 0, "{}", ended.err);
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                eprintln!("what it said:\n{}", self.err());
            }
        }
    }
}

impl Ended {
    /// The error that was printed last, without log lines.
    pub fn error(&self) -> &str {
        self.err.find("error: ").map_or("", |at| &self.err[at..])
    }

    /// It left with the code, and its error has each of the words. Errors end with a mend.
    #[track_caller]
    pub fn says(&self, code: i32, words: &[&str]) {
        println!("{}", self.error());
        assert_eq!(self.code, code, "{}", self.err);
        for word in words {
            assert!(self.error().contains(word), "{word:?} is not in\n{}", self.err);
        }
        assert!(self.error().contains("\n→ "), "there is no mend in\n{}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
    }

    #[track_caller]
    pub fn has_no_secret(&self) {
        for text in [&self.out, &self.err] {
            assert!(!text.contains(PASSWORD), "the password is in\n{text}");
        }
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A server with the table `t (id)`, which holds 1 to 10.
pub async fn server_with_table() -> Postgres {
    let server = Postgres::start().await;
    make_table(&server).await;
    server
}

pub async fn make_table(server: &Postgres) {
    let sql = "CREATE TABLE public.t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10)";
    server.connect().await.batch_execute(sql).await.unwrap();
}
