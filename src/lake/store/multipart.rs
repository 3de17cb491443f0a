//! Large objects in parts, completed only if nothing has the key; and what is left of uploads that were broken off.
//!
//! `object_store` completes uploads without a condition and does not list them. These two requests are made here, signed
//! by it; all others are its own.
//!
//! An upload that is neither completed nor aborted costs money and is seen by nobody. One that fails is aborted at once;
//! those of a process that died are aborted by whoever owns the tables next ([`abort_older`]). Aborting one that is still
//! at work does no harm: its next request fails, and the step is done again.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use http::header::IF_NONE_MATCH;
use http::{HeaderValue, Method};
use object_store::client::HttpRequest;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use object_store::{Error as StoreError, PutPayload};
use serde::{Deserialize, Serialize};

use super::s3::Bucket;
use crate::runtime::Backoff;

/// Parts of one object that are on their way at once.
const AT_ONCE: usize = 4;

/// How long a signed request may be sent. Each try is signed anew.
const SIGNED_FOR: Duration = Duration::from_secs(300);

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
    if result.is_err()
        && let Err(error) = bucket.s3.abort_multipart(key, &id).await
        && !matches!(error, StoreError::NotFound { .. })
    {
        tracing::warn!(%key, %error, "an upload could not be aborted; it is again when the tables are opened");
    }
    result
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
    match send(bucket, Method::POST, key, &[("uploadId", id)], Some(&body)).await? {
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
    body: Option<&str>,
) -> Result<(u16, String)> {
    let started = tokio::time::Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
    loop {
        let tried = send_once(bucket, &method, key, query, body).await;
        let passes = match &tried {
            Ok((status, answer)) => {
                *status >= 500
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
    body: Option<&str>,
) -> Result<(u16, String)> {
    let mut options = SignedUrlOptions::new().with_query(query.iter().copied());
    if body.is_some() {
        options = options.with_signed_header(IF_NONE_MATCH, HeaderValue::from_static("*"));
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
        let (status, answer) = send(bucket, Method::GET, &Path::default(), query, None).await?;
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
}
