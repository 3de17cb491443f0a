//! A throwaway Kafka: one broker that is its own controller, from the jars which `scripts/fetch-kafka` fetches.
//!
//! It listens in plain, and with TLS and SCRAM, for the user `app` with the password `app-secret`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::{Certificates, free_port};

/// A broker has this long to start, on a machine that is busy.
const START: Duration = Duration::from_secs(90);

const PREFIX: &str = "kafka-";

/// A running (or stopped) broker. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct Kafka {
    dir: tempfile::TempDir,
    port: u16,
    tls_port: u16,
    child: Option<Child>,
}

impl Kafka {
    /// The password of `app`, behind TLS.
    pub const PASSWORD: &str = "app-secret";

    /// A broker of its own.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut kafka = Self { dir, port: free_port(), tls_port: free_port(), child: None };
        kafka.configure();
        kafka.format();
        kafka.start_again();
        kafka
    }

    /// One broker for all tests of a process, which ends with it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| {
            remove_old_folders();
            Self::start()
        })
    }

    /// Where to connect, in plain.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where to connect with TLS and SCRAM.
    pub fn tls_address(&self) -> String {
        format!("localhost:{}", self.tls_port)
    }

    /// Port of the plain listener.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// A certificate or key of the broker's folder.
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// SIGKILL, as if the power had gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts a broker that was killed, on the same ports and data, and waits until it answers.
    pub fn start_again(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let seen = self.log().matches("Kafka Server started").count();
        let mut broker = java(&["-Xmx256m", "-Xms64m"]);
        broker
            .arg(format!(
                "-Dlog4j2.configurationFile={}",
                self.dir.path().join("log4j2.properties").display()
            ))
            .args(["-cp", &class_path(), "kafka.Kafka"])
            .arg(self.dir.path().join("server.properties"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = self.child.insert(spawn(broker));
        let started = Instant::now();
        let log = self.dir.path().join("log");
        let read = || fs::read_to_string(&log).unwrap_or_default();
        while read().matches("Kafka Server started").count() == seen {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "the broker ended at its start: {}", tail(&read()));
            assert!(started.elapsed() < START, "the broker does not start: {}", tail(&read()));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the broker has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The values of a topic as Kafka's own console consumer prints them, reading what is committed: a line each.
    /// Ends after `count` of them, or when none has come for a while.
    pub fn console_consumer(&self, topic: &str, count: usize) -> Vec<String> {
        let output = java(&["-Xmx96m", "-Dlog4j2.level=OFF"])
            .args(["-cp", &class_path(), "org.apache.kafka.tools.consumer.ConsoleConsumer"])
            .args(["--bootstrap-server", &self.address(), "--topic", topic, "--from-beginning"])
            .args(["--isolation-level", "read_committed", "--timeout-ms", "4000"])
            .args(["--max-messages", &count.to_string()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// Has the brokers delete all that a topic's partitions hold, as retention does, by Kafka's own tool.
    pub fn delete_records(&self, topic: &str, partitions: u32) {
        // -1: up to the high watermark.
        let one = |partition| serde_json::json!({ "topic": topic, "partition": partition, "offset": -1 });
        let all: Vec<_> = (0..partitions).map(one).collect();
        let file = self.dir.path().join("delete.json");
        fs::write(&file, serde_json::json!({ "partitions": all, "version": 1 }).to_string()).unwrap();
        let output = java(&["-Xmx96m", "-Dlog4j2.level=OFF"])
            .args(["-cp", &class_path(), "org.apache.kafka.tools.DeleteRecordsCommand"])
            .args(["--bootstrap-server", &self.address(), "--offset-json-file"])
            .arg(&file)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(told.matches("low_watermark").count(), partitions as usize, "{told}");
    }

    fn configure(&self) {
        let dir = self.dir.path();
        let certificates = Certificates::make(dir);
        let key = Command::new("openssl")
            .args(["pkcs8", "-topk8", "-nocrypt", "-in"])
            .arg(certificates.path("server.key"))
            .output()
            .unwrap();
        let certificate = fs::read(certificates.path("server.crt")).unwrap();
        fs::write(dir.join("broker.pem"), [key.stdout, certificate].concat()).unwrap();
        fs::write(
            dir.join("log4j2.properties"),
            "rootLogger.level=info\nrootLogger.appenderRef.out.ref=out\nappender.out.type=Console\n\
             appender.out.name=out\nappender.out.layout.type=PatternLayout\n\
             appender.out.layout.pattern=%d{HH:mm:ss.SSS} %p %c{1} %m%n\n",
        )
        .unwrap();
        let (port, tls, controller, dir) = (self.port, self.tls_port, free_port(), dir.display());
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{tls},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://localhost:{tls}\n\
             inter.broker.listener.name=PLAINTEXT\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT\n\
             sasl.enabled.mechanisms=SCRAM-SHA-256\n\
             listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={scram}\n\
             ssl.keystore.type=PEM\n\
             ssl.keystore.location={dir}/broker.pem\n\
             log.dirs={dir}/data\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=4\n\
             share.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n\
             log.cleaner.dedupe.buffer.size=4194304\n\
             log.retention.check.interval.ms=500\n\
             log.initial.task.delay.ms=500\n\
             broker.session.timeout.ms=2000\n\
             broker.heartbeat.interval.ms=500\n"
        );
        fs::write(self.dir.path().join("server.properties"), properties).unwrap();
    }

    fn format(&self) {
        let output = java(&["-Xmx128m"])
            .args(["-cp", &class_path(), "kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg"])
            .args(["--add-scram", &format!("SCRAM-SHA-256=[name=app,password={}]", Self::PASSWORD)])
            .arg("-c")
            .arg(self.dir.path().join("server.properties"))
            .output()
            .unwrap();
        assert!(output.status.success(), "formatting failed: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the end of the broker's log: {}", tail(&self.log()));
        }
    }
}

/// The folder of a shared broker outlives the process: statics are not dropped.
fn remove_old_folders() {
    for entry in fs::read_dir(env!("CARGO_TARGET_TMPDIR")).unwrap().flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).map(|at| at.elapsed().unwrap_or_default());
        let is_old = age.is_ok_and(|age| age > Duration::from_secs(1800));
        if is_old && entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// A JVM that starts fast and dies with the thread which starts it.
fn java(options: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.args(options);
    command
}

/// Starts a process from a thread that never ends: the kernel kills it when that thread does.
fn spawn(command: Command) -> Child {
    type Job = (Command, Sender<Child>);
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in queue {
                reply.send(command.spawn().unwrap()).unwrap();
            }
        });
        Mutex::new(jobs)
    });
    let (reply, child) = channel();
    spawner.lock().unwrap().send((command, reply)).unwrap();
    child.recv().unwrap()
}

fn class_path() -> String {
    let libs = Path::new(env!("CARGO_MANIFEST_DIR")).join(".kafka/libs");
    assert!(libs.exists(), "{} is missing: run `scripts/fetch-kafka`", libs.display());
    format!("{}/*", libs.display())
}
