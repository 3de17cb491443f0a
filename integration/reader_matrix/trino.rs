//! A Trino server over the lakes: `scripts/fetch-trino`. Its tables are Hive's, each format in a catalog of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::lake::{FORMATS, Lakes, seen_by};
use crate::support::free_port;

/// It loads some thousand classes.
const START: Duration = Duration::from_secs(180);

/// A running server, killed when dropped.
#[derive(Debug)]
pub struct Trino {
    dir: tempfile::TempDir,
    port: u16,
    child: Child,
}

/// Trino wants a newer Java than everything else.
fn java_home() -> PathBuf {
    let found = || {
        let jvms = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten().map(|entry| entry.path());
        jvms.filter(|jvm| jvm.join("bin/java").exists()).find(|jvm| {
            fs::read_to_string(jvm.join("release")).is_ok_and(|text| text.contains("JAVA_VERSION=\"25"))
        })
    };
    std::env::var_os("TRINO_JAVA_HOME")
        .map(PathBuf::from)
        .or_else(found)
        .expect("no Java 25 was found in /usr/lib/jvm: install one, or set TRINO_JAVA_HOME")
}

impl Trino {
    pub fn start(lakes: &Lakes) -> Self {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join(".trino");
        assert!(home.join("lib").exists(), "{} is missing: run `scripts/fetch-trino`", home.display());
        let dir = tempfile::Builder::new().prefix("trino-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let port = free_port();
        let etc = dir.path().join("etc");
        fs::create_dir_all(etc.join("catalog")).unwrap();
        let data = dir.path().join("data");
        let put = |name: &str, text: String| fs::write(etc.join(name), text).unwrap();
        put(
            "node.properties",
            format!("node.environment=test\nnode.id=t1\nnode.data-dir={}\n", data.display()),
        );
        put("log.properties", "io.trino=WARN\n".to_owned());
        put(
            "jvm.config",
            "-server\n-XX:TieredStopAtLevel=1\n-Xmx768M\n-XX:+UseSerialGC\n-XX:ReservedCodeCacheSize=128M\n\
             -XX:-OmitStackTraceInFastThrow\n-Djdk.attach.allowAttachSelf=true\n-Dfile.encoding=UTF-8\n\
             -Duser.timezone=UTC\n-XX:+EnableDynamicAgentLoading\n"
                .to_owned(),
        );
        put(
            "config.properties",
            format!(
                "coordinator=true\nnode-scheduler.include-coordinator=true\nhttp-server.http.port={port}\n\
                 discovery.uri=http://127.0.0.1:{port}\nnode.internal-address=127.0.0.1\nweb-ui.enabled=false\n\
                 query.max-memory=200MB\nquery.max-memory-per-node=200MB\nmemory.heap-headroom-per-node=200MB\n\
                 task.concurrency=2\n"
            ),
        );
        for format in FORMATS {
            put(
                &format!("catalog/{format}.properties"),
                format!(
                    "connector.name=hive\nhive.metastore=file\nhive.metastore.catalog.dir=local:///meta\n\
                     fs.native-local.enabled=true\nlocal.location={}\nhive.non-managed-table-writes-enabled=true\n\
                     hive.security=allow-all\nhive.timestamp-precision=MICROSECONDS\n",
                    lakes.root(format).display()
                ),
            );
        }
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(home.join("bin/launcher"))
            .arg(format!("--etc-dir={}", etc.display()))
            .arg("run")
            .env("JAVA_HOME", java_home())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { dir, port, child };
        let began = Instant::now();
        while !server.serves() {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < START, "Trino does not start: {}", server.log());
            std::thread::sleep(Duration::from_millis(200));
        }
        for format in FORMATS {
            server.sql(format, "CREATE SCHEMA s");
        }
        server
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn serves(&self) -> bool {
        let answer = crate::support::http().get(format!("{}/v1/info", self.url())).call();
        answer.is_ok_and(|mut answer| {
            answer.body_mut().read_to_string().is_ok_and(|text| text.contains("\"starting\":false"))
        })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Rows of a statement.
    pub fn sql(&self, format: &str, sql: &str) -> Value {
        seen_by(&["trino", format, &self.url(), format], &json!({"columns": [], "sql": sql}))
    }

    /// What it sees of a table, for which it makes one of its own.
    pub fn sees(&self, format: &str, request: &Value) -> Value {
        seen_by(&["trino", format, &self.url(), format], request)
    }
}

impl Drop for Trino {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
