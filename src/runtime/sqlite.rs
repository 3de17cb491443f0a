//! What the embedded log and the embedded coordinator share: opening a SQLite file that is ours, one
//! immediate transaction, and SQLite's errors by class.
//!
//! Why a file is never harmed: its identity (`application_id`) and version (`user_version`) are checked before
//! anything is written, and both are written in the transaction that creates the tables.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::{Error, Result};

/// How long a statement waits for another process's write before it gives up with an error of class `Retry`.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// A kind of SQLite file.
#[derive(Debug)]
pub(crate) struct Kind {
    /// For people: "log", "coordinator".
    pub name: &'static str,
    /// `PRAGMA application_id`.
    pub application_id: i32,
    /// `PRAGMA user_version`; files of another one are refused.
    pub version: i32,
    /// Pages of a new file, in bytes.
    pub page_bytes: u32,
    /// Creates the tables of an empty file.
    pub schema: &'static str,
}

/// Opens the file for writing, creating it (and its folder) when there is none. Every commit is on disk when
/// it returns. `Operator`: not ours, of a newer version, no rights, no space.
pub(crate) fn open(path: &Path, kind: &Kind) -> Result<Connection> {
    create_folder(path)?;
    let deadline = Instant::now() + BUSY_WAIT;
    // Two processes may create the file at once, and switching it to WAL does not wait for a lock by itself.
    loop {
        match try_open(path, kind) {
            Err(OpenError::Sqlite(e)) if is_busy(&e) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(OpenError::Sqlite(e)) => return Err(error(path, &format!("open the {}", kind.name), e)),
            Err(OpenError::Refused(e)) => return Err(e),
            Ok(connection) => return Ok(connection),
        }
    }
}

/// Keeps a file for this process, by a lock on a file beside it that ends with the process, however that ends. The file
/// itself is not touched: to close it once would end the locks that SQLite has on it. `Operator`: another process has
/// it; `mend` says what to do.
pub(crate) fn keep(path: &Path, mend: &str) -> Result<File> {
    create_folder(path)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push("-lock");
    let beside = Path::new(&beside);
    let failed = |e: std::io::Error| {
        Error::operator(format!("cannot lock {}", beside.display()))
            .cause(e)
            .mend("Give the user who runs Tidemark the right to write this file and its folder")
    };
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(beside)
        .map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Error::operator(format!("another process uses {}, which is for one", path.display()))
                .mend(mend))
        }
        Err(e) => Err(failed(e.into())),
    }
}

/// Opens a file which [`open`] has opened before, for reading only.
pub(crate) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_WAIT)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Runs `body` in a transaction that holds the write lock from its beginning. On an error nothing is written.
pub(crate) fn immediate<T, E: From<rusqlite::Error>>(
    connection: &mut Connection,
    body: impl FnOnce(&Connection) -> Result<T, E>,
) -> Result<T, E> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = body(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// The product's error for one of SQLite's; `doing` is a verb phrase such as "append to the log".
pub(crate) fn error(path: &Path, doing: &str, e: rusqlite::Error) -> Error {
    let file = path.display();
    let code = e.sqlite_error_code();
    let error = match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Error::retry(format!("cannot {doing}: {file} is being written by another process"))
        }
        Some(ErrorCode::DiskFull) => {
            Error::operator(format!("cannot {doing}: no space is left for {file}; nothing was written"))
                .mend(free_space_mend(path))
        }
        Some(ErrorCode::SystemIoFailure) => {
            Error::operator(format!("cannot {doing}: input/output error on {file}; nothing was written"))
                .mend(format!("Check the disk and the kernel's log; {}", lower_first(&free_space_mend(path))))
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => Error::operator(
            format!("cannot {doing}: {file} cannot be opened for writing; nothing was written"),
        )
        .mend("Give the user who runs Tidemark the right to write this file and its folder"),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Error::operator(format!("cannot {doing}: {file} is damaged or no file of Tidemark's"))
                .mend("Restore it, or check the disk that holds it")
        }
        _ => Error::operator(format!("cannot {doing}: unexpected error on {file}; nothing was written")),
    };
    error.cause(e)
}

