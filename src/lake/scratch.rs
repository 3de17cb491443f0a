//! Local files which live as long as one merge.

use std::error::Error as StdError;
use std::fmt;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::runtime::{Class, Error, Result};

/// What could be done without leaves as much of its disk free, or a tenth if that is less.
const FREE_BYTES_MIN: u64 = 8 << 30;

/// A folder of its own for one piece of work; removed with everything in it when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    files: AtomicU64,
    /// Whoever comes after a process that died may clear it away.
    lock: Lock,
}

/// A file beside a folder that is locked as long as the folder is in use.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: File,
    /// Not so where the file system has no locks.
    is_held: bool,
}

impl Scratch {
    /// Makes a new folder below `parent`, which is made too when it is missing.
    pub fn new(parent: &Path) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        make(parent)?;
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let folder = parent.join(format!("merge-{}-{number}", std::process::id()));
            // A process of the same number in another container may be at work.
            let Some(lock) = lock(&folder)? else { continue };
            // Or may have died here before.
            if lock.is_held {
                clear(&folder)?;
            } else if folder.exists() {
                continue;
            }
            make(&folder)?;
            return Ok(Self { folder, files: AtomicU64::new(0), lock });
        }
    }

    /// Removes the folders below `parent` of processes that died.
    pub fn sweep(parent: &Path) -> Result<()> {
        let mut swept = Ok(());
        let entries = match fs::read_dir(parent) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("read", parent, error)),
        };
        for entry in entries {
            let path = entry.map_err(|error| failed("read", parent, error))?.path();
            let of_merge =
                path.file_name().and_then(|name| name.to_str()).is_some_and(|n| n.starts_with("merge-"));
            if of_merge && path.extension().is_some_and(|extension| extension == LOCK) {
                // One that cannot be cleared is in the way of none of the others.
                swept = swept.and(sweep(&path.with_extension("")));
            }
        }
        swept
    }

    /// Removes all files of the folder.
    pub fn empty(&self) -> Result<()> {
        let entries = fs::read_dir(&self.folder).map_err(|error| failed("read", &self.folder, error))?;
        for entry in entries {
            let path = entry.map_err(|error| failed("read", &self.folder, error))?.path();
            fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
        }
        Ok(())
    }

    /// Bytes of its disk that may be taken by what could be done without: the disk may be the log's, too.
    pub fn room(&self) -> Result<u64> {
        let disk = rustix::fs::statvfs(&self.folder);
        let disk = disk.map_err(|error| failed("look at the disk of", &self.folder, error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let whole = disk.f_blocks.saturating_mul(disk.f_frsize);
        Ok(free.saturating_sub(FREE_BYTES_MIN.min(whole / 10)))
    }

    /// A path in the folder that nothing has yet.
    pub fn path(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{what}-{}", self.files.fetch_add(1, Ordering::Relaxed)))
    }

    /// Takes a file over from another folder of the same parent.
    pub fn adopt(&self, file: &Path, what: &str) -> Result<PathBuf> {
        let path = self.path(what);
        fs::rename(file, &path).map_err(|error| failed("move", file, error))?;
        Ok(path)
    }

    /// A new file.
    pub fn create(&self, what: &str) -> Result<(PathBuf, File)> {
        let path = self.path(what);
        let file = File::create(&path).map_err(|e| failed("create", &path, e))?;
        Ok((path, file))
    }

    /// A new file, also to be read.
    pub fn create_read_write(&self, what: &str) -> Result<(PathBuf, File)> {
        let path = self.path(what);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        Ok((path.clone(), file.map_err(|e| failed("create", &path, e))?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is cleared by the next process that starts.
        if fs::remove_dir_all(&self.folder).is_ok() {
            let _ = fs::remove_file(&self.lock.path);
        }
    }
}

/// What the name of a folder's lock ends with.
const LOCK: &str = "lock";

/// How often a lock is tried for whose file is another one by then.
const TRIES: usize = 16;

/// Locks a folder that may not be there; none while another has it.
fn lock(folder: &Path) -> Result<Option<Lock>> {
    let path = folder.with_extension(LOCK);
    for tries in 1.. {
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| failed("create", &path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            // As on some that are mounted over a network.
            Err(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return Ok(Some(Lock { path, _file: file, is_held: false }));
            }
            Err(error) => return Err(failed("lock", &path, error.into())),
        }
        // Whoever had it before may have removed the file in between.
        let held = file.metadata().map_err(|error| failed("lock", &path, error))?;
        let is_held = fs::metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()));
        if is_held || tries == TRIES {
            return Ok(Some(Lock { path, _file: file, is_held }));
        }
    }
    Ok(None)
}

/// Removes a folder, and its lock, if nobody has it.
fn sweep(folder: &Path) -> Result<()> {
    let Some(Lock { path, is_held: true, .. }) = &lock(folder)? else { return Ok(()) };
    clear(folder)?;
    fs::remove_file(path).map_err(|error| failed("remove", path, error))
}

fn make(folder: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| failed("make the scratch folder", folder, error))
}

fn clear(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(failed("clear the scratch folder", folder, error))
        }
        _ => Ok(()),
    }
}

/// What is wrong with a scratch file: the cause of every error of one.
#[derive(Debug)]
struct OfScratch(Box<dyn StdError + Send + Sync>);

impl fmt::Display for OfScratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for OfScratch {}

/// Whether it is an error of a scratch file: what was there can be made again.
pub fn is_of_scratch(error: &Error) -> bool {
    error.source().is_some_and(<dyn StdError>::is::<OfScratch>)
}

/// A scratch file that is not what was written.
pub fn altered(path: &Path, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::retry(format!("{} was altered since it was written", path.display()))
        .cause(OfScratch(cause.into()))
        .mend("It is made again. Does anything else write to the scratch folder, or is its disk damaged?")
}

/// An error of a scratch file. A full disk is retried: another merge may free space.
pub fn failed(doing: &str, path: &Path, error: std::io::Error) -> Error {
    let class = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory => {
            Class::Operator
        }
        _ => Class::Retry,
    };
    Error::new(class, format!("cannot {doing} {}", path.display()))
        .cause(OfScratch(error.into()))
        .mend("Give the scratch folder more space, or the rights to write there.")
}

/// An error of a scratch database. A full disk is retried: another merge may free space.
pub fn failed_database(error: rusqlite::Error) -> Error {
    Error::retry("the scratch database of a merge failed")
        .cause(OfScratch(error.into()))
        .mend("Give the scratch folder more space.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_those_that_died_are_cleared_and_those_at_work_stay() {
        let parent = tempfile::tempdir().unwrap();
        let at_work = Scratch::new(parent.path()).unwrap();
        let (path, _) = at_work.create("run").unwrap();
        // Left by a process that was killed: nobody holds its lock.
        let left = parent.path().join("merge-1-1");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("part-1"), "left").unwrap();
        fs::write(left.with_extension(LOCK), "").unwrap();
        fs::write(parent.path().join("another.lock"), "").unwrap();
        Scratch::sweep(parent.path()).unwrap();
        assert!(path.exists() && !left.exists() && !left.with_extension(LOCK).exists());
        drop(at_work);
        let names: Vec<_> = fs::read_dir(parent.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["another.lock"]);
        Scratch::sweep(&parent.path().join("none")).unwrap();
    }
}
