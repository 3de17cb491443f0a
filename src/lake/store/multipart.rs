//! Large objects in parts, completed only if nothing has the key; and what is left of uploads that were broken off.
//!
//! `object_store` completes uploads without a condition and does not list them. These two requests are made here, signed
//! by it, and so is the one that copies a part of another object; all others are its own.
//!
//! A copy is an upload whose parts the store takes from another object. The one request that copies at once would be
//! shorter, but stores that speak S3's language, and AWS itself until of late, ignore the condition there and replace what
//! is.
//!
//! An upload that is neither completed nor aborted costs money and is seen by nobody. One that fails is aborted at once;
//! those of a process that died are aborted by whoever owns the tables next ([`abort_older`]). Aborting one that is still
//! at work does no harm: its next request fails, and the step is done again.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use http::header::IF_NONE_MATCH;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use object_store::client::HttpRequest;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use object_store::{Error as StoreError, PutPayload};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use serde::{Deserialize, Serialize};

use super::s3::Bucket;
use crate::runtime::Backoff;

/// Parts of one object that are on their way at once.
const AT_ONCE: usize = 4;

/// What does not stand for itself in the name of an object that is copied.
const COPY_SOURCE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// How long a signed request may be sent. Each try is signed anew.
const SIGNED_FOR: Duration = Duration::from_secs(300);

/// Most bytes of a part that is copied: S3 takes five GiB.
const COPIED_BYTES_MAX: u64 = 4 << 30;

/// The status of what a store does not know, and will not know when it is asked again.
const NOT_IMPLEMENTED: u16 = 501;

type Result<T> = std::result::Result<T, StoreError>;

/// Creates the object, or says `AlreadyExists` (also where that may be its own doing), as a conditional PUT would.
/// Cancel-safe: a dropped call leaves at most an upload behind, for [`abort_older`].
pub(super) async fn create(bucket: &Bucket, key: &Path, payload: &PutPayload) -> Result<()> {
    let id = bucket.s3.create_multipart(key).await?;
    let uploaded = async {
        let chunks = chunks(payload, bucket.options.multipart_chunk_bytes);
        let parts = futures::stream::iter(chunks.into_iter().enumerate())
            .map(|(index, chunk)| bucket.s3.put_part(key, &id, index, chunk));
        let parts: Vec<PartId> = parts.buffered(AT_ONCE).try_collect().await?;
        complete(bucket, key, &id, &parts).await
    };
    let result = uploaded.await;
    ended(bucket, key, &id, result).await
}

/// Creates the object with the content of another one, of so many bytes, as [`create`] does. `NotFound`: that one is not
/// there. `NotSupported`: the store does not know how to copy it.
pub(super) async fn copy(bucket: &Bucket, (from, bytes): (&Path, u64), key: &Path) -> Result<()> {
    let id = bucket.s3.create_multipart(key).await?;
    let copied = async {
        let parts = futures::stream::iter(ranges(bytes).into_iter().enumerate())
            .map(|(index, range)| copy_part(bucket, (from, range), (key, &id, index)));
        let parts: Vec<PartId> = parts.buffered(AT_ONCE).try_collect().await?;
        complete(bucket, key, &id, &parts).await
    };
    let result = copied.await;
    ended(bucket, key, &id, result).await
}

/// Aborts an upload that failed.
async fn ended(bucket: &Bucket, key: &Path, id: &String, result: Result<()>) -> Result<()> {
    if result.is_err()
        && let Err(error) = bucket.s3.abort_multipart(key, id).await
        && !matches!(error, StoreError::NotFound { .. })
    {
        tracing::warn!(%key, %error, "an upload could not be aborted; it is again when the tables are opened");
    }
    result
}

