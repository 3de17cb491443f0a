//! What the tests against real servers share: a throwaway Postgres, an oracle that is not our own client, and
//! waiting on a condition with a deadline.

#![allow(clippy::missing_panics_doc, reason = "panics are its errors")]

mod certificates;
pub mod clock;
mod cluster;
pub mod days;
mod disk;
mod failure;
mod kafka;
pub mod lake;
mod mirror;
mod postgres;
mod process;
mod programs;
mod proxy;
pub mod registry;
mod s3;
mod s3_proxy;
mod scene;
mod zookeeper;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tidemark::log::{SqliteLog, SqliteLogOptions};
use tidemark::runtime::Class;

pub use certificates::Certificates;
pub use cluster::Cluster;
pub use disk::{SmallDisk, again_in_a_namespace, test_path};
pub use failure::Replay;
pub use kafka::Kafka;
pub use mirror::Mirror;
pub use postgres::{Postgres, PostgresBuilder, Stop, free_port};
pub use process::{Connector, NAME, PATIENCE, Record, Running};
pub use programs::{MAJORS, client_program};
pub use proxy::{Network, Proxy};
pub use s3::S3;
pub use s3_proxy::{Carried, Fault, S3Proxy};
pub use scene::Scene;
pub use zookeeper::Zookeeper;

/// Asks `condition` again and again until it is true; panics with `what` after `deadline`.
pub async fn wait_until<F, Fut>(deadline: Duration, what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Opens a log beside the process that writes it, which may hold it for longer than the product waits: a flush takes
/// its time on a busy disk.
pub fn open_log(path: impl Into<PathBuf>) -> SqliteLog {
    let (options, start) = (SqliteLogOptions::new(path), Instant::now());
    loop {
        match SqliteLog::open(options.clone()) {
            Ok(log) => return log,
            Err(error) => assert!(error.class() == Class::Retry && start.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A client of HTTP for servers on this machine: by no proxy, and with an end to every wait.
pub fn http() -> ureq::Agent {
    let timeout = Some(Duration::from_secs(30));
    ureq::Agent::config_builder().timeout_global(timeout).proxy(None).build().into()
}

/// A folder for a server's clock, which the server's user can read.
pub fn clock_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix("tidemark-clock-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}
