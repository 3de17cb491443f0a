//! The object store: write-once objects on any `object_store` backend.
//!
//! Everything that the lake holds is put by a conditional create, and putting the same bytes again is a
//! success: that one rule makes every step repeatable, whoever was interrupted and wherever.

mod halves;
mod multipart;
mod probe;
mod s3;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error as StoreError, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, local::LocalFileSystem, prefix::PrefixStore,
};
use sha2::{Digest, Sha256};

use crate::runtime::{Class, Error, Result};

use s3::Bucket;

pub use crate::runtime::hexadecimal;
pub use probe::StoreProbe;
pub use s3::{Encryption, S3Credentials, S3Options};

/// What became of [`Store::put_once`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object is new.
    Created,
    /// It was there already, with the same bytes.
    Same,
    /// Another object has the path; it was left alone.
    Differs,
}

/// An object store, with errors in the product's classes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    /// The folder, where the store is one.
    local: Option<Arc<LocalFileSystem>>,
    /// The bucket, where the store is one.
    bucket: Option<Arc<Bucket>>,
    /// For messages: the URL without its user information.
    shown: String,
}

impl Store {
    /// Opens `file:///absolute/folder`, which is made when it is missing.
    pub fn open(url: &str) -> Result<Self> {
        let Some(folder) = url.strip_prefix("file://").filter(|path| path.starts_with('/')) else {
            return Err(Error::usage(format!("[lake] url = {:?} is not a lake", scheme(url)))
                .mend("Use file:/// followed by an absolute folder, or s3://bucket/prefix."));
        };
        let folder = percent_encoding::percent_decode_str(folder).decode_utf8_lossy();
        let failed = |mend: &str, error: Box<dyn std::error::Error + Send + Sync>| {
            Error::operator(format!("cannot open the lake folder {folder}")).cause(error).mend(mend)
        };
        let otherwise = "Create the folder, or give the user who runs Tidemark the right to write there.";
        std::fs::create_dir_all(folder.as_ref())
            .map_err(|e| failed(io_mend(e.kind()).unwrap_or(otherwise), e.into()))?;
        let local =
            LocalFileSystem::new_with_prefix(folder.as_ref()).map_err(|e| failed(otherwise, e.into()))?;
        let local = Arc::new(local.with_fsync(true));
        Ok(Self { inner: Arc::clone(&local) as _, local: Some(local), bucket: None, shown: url.to_owned() })
    }

    /// A bucket of S3, or of a store that speaks its language. Nothing is sent yet.
    ///
    /// # Errors
    /// `Usage` when the options do not fit together, `Operator` when `ca_file` cannot be used.
    pub fn s3(options: S3Options) -> Result<Self> {
        let slash = if options.prefix.is_empty() { "" } else { "/" };
        let shown = format!("s3://{}{slash}{}", options.bucket, options.prefix);
        let bucket = Bucket::open(options)?;
        let inner = Arc::new(PrefixStore::new(bucket.s3.clone(), bucket.options.prefix.as_str()));
        Ok(Self { inner, local: None, bucket: Some(bucket), shown })
    }

    /// A store on any backend; `shown` names it in messages.
    pub fn new(inner: Arc<dyn ObjectStore>, shown: impl Into<String>) -> Self {
        Self { inner, local: None, bucket: None, shown: shown.into() }
    }

