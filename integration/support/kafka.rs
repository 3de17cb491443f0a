//! A throwaway Kafka: one broker that is its own controller, or one node of several that are ([`super::Cluster`]),
//! from the jars which `scripts/fetch-kafka` fetches.
//!
//! It listens in plain; with TLS and passwords, by SCRAM or PLAIN; with TLS and the client's certificate; and with a
//! certificate of another host. Who comes in plain, and the user `app`, may do anything; the user `limited` and whoever
//! has a certificate may do what [`Kafka::allow`] gives them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Certificates, PATIENCE, free_port};

/// A broker has this long to start, on a machine that is busy.
const START: Duration = Duration::from_secs(180);

const PREFIX: &str = "kafka-";

/// A running (or stopped) broker. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct Kafka {
    dir: tempfile::TempDir,
    port: u16,
    tls_port: u16,
    certificate_port: u16,
    elsewhere_port: u16,
    child: Option<Child>,
    /// How often its log says that it has started, once it has.
    launches: usize,
}

/// A broker's place among its peers.
#[derive(Clone, Copy, Debug)]
pub struct Node<'n> {
    /// From 1.
    pub id: usize,
    /// Ports of all controllers, by id.
    pub controllers: &'n [u16],
    /// Further properties of the broker.
    pub properties: &'n [(&'n str, &'n str)],
}

impl Kafka {
    /// The password of `app` and of `limited`, behind TLS.
    pub const PASSWORD: &str = "app-secret";

    /// Kafka's name of whoever comes with the certificate `client.crt`.
    pub const CERTIFIED: &str = "User:CN=alice";

    /// A broker of its own.
    pub fn start() -> Self {
        let mut kafka = Self::prepare(Node { id: 1, controllers: &[free_port()], properties: &[] });
        kafka.start_again();
        kafka
    }

    /// A broker that is not running yet.
    pub fn prepare(node: Node<'_>) -> Self {
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let kafka = Self {
            dir,
            port: free_port(),
            tls_port: free_port(),
            certificate_port: free_port(),
            elsewhere_port: free_port(),
            child: None,
            launches: 0,
        };
        kafka.configure(node);
        kafka.format();
        kafka
    }

