//! A throwaway Postgres: started for a test, gone with it.
//!
//! The first start of a server version makes a data folder with initdb and keeps it in the system's temporary
//! folder as a template; later ones copy it. Servers refuse to run as root: then they run as `nobody`. Where the
//! programs of other majors are is in [`super::programs`].

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::programs::{NOBODY, default_server, give_away, major_of, server_of};
use super::{Certificates, PATIENCE};

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended, a checkpoint is written.
    Fast,
    /// As if the power had gone.
    Immediate,
}

/// Settings of a server to start.
#[derive(Debug)]
pub struct PostgresBuilder {
    bin: PathBuf,
    settings: Vec<(String, String)>,
    hba: Option<String>,
    own_initdb: bool,
    environment: Vec<(String, String)>,
}

/// A running (or stopped) server. Dropping it kills the server and removes its folder.
#[derive(Debug)]
pub struct Postgres {
    bin: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
    environment: Vec<(String, String)>,
}

impl Postgres {
    /// A server with `wal_level=logical` and the role `postgres` without a password: the system's own, or the major
    /// that `TIDEMARK_TEST_POSTGRES` names.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// The same, to be changed first.
    pub fn builder() -> PostgresBuilder {
        Self::builder_of(default_server())
    }

    /// A server of this major, to be changed first.
    pub fn version(major: u32) -> PostgresBuilder {
        Self::builder_of(server_of(major))
    }

    fn builder_of(bin: PathBuf) -> PostgresBuilder {
        let settings = [
            ("listen_addresses", "127.0.0.1"),
            ("wal_level", "logical"),
            ("fsync", "off"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "10"),
            ("max_prepared_transactions", "10"),
            ("shared_buffers", "64MB"),
            ("log_min_messages", "info"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        PostgresBuilder { bin, settings, hba: None, own_initdb: false, environment: Vec::new() }
    }

    /// The server's major version.
    pub fn major(&self) -> u32 {
        major_of(&self.bin)
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Folder of the Unix socket, of certificates, and of the server's log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// URL of the database `postgres`, as the role `postgres`.
    pub fn url(&self) -> String {
        self.url_as("postgres", "postgres")
    }

    /// URL of a database, as a role (`role` or `role:password`).
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port)
    }

    /// A session of tokio-postgres, in the database `postgres`: the oracle.
    pub async fn connect(&self) -> tokio_postgres::Client {
        self.connect_to("postgres").await
    }

    /// A session of tokio-postgres in another database.
    pub async fn connect_to(&self, database: &str) -> tokio_postgres::Client {
        let url = self.url_as("postgres", database);
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Stops the server and waits for its end.
    pub fn stop(&mut self, how: Stop) {
        let signal = if how == Stop::Fast { Signal::INT } else { Signal::QUIT };
        let Some(mut child) = self.child.take() else { return };
        let _ = kill_process(Pid::from_child(&child), signal);
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            // Kills the postmaster alone: its sessions live on, and the next start fails of that.
            if start.elapsed() > PATIENCE {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts a stopped server on the same port and data.
    pub async fn start_again(&mut self) {
        self.try_start_again();
        self.wait_ready().await;
    }

    /// Appends to `postgresql.conf`; takes effect with [`Postgres::reload`] or a restart.
    pub fn configure(&self, settings: &[(&str, &str)]) {
        let mut file = fs::OpenOptions::new().append(true).open(self.data().join("postgresql.conf")).unwrap();
        for (name, value) in settings {
            writeln!(file, "{name} = '{}'", value.replace('\'', "''")).unwrap();
        }
    }

    /// Replaces `pg_hba.conf`; takes effect with [`Postgres::reload`] or a restart.
    pub fn set_hba(&self, lines: &str) {
        fs::write(self.data().join("pg_hba.conf"), lines).unwrap();
    }

    /// Lets the server read its configuration again.
    pub fn reload(&self) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), Signal::HUP).unwrap();
    }

    /// A standby of this server, which must run: a copy of its data taken under `pg_backup_start`, without its slots. It
    /// streams from the physical slot of that name, which must be there, and synchronises slots where servers do so.
    pub async fn standby(&self, slot: &str) -> Self {
        let client = self.connect().await;
        client.batch_execute("SELECT pg_backup_start('standby', true)").await.unwrap();
        let standby = self.twin();
        let sql = "SELECT labelfile FROM pg_backup_stop(false)";
        let label: String = client.query_one(sql, &[]).await.unwrap().get(0);
        let write = |file: &str, text: &str| {
            let path = standby.data().join(file);
            fs::write(&path, text).unwrap();
            give_away(&path);
        };
        write("backup_label", &label);
        write("standby.signal", "");
        let primary = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres application_name={slot}",
            self.port
        );
        standby.configure(&[
            ("primary_conninfo", &primary),
            ("primary_slot_name", slot),
            ("hot_standby_feedback", "on"),
            ("wal_receiver_status_interval", "1s"),
        ]);
        if self.major() >= 17 {
            standby.configure(&[("sync_replication_slots", "on"), ("synchronized_standby_slots", "")]);
        }
        let mut standby = standby;
        standby.start_again().await;
        standby
    }

