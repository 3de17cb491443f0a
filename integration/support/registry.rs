//! A schema registry of the test's own: Apicurio, by its Confluent API.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::support::{PATIENCE, free_port, wait_until};

const JAR: &str = ".registry/apicurio-registry-app-3.0.9-runner.jar";

#[derive(Debug)]
pub struct Registry {
    folder: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Registry {
    /// Starts one whose subjects have to stay BACKWARD compatible, and waits until it answers.
    pub async fn start() -> Self {
        let jar: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(JAR);
        assert!(jar.exists(), "{} is missing: run `make registry`", jar.display());
        let folder = tempfile::Builder::new().prefix("tidemark-registry-").tempdir().unwrap();
        let port = free_port();
        let output = std::fs::File::create(folder.path().join("log")).unwrap();
        // It dies with the test, however that ends: its shell reads from us until we are gone.
        let script = "java -Xmx192m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -jar \"$0\" < /dev/null & \
                      pid=$!; cat > /dev/null; kill -9 $pid; wait $pid";
        let child = Command::new("sh")
            .args(["-c", script])
            .arg(jar)
            .current_dir(folder.path())
            .env("QUARKUS_HTTP_HOST", "127.0.0.1")
            .env("QUARKUS_HTTP_PORT", port.to_string())
            .stdin(Stdio::piped())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let registry = Self { folder, port, child };
        wait_until(PATIENCE, "the registry answers", async || registry.answers()).await;
        let (start, setting) = (Instant::now(), json!({ "compatibility": "BACKWARD" }));
        // The first write is slow: it loads most of the program.
        let (status, answer) = loop {
            if let Some(answered) = registry.ask("PUT", "/config", Some(&setting)) {
                break answered;
            }
            assert!(start.elapsed() < PATIENCE, "the registry takes no setting");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(status, 200, "{answer}");
        registry
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        Self::url_at(self.port)
    }

    /// Its address by way of another port.
    pub fn url_at(port: u16) -> String {
        format!("http://127.0.0.1:{port}/apis/ccompat/v7")
    }

    fn answers(&self) -> bool {
        self.ask("GET", "/subjects", None).is_some_and(|(status, _)| status == 200)
    }

    pub fn get(&self, path: &str) -> Json {
        self.ask("GET", path, None).expect("the registry answers").1
    }

    pub fn put(&self, path: &str, body: &Json) -> (u16, Json) {
        self.ask("PUT", path, Some(body)).expect("the registry answers")
    }

    pub fn post(&self, path: &str, body: &Json) -> (u16, Json) {
        self.ask("POST", path, Some(body)).expect("the registry answers")
    }

    pub fn delete(&self, path: &str) {
        let (status, answer) = self.ask("DELETE", path, None).expect("the registry answers");
        assert_eq!(status, 200, "{answer}");
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Json>) -> Option<(u16, Json)> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(20)))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        let url = format!("{}{path}", self.url());
        let mut answer = match (method, body) {
            ("PUT", Some(body)) => agent.put(url).send_json(body),
            ("POST", Some(body)) => agent.post(url).send_json(body),
            ("DELETE", None) => agent.delete(url).call(),
            _ => agent.get(url).call(),
        }
        .ok()?;
        let text = answer.body_mut().read_to_string().ok()?;
        Some((answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Json::String(text))))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(15).collect();
            eprintln!("the end of the registry's log, newest first:\n{}", tail.join("\n"));
        }
    }
}