/// The bytes of an object in ranges that can be copied, first and last of each; none: all at once.
fn ranges(bytes: u64) -> Vec<Option<(u64, u64)>> {
    if bytes <= COPIED_BYTES_MAX {
        return vec![None];
    }
    let starts = (0..bytes).step_by(COPIED_BYTES_MAX as usize);
    starts.map(|start| Some((start, bytes.min(start + COPIED_BYTES_MAX) - 1))).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Copied {
    #[serde(rename = "ETag")]
    e_tag: String,
}

/// Has the store take a part of an upload from another object: a range of it, or (as S3 wants it of small objects) all.
async fn copy_part(
    bucket: &Bucket,
    (from, range): (&Path, Option<(u64, u64)>),
    (key, id, index): (&Path, &String, usize),
) -> Result<PartId> {
    let source = percent_encoding::utf8_percent_encode(from.as_ref(), COPY_SOURCE);
    let source = format!("{}/{source}", bucket.options.bucket);
    let range = range.map(|(first, last)| ("x-amz-copy-source-range", format!("bytes={first}-{last}")));
    let headers = std::iter::once(("x-amz-copy-source", source)).chain(range);
    let values =
        headers.map(|(name, value)| Ok((HeaderName::from_static(name), value.parse().map_err(generic)?)));
    let headers: HeaderMap<HeaderValue> = values.collect::<Result<_>>()?;
    let number = (index + 1).to_string();
    let query = [("partNumber", number.as_str()), ("uploadId", id.as_str())];
    match send(bucket, Method::PUT, key, &query, (headers, None)).await? {
        (200, answer) => {
            let copied: Copied = quick_xml::de::from_str(&answer).map_err(generic)?;
            Ok(PartId { content_id: copied.e_tag })
        }
        // An upload that is gone was aborted: the whole step is tried again.
        (404, answer) if answer.contains("NoSuchKey") => {
            Err(StoreError::NotFound { path: from.to_string(), source: answer.into() })
        }
        (403, answer) => Err(StoreError::PermissionDenied { path: from.to_string(), source: answer.into() }),
        (NOT_IMPLEMENTED, answer) => Err(StoreError::NotSupported { source: answer.into() }),
        (status, answer) => Err(generic(format!("{status}: {answer}"))),
    }
}

/// Cuts a payload without copying it.
fn chunks(payload: &PutPayload, chunk_bytes: usize) -> Vec<PutPayload> {
    let (mut chunks, mut chunk, mut held) = (Vec::new(), Vec::new(), 0);
    for bytes in payload {
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(chunk_bytes - held));
            held += piece.len();
            chunk.push(piece);
            if held == chunk_bytes {
                chunks.push(PutPayload::from_iter(std::mem::take(&mut chunk)));
                held = 0;
            }
        }
    }
    if held > 0 || chunks.is_empty() {
        chunks.push(PutPayload::from_iter(chunk));
    }
    chunks
}

#[derive(Serialize)]
#[serde(rename = "CompleteMultipartUpload", rename_all = "PascalCase")]
struct Complete<'p> {
    part: Vec<Part<'p>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Part<'p> {
    #[serde(rename = "ETag")]
    e_tag: &'p str,
    part_number: usize,
}

async fn complete(bucket: &Bucket, key: &Path, id: &str, parts: &[PartId]) -> Result<()> {
    let part = |(index, part): (usize, &PartId)| (index + 1, part.content_id.clone());
    let numbered: Vec<_> = parts.iter().enumerate().map(part).collect();
    let part =
        numbered.iter().map(|(part_number, e_tag)| Part { e_tag, part_number: *part_number }).collect();
    let body = quick_xml::se::to_string(&Complete { part }).map_err(generic)?;
    let headers = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static("*"))]);
    match send(bucket, Method::POST, key, &[("uploadId", id)], (headers, Some(&body))).await? {
        (200, _) => Ok(()),
        // An upload that is gone was completed by a try whose answer was lost, or aborted: the object says which.
        (409 | 412 | 404, answer) => {
            Err(StoreError::AlreadyExists { path: key.to_string(), source: answer.into() })
        }
        (403, answer) => Err(StoreError::PermissionDenied { path: key.to_string(), source: answer.into() }),
        (status, answer) => Err(generic(format!("{status}: {answer}"))),
    }
}

/// Sends a request until it has an answer that does not pass: status and body.
async fn send(
    bucket: &Bucket,
    method: Method,
    key: &Path,
    query: &[(&str, &str)],
    (headers, body): (HeaderMap, Option<&str>),
) -> Result<(u16, String)> {
    let started = tokio::time::Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
    loop {
        let tried = send_once(bucket, &method, key, query, (&headers, body)).await;
        let passes = match &tried {
            Ok((status, answer)) => {
                (*status >= 500 && *status != NOT_IMPLEMENTED)
                    || matches!(status, 408 | 429)
                    || (*status == 200 && answer.contains("<Error>"))
            }
            Err(_) => true,
        };
        let spent = backoff.tries() as usize >= bucket.options.max_retries
            || started.elapsed() >= bucket.options.retry_timeout;
        match tried {
            Ok((200, answer)) if passes && spent => return Err(generic(answer)),
            tried if spent || !passes => return tried,
            _ => tokio::time::sleep(backoff.next_wait()).await,
        }
    }
}