    /// One broker for all tests of a process, which ends with it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| {
            remove_old_folders(PREFIX);
            Self::start()
        })
    }

    /// Where to connect, in plain.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where to connect with TLS and a password, by SCRAM or PLAIN.
    pub fn tls_address(&self) -> String {
        format!("localhost:{}", self.tls_port)
    }

    /// Where to connect with TLS and a certificate.
    pub fn certificate_address(&self) -> String {
        format!("localhost:{}", self.certificate_port)
    }

    /// Where the broker shows the certificate of another host.
    pub fn elsewhere_address(&self) -> String {
        format!("localhost:{}", self.elsewhere_port)
    }

    /// Gives rights by Kafka's own `kafka-acls.sh`, as in `--topic shop. --resource-pattern-type prefixed`.
    pub fn allow(&self, principal: &str, operations: &[&str], resource: &[&str]) {
        let mut command = java(&["-Xmx96m", "-Dlog4j2.level=OFF"]);
        command.args(["-cp", &class_path(), "org.apache.kafka.tools.AclCommand"]);
        command.args(["--bootstrap-server", &self.address(), "--add", "--allow-principal", principal]);
        for operation in operations {
            command.args(["--operation", operation]);
        }
        let output = command.args(resource).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    /// The broker's folder: what it says, its settings and its data.
    pub fn folder(&self) -> &Path {
        self.dir.path()
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

    /// SIGTERM: what it leads goes to others first, where there are any.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < START, "the broker does not stop: {}", tail(&self.log()));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it was started, and neither stopped nor killed since.
    pub const fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Starts a broker that was killed, on the same ports and data, and waits until it answers.
    pub fn start_again(&mut self) {
        self.launch();
        self.wait_started();
    }

    /// Starts it, on the same ports and data as before, and does not wait.
    pub fn launch(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
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
        // A broker that died before it had started has left no line of its own.
        self.launches = self.started() + 1;
        self.child = Some(spawn(broker));
    }

    /// Waits until a broker which was launched answers.
    pub fn wait_started(&mut self) {
        let began = Instant::now();
        while self.started() < self.launches {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the broker ended at its start: {}", tail(&self.log()));
            assert!(began.elapsed() < START, "the broker does not start: {}", tail(&self.log()));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn started(&self) -> usize {
        self.log().matches("Kafka Server started").count()
    }

    /// What the broker has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The first `count` committed values of a topic by Kafka's own console consumer, a line each; less if 30 s pass without.
    pub fn console_consumer(&self, topic: &str, count: usize) -> Vec<String> {
        self.console_consumer_of(topic, count, "30000")
    }

    /// All of them, read in the same way, and read again while they are fewer than `count`: on a busy machine a pause looks
    /// like the end of the topic, and what a connector has kept on its disk comes late.
    pub fn committed(&self, topic: &str, count: usize) -> Vec<String> {
        let (began, all) = (Instant::now(), usize::MAX >> 40);
        let mut lines = self.console_consumer_of(topic, all, "8000");
        while lines.len() < count && began.elapsed() < PATIENCE {
            lines = self.console_consumer_of(topic, all, "30000");
        }
        lines
    }

    fn console_consumer_of(&self, topic: &str, count: usize, timeout_ms: &str) -> Vec<String> {
        let output = java(&["-Xmx96m", "-Dlog4j2.level=OFF"])
            .args(["-cp", &class_path(), "org.apache.kafka.tools.consumer.ConsoleConsumer"])
            .args(["--bootstrap-server", &self.address(), "--topic", topic, "--from-beginning"])
            .args(["--isolation-level", "read_committed", "--timeout-ms", timeout_ms])
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

    /// The password that `limited` has from the next start on.
    pub fn set_password_of_limited(&self, password: &str) {
        let path = self.dir.path().join("server.properties");
        let text = fs::read_to_string(&path).unwrap();
        let (before, after) = text.split_once("user_limited=\"").unwrap();
        let (_, after) = after.split_once('"').unwrap();
        fs::write(path, format!("{before}user_limited=\"{password}\"{after}")).unwrap();
    }

    fn configure(&self, node: Node<'_>) {
        let dir = self.dir.path();
        let certificates = Certificates::make(dir);
        for (certificate, store) in [("server", "broker.pem"), ("wrong", "elsewhere.pem")] {
            let key = Command::new("openssl")
                .args(["pkcs8", "-topk8", "-nocrypt", "-in"])
                .arg(certificates.path(&format!("{certificate}.key")))
                .output()
                .unwrap();
            let certificate = fs::read(certificates.path(&format!("{certificate}.crt"))).unwrap();
            fs::write(dir.join(store), [key.stdout, certificate].concat()).unwrap();
        }
        fs::write(
            dir.join("log4j2.properties"),
            "rootLogger.level=info\nrootLogger.appenderRef.out.ref=out\nappender.out.type=Console\n\
             appender.out.name=out\nappender.out.layout.type=PatternLayout\n\
             appender.out.layout.pattern=%d{HH:mm:ss.SSS} %p %c{1} %m%n\n",
        )
        .unwrap();
        let (port, tls, dir) = (self.port, self.tls_port, dir.display());
        let (certificate, elsewhere) = (self.certificate_port, self.elsewhere_port);
        let (id, nodes, controller) = (node.id, node.controllers.len(), node.controllers[node.id - 1]);
        let quorum = (node.controllers.iter().zip(1..)).map(|(port, id)| format!("{id}@127.0.0.1:{port}"));
        let (quorum, in_sync) = (quorum.collect::<Vec<_>>().join(","), nodes.div_ceil(2));
        // From one that is silent the others take over soon; alone it would only lock itself out on a busy machine.
        let session_ms = if nodes > 1 { 2000 } else { 9000 };
        let (peers, login) = (free_port(), "org.apache.kafka.common.security");
        let password = Self::PASSWORD;
        let mut properties = format!(
            "process.roles=broker,controller\n\
             node.id={id}\n\
             controller.quorum.voters={quorum}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{tls},SSL://127.0.0.1:{certificate},\
             ELSEWHERE://127.0.0.1:{elsewhere},PEERS://127.0.0.1:{peers},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://localhost:{tls},\
             SSL://localhost:{certificate},ELSEWHERE://localhost:{elsewhere},PEERS://127.0.0.1:{peers}\n\
             inter.broker.listener.name=PEERS\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,ELSEWHERE:SSL,\
             PEERS:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS;User:app\n\
             sasl.enabled.mechanisms=SCRAM-SHA-256,PLAIN\n\
             listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={login}.scram.ScramLoginModule required;\n\
             listener.name.sasl_ssl.plain.sasl.jaas.config={login}.plain.PlainLoginModule required \
             user_app=\"{password}\" user_limited=\"{password}\";\n\
             ssl.keystore.type=PEM\n\
             ssl.keystore.location={dir}/broker.pem\n\
             ssl.truststore.type=PEM\n\
             ssl.truststore.location={dir}/ca.crt\n\
             listener.name.sasl_ssl.ssl.client.auth=none\n\
             listener.name.ssl.ssl.client.auth=required\n\
             listener.name.elsewhere.ssl.keystore.type=PEM\n\
             listener.name.elsewhere.ssl.keystore.location={dir}/elsewhere.pem\n\
             log.dirs={dir}/data\n\
             auto.create.topics.enable=false\n\
             default.replication.factor={nodes}\n\
             offsets.topic.replication.factor={nodes}\n\
             offsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor={nodes}\n\
             transaction.state.log.min.isr={in_sync}\n\
             transaction.state.log.num.partitions=4\n\
             share.coordinator.state.topic.replication.factor={nodes}\n\
             share.coordinator.state.topic.min.isr={in_sync}\n\
             group.initial.rebalance.delay.ms=0\n\
             log.cleaner.dedupe.buffer.size=4194304\n\
             log.retention.check.interval.ms=500\n\
             log.initial.task.delay.ms=500\n\
             broker.session.timeout.ms={session_ms}\n\
             broker.heartbeat.interval.ms=500\n"
        );
        for (name, value) in node.properties {
            writeln!(properties, "{name}={value}").unwrap();
        }
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
pub(super) fn remove_old_folders(prefix: &str) {
    for entry in fs::read_dir(env!("CARGO_TARGET_TMPDIR")).unwrap().flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).map(|at| at.elapsed().unwrap_or_default());
        let is_old = age.is_ok_and(|age| age > Duration::from_secs(1800));
        if is_old && entry.file_name().to_string_lossy().starts_with(prefix) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// A JVM that starts fast and dies with the thread which starts it.
pub(super) fn java(options: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.args(options);
    command
}

/// Starts a process from a thread that never ends: the kernel kills it when that thread does.
pub(super) fn spawn(command: Command) -> Child {
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