    /// Creates the object unless its path is taken; then compares. Cancel-safe: the object is there or not.
    pub async fn put_once(&self, path: &Path, bytes: impl Into<PutPayload>) -> Result<Put> {
        let bytes = bytes.into();
        match self.create(path, &bytes).await {
            Ok(()) => Ok(Put::Created),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                Ok(if self.holds(path, &bytes).await? { Put::Same } else { Put::Differs })
            }
            Err(error) => Err(self.error("write", path, error)),
        }
    }

    /// Creates the object unless its path is taken, by whatever; whether it is there. Not so is one that has gone since, and
    /// one whose create met another that came to nothing. Cancel-safe: the object is there or not.
    pub async fn put_unless_taken(&self, path: &Path, bytes: impl Into<PutPayload>) -> Result<bool> {
        match self.create(path, &bytes.into()).await {
            Ok(()) => Ok(true),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                self.exists(path).await.map_err(|error| self.error("read", path, error))
            }
            Err(error) => Err(self.error("write", path, error)),
        }
    }

    /// One conditional create. Whoever is told that the object exists may have made it: by a try whose answer was lost.
    async fn create(&self, path: &Path, bytes: &PutPayload) -> Result<(), StoreError> {
        if let Some(bucket) = self.in_parts(path, bytes.content_length()).await? {
            // Done before, as after a restart: nothing has to be sent.
            if self.exists(path).await? {
                let source = "found before the upload".into();
                return Err(StoreError::AlreadyExists { path: path.to_string(), source });
            }
            return multipart::create(bucket, &bucket.key(path), bytes).await;
        }
        let _held = self.hold(path).await;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.inner.put_opts(path, bytes.clone(), options).await.map(|_| ())
    }

    /// Whether the store says that there is no such object. Cancel-safe.
    pub async fn is_gone(&self, path: &Path) -> bool {
        matches!(self.exists(path).await, Ok(false))
    }

    async fn exists(&self, path: &Path) -> Result<bool, StoreError> {
        match self.inner.head(path).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the object is of those bytes, read piece by piece: both may be large.
    async fn holds(&self, path: &Path, bytes: &PutPayload) -> Result<bool> {
        let found = match self.inner.get(path).await {
            Ok(found) => found,
            // Gone again since: someone clears leftovers; try the whole step again.
            Err(StoreError::NotFound { .. }) => {
                return Err(Error::retry(format!(
                    "{} was refused as existing, and is not there",
                    self.show(path)
                )));
            }
            Err(error) => return Err(self.error("read", path, error)),
        };
        if found.meta.size != bytes.content_length() as u64 {
            return Ok(false);
        }
        let mut held = found.into_stream();
        let mut wanted = bytes.iter();
        let mut rest: &[u8] = &[];
        while let Some(piece) = held.next().await {
            let piece = piece.map_err(|error| self.error("read", path, error))?;
            let mut piece: &[u8] = &piece;
            while !piece.is_empty() {
                if rest.is_empty() {
                    let Some(next) = wanted.next() else { return Ok(false) };
                    rest = next;
                    continue;
                }
                let both = piece.len().min(rest.len());
                if piece[..both] != rest[..both] {
                    return Ok(false);
                }
                (piece, rest) = (&piece[both..], &rest[both..]);
            }
        }
        Ok(rest.is_empty() && wanted.all(Bytes::is_empty))
    }

    /// Creates the object, or finds it with the same bytes; anything else is an error for the operator.
    pub async fn put_same(&self, path: &Path, bytes: impl Into<PutPayload>) -> Result<()> {
        match self.put_once(path, bytes).await? {
            Put::Created | Put::Same => Ok(()),
            Put::Differs => Err(self.differs(path)),
        }
    }

    fn differs(&self, path: &Path) -> Error {
        Error::operator(format!(
            "{} exists with other content than this step makes; published and staged objects are never overwritten",
            self.show(path)
        ))
        .mend("Find out what wrote it: another connector of the same name, or other limits in [lake]. Move it away to have it written again.")
    }

    /// An object that is not what its manifest says.
    pub fn altered(&self, path: &Path) -> Error {
        Error::operator(format!("{} is not what its manifest says: its SHA-256 differs", self.show(path)))
            .mend("Restore the object; `tidemark verify` lists all which differ.")
    }

    /// Creates the object `to` with the content of `from`, whose size and SHA-256 are known, unless its path is taken; then
    /// compares. In a folder by a hard link, in a bucket by the store itself; where there is neither, through this process.
    /// Only the size of what is copied is looked at, and its checksum where it comes through here. Cancel-safe: the object
    /// is there or not.
    pub async fn copy_once(&self, from: &Path, to: &Path, (bytes, sha256): (u64, &str)) -> Result<Put> {
        match self.copy(from, to, bytes).await {
            Ok(true) => Ok(Put::Created),
            Ok(false) => {
                let content = self.get_existing(from).await?;
                if content.len() as u64 != bytes || self::sha256(&content) != sha256 {
                    return Err(self.altered(from));
                }
                self.put_once(to, content).await
            }
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                // As in `holds`.
                if !self.exists(to).await.map_err(|error| self.error("read", to, error))? {
                    let to = self.show(to);
                    return Err(Error::retry(format!("{to} was refused as existing, and is not there")));
                }
                let same = self.hash(to).await? == (bytes, sha256.to_owned());
                Ok(if same { Put::Same } else { Put::Differs })
            }
            Err(error) if is_absent(&error) => Err(self.missing(from)),
            Err(error) => Err(self.error("copy", from, error)),
        }
    }

    /// One conditional copy; `false` where the store has none.
    async fn copy(&self, from: &Path, to: &Path, bytes: u64) -> Result<bool, StoreError> {
        if let Some(bucket) = &self.bucket {
            return self.copy_in(bucket, from, to, bytes).await;
        }
        let options = CopyOptions { mode: CopyMode::Create, ..CopyOptions::default() };
        match self.inner.copy_opts(from, to, options).await {
            Ok(()) => Ok(true),
            // File systems without links, or without room for one more.
            Err(StoreError::Generic { .. } | StoreError::NotSupported { .. }) if self.local.is_some() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn copy_in(&self, bucket: &Bucket, from: &Path, to: &Path, bytes: u64) -> Result<bool, StoreError> {
        if bucket.copies_nothing.initialized() || !self.has_conditional_parts(bucket, to).await? {
            return Ok(false);
        }
        if self.exists(to).await? {
            let source = "found before the copy".into();
            return Err(StoreError::AlreadyExists { path: to.to_string(), source });
        }
        match multipart::copy(bucket, (&bucket.key(from), bytes), &bucket.key(to)).await {
            Ok(()) => Ok(true),
            // As SeaweedFS, where an object is encrypted by a key of KMS.
            Err(StoreError::NotSupported { source }) => {
                if bucket.copies_nothing.set(()).is_ok() {
                    tracing::warn!(
                        answer = %source,
                        "the lake's store does not copy objects: what a day shares with the day before goes through here"
                    );
                }
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Copies the object, or finds it with the same bytes; anything else is an error for the operator.
    pub async fn copy_same(&self, from: &Path, to: &Path, content: (u64, &str)) -> Result<()> {
        match self.copy_once(from, to, content).await? {
            Put::Created | Put::Same => Ok(()),
            Put::Differs => Err(self.differs(to)),
        }
    }

    /// Size and SHA-256 of an object, which must be there; it is read piece by piece. Cancel-safe.
    pub async fn hash(&self, path: &Path) -> Result<(u64, String)> {
        let mut stream = self.stream_existing(path).await?;
        let (mut size, mut hash) = (0, Sha256::new());
        while let Some(bytes) = stream.next().await {
            let bytes = bytes?;
            size += bytes.len() as u64;
            hash.update(&bytes);
        }
        Ok((size, hexadecimal(&hash.finalize())))
    }

    /// The whole object; `None` when it is not there. Cancel-safe.
    pub async fn get(&self, path: &Path) -> Result<Option<Bytes>> {
        let read = async { self.inner.get(path).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.error("read", path, error)),
        }
    }

    /// The whole object, which must be there.
    pub async fn get_existing(&self, path: &Path) -> Result<Bytes> {
        self.get(path).await?.ok_or_else(|| self.missing(path))
    }

    /// The bytes of an object, which must be there, piece by piece.
    pub async fn stream_existing(&self, path: &Path) -> Result<BoxStream<'static, Result<Bytes>>> {
        let found = match self.inner.get(path).await {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Err(self.missing(path)),
            Err(error) => return Err(self.error("read", path, error)),
        };
        let (store, path) = (self.clone(), path.clone());
        Ok(found.into_stream().map_err(move |error| store.error("read", &path, error)).boxed())
    }

    /// An object that is not there, and has to be.
    pub fn missing(&self, path: &Path) -> Error {
        Error::operator(format!("{} is missing", self.show(path)))
            .mend("Bring the object back: the lake's objects are what later days are built from.")
    }

    /// Objects under a folder, in no order; none when the folder is not there. Cancel-safe.
    pub async fn list(&self, folder: &Path) -> Result<Vec<ObjectMeta>> {
        let found: Result<Vec<_>, _> = self.inner.list(Some(folder)).try_collect().await;
        match found {
            Ok(found) => Ok(found),
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            Err(error) => Err(self.error("list", folder, error)),
        }
    }

    /// Folders right below a folder, sorted. Cancel-safe.
    pub async fn folders(&self, folder: &Path) -> Result<Vec<Path>> {
        match self.inner.list_with_delimiter(Some(folder)).await {
            Ok(mut found) => {
                found.common_prefixes.sort();
                Ok(found.common_prefixes)
            }
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            Err(error) => Err(self.error("list", folder, error)),
        }
    }

    /// Removes an object, if it is there.
    pub async fn delete(&self, path: &Path) -> Result<()> {
        match self.inner.delete(path).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error("remove", path, error)),
        }
    }

    /// Removes objects, those that are there, in no order; a bucket is asked to remove a thousand at once, and, where it
    /// does not know how, one by one. Not cancel-safe: some may be gone.
    pub async fn delete_all(&self, paths: &[Path]) -> Result<()> {
        let many = |bucket: &&Arc<Bucket>| paths.len() > 1 && !bucket.removes_singly.initialized();
        if let Some(bucket) = self.bucket.as_ref().filter(many) {
            let keys: Vec<_> = paths.iter().map(|path| Ok(bucket.key(path))).collect();
            let removed = bucket.bulk.delete_stream(futures::stream::iter(keys).boxed());
            match removed.try_collect::<Vec<_>>().await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    // Asked again, it would be in vain with all retries.
                    if s3::is_not_implemented(&error) {
                        let _ = bucket.removes_singly.set(());
                    }
                    tracing::debug!(%error, "many objects cannot be removed at once: one by one");
                }
            }
        }
        let paths: Vec<_> = paths.iter().cloned().map(Ok).collect();
        let mut removed = self.inner.delete_stream(futures::stream::iter(paths).boxed());
        while let Some(removed) = removed.next().await {
            match removed {
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(self.error("remove objects of", &Path::default(), error)),
            }
        }
        Ok(())
    }

    /// Removes a local folder that is empty: other readers would take it for a partition. A bucket has none.
    pub async fn remove_empty(&self, folder: &Path) -> Result<()> {
        use std::io::ErrorKind::{DirectoryNotEmpty, NotFound};
        let Some(local) = &self.local else { return Ok(()) };
        let path = local.path_to_filesystem(folder).map_err(|error| self.error("list", folder, error))?;
        match tokio::fs::remove_dir(&path).await {
            Err(error) if !matches!(error.kind(), DirectoryNotEmpty | NotFound) => {
                Err(Error::retry(format!("cannot remove {}", self.show(folder))).cause(error))
            }
            _ => Ok(()),
        }
    }

    /// Aborts uploads in parts below a folder that were begun longer ago than `age` and never completed: how many. Only
    /// for whoever owns what is written there. Cancel-safe.
    pub async fn abort_uploads(&self, folder: &Path, age: Duration) -> Result<usize> {
        let Some(bucket) = &self.bucket else { return Ok(0) };
        let aborted = multipart::abort_older(bucket, folder, age).await;
        aborted.map_err(|error| self.error("abort broken uploads below", folder, error))
    }

    /// Whether an interrupted put leaves files which [`Self::sweep`] has to remove.
    pub const fn leaves_halves(&self) -> bool {
        self.local.is_some()
    }

    /// Removes files that an interrupted put left in a local folder, which other readers of the folder would see; where a
    /// put is at work there, by whomever, whoever comes next does. Cancel-safe.
    pub async fn sweep(&self, folder: &Path) -> Result<()> {
        let Some(local) = &self.local else { return Ok(()) };
        let path = local.path_to_filesystem(folder).map_err(|error| self.error("list", folder, error))?;
        let swept = tokio::task::spawn_blocking(move || halves::sweep(&path)).await;
        let swept = swept.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        swept.map_err(|error| Error::retry(format!("cannot clear {}", self.show(folder))).cause(error))
    }

    /// Keeps the folder of a local object from being swept as long as what it returns lives.
    async fn hold(&self, path: &Path) -> Option<halves::Held> {
        let path = self.local.as_ref()?.path_to_filesystem(path).ok()?;
        tokio::task::spawn_blocking(move || halves::hold(path.parent()?)).await.ok()?
    }

    /// The object's full name, for messages.
    pub fn show(&self, path: &Path) -> String {
        format!("{}/{path}", self.shown.trim_end_matches('/'))
    }

    /// On S3 nothing but time and the operator's own hands at the store are needed: rights and keys come back, and
    /// capture has to go on until then. At the start, [`Self::probe`] tells what is wrong for good.
    fn error(&self, doing: &str, path: &Path, error: StoreError) -> Error {
        let mend = if self.bucket.is_some() { s3::mend(&error) } else { mend(&error) };
        let lasts = mend.is_some() && self.bucket.is_none();
        let class = if lasts { Class::Operator } else { Class::Retry };
        let out = Error::new(class, format!("cannot {doing} {}", self.show(path))).cause(error);
        match mend {
            Some(mend) => out.mend(mend),
            None => out,
        }
    }
}

