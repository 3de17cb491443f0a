//! Kafka Connect with Debezium's connector, from the jars which `scripts/fetch-debezium` fetches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Kafka, PATIENCE, Postgres, free_port, wait_until};

/// Two connectors have this long to copy and to begin streaming.
const START: Duration = PATIENCE.saturating_mul(2);

/// Debezium, settings alike to Tidemark's where there is a choice.
const SETTINGS: &str = "connector.class=io.debezium.connector.postgresql.PostgresConnector
tasks.max=1
database.hostname=127.0.0.1
database.user=postgres
database.password=none
database.dbname=postgres
plugin.name=pgoutput
publication.name=everything
publication.autocreate.mode=disabled
schema.include.list=public
snapshot.mode=initial
skipped.operations=none
interval.handling.mode=string
include.unknown.datatypes=true
provide.transaction.metadata=true
message.prefix.exclude.list=tidemark.*
statistics.metrics.enabled=false
poll.interval.ms=20
topic.creation.default.replication.factor=1
topic.creation.default.partitions=1
";

/// A running Connect. Dropping it kills it.
pub struct Connect {
    folder: tempfile::TempDir,
    child: Child,
}

impl Connect {
    /// Starts one with a connector for each form: its name, and whether schemas are embedded.
    pub fn start(kafka: &Kafka, server: &Postgres, forms: &[(&str, bool)]) -> Self {
        let folder = tempfile::Builder::new().prefix("tidemark-connect-").tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let json = "org.apache.kafka.connect.json.JsonConverter";
        let worker = format!(
            "bootstrap.servers={}\nkey.converter={json}\nvalue.converter={json}\n\
             offset.storage.file.filename={}\nlisteners=http://127.0.0.1:{}\n\
             plugin.path={}\nplugin.discovery=service_load\n",
            kafka.address(),
            path("offsets").display(),
            free_port(),
            fetched("plugins").display(),
        );
        fs::write(path("worker.properties"), worker).unwrap();
        let log = "rootLogger.level=info\nrootLogger.appenderRef.out.ref=out\nappender.out.type=Console\n\
                   appender.out.name=out\nappender.out.layout.type=PatternLayout\n\
                   appender.out.layout.pattern=%d{HH:mm:ss.SSS} %p %c{1} %m%n\n";
        fs::write(path("log4j2.properties"), log).unwrap();
        let mut files = vec![path("worker.properties")];
        for (form, schemas) in forms {
            let name = format!("{form}_d");
            let own = format!(
                "name={name}\ntopic.prefix={name}\nslot.name={name}\ndatabase.port={}\n\
                 key.converter={json}\nvalue.converter={json}\n\
                 key.converter.schemas.enable={schemas}\nvalue.converter.schemas.enable={schemas}\n",
                server.port()
            );
            files.push(path(&format!("{name}.properties")));
            fs::write(files.last().unwrap(), [SETTINGS, &own].concat()).unwrap();
        }
        let output = fs::File::create(path("log")).unwrap();
        // It dies with the test, however that ends: its shell reads from us until we are gone.
        let script = "java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \"$@\" < /dev/null & \
                      pid=$!; cat > /dev/null; kill $pid; wait $pid";
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(format!("-Dlog4j2.configurationFile={}", path("log4j2.properties").display()))
            .args(["-cp", &format!("{}/*", fetched("libs").display())])
            .arg("org.apache.kafka.connect.cli.ConnectStandalone")
            .args(&files)
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { folder, child }
    }

    /// Waits until so many connectors have copied everything and stream.
    pub async fn streaming(&mut self, client: &tokio_postgres::Client, count: usize) {
        wait_until(START, "Debezium streams", || {
            self.assert_running();
            async move {
                let sql = "SELECT count(*) FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
                           WHERE r.state = 'streaming' AND s.slot_name LIKE '%\\_d'";
                let active: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
                active as usize == count
            }
        })
        .await;
    }

    /// Fails if it, or one of its connectors, has ended by itself.
    pub fn assert_running(&mut self) {
        let ended = self.child.try_wait().unwrap();
        let failed = self.log().contains("threw an uncaught and unrecoverable exception");
        assert!(ended.is_none() && !failed, "Debezium has ended: {ended:?}");
    }

    /// Ends it, once what it has sent is in the broker.
    pub fn stop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().filter(|line| line.contains(" ERROR ")).take(10).collect();
            eprintln!("Connect's last errors, newest first:\n{}", tail.join("\n"));
        }
    }
}

fn fetched(what: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".debezium").join(what);
    assert!(path.exists(), "{} is missing: run `make debezium`", path.display());
    path
}
