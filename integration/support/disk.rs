//! A disk that gets full.

use std::path::Path;
use std::process::Command;

/// A small file system of its own, unmounted in the end.
#[derive(Debug)]
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`: no right to mount one.
    pub fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        mounted.is_ok_and(|o| o.status.success()).then(|| Self(dir))
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Runs a test once more as root of a user and mount namespace of its own.
pub fn again_in_a_namespace(test: &str) {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.arg("-rm");
        command
    };
    if std::env::var_os("TIDEMARK_TEST_NAMESPACE").is_some()
        || !unshare().arg("true").status().is_ok_and(|s| s.success())
    {
        eprintln!("SKIPPED {test}: no right to mount a tmpfs; bytes_max stands in for it in the unit tests");
        return;
    }
    let status = unshare()
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("TIDEMARK_TEST_NAMESPACE", "1")
        .status();
    assert!(status.unwrap().success(), "{test} fails in a namespace of its own");
}
