//! A throwaway ZooKeeper, from the jars which `scripts/fetch-zookeeper` fetches.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::kafka::{java, spawn};
use super::{PATIENCE, free_port};

/// A server has this long to start.
const START: Duration = PATIENCE;

/// A running (or stopped) server. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct Zookeeper {
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Zookeeper {
    /// A server of its own, which takes sessions from half a second on.
    pub fn start() -> Self {
        let dir =
            tempfile::Builder::new().prefix("zookeeper-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let port = free_port();
        let config = format!(
            "tickTime=250\ndataDir={}/data\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n\
             maxSessionTimeout=60000\nmaxClientCnxns=0\n4lw.commands.whitelist=srvr\n",
            dir.path().display()
        );
        fs::write(dir.path().join("zoo.cfg"), config).unwrap();
        let mut server = Self { dir, port, child: None };
        server.start_again();
        server
    }

    /// Where to connect.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL, as if the power had gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts a server that was killed, on the same port and data, and waits until it serves.
    pub fn start_again(&mut self) {
        let jars = Path::new(env!("CARGO_MANIFEST_DIR")).join(".zookeeper/libs");
        assert!(
            jars.exists(),
            "{} is missing: run `scripts/fetch-zookeeper` (or `make zookeeper`)",
            jars.display()
        );
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        // A flush to the disk can take longer than a session of the tests, and a server that is killed loses nothing without.
        let mut server = java(&["-Xmx64m", "-Dzookeeper.forceSync=no", "-cp"]);
        server
            .arg(format!("{}/*", jars.display()))
            .arg("org.apache.zookeeper.server.ZooKeeperServerMain")
            .arg(self.dir.path().join("zoo.cfg"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut child = spawn(server);
        let began = Instant::now();
        while !self.serves() {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < START, "ZooKeeper does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        self.child = Some(child);
    }

    /// `ruok` is answered before it serves.
    fn serves(&self) -> bool {
        let ask = || {
            let mut connection = TcpStream::connect(("127.0.0.1", self.port))?;
            connection.set_read_timeout(Some(Duration::from_secs(2)))?;
            connection.write_all(b"srvr")?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer.contains("Mode:"))
        };
        ask().unwrap_or(false)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Zookeeper {
    fn drop(&mut self) {
        self.kill();
    }
}
