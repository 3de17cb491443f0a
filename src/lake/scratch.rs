//! Local files which live as long as one merge.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::runtime::{Class, Error, Result};

/// A folder of its own for one piece of work; removed with everything in it when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    files: AtomicU64,
}

impl Scratch {
    /// Makes a new folder below `parent`, which is made too when it is missing.
    pub fn new(parent: &Path) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("merge-{}-{number}", std::process::id()));
        // A process of the same number may have died here before.
        match fs::remove_dir_all(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("clear the scratch folder", &folder, error)),
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|e| failed("make the scratch folder", &folder, e))?;
        Ok(Self { folder, files: AtomicU64::new(0) })
    }

    /// A path in the folder that nothing has yet.
    pub fn path(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{what}-{}", self.files.fetch_add(1, Ordering::Relaxed)))
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
        // What cannot be removed now is cleared by the next process of that number.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// An error of a scratch file. A full disk is retried: another merge may free space.
pub fn failed(doing: &str, path: &Path, error: std::io::Error) -> Error {
    use std::io::ErrorKind as Kind;
    let class = match error.kind() {
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem | Kind::NotADirectory => Class::Operator,
        _ => Class::Retry,
    };
    Error::new(class, format!("cannot {doing} {}", path.display()))
        .cause(error)
        .mend("Give the scratch folder more space, or the rights to write there.")
}
