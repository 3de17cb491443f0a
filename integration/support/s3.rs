//! A throwaway store that speaks S3: `SeaweedFS`, which `scripts/fetch-s3` fetches. One for all tests of a process; each test
//! has buckets of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::signer::Signer;
use serde_json::json;
use tidemark::lake::{S3Credentials, S3Options};

use super::{Certificates, Connector, free_port};

const START: Duration = Duration::from_secs(60);
const REGION: &str = "us-east-1";
const PREFIX: &str = "s3-";

/// A running store. It ends with the process of the tests.
#[derive(Debug)]
pub struct S3 {
    dir: tempfile::TempDir,
    child: Child,
    port: u16,
    https_port: u16,
}

impl S3 {
    /// Who may do everything.
    pub const KEY: &str = "testkey";
    /// Its secret.
    pub const SECRET: &str = "testsecret";
    /// Who may only read.
    pub const READER: &str = "reader";

    /// The store of this process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<S3> = OnceLock::new();
        SHARED.get_or_init(|| {
            let _ = rustls::crypto::ring::default_provider().install_default();
            super::kafka::remove_old_folders(PREFIX);
            Self::start()
        })
    }

    fn start() -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(".s3/weed");
        assert!(program.exists(), "{} is missing: run `scripts/fetch-s3` (or `make s3`)", program.display());
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let keys = |key: &str| json!([{"accessKey": key, "secretKey": Self::SECRET}]);
        let all = ["Admin", "Read", "Write", "List", "Tagging"];
        let identities = json!({"identities": [
            {"name": "tidemark", "credentials": keys(Self::KEY), "actions": all},
            {"name": "reader", "credentials": keys(Self::READER), "actions": ["Read", "List"]},
        ]});
        let config = dir.path().join("identities.json");
        fs::write(&config, identities.to_string()).unwrap();
        Certificates::make(dir.path());
        let (port, https_port) = (free_port(), free_port());
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args([
            "-logtostderr=true",
            "server",
            "-filer",
            "-s3",
        ]);
        for name in ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc"] {
            command.arg(format!("-{name}={}", free_port()));
        }
        for name in ["filer.port", "filer.port.grpc", "s3.port.grpc"] {
            command.arg(format!("-{name}={}", free_port()));
        }
        command
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=0"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-s3.autoCreateBucket=false"])
            .arg("-master.telemetry=false")
            .arg(format!("-s3.port={port}"))
            .arg(format!("-s3.port.https={https_port}"))
            .args(["-s3.cert.file=server.crt", "-s3.key.file=server.key"])
            .arg(format!("-s3.config={}", config.display()))
            .arg(format!("-dir={}", dir.path().display()))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut store = Self { child: super::kafka::spawn(command), dir, port, https_port };
        store.wait_started();
        store
    }

    fn wait_started(&mut self) {
        let began = Instant::now();
        let health = format!("http://127.0.0.1:{}/healthz", self.port);
        while super::http().get(&health).call().is_err() {
            let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(self.child.try_wait().unwrap().is_none(), "the store ended at its start: {}", log());
            assert!(began.elapsed() < START, "the store does not start: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where it listens, on 127.0.0.1.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens with TLS, with a certificate for localhost by [`Self::authority`].
    pub const fn https_port(&self) -> u16 {
        self.https_port
    }

    /// Who has signed its certificate, as a file in PEM form.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Makes a bucket that no other test has.
    pub async fn bucket(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let bucket = format!("lake-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let signer = self.client_of(&bucket);
        let root = object_store::path::Path::default();
        let url = signer.signed_url(http::Method::PUT, &root, Duration::from_secs(60)).await.unwrap();
        let began = Instant::now();
        // The volume server may join a moment after the rest.
        while let Err(error) = super::http().put(url.as_str()).send_empty() {
            assert!(began.elapsed() < START, "{bucket} cannot be made: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bucket
    }

    /// Reads and writes a bucket of the shared store as nobody's proxy.
    pub fn client(bucket: &str) -> AmazonS3 {
        Self::shared().client_of(bucket)
    }

    fn client_of(&self, bucket: &str) -> AmazonS3 {
        AmazonS3Builder::new()
            .with_endpoint(format!("http://127.0.0.1:{}", self.port))
            .with_allow_http(true)
            .with_region(REGION)
            .with_bucket_name(bucket)
            .with_access_key_id(Self::KEY)
            .with_secret_access_key(Self::SECRET)
            .build()
            .unwrap()
    }

    /// How the lake reaches a bucket, at the store itself or at a proxy before it.
    pub fn options(bucket: &str, port: u16) -> S3Options {
        S3Options {
            bucket: bucket.to_owned(),
            prefix: "team/lake".to_owned(),
            region: REGION.to_owned(),
            endpoint_url: Some(format!("http://127.0.0.1:{port}")),
            force_path_style: true,
            allow_http: true,
            ca_file: None,
            credentials: Some(S3Credentials {
                access_key_id: Self::KEY.to_owned(),
                secret_access_key: Self::SECRET.to_owned(),
                session_token: None,
            }),
            server_side_encryption: None,
            multipart_threshold_bytes: 5 << 20,
            multipart_chunk_bytes: 5 << 20,
            max_retries: 3,
            retry_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
        }
    }

    /// Moves a connector's lake into a bucket.
    pub fn lake_in(connector: &mut Connector, bucket: &str, port: u16) {
        connector.change("lake", "url", format!("s3://{bucket}/team/lake"));
        connector.change("lake.s3", "endpoint_url", format!("http://127.0.0.1:{port}"));
        connector.change("lake.s3", "allow_http", true);
        connector.change("lake.s3", "access_key_id", Self::KEY);
        connector.change("lake.s3", "secret_access_key", Self::SECRET);
    }
}
