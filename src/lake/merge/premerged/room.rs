//! The room that premerging has in the scratch folder, of all tables of a process: what lies there is a cache, and gives way
//! to whatever else needs the disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::lake::scratch::Scratch;
use crate::runtime::Result;

/// What is on scratch for all tables of a process.
#[derive(Clone, Debug, Default)]
pub(in crate::lake) struct Room {
    used: Arc<AtomicU64>,
    /// The folders that hold it.
    kept: Arc<Mutex<Vec<Weak<Scratch>>>>,
}

/// A table's share of it.
#[derive(Debug)]
pub(super) struct Share {
    room: Room,
    folder: Weak<Scratch>,
    bytes: u64,
}

impl Room {
    /// Nothing yet, in that folder.
    pub(super) fn share(&self, scratch: &Arc<Scratch>) -> Share {
        let folder = Arc::downgrade(scratch);
        self.kept().push(Weak::clone(&folder));
        Share { room: self.clone(), folder, bytes: 0 }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Weak<Scratch>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has everything that was made of days before they end removed, whoever has it: its files are missed when they are to be
    /// read. Whether there was anything.
    pub(in crate::lake) fn give(&self) -> bool {
        let kept = std::mem::take(&mut *self.kept());
        let folders: Vec<_> = kept.iter().filter_map(Weak::upgrade).collect();
        for folder in &folders {
            // What cannot be removed is as good as before.
            let _ = folder.empty();
        }
        !folders.is_empty()
    }

    /// The same, if the disk is nearly full: what is at work is to have it.
    pub(in crate::lake) fn give_if_short(&self, scratch: &Scratch) {
        if scratch.room().is_ok_and(|left| left == 0) && self.give() {
            tracing::info!(
                "what was made of the next days is given up: the disk of the scratch folder is nearly full"
            );
        }
    }
}

impl Share {
    /// Bytes that are left to all tables; none when there is no room any more.
    pub(super) fn left(&self, scratch: &Scratch, bytes_max: u64) -> Result<Option<u64>> {
        let of_disk = scratch.room()?;
        let left = bytes_max.checked_sub(self.room.used.load(Ordering::Relaxed));
        Ok(left.map(|left| left.min(of_disk)).filter(|left| *left > 0))
    }

    /// Tells how much of it the table has.
    pub(super) fn set(&mut self, bytes: u64) {
        self.room.used.fetch_add(bytes, Ordering::Relaxed);
        self.room.used.fetch_sub(std::mem::replace(&mut self.bytes, bytes), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        self.room.kept().retain(|folder| !folder.ptr_eq(&self.folder));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_shared_and_given_by_all_but_those_who_make_use_of_what_they_have() {
        let parent = tempfile::tempdir().expect("a folder");
        let room = Room::default();
        let folder = || Arc::new(Scratch::new(parent.path()).expect("a folder"));
        let (one, other, in_use) = (folder(), folder(), folder());
        let (mut share, mut second) = (room.share(&one), room.share(&other));
        drop(room.share(&in_use));
        let files: Vec<_> =
            [&one, &other, &in_use].map(|folder| folder.create("part").expect("a file").0).into();
        share.set(30);
        second.set(50);
        assert!(share.left(&one, 100).expect("it is told").is_some_and(|left| left <= 20));
        assert_eq!(share.left(&one, 80).expect("it is told"), None);
        drop(second);
        assert!(share.left(&one, 80).expect("it is told").is_some());
        assert!(room.give() && !room.give());
        // The second one has given its share back, and its folder is its own.
        assert_eq!(files.iter().map(|path| path.exists()).collect::<Vec<_>>(), [false, true, true]);
    }
}
