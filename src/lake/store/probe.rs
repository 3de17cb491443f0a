//! Trying what the lake will need, before it needs it: a small object of this process's own is made, refused, read and
//! removed.

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectMeta, ObjectStoreExt, PutPayload};

use super::s3::Bucket;
use super::{Put, Store, multipart};
use crate::runtime::{Class, Error, Result};

/// Objects of probes whose process died are removed after this long.
const LEFT_OVER: Duration = Duration::from_secs(24 * 60 * 60);

/// The least size of a part which stores take, but for the last one.
const CHUNK: usize = 5 << 20;

/// One thing that was tried.
#[derive(Debug)]
pub struct StoreProbe {
    /// What: "lake bucket", "lake list", "lake put" …
    pub subject: &'static str,
    /// What was found.
    pub outcome: Result<String>,
}

impl Store {
    /// Tries to list, create, read and remove, and whether a create is refused where something is. `folder` is where: each
    /// call makes an object of a name of its own there. Cancel-safe, but for that object.
    ///
    /// # Errors
    /// In the outcomes: what time cannot mend is `Operator`.
    pub async fn probe(&self, folder: &Path) -> Vec<StoreProbe> {
        let mut found = Vec::new();
        let mut tell = |subject, outcome: Result<String>| {
            let goes_on = outcome.is_ok();
            found.push(StoreProbe { subject, outcome: outcome.map_err(|error| self.lasting(error)) });
            goes_on
        };
        let path = folder.clone().join(format!("_probe-{}", unique()));
        if let Some(bucket) = &self.bucket {
            tell("lake bucket", Ok(bucket.describe()));
        }
        tell("lake list", self.probe_list(folder).await);
        let _ = tell("lake put", self.probe_put(&path).await)
            && tell("lake create", self.probe_condition(&path).await)
            && tell("lake get", self.probe_get(&path).await);
        tell("lake delete", self.delete(&path).await.map(|()| "objects can be removed".to_owned()));
        if self.bucket.is_some() { found } else { vec![self.all_of_folder(found)] }
    }

    /// One line is enough for a folder.
    fn all_of_folder(&self, found: Vec<StoreProbe>) -> StoreProbe {
        let outcome = found.into_iter().try_for_each(|tried| tried.outcome.map(|_| ()));
        StoreProbe { subject: "lake", outcome: outcome.map(|()| format!("{} can be written", self.shown)) }
    }

    /// What the store refuses now it refuses for ever, as far as a start is concerned.
    fn lasting(&self, error: Error) -> Error {
        if self.bucket.is_none() || error.class() != Class::Retry {
            return error;
        }
        match error.mend_text().map(str::to_owned) {
            Some(mend) => Error::operator(error.message()).mend(mend),
            None => error,
        }
    }

    /// Lists the folder, and clears what other probes left there.
    async fn probe_list(&self, folder: &Path) -> Result<String> {
        let left_over = |object: &ObjectMeta| {
            let name = object.location.filename().unwrap_or_default();
            let age = jiff::Timestamp::now().as_second() - object.last_modified.timestamp();
            name.starts_with("_probe") && age > LEFT_OVER.as_secs() as i64
        };
        for object in self.list(folder).await?.iter().filter(|object| left_over(object)) {
            self.delete(&object.location).await?;
        }
        Ok(format!("{} can be listed", self.show(folder)))
    }

    async fn probe_put(&self, path: &Path) -> Result<String> {
        self.put_same(path, Bytes::from_static(b"tidemark\n")).await?;
        Ok("objects can be created".to_owned())
    }

    /// Every step of the lake hangs on it.
    async fn probe_condition(&self, path: &Path) -> Result<String> {
        if self.put_once(path, Bytes::from_static(b"another\n")).await? == Put::Differs {
            return Ok("what exists is never replaced (If-None-Match)".to_owned());
        }
        Err(no_condition(&format!(
            "{} was replaced by a create that was to fail if it exists",
            self.show(path)
        )))
    }

    async fn probe_get(&self, path: &Path) -> Result<String> {
        if self.get_existing(path).await? == "tidemark\n" {
            return Ok("objects are read as they were written".to_owned());
        }
        Err(no_condition(&format!("{} does not read as it was written", self.show(path))))
    }

    /// Whether an object of so many bytes is uploaded in parts: where the store is S3, it is large, and the end of an upload
    /// is refused where something is. That is tried once, beside the object, before the first one. Without it every
    /// object is put at once, which takes up to 5 GiB.
    pub(super) async fn in_parts(&self, path: &Path, bytes: usize) -> Result<Option<&Bucket>, StoreError> {
        let Some(bucket) = &self.bucket else { return Ok(None) };
        if bytes <= bucket.options.multipart_threshold_bytes {
            return Ok(None);
        }
        Ok(self.has_conditional_parts(bucket, path).await?.then_some(bucket))
    }

    /// Whether the end of an upload in parts is refused where something is, tried once, beside the object.
    pub(super) async fn has_conditional_parts(
        &self,
        bucket: &Bucket,
        path: &Path,
    ) -> Result<bool, StoreError> {
        bucket.conditional_parts.get_or_try_init(|| self.try_parts(bucket, path)).await.copied()
    }

    async fn try_parts(&self, bucket: &Bucket, beside: &Path) -> Result<bool, StoreError> {
        let mut folder: Vec<_> = beside.parts().collect();
        folder.pop();
        let path = folder.into_iter().collect::<Path>().join(format!("_probe-{}", unique()));
        let key = bucket.key(&path);
        let payload = PutPayload::from_iter([Bytes::from(vec![b'x'; CHUNK]), Bytes::from_static(b"y")]);
        multipart::create(bucket, &key, &payload).await?;
        let again = multipart::create(bucket, &key, &payload).await;
        self.inner.delete(&path).await?;
        match again {
            Err(StoreError::AlreadyExists { .. }) => Ok(true),
            Err(error) => Err(error),
            Ok(()) => {
                tracing::warn!(
                    "the lake's store ignores If-None-Match at the end of an upload in parts: every object is put at once"
                );
                Ok(false)
            }
        }
    }
}

fn no_condition(found: &str) -> Error {
    Error::operator(format!("the lake's store has no conditional create: {found}")).mend(
        "Use a store that honours `If-None-Match: *` on PutObject, as S3, MinIO, versitygw and SeaweedFS do: without it, a \
         process that was thought dead could replace what is published.",
    )
}

/// A name that no other probe has.
fn unique() -> String {
    format!("{}-{}", jiff::Timestamp::now().as_nanosecond(), std::process::id())
}
