//! A disk that gets full.

use std::path::Path;
use std::process::{Command, Stdio};

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

    /// Mounts it anew with an option, as in `ro`.
    pub fn remount(&self, option: &str) {
        let option = format!("remount,{option}");
        assert!(Command::new("mount").args(["-o", &option]).arg(self.path()).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Runs a test, of a module and by its name, once more as root of a user and mount namespace of its own.
pub fn again_in_a_namespace(module: &str, name: &str) {
    let test = test_path(module, name);
    let unshare = || {
        let mut command = Command::new("unshare");
        command.arg("-rm");
        command
    };
    let in_one = std::env::var_os("TIDEMARK_TEST_NAMESPACE").is_some();
    assert!(
        !in_one && unshare().arg("true").status().is_ok_and(|s| s.success()),
        "{test}: a small disk, a tmpfs, cannot be mounted. Run the tests as root, or allow user namespaces: `sudo sysctl -w \
         kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0` (each where there is one)"
    );
    let output = unshare()
        .arg(std::env::current_exe().unwrap())
        .args([&test, "--exact", "--nocapture"])
        .env("TIDEMARK_TEST_NAMESPACE", "1")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{test} in a namespace of its own: {said}");
}

/// How this program names a test of a module (`module_path!()`), so that it can be started with this one alone.
pub fn test_path(module: &str, name: &str) -> String {
    let (_crate, module) = module.split_once("::").unwrap();
    format!("{module}::{name}")
}
