//! Where programs of Postgres are: the system's own server and clients, and the servers of other majors.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;

/// The majors that Tidemark speaks to.
pub const MAJORS: [u32; 5] = [14, 15, 16, 17, 18];

/// Whom a server runs as when the tests run as root.
pub(super) const NOBODY: u32 = 65534;

/// The folder with `initdb` and `postgres` of the server which a test gets that does not ask for a major:
/// `TIDEMARK_TEST_POSTGRES` (a major), `PG_BIN` (a folder), the newest of Debian's, or one of `PATH`.
pub(super) fn default_server() -> PathBuf {
    let has_server = |dir: &PathBuf| dir.join("postgres").exists() && dir.join("initdb").exists();
    if let Ok(major) = std::env::var("TIDEMARK_TEST_POSTGRES") {
        let number = major.parse().unwrap_or_else(|_| panic!("TIDEMARK_TEST_POSTGRES={major} is no major"));
        return server_of(number);
    }
    if let Some(dir) = std::env::var_os("PG_BIN").map(PathBuf::from) {
        assert!(has_server(&dir), "PG_BIN={} has no postgres and initdb", dir.display());
        return dir;
    }
    folders().find(has_server).expect("no Postgres server found: apt-get install postgresql, or set PG_BIN")
}

/// The same folder of a major, fetched by `scripts/fetch-postgres`. Panics when it is not there: a test never passes
/// without its server.
pub(super) fn server_of(major: u32) -> PathBuf {
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!(".postgres/{major}"));
    assert!(
        server.join("bin/postgres").exists(),
        "Postgres {major} is missing, expected in {}: run `scripts/fetch-postgres` (or `make postgres`)",
        server.display()
    );
    if geteuid().is_root() && !everybody_reaches(&server) {
        return copy_for_everybody(&server, major).join("bin");
    }
    server.join("bin")
}

/// The major version of the server in a folder.
pub(super) fn major_of(bin: &Path) -> u32 {
    let version = Command::new(bin.join("postgres")).arg("--version").output().unwrap();
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let number = version.split_whitespace().find_map(|word| word.split('.').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("{}: {version:?} names no version", bin.display()))
}

/// A client program (`psql`, `pg_recvlogical`): the newest of Debian's, or of `PATH`.
pub fn client_program(name: &str) -> PathBuf {
    folders()
        .map(|dir| dir.join(name))
        .find(|program| program.exists())
        .unwrap_or_else(|| panic!("{name} is missing: apt-get install postgresql-client"))
}

/// Debian's folders with programs of Postgres, newest first, and those of `PATH`.
fn folders() -> impl Iterator<Item = PathBuf> {
    let mut debian: Vec<_> = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().collect();
    debian.sort_by_key(|entry| entry.file_name().to_string_lossy().parse::<u32>().unwrap_or(0));
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<_> = std::env::split_paths(&paths).collect();
    debian.into_iter().rev().map(|entry| entry.path().join("bin")).chain(path)
}

/// Whether a user without rights of its own may go into this folder.
fn everybody_reaches(folder: &Path) -> bool {
    folder
        .ancestors()
        .all(|folder| fs::metadata(folder).is_ok_and(|found| found.permissions().mode() & 0o001 != 0))
}

/// A copy in the system's temporary folder, made once: the checkout may lie in the home folder of root.
fn copy_for_everybody(server: &Path, major: u32) -> PathBuf {
    let ready = fs::read_dir(server).unwrap().flatten().map(|entry| entry.file_name());
    let ready = ready.map(|name| name.to_string_lossy().into_owned()).find(|name| name.starts_with("ready-"));
    let name = format!("tidemark-test-postgres-{major}-{}", ready.unwrap_or_default());
    let copy = std::env::temp_dir().join(name);
    if !copy.exists() {
        // Whoever comes first with a rename wins; the others' copies are as good, and thrown away.
        let dir = tempfile::Builder::new().prefix("tidemark-postgres-").tempdir().unwrap();
        let made = Command::new("cp").arg("-a").arg(server).arg(dir.path().join("server")).status().unwrap();
        assert!(made.success(), "{} could not be copied to {}", server.display(), dir.path().display());
        let _ = fs::rename(dir.path().join("server"), &copy);
    }
    copy
}

/// Makes the server's user the owner.
pub(super) fn give_away(path: &Path) {
    if geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}