    /// Another server with a copy of this one's data, without its slots; it is not started.
    fn twin(&self) -> Self {
        let twin = self.without_data();
        run(Command::new("cp").arg("-a").arg(self.data()).arg(twin.data()));
        for file in ["postmaster.pid", "postmaster.opts"] {
            let _ = fs::remove_file(twin.data().join(file));
        }
        for slot in fs::read_dir(twin.data().join("pg_replslot")).unwrap() {
            fs::remove_dir_all(slot.unwrap().path()).unwrap();
        }
        let socket_dir = twin.dir().display().to_string();
        twin.configure(&[("port", &twin.port.to_string()), ("unix_socket_directories", &socket_dir)]);
        twin
    }

    /// A server of the same programs on a port of its own, without data.
    fn without_data(&self) -> Self {
        let dir = tempfile::Builder::new().prefix("tidemark-pg-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        give_away(dir.path());
        Self {
            bin: self.bin.clone(),
            dir,
            port: free_port(),
            child: None,
            environment: self.environment.clone(),
        }
    }

    /// Makes a standby a primary, and waits until it is one.
    pub async fn promote(&self) {
        let promoted: bool = self.connect().await.query_one("SELECT pg_promote()", &[]).await.unwrap().get(0);
        assert!(promoted, "the standby was not promoted:\n{}", self.log());
    }

    /// Copies the data of a stopped server, to be restored later.
    pub fn back_up(&self) {
        assert!(self.child.is_none(), "the server runs");
        run(Command::new("cp").arg("-a").arg(self.data()).arg(self.dir.path().join("backup")));
    }

    /// Puts the copy of a stopped server in the place of its data. With `recovery` it is recovered to the end of the WAL
    /// that it has, which begins a timeline, as a restore to a point in time does.
    pub fn restore(&self, recovery: bool) {
        assert!(self.child.is_none(), "the server runs");
        fs::remove_dir_all(self.data()).unwrap();
        run(Command::new("cp").arg("-a").arg(self.dir.path().join("backup")).arg(self.data()));
        if recovery {
            self.configure(&[("restore_command", "false")]);
            let signal = self.data().join("recovery.signal");
            fs::write(&signal, "").unwrap();
            give_away(&signal);
        }
    }

    /// Makes certificates in the server's folder and switches TLS on, with the certificate of that name. Restarts.
    pub async fn use_tls(&mut self, certificate: &str) -> Certificates {
        let dir = self.dir.path().join("tls");
        fs::create_dir_all(&dir).unwrap();
        let made = Certificates::make(&dir);
        self.use_certificate(&made, certificate).await;
        made
    }

    /// Presents another certificate. Restarts.
    pub async fn use_certificate(&mut self, certificates: &Certificates, name: &str) {
        // The server wants to own its key; the client's own files stay with the tests.
        let own = |from: &str, to: &str| {
            let path = self.data().join(to);
            fs::copy(certificates.path(from), &path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            give_away(&path);
        };
        own(&format!("{name}.crt"), "server.crt");
        own(&format!("{name}.key"), "server.key");
        own("ca.crt", "ca.crt");
        self.configure(&[
            ("ssl", "on"),
            ("ssl_cert_file", "server.crt"),
            ("ssl_key_file", "server.key"),
            ("ssl_ca_file", "ca.crt"),
        ]);
        self.stop(Stop::Fast);
        self.start_again().await;
    }

    fn try_start_again(&mut self) {
        assert!(self.child.is_none(), "the server runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = server_command(&self.bin, "postgres")
            .arg("-D")
            .arg(self.data())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    async fn wait_ready(&mut self) {
        let config =
            format!("host={} port={} user=postgres dbname=postgres", self.dir().display(), self.port);
        let start = Instant::now();
        loop {
            if let Ok((_client, connection)) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await {
                drop(connection);
                return;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the server did not start:\n{}", self.log());
            // A server that was killed under traffic has a lot of WAL to redo first.
            assert!(start.elapsed() < PATIENCE, "the server is not ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop(Stop::Immediate);
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(15).collect();
            eprintln!("the end of the server's log, newest first:\n{}", tail.join("\n"));
            super::failure::tell_again();
        }
    }
}

impl PostgresBuilder {
    /// A line of `postgresql.conf`.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An environment variable of the server's processes.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The whole of `pg_hba.conf`; keep `local all all trust`, which the harness itself uses.
    #[must_use]
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.to_owned());
        self
    }

    /// Runs initdb for this server alone, so that it has a system identifier of its own.
    #[must_use]
    pub const fn own_initdb(mut self) -> Self {
        self.own_initdb = true;
        self
    }

    /// Starts it and waits until it takes sessions.
    pub async fn start(self) -> Postgres {
        super::failure::watch();
        let dir = tempfile::Builder::new().prefix("tidemark-pg-").tempdir().unwrap();
        // The server's user has to reach its data.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        give_away(dir.path());
        let data = dir.path().join("data");
        if self.own_initdb {
            initdb(&self.bin, &data);
        } else {
            run(Command::new("cp").arg("-a").arg(template(&self.bin)).arg(&data));
        }
        let port = free_port();
        let mut server = Postgres { bin: self.bin, dir, port, child: None, environment: self.environment };
        let socket_dir = server.dir().display().to_string();
        server.configure(&[("port", &port.to_string()), ("unix_socket_directories", &socket_dir)]);
        for (name, value) in &self.settings {
            server.configure(&[(name, value)]);
        }
        if let Some(hba) = &self.hba {
            server.set_hba(hba);
        }
        server.start_again().await;
        server
    }
}

/// A data folder to copy, made once a version.
fn template(bin: &Path) -> PathBuf {
    let version = Command::new(bin.join("postgres")).arg("--version").output().unwrap();
    let version: String =
        String::from_utf8_lossy(&version.stdout).chars().filter(char::is_ascii_alphanumeric).collect();
    let name = format!("tidemark-test-initdb-{}-{version}", geteuid().as_raw());
    let path = std::env::temp_dir().join(name);
    if !path.exists() {
        // Whoever comes first with a rename wins; the others' copies are as good, and thrown away.
        let dir = tempfile::Builder::new().prefix("tidemark-initdb-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        give_away(dir.path());
        initdb(bin, &dir.path().join("data"));
        let _ = fs::rename(dir.path().join("data"), &path);
    }
    path
}

fn initdb(bin: &Path, data: &Path) {
    let mut command = server_command(bin, "initdb");
    command.arg("-D").arg(data);
    run(command.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]));
}

/// A server program, run as `nobody` when we are root.
fn server_command(bin: &Path, program: &str) -> Command {
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        let id = NOBODY.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(bin.join(program));
        command
    } else {
        Command::new(bin.join(program))
    };
    command.env("HOME", "/tmp").env("LC_ALL", "C.UTF-8").current_dir("/tmp");
    command
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A port that nobody listens on, below the range from which the kernel takes ports for outgoing connections.
/// Processes begin at different places; within one, no port is given out twice.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    let start = (std::process::id() as u16).wrapping_mul(97) % COUNT;
    loop {
        let port = FIRST + (start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