enum OpenError {
    Sqlite(rusqlite::Error),
    Refused(Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(e: rusqlite::Error) -> Self {
        Self::Sqlite(e)
    }
}

fn try_open(path: &Path, kind: &Kind) -> Result<Connection, OpenError> {
    // The rows of the source are in it: a new file is its owner's alone, and -wal and -shm follow it. Where this
    // fails, opening it says why.
    let _ = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_WAIT)?;
    connection.set_prepared_statement_cache_capacity(64);
    if !is_ours(&connection, path, kind)? {
        // Both only take effect on a file without pages.
        connection.pragma_update(None, "page_size", kind.page_bytes)?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    immediate(&mut connection, |c| {
        if !is_ours(c, path, kind)? {
            c.execute_batch(kind.schema)?;
            c.pragma_update(None, "application_id", kind.application_id)?;
            c.pragma_update(None, "user_version", kind.version)?;
        }
        Ok::<_, OpenError>(())
    })?;
    Ok(connection)
}

/// `false`: an empty file.
fn is_ours(connection: &Connection, path: &Path, kind: &Kind) -> Result<bool, OpenError> {
    let file = path.display();
    let name = kind.name;
    let get = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let id = get("application_id")?;
    if tables == 0 && id == 0 {
        return Ok(false);
    }
    if id != kind.application_id {
        return Err(OpenError::Refused(
            Error::operator(format!("{file} is not a Tidemark {name}: its application_id is {id:#x}"))
                .mend("Name another path, or move the file away"),
        ));
    }
    let version = get("user_version")?;
    if version > kind.version {
        return Err(OpenError::Refused(
            Error::operator(format!(
                "{file} was written by a newer Tidemark: {name} version {version}, while this one reads {} only",
                kind.version
            ))
            .mend("Run that newer version again"),
        ));
    }
    if version < kind.version {
        return Err(OpenError::Refused(
            Error::operator(format!(
                "{file} was written by an older Tidemark: {name} version {version}, while this one reads {} only",
                kind.version
            ))
            .mend("Run that older version again, or begin anew with another [state] dir"),
        ));
    }
    Ok(true)
}

fn is_busy(e: &rusqlite::Error) -> bool {
    matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// A new folder has to survive a power loss as the file in it does, hence the sync of its parent.
fn create_folder(path: &Path) -> Result<()> {
    let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty() && !f.is_dir()) else {
        return Ok(());
    };
    if folder.exists() {
        return Err(Error::operator(format!("{} is no folder, and one is expected there", folder.display()))
            .mend("Move what is there away, or name another [state] dir"));
    }
    let synced = fs::create_dir_all(folder).and_then(|()| match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    });
    synced.map_err(|e| {
        Error::operator(format!("cannot create the folder {}", folder.display()))
            .cause(e)
            .mend("Create it, or give the user who runs Tidemark the right to")
    })
}

fn free_space_mend(path: &Path) -> String {
    let folder = path.parent().unwrap_or(path);
    match rustix::fs::statvfs(folder) {
        Ok(stat) => format!(
            "Free space at {}: {} MB are left there",
            folder.display(),
            stat.f_bavail.saturating_mul(stat.f_frsize) / 1_000_000
        ),
        Err(_) => format!("Free space at {}", folder.display()),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Class;
    use super::*;

    const KIND: Kind = Kind {
        name: "log",
        application_id: 0x5469_6401,
        version: 1,
        page_bytes: 8192,
        schema: "CREATE TABLE t (x INTEGER) STRICT",
    };

    #[test]
    fn a_file_that_is_not_ours_is_refused_and_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        let before = fs::read(&path).unwrap();
        let e = open(&path, &KIND).unwrap_err();
        assert_eq!(e.class(), Class::Operator);
        assert!(e.to_string().contains("other.db is not a Tidemark log"), "{e}");
        assert_eq!(fs::read(&path).unwrap(), before);

        let text = dir.path().join("notes.txt");
        fs::write(
            &text,
            "my notes, which are long enough to be read as a header of a database file ".repeat(9),
        )
        .unwrap();
        let e = open(&text, &KIND).unwrap_err();
        assert!(e.to_string().contains("notes.txt is damaged or no file of Tidemark's"), "{e}");
    }

    #[test]
    fn a_newer_file_is_refused_and_so_is_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        open(&path, &KIND).unwrap();
        open(&path, &KIND).unwrap().pragma_update(None, "user_version", 2).unwrap();
        let e = open(&path, &KIND).unwrap_err();
        assert!(e.to_string().contains("newer Tidemark: log version 2, while this one reads 1 only"), "{e}");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 0).unwrap();
        let e = open(&path, &KIND).unwrap_err();
        assert!(e.to_string().contains("older Tidemark: log version 0, while this one reads 1 only"), "{e}");
    }

    #[test]
    fn many_may_create_the_file_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/folder/a.db");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| open(&path, &KIND).unwrap());
            }
        });
    }
}
