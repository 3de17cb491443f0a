//! What an interrupted put leaves in a local folder.
//!
//! `object_store` writes `<object>#<n>`, with the first `n` that is free, makes it another name of the object's file, and
//! removes it. Whoever takes such a file away from a put at work lets a second one take its name, and the first would then
//! give the object what the second has written so far. So a put holds a shared lock on its folder (`flock(2)`), which ends
//! with its process, however that ends, and lasts while the process is stopped; and only who has the folder alone sweeps it.

use std::fs::{self, File};
use std::io::{ErrorKind, Result};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A folder that is not swept meanwhile.
#[derive(Debug)]
pub struct Held(#[allow(dead_code, reason = "it is held, and closed")] File);

/// Makes a folder and holds it, waiting for a sweep to end. None where that cannot be: the put itself tells why, or the file
/// system has no such locks.
pub fn hold(folder: &Path) -> Option<Held> {
    make(folder).ok()?;
    let file = File::open(folder).ok()?;
    flock(&file, FlockOperation::LockShared).ok()?;
    Some(Held(file))
}

/// Makes a folder that is missing, durably: a folder's name is its parent's content.
fn make(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    fs::create_dir_all(folder)?;
    for parent in missing.into_iter().filter_map(Path::parent) {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Removes what was left half written, unless somebody writes there.
pub fn sweep(folder: &Path) -> Result<()> {
    let file = match File::open(folder) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.rsplit_once('#')).map(|(_, number)| number);
        if number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_goes_unless_somebody_writes_there() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("hour=13");
        let (left, whole, odd) = (folder.join("a.parquet#1"), folder.join("a.parquet"), folder.join("b#c"));
        sweep(&folder).unwrap();
        let held = hold(&folder).unwrap();
        let also = hold(&folder).unwrap();
        for file in [&left, &whole, &odd] {
            fs::write(file, "").unwrap();
        }
        drop(held);
        sweep(&folder).unwrap();
        assert!(left.exists(), "a put is at work");
        drop(also);
        sweep(&folder).unwrap();
        assert!(!left.exists() && whole.exists() && odd.exists());
    }
}