/// Whether the object is not there. A bucket that is not there is something else: a lake without days would be made anew.
fn is_absent(error: &StoreError) -> bool {
    matches!(error, StoreError::NotFound { .. }) && !s3::is_bucket_missing(error)
}

/// What a person has to do; `None` when time may mend it.
fn mend(error: &StoreError) -> Option<&'static str> {
    if matches!(error, StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. }) {
        return Some(NO_RIGHT);
    }
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return io_mend(io.kind());
        }
        source = cause.source();
    }
    None
}

const NO_RIGHT: &str = "Give the user who runs Tidemark the right to write there.";

fn io_mend(kind: std::io::ErrorKind) -> Option<&'static str> {
    use std::io::ErrorKind as Kind;
    match kind {
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Some(NO_RIGHT),
        Kind::StorageFull | Kind::QuotaExceeded => Some("Free some space; nothing was lost."),
        // The last one: a folder that cannot be made because something of that name exists.
        Kind::NotADirectory | Kind::IsADirectory | Kind::AlreadyExists => {
            Some("A file stands where a folder belongs; move it away.")
        }
        Kind::InvalidFilename => Some("The name is too long for this file system; use an object store."),
        _ => None,
    }
}

fn scheme(url: &str) -> &str {
    url.split_once("://").map_or(url, |(scheme, _)| scheme)
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}/new", folder.path().display())).unwrap();
        let path = Path::from("a/b");
        assert_eq!(store.put_once(&path, Bytes::from("one")).await.unwrap(), Put::Created);
        assert_eq!(store.put_once(&path, Bytes::from("one")).await.unwrap(), Put::Same);
        assert_eq!(store.put_once(&path, Bytes::from("two")).await.unwrap(), Put::Differs);
        let pieces = |pieces: [&'static str; 3]| PutPayload::from_iter(pieces.map(Bytes::from));
        assert_eq!(store.put_once(&path, pieces(["o", "", "ne"])).await.unwrap(), Put::Same);
        assert_eq!(store.put_once(&path, pieces(["o", "n", "f"])).await.unwrap(), Put::Differs);
        assert_eq!(store.put_once(&path, pieces(["one", "o", "ne"])).await.unwrap(), Put::Differs);
        let error = store.put_same(&path, Bytes::from("two")).await.unwrap_err();
        assert_eq!(error.class(), Class::Operator);
        assert!(error.to_string().contains("/new/a/b"), "{error}");
        assert_eq!(store.get(&path).await.unwrap().unwrap(), "one");
        assert_eq!(store.get(&Path::from("none")).await.unwrap(), None);
        assert!(store.list(&Path::from("none")).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_object_is_copied_once_by_a_link_and_through_here_where_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
        let (from, to, other) = (Path::from("a/b"), Path::from("c/d"), Path::from("other"));
        let sha256 = sha256(b"one");
        let content = (3, sha256.as_str());
        store.put_same(&from, Bytes::from("one")).await.unwrap();
        store.put_same(&other, Bytes::from("two")).await.unwrap();
        assert_eq!(store.copy_once(&from, &to, content).await.unwrap(), Put::Created);
        assert_eq!(store.copy_once(&from, &to, content).await.unwrap(), Put::Same);
        assert_eq!(store.copy_once(&from, &other, content).await.unwrap(), Put::Differs);
        assert_eq!(store.get(&other).await.unwrap().unwrap(), "two");
        // One name of the two goes, the content stays.
        store.delete(&from).await.unwrap();
        assert_eq!(store.get(&to).await.unwrap().unwrap(), "one");
        let error = store.copy_once(&from, &Path::from("e"), content).await.unwrap_err();
        assert!(error.class() == Class::Operator && error.to_string().contains("a/b"), "{error}");
        // No link leads to another file system: the content goes through here, and is looked at.
        let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("elsewhere")).unwrap();
        let far = Path::from("elsewhere/b");
        assert_eq!(store.copy_once(&to, &far, content).await.unwrap(), Put::Created);
        assert_eq!(store.copy_once(&to, &far, content).await.unwrap(), Put::Same);
        assert_eq!(store.get(&far).await.unwrap().unwrap(), "one");
        let error = store.copy_once(&other, &Path::from("elsewhere/c"), content).await.unwrap_err();
        assert!(error.to_string().contains("SHA-256"), "{error}");
    }

    #[test]
    fn an_unknown_url_is_refused_without_showing_it() {
        let error = Store::open("ftp://user:secret@host/x").unwrap_err();
        assert_eq!(error.class(), Class::Usage);
        assert!(!error.to_string().contains("secret"));
    }
}
