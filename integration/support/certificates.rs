//! Certificates for TLS tests, made by the openssl command.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A folder with `ca.crt`, `other-ca.crt`, `server.{crt,key}` (localhost, 127.0.0.1), `cn.{crt,key}` (common name
/// localhost, no alternative names), `wrong.{crt,key}` (another host), `self.{crt,key}` (self-signed, as in the
/// Postgres manual), `client.{crt,key}` (common name `alice`), and the client's key in other forms.
#[derive(Debug)]
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// Makes them all in `dir`.
    pub fn make(dir: &Path) -> Self {
        let made = Self { dir: dir.to_owned() };
        made.authority("ca");
        made.authority("other-ca");
        let server = "extendedKeyUsage=serverAuth";
        made.issue("server", "/CN=server", &format!("subjectAltName=DNS:localhost,IP:127.0.0.1\n{server}"));
        made.issue("wrong", "/CN=wrong", &format!("subjectAltName=DNS:elsewhere.example\n{server}"));
        made.issue("cn", "/CN=localhost", server);
        made.issue("client", "/CN=alice", "extendedKeyUsage=clientAuth");
        made.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -sha384 -subj /CN=localhost -keyout self.key -out self.crt");
        made.openssl("rsa -traditional -in client.key -out client-pkcs1.key");
        made
    }

    /// A file's path.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn authority(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN={name} -keyout {name}.key -out {name}.crt"
        ));
    }

    fn issue(&self, name: &str, subject: &str, extensions: &str) {
        self.openssl(&format!(
            "req -newkey rsa:2048 -nodes -subj {subject} -keyout {name}.key -out {name}.csr"
        ));
        std::fs::write(self.path(&format!("{name}.ext")), extensions).unwrap();
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -sha256 -extfile {name}.ext -out {name}.crt"
        ));
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()
            .expect("openssl is needed for the TLS tests: apt-get install openssl");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