async fn send_once(
    bucket: &Bucket,
    method: &Method,
    key: &Path,
    query: &[(&str, &str)],
    (headers, body): (&HeaderMap, Option<&str>),
) -> Result<(u16, String)> {
    let mut options = SignedUrlOptions::new().with_query(query.iter().copied());
    for (name, value) in headers {
        options = options.with_signed_header(name.clone(), value.clone());
    }
    let url = bucket.s3.signed_url_opts(method.clone(), key, SIGNED_FOR, &options).await?;
    let mut request = HttpRequest::new(body.unwrap_or_default().to_owned().into());
    *request.method_mut() = method.clone();
    *request.uri_mut() = url.as_str().parse().map_err(generic)?;
    request.headers_mut().extend(options.signed_headers);
    let answer = bucket.http.execute(request).await.map_err(generic)?;
    let status = answer.status().as_u16();
    let body = answer.into_body().bytes().await.map_err(generic)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn generic(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Generic { store: "S3", source: error.into() }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Uploads {
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_upload_id_marker: Option<String>,
    #[serde(default)]
    upload: Vec<Upload>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    #[serde(rename = "UploadId")]
    id: String,
    initiated: String,
}

/// Aborts uploads below a folder that were begun longer ago than `age`; how many. Cancel-safe.
pub(super) async fn abort_older(bucket: &Arc<Bucket>, folder: &Path, age: Duration) -> Result<usize> {
    let prefix = format!("{}/", bucket.key(folder));
    let until = jiff::Timestamp::now() - jiff::SignedDuration::try_from(age).map_err(generic)?;
    let (mut key_marker, mut id_marker, mut aborted) = (String::new(), String::new(), 0);
    loop {
        let query = [
            ("uploads", ""),
            ("prefix", &prefix),
            ("key-marker", &key_marker),
            ("upload-id-marker", &id_marker),
        ];
        let query = if key_marker.is_empty() { &query[..2] } else { &query[..] };
        let (status, answer) =
            send(bucket, Method::GET, &Path::default(), query, (HeaderMap::new(), None)).await?;
        if status != 200 {
            return Err(generic(format!("{status}: {answer}")));
        }
        let found: Uploads = quick_xml::de::from_str(&answer).map_err(generic)?;
        for upload in found.upload {
            let begun: jiff::Timestamp = upload.initiated.parse().map_err(generic)?;
            let Ok(key) = Path::parse(&upload.key) else { continue };
            if begun > until || !upload.key.starts_with(&prefix) {
                continue;
            }
            match bucket.s3.abort_multipart(&key, &upload.id).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => aborted += 1,
                Err(error) => return Err(error),
            }
        }
        match (found.is_truncated, found.next_key_marker, found.next_upload_id_marker) {
            (true, Some(key), Some(id)) if (&key, &id) != (&key_marker, &id_marker) => {
                (key_marker, id_marker) = (key, id);
            }
            _ => return Ok(aborted),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn chunks_are_the_payload_cut_at_their_size() {
        let payload = PutPayload::from_iter(["abc", "", "defgh", "i"].map(Bytes::from));
        let cut: Vec<Vec<u8>> = chunks(&payload, 4)
            .iter()
            .map(|chunk| chunk.iter().flat_map(|bytes| bytes.to_vec()).collect())
            .collect();
        assert_eq!(cut, [b"abcd".to_vec(), b"efgh".to_vec(), b"i".to_vec()]);
        assert_eq!(chunks(&PutPayload::default(), 4).len(), 1);
    }

    #[test]
    fn what_is_too_large_for_one_copy_is_copied_in_ranges() {
        assert_eq!(ranges(4 << 30), [None]);
        let (first, second) = ((0, (4 << 30) - 1), (4 << 30, (4 << 30) + 6));
        assert_eq!(ranges((4 << 30) + 7), [Some(first), Some(second)]);
    }
}
