//! Object stores that die at a chosen operation, hold one up, or lose objects.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// From operation `at` on everything fails; operation `at` itself happens when it is `after`.
#[derive(Debug)]
pub struct Dying {
    inner: Arc<dyn ObjectStore>,
    operations: AtomicU64,
    at: u64,
    after: bool,
}

impl Dying {
    pub fn new(inner: Arc<dyn ObjectStore>, at: u64, after: bool) -> Self {
        Self { inner, operations: AtomicU64::new(0), at, after }
    }

    /// Whether it has died.
    pub fn died(&self) -> bool {
        self.operations.load(Ordering::SeqCst) > self.at
    }

    /// Counts an operation: whether it happens, and whether its caller hears of it.
    fn step(&self) -> (bool, bool) {
        let number = self.operations.fetch_add(1, Ordering::SeqCst);
        (number < self.at || (number == self.at && self.after), number < self.at)
    }
}

fn dead<T>() -> Result<T> {
    Err(Error::Generic { store: "Dying", source: "the connection was lost".into() })
}

impl fmt::Display for Dying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dying({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Dying {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (happens, heard) = self.step();
        if !happens {
            return dead();
        }
        let result = self.inner.put_opts(path, payload, options).await;
        if heard { result } else { dead() }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if self.step().1 { self.inner.get_opts(path, options).await } else { dead() }
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if self.step().1 { self.inner.get_ranges(path, ranges).await } else { dead() }
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (happens, heard) = self.step();
        if !happens {
            return futures::stream::once(async { dead() }).boxed();
        }
        let deleted = self.inner.delete_stream(paths);
        if heard { deleted } else { deleted.map(|_| dead()).boxed() }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.step().1 { self.inner.list(prefix) } else { futures::stream::once(async { dead() }).boxed() }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        if self.step().1 { self.inner.list_with_delimiter(prefix).await } else { dead() }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// An object store before which a put waits: that of the first object whose path ends so; or, after it, its removal.
#[derive(Debug)]
pub struct Pausing {
    inner: Arc<dyn ObjectStore>,
    path_end: &'static str,
    deletes: bool,
    /// The put has come.
    pub reached: Arc<tokio::sync::Semaphore>,
    /// It may go on.
    pub released: Arc<tokio::sync::Semaphore>,
}

impl Pausing {
    pub fn new(inner: Arc<dyn ObjectStore>, path_end: &'static str) -> Self {
        let [reached, released] = [0; 2].map(|none| Arc::new(tokio::sync::Semaphore::new(none)));
        Self { inner, path_end, deletes: false, reached, released }
    }

    pub fn after_delete(inner: Arc<dyn ObjectStore>, path_end: &'static str) -> Self {
        Self { deletes: true, ..Self::new(inner, path_end) }
    }
}

impl fmt::Display for Pausing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pausing({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Pausing {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if !self.deletes && path.as_ref().ends_with(self.path_end) && self.reached.available_permits() == 0 {
            self.reached.add_permits(1);
            let _go_on = self.released.acquire().await.unwrap();
        }
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if !self.deletes {
            return self.inner.delete_stream(paths);
        }
        let (path_end, reached, released) =
            (self.path_end, Arc::clone(&self.reached), Arc::clone(&self.released));
        let pause = move |deleted: Result<Path>| {
            let (reached, released) = (Arc::clone(&reached), Arc::clone(&released));
            async move {
                let ends = deleted.as_ref().is_ok_and(|path| path.as_ref().ends_with(path_end));
                if ends && reached.available_permits() == 0 {
                    reached.add_permits(1);
                    let _go_on = released.acquire().await.unwrap();
                }
                deleted
            }
        };
        self.inner.delete_stream(paths).then(pause).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// An object store that lists objects whose path has that part, and at random does not have them by the time they are read:
/// none of a path that it has lost.
#[derive(Debug)]
pub struct Losing {
    inner: Arc<dyn ObjectStore>,
    part: &'static str,
    random: Mutex<StdRng>,
    lost: Mutex<BTreeSet<Path>>,
}

impl Losing {
    pub fn new(inner: Arc<dyn ObjectStore>, part: &'static str, seed: u64) -> Self {
        Self { inner, part, random: Mutex::new(StdRng::seed_from_u64(seed)), lost: Mutex::default() }
    }

    /// How many objects were lost.
    pub fn lost(&self) -> usize {
        self.lost.lock().unwrap().len()
    }
}

impl fmt::Display for Losing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Losing({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Losing {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let mut lost = self.lost.lock().unwrap().contains(path);
        if !lost && path.as_ref().contains(self.part) && self.random.lock().unwrap().random_bool(0.4) {
            lost = self.lost.lock().unwrap().insert(path.clone());
        }
        if lost {
            return Err(Error::NotFound { path: path.to_string(), source: "it was lost".into() });
        }
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
