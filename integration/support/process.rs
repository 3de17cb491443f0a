//! The real binary: a connector's folder with its configuration, and the processes that run on it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidemark::log::{Log, LogPartition};

use super::{free_port, http, open_log, wait_until};

/// Name of every connector of the tests: the first part of topics and folders.
pub const NAME: &str = "shop";

/// How long anything may take that is not itself the test's subject, on a machine that is busy with others. Nobody
/// waits for it in a test that passes.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A folder with state and lake, and the settings of its processes.
#[derive(Debug)]
pub struct Connector {
    folder: tempfile::TempDir,
    settings: BTreeMap<String, BTreeMap<String, String>>,
    environment: Vec<(String, String)>,
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    port: u16,
    config: PathBuf,
    output: PathBuf,
}

/// A record of the log, with its JSON taken apart.
#[derive(Clone, Debug)]
pub struct Record {
    /// Offset.
    pub offset: u64,
    /// `tidemark.position`.
    pub position: String,
    /// Key; null without one, a string where it is no JSON.
    pub key: Value,
    /// Value; null for a tombstone.
    pub value: Value,
    /// The value as it is; none for a tombstone.
    pub bytes: Option<Vec<u8>>,
}

impl Connector {
    /// A connector of the database at `url`. Its days end at midnight by UTC, which is minutes away at least.
    pub fn new(url: &str) -> Self {
        super::days::pass_midnight();
        let folder = tempfile::Builder::new().prefix("tidemark-test-").tempdir().unwrap();
        let (state, lake) = (folder.path().join("state"), folder.path().join("lake"));
        let connector = Self { folder, settings: BTreeMap::new(), environment: Vec::new() };
        connector
            .set("source", "url", url)
            .set("source", "name", NAME)
            .set("source", "tables", ["public.*"])
            .set("state", "dir", state.to_str().unwrap())
            .set("lake", "url", format!("file://{}", lake.display()))
    }

    /// Sets a key of `connector.toml`, for processes which are started from now on.
    #[must_use]
    pub fn set(mut self, section: &str, key: &str, value: impl Into<Value>) -> Self {
        self.change(section, key, value);
        self
    }

    /// The same, in place. JSON's strings, numbers and lists are TOML's as well.
    pub fn change(&mut self, section: &str, key: &str, value: impl Into<Value>) {
        let section = self.settings.entry(section.to_owned()).or_default();
        section.insert(key.to_owned(), value.into().to_string());
    }

    /// Takes a key out of `connector.toml` again.
    pub fn remove(&mut self, section: &str, key: &str) {
        self.settings.get_mut(section).and_then(|keys| keys.remove(key)).expect("a key that was set");
    }

    /// Environment variables of processes which are started from now on.
    pub fn environment(&mut self, variables: &[(&str, String)]) {
        self.environment =
            variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    }

    /// The folder of everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The lake's folder.
    pub fn lake(&self) -> PathBuf {
        self.folder.path().join("lake")
    }

    /// The folder of a table's day.
    pub fn snapshot(&self, table: &str, ds: &str) -> PathBuf {
        self.lake().join(format!("snapshots/{NAME}/public.{table}/ds={ds}"))
    }

    /// The database's own manifest of a day.
    pub fn day(&self, ds: &str) -> PathBuf {
        self.lake().join(format!("cuts/{NAME}/ds={ds}.json"))
    }

