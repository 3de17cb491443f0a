//! A throwaway store that speaks S3: `SeaweedFS`, which `scripts/fetch-s3` fetches. One for all tests of a process; each test
//! has buckets of its own.
//!
//! It encrypts objects that ask for it, by its own key and by one of a KMS within it; knows buckets by their host's name
//! (`bucket.localhost`) as well as in the path; and is a security token service, too: whom an issuer of the tests has
//! signed for ([`S3::web_identity`]) gets keys of a role.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::signer::Signer;
use serde_json::{Value, json};
use tidemark::lake::{S3Credentials, S3Options};

use super::{Certificates, Connector, free_port};

const START: Duration = Duration::from_secs(60);
const REGION: &str = "us-east-1";
const PREFIX: &str = "s3-";
/// For whom web identities are signed, as in EKS.
const AUDIENCE: &str = "sts.amazonaws.com";

/// A running store. It ends with the process of the tests.
#[derive(Debug)]
pub struct S3 {
    dir: tempfile::TempDir,
    child: Child,
    port: u16,
    https_port: u16,
    filer_port: u16,
}

impl S3 {
    /// Who may do everything.
    pub const KEY: &str = "testkey";
    /// Its secret.
    pub const SECRET: &str = "testsecret";
    /// Who may only read.
    pub const READER: &str = "reader";

    /// A key of its KMS.
    pub const KMS_KEY: &str = "alias/seaweedfs-default";
    /// Whom a web identity may become.
    pub const ROLE: &str = "arn:aws:iam::000000000000:role/tidemark";
    /// For how long its keys are good then.
    pub const SESSION: Duration = Duration::from_secs(20);

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
        let (port, https_port, filer_port) = (free_port(), free_port(), free_port());
        let config = dir.path().join("identities.json");
        fs::write(&config, identities().to_string()).unwrap();
        fs::write(dir.path().join("roles.json"), roles(&issuer(filer_port)).to_string()).unwrap();
        Certificates::make(dir.path());
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
        for name in ["filer.port.grpc", "s3.port.grpc"] {
            command.arg(format!("-{name}={}", free_port()));
        }
        command
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=0"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-s3.autoCreateBucket=false"])
            .args(["-master.telemetry=false", "-s3.domainName=localhost", "-s3.iam.config=roles.json"])
            .arg(format!("-filer.port={filer_port}"))
            .arg(format!("-s3.port={port}"))
            .arg(format!("-s3.port.https={https_port}"))
            .args(["-s3.cert.file=server.crt", "-s3.key.file=server.key"])
            .arg(format!("-s3.config={}", config.display()))
            .arg(format!("-dir={}", dir.path().display()))
            .env("WEED_S3_SSE_KEY", "of the tests")
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut store = Self { child: super::kafka::spawn(command), dir, port, https_port, filer_port };
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

    /// What the store says of an object: the headers of a HEAD.
    pub async fn head(bucket: &str, path: &object_store::path::Path) -> BTreeMap<String, String> {
        let client = Self::client(bucket);
        let url = client.signed_url(http::Method::HEAD, path, Duration::from_secs(60)).await.unwrap();
        let answer = super::http().head(url.as_str()).call().unwrap();
        let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
        answer.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect()
    }

    /// Whether the files of the store that hold a bucket's objects have these bytes somewhere.
    pub fn holds_at_rest(&self, bucket: &str, bytes: &[u8]) -> bool {
        let files = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let of_bucket = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with(&format!("{bucket}_")) && name.ends_with(".dat")
        };
        let volumes: Vec<_> = files.filter(of_bucket).collect();
        assert!(!volumes.is_empty(), "{bucket} has no files");
        volumes.iter().any(|volume| memchr::memmem::find(&fs::read(volume).unwrap(), bytes).is_some())
    }

    /// A token by which `subject` may become [`Self::ROLE`], as a cluster's issuer of service accounts signs it.
    pub async fn web_identity(&self, subject: &str) -> String {
        self.publish_keys().await;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "iss": issuer(self.filer_port), "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 3600,
        });
        let part = |of: &Value| URL_SAFE_NO_PAD.encode(of.to_string());
        let head = json!({"alg": "RS256", "typ": "JWT", "kid": "client"});
        let signed = format!("{}.{}", part(&head), part(&claims));
        let signature = self.openssl(&["dgst", "-sha256", "-sign", "client.key"], signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Puts the issuer's public key where the store looks for it: beside its own files.
    async fn publish_keys(&self) {
        let told = self.openssl(&["rsa", "-in", "client.key", "-noout", "-modulus"], &[]);
        let told = String::from_utf8(told).unwrap();
        let modulus = told.trim().strip_prefix("Modulus=").unwrap().as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let modulus: Vec<u8> = modulus.chunks(2).map(byte).collect();
        let key = json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": "client", "e": "AQAB",
            "n": URL_SAFE_NO_PAD.encode(modulus),
        });
        let url = format!("{}/keys.json", issuer(self.filer_port));
        let keys = json!({"keys": [key]}).to_string();
        let began = Instant::now();
        // The volume server may join a moment after the rest.
        while let Err(error) = super::http().put(&url).send(&keys) {
            assert!(began.elapsed() < START, "{url} cannot be put: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn openssl(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(self.dir.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "openssl {arguments:?}");
        output.stdout
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

/// Who has keys that last, and the KMS.
fn identities() -> Value {
    let keys = |key: &str| json!([{"accessKey": key, "secretKey": S3::SECRET}]);
    let all = ["Admin", "Read", "Write", "List", "Tagging"];
    json!({
        "identities": [
            {"name": "tidemark", "credentials": keys(S3::KEY), "actions": all},
            {"name": "reader", "credentials": keys(S3::READER), "actions": ["Read", "List"]},
        ],
        "kms": {"default_provider": "local", "providers": {"local": {"type": "local"}}},
    })
}

/// Who gets keys of a role for a while: whom the issuer has signed for.
fn roles(issuer: &str) -> Value {
    let provider = json!({"issuer": issuer, "clientId": AUDIENCE, "jwksUri": format!("{issuer}/keys.json")});
    let trust = json!({"Effect": "Allow", "Principal": {"Federated": "cluster"}, "Action": ["sts:AssumeRoleWithWebIdentity"]});
    let rights =
        json!({"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*", "arn:aws:s3:::*/*"]});
    let document = |statement: Value| json!({"Version": "2012-10-17", "Statement": [statement]});
    let role = json!({
        "roleName": "tidemark", "roleArn": S3::ROLE, "trustPolicy": document(trust), "attachedPolicies": ["lake"],
    });
    let session = format!("{}s", S3::SESSION.as_secs());
    let signing_key =
        base64::engine::general_purpose::STANDARD.encode("thirty-two bytes that sign a session");
    json!({
        "sts": {
            "tokenDuration": &session, "maxSessionLength": &session, "issuer": "store", "signingKey": signing_key,
        },
        "providers": [{"name": "cluster", "type": "oidc", "enabled": true, "config": provider}],
        "policy": {"defaultEffect": "Deny"},
        "policies": [{"name": "lake", "document": document(rights)}],
        "roles": [role],
    })
}

/// Who signs web identities: its keys lie among the store's own files.
fn issuer(filer_port: u16) -> String {
    format!("http://127.0.0.1:{filer_port}")
}
