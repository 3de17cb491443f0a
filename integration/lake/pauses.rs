//! An object store whose callers are held up at random, before an operation and after it.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// See the module's head.
#[derive(Debug)]
pub struct Pausing {
    inner: Arc<dyn ObjectStore>,
    random: Arc<Mutex<StdRng>>,
}

impl Pausing {
    pub fn new(inner: Arc<dyn ObjectStore>, seed: u64) -> Self {
        Self { inner, random: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))) }
    }

    /// Lets others go on: mostly for a step or none, at times for long.
    fn pause(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let random = Arc::clone(&self.random);
        async move {
            let turns = {
                let mut random = random.lock().unwrap();
                if random.random_bool(0.05) { random.random_range(0..400) } else { random.random_range(0..4) }
            };
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
        }
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
        self.pause().await;
        let result = self.inner.put_opts(path, payload, options).await;
        self.pause().await;
        result
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.pause().await;
        let result = self.inner.get_opts(path, options).await;
        self.pause().await;
        result
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let paused = Self { inner: Arc::clone(&self.inner), random: Arc::clone(&self.random) };
        let paths = paths.then(move |path| paused.pause().map(|()| path));
        self.inner.delete_stream(paths.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.cloned());
        self.pause().map(move |()| inner.list(prefix.as_ref())).flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.pause().await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