    /// Runs a command of the binary that needs no process.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = binary(&self.configure(free_port()), arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Starts a command of the binary that needs no process, and does not wait for its end.
    pub fn start_command(&self, arguments: &[&str]) -> Child {
        let mut command = binary(&self.configure(free_port()), arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Writes a configuration which listens at that port.
    fn configure(&self, port: u16) -> PathBuf {
        let config = self.folder.path().join(format!("connector-{port}.toml"));
        let mut text = String::new();
        for (section, keys) in &self.settings {
            writeln!(text, "[{section}]").unwrap();
            for (key, value) in keys {
                writeln!(text, "{key} = {value}").unwrap();
            }
        }
        writeln!(text, "[ops]\nlisten = \"127.0.0.1:{port}\"").unwrap();
        fs::write(&config, text).unwrap();
        config
    }

    /// Starts `run`, `capture` or `deliver`, listening at a port of its own.
    pub fn start(&self, command: &str) -> Running {
        let port = free_port();
        let config = self.configure(port);
        let output = self.folder.path().join(format!("{command}-{port}.log"));
        let file = fs::File::create(&output).unwrap();
        let child = binary(&config, &[command])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Running { child, port, config, output }
    }

    /// Starts a process and waits until it is ready, which includes the backfill.
    pub async fn start_ready(&self, command: &str) -> Running {
        let mut running = self.start(command);
        running.ready().await;
        running
    }

    /// Every record of a topic that the log still holds.
    pub async fn records(&self, topic: &str) -> Vec<Record> {
        let log = open_log(self.state().join("log.db"));
        let partition = LogPartition { topic: topic.into(), partition: 0 };
        let ranges = log.ranges().await.unwrap();
        let Some(range) = ranges.get(&partition) else { return Vec::new() };
        let mut records = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let fetched = log.read(&partition, at, 8 << 20).await.unwrap();
            for (offset, record) in fetched.iter() {
                let json = |bytes: Option<&[u8]>| {
                    bytes.map_or(Value::Null, |bytes| {
                        let text = || String::from_utf8(bytes.to_vec()).unwrap().into();
                        serde_json::from_slice(bytes).unwrap_or_else(|_| text())
                    })
                };
                let position = record.header("tidemark.position").unwrap_or_default();
                records.push(Record {
                    offset,
                    position: String::from_utf8(position.to_vec()).unwrap(),
                    key: json(record.key),
                    value: json(record.value),
                    bytes: record.value.map(<[u8]>::to_vec),
                });
            }
            at = fetched.next;
        }
        records
    }

    /// Records of a table's topic.
    pub async fn table_records(&self, table: &str) -> Vec<Record> {
        self.records(&format!("{NAME}.public.{table}")).await
    }

    /// The end of a table's topic.
    pub async fn end(&self, table: &str) -> u64 {
        let log = open_log(self.state().join("log.db"));
        let partition = LogPartition { topic: format!("{NAME}.public.{table}").into(), partition: 0 };
        log.ranges().await.unwrap().get(&partition).map_or(0, |range| range.end)
    }

    /// Waits until the log holds `count` records of a table. Asks for the end of the topic only.
    pub async fn wait_for_records(&self, table: &str, count: u64) {
        wait_until(PATIENCE, &format!("the log holds {count} records of {table}"), async || {
            self.end(table).await >= count
        })
        .await;
    }

    /// Waits until a day of the whole database is published.
    pub async fn wait_published(&self, ds: &str) {
        wait_until(PATIENCE, &format!("ds={ds} is published"), async || self.day(ds).exists()).await;
    }

    /// JSON of an object of the lake.
    pub fn json(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
    }
}

impl Running {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Address of the HTTP side.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What the process has said.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Asks the HTTP side: status code and body; none when nothing listens, or answers within half a minute.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let request = http().get(format!("{}{path}", self.address()));
        let mut answer = request.config().http_status_as_error(false).build().call().ok()?;
        Some((answer.status().as_u16(), answer.body_mut().read_to_string().ok()?))
    }

    /// `/health`: status code and JSON.
    pub fn health(&self) -> (u16, Value) {
        let (code, body) = self.get("/health").expect("/health answers");
        (code, serde_json::from_str(&body).unwrap())
    }

    /// Waits until all parts have begun their work.
    pub async fn ready(&mut self) {
        let start = Instant::now();
        while self.get("/health/ready").is_none_or(|(code, _)| code != 200) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the process has ended by itself ({status})");
            }
            assert!(start.elapsed() < PATIENCE, "not ready: {:?}", self.get("/health"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// A figure of `/proc/<pid>/status` in bytes, such as `VmRSS` or `VmHWM`.
    pub fn memory(&self, figure: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(figure)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Runs another command of the binary with this process's configuration.
    pub fn command(&self, arguments: &[&str]) -> Output {
        binary(&self.config, arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// The same, without waiting for its end.
    pub fn start_command(&self, arguments: &[&str]) -> Child {
        let mut command = binary(&self.config, arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Runs such a command, which must succeed, and is asked again where capture was interrupted before it answered.
    pub fn asks(&self, arguments: &[&str]) {
        let start = Instant::now();
        loop {
            let output = self.command(arguments);
            let error = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                return;
            }
            assert!(error.contains("ask again") && start.elapsed() < PATIENCE, "{arguments:?}: {error}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `tidemark cut --ds`, which must succeed: at once, or when the process has heard from a server whose clock was
    /// just set that the day has begun.
    pub fn cut(&self, ds: &str) {
        let (start, mut in_doubt) = (Instant::now(), false);
        loop {
            let output = self.command(&["cut", "--ds", ds]);
            let error = String::from_utf8_lossy(&output.stderr);
            // What was interrupted, or not done in time, may be done by now.
            if output.status.success() || (in_doubt && error.contains("the days up to")) {
                return;
            }
            let too_early = error.contains("it has not begun");
            // A walsender whose clock was set forward may take that for a timeout, and close the connection.
            let passes = too_early || error.contains("ask again") || error.contains("not done yet");
            assert!(passes && start.elapsed() < PATIENCE * 2, "cut of {ds}: {error}");
            in_doubt |= !too_early;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGSTOP, until all its threads stand still. What it has asked a server may still be on its way there.
    pub async fn pause(&self) {
        self.signal(Signal::STOP);
        let threads = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let stands = |thread: std::io::Result<std::fs::DirEntry>| {
            let stat = thread.and_then(|thread| std::fs::read_to_string(thread.path().join("stat")));
            // After its name, which is in brackets.
            stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
        };
        wait_until(PATIENCE, "the process stands still", async || {
            std::fs::read_dir(&threads).is_ok_and(|mut threads| threads.all(stands))
        })
        .await;
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Waits for the end.
    pub async fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the process does not leave");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let tail: Vec<_> = output.lines().rev().take(25).collect();
            eprintln!("the end of {}, newest first:\n{}", self.output.display(), tail.join("\n"));
        }
    }
}

fn binary(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    command.args(arguments).arg("--config").arg(config).env_remove("RUST_LOG").env_remove("TIDEMARK_LOG");
    command
}
