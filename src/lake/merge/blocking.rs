//! The store as seen from the merging thread, which may wait.

use std::fs::File;
use std::io::Write;
use std::path::Path as LocalPath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::PutPayload;
use object_store::path::Path;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::super::scratch::failed;
use super::super::store::{Put, Store, hexadecimal};
use crate::runtime::{Error, Result};

/// Copies that are on their way at once.
const COPIES_AT_ONCE: usize = 8;

/// An object that becomes another one as it is.
#[derive(Clone, Debug)]
pub(super) struct Carried {
    pub(super) from: Path,
    pub(super) to: Path,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// A store whose calls wait. Only for threads of `spawn_blocking`.
#[derive(Clone, Debug)]
pub(in crate::lake) struct Blocking {
    handle: Handle,
    store: Store,
    /// Raised when nobody waits for the result any more.
    abandoned: Arc<AtomicBool>,
}

impl Blocking {
    pub(in crate::lake) const fn new(handle: Handle, store: Store, abandoned: Arc<AtomicBool>) -> Self {
        Self { handle, store, abandoned }
    }

    pub(in crate::lake) const fn store(&self) -> &Store {
        &self.store
    }

    /// An error once the work was abandoned: every step begins here.
    pub(in crate::lake) fn check(&self) -> Result<()> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(Error::retry("the merge was abandoned"));
        }
        Ok(())
    }

    /// Whether the store says that there is no such object.
    pub(in crate::lake) fn is_gone(&self, path: &Path) -> bool {
        self.check().is_ok() && self.handle.block_on(self.store.is_gone(path))
    }

    pub(in crate::lake) fn get_existing(&self, path: &Path) -> Result<Bytes> {
        self.check()?;
        self.handle.block_on(self.store.get_existing(path))
    }

    /// Puts an object which nobody may see before `manifest` is there: a leftover with other content gives way.
    ///
    /// Whoever was overtaken (paused past its lease, and by another version, which makes other bytes) finds the manifest,
    /// and leaves what is published alone.
    pub(in crate::lake) fn put_unpublished(
        &self,
        path: &Path,
        bytes: &PutPayload,
        manifest: &Path,
    ) -> Result<()> {
        self.check()?;
        self.handle.block_on(async {
            if self.store.put_once(path, bytes.clone()).await? != Put::Differs {
                return Ok(());
            }
            self.give_way(path, manifest).await?;
            self.store.put_same(path, bytes.clone()).await
        })
    }

    /// Copies objects to where nobody may see them before `manifest` is there, as [`Self::put_unpublished`] puts one.
    pub(super) fn copy_unpublished(&self, objects: Vec<Carried>, manifest: &Path) -> Result<()> {
        let copy = async |object: Carried| {
            self.check()?;
            let Carried { from, to, bytes, sha256 } = &object;
            if self.store.copy_once(from, to, (*bytes, sha256)).await? != Put::Differs {
                return Ok(());
            }
            self.give_way(to, manifest).await?;
            self.store.copy_same(from, to, (*bytes, sha256)).await
        };
        let copies = futures::stream::iter(objects).map(copy).buffer_unordered(COPIES_AT_ONCE);
        self.handle.block_on(copies.try_collect())
    }

    /// Removes a leftover, unless it is of a day that is published.
    async fn give_way(&self, path: &Path, manifest: &Path) -> Result<()> {
        if self.store.get(manifest).await?.is_some() {
            let path = self.store.show(path);
            return Err(Error::fenced(format!("{path} was published by another process in the meantime")));
        }
        self.check()?;
        self.store.delete(path).await
    }

    /// Copies an object into a local file and gives its SHA-256.
    pub(in crate::lake) fn download(
        &self,
        path: &Path,
        file: &mut File,
        local: &LocalPath,
    ) -> Result<String> {
        self.check()?;
        self.handle.block_on(async {
            let mut stream = self.store.stream_existing(path).await?;
            let mut hash = Sha256::new();
            while let Some(bytes) = stream.next().await {
                let bytes = bytes?;
                self.check()?;
                hash.update(&bytes);
                file.write_all(&bytes).map_err(|error| failed("write", local, error))?;
            }
            Ok(hexadecimal(&hash.finalize()))
        })
    }
}
