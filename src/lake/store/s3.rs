//! A bucket: how it is reached, and what `object_store` does not do there by itself.
//!
//! ```text
//!   small object:  PUT, If-None-Match: *                                   (object_store)
//!   large object:  upload ── parts, some at once ── complete, If-None-Match: *     (`multipart`)
//! ```
//!
//! Why no object is ever replaced: whatever is created carries `If-None-Match: *`, so the store itself decides who came
//! first. A request that times out may have been carried out; it is sent again, is refused because of itself, and
//! [`Store::put_once`](super::Store::put_once) finds its own bytes. A store that does not know the condition is found by
//! the probe at the start, and is refused.
//!
//! TLS is rustls with ring, as everywhere; the system's authorities are trusted, and those of `ca_file`.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::client::{Certificate, ClientOptions, HttpClient, HttpConnector, ReqwestConnector};
use object_store::path::Path;
use object_store::{BackoffConfig, Error as StoreError, RetryConfig};

use tokio::sync::OnceCell;

use crate::runtime::{Error, Result, aws};

/// How a bucket is reached.
#[derive(Clone)]
pub struct S3Options {
    /// The bucket.
    pub bucket: String,
    /// What stands before every key, without slashes around it; may be empty.
    pub prefix: String,
    /// Its region.
    pub region: String,
    /// Where the store is, if it is not AWS's.
    pub endpoint_url: Option<String>,
    /// Whether the bucket stands in the path rather than in the host's name.
    pub force_path_style: bool,
    /// Whether the endpoint may be reached without TLS.
    pub allow_http: bool,
    /// Authorities to trust beside the system's, in PEM form.
    pub ca_file: Option<PathBuf>,
    /// Key, secret and session token; without them the chain of AWS: environment, web identity, container, instance.
    pub credentials: Option<S3Credentials>,
    /// Header `x-amz-server-side-encryption`; none: as the bucket has it.
    pub server_side_encryption: Option<Encryption>,
    /// An object of more bytes is uploaded in parts.
    pub multipart_threshold_bytes: usize,
    /// Bytes of a part, at least 5 MiB.
    pub multipart_chunk_bytes: usize,
    /// How often a request is sent again at once, after an answer or a fault that passes.
    pub max_retries: usize,
    /// For how long it is sent again.
    pub retry_timeout: Duration,
    /// How long one request may take, its body included.
    pub request_timeout: Duration,
    /// How long a connection may take.
    pub connect_timeout: Duration,
}

/// Keys that never change while the process runs.
#[derive(Clone)]
pub struct S3Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<String>,
}

/// Encryption by the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// By keys of S3's own.
    Aes256,
    /// By a key of AWS KMS.
    Kms {
        /// The key's id or ARN; none: the account's key for S3.
        key_id: Option<String>,
        /// Whether the bucket's key spares requests to KMS.
        bucket_key: bool,
    },
}

/// Without what is secret.
impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// Without what is secret.
impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("S3Credentials(***)")
    }
}

/// An opened bucket.
#[derive(Debug)]
pub struct Bucket {
    pub(super) s3: AmazonS3,
    /// The same, where many objects are removed by one request. Not every store knows how.
    pub(super) bulk: AmazonS3,
    /// For the requests which `object_store` does not make.
    pub(super) http: HttpClient,
    pub(super) options: S3Options,
    /// Whether the end of an upload in parts is refused where something is, once that was tried.
    pub(super) conditional_parts: OnceCell<bool>,
    /// Set once the store has said that it cannot copy what was to be copied.
    pub(super) copies_nothing: OnceCell<()>,
    /// Set once the store has said that it does not remove many objects by one request.
    pub(super) removes_singly: OnceCell<()>,
}

impl Bucket {
    /// Makes ready to reach the bucket; nothing is sent yet.
    ///
    /// # Errors
    /// `Usage`: what the options say together cannot be; `Operator`: `ca_file` cannot be read.
    pub(super) fn open(options: S3Options) -> Result<Arc<Self>> {
        // The HTTP client takes the process's TLS, of which there is one; who came first has set the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = client_options(&options)?;
        let failed = |error: object_store::Error| {
            Error::usage(format!("[lake.s3] does not fit bucket {}", options.bucket)).cause(error)
        };
        let http = ReqwestConnector::default().connect(&client).map_err(failed)?;
        let builder = builder(&options, client);
        let bulk = builder.clone().with_disable_bulk_delete(false).build().map_err(failed)?;
        let s3 = builder.build().map_err(failed)?;
        Ok(Arc::new(Self {
            s3,
            bulk,
            http,
            options,
            conditional_parts: OnceCell::new(),
            copies_nothing: OnceCell::new(),
            removes_singly: OnceCell::new(),
        }))
    }

    /// The key of an object of the lake.
    pub(super) fn key(&self, path: &Path) -> Path {
        if self.options.prefix.is_empty() {
            return path.clone();
        }
        Path::from(self.options.prefix.as_str()).parts().chain(path.parts()).collect()
    }

    /// Bucket, region, endpoint and where the credentials come from, for people.
    pub(super) fn describe(&self) -> String {
        let options = &self.options;
        let style = if options.force_path_style { "path style" } else { "virtual-hosted style" };
        let at = options.endpoint_url.as_deref().unwrap_or("AWS");
        let keys = match &options.credentials {
            Some(_) => "keys of [lake.s3]",
            None => "credentials of the AWS chain",
        };
        let encryption = match &options.server_side_encryption {
            None => "encrypted as the bucket has it",
            Some(Encryption::Aes256) => "encrypted by AES256",
            Some(Encryption::Kms { .. }) => "encrypted by aws:kms",
        };
        format!(
            "bucket {} in region {} at {at}, {style}, {keys}, {encryption}",
            options.bucket, options.region
        )
    }
}

fn client_options(options: &S3Options) -> Result<ClientOptions> {
    let mut client = ClientOptions::new()
        .with_allow_http(options.allow_http)
        .with_timeout(options.request_timeout)
        .with_connect_timeout(options.connect_timeout);
    if let Some(path) = &options.ca_file {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::operator(format!("[lake.s3] ca_file {} cannot be used", path.display()))
                .cause(error)
                .mend("It has to hold certificates in PEM form.")
        };
        let pem = std::fs::read(path).map_err(|error| failed(error.into()))?;
        for certificate in Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.into()))? {
            client = client.with_root_certificate(certificate);
        }
    }
    Ok(client)
}

fn builder(options: &S3Options, client: ClientOptions) -> AmazonS3Builder {
    // Keys of the file stand alone: a session token of the environment belongs to other keys.
    let mut builder = match &options.credentials {
        None => aws::chain(),
        Some(keys) => {
            let builder = AmazonS3Builder::new()
                .with_access_key_id(&keys.access_key_id)
                .with_secret_access_key(&keys.secret_access_key);
            match &keys.session_token {
                Some(token) => builder.with_token(token),
                None => builder,
            }
        }
    };
    if let Some(url) = &options.endpoint_url {
        builder = builder.with_endpoint(endpoint(url, options));
    }
    for (key, value) in encryption(options.server_side_encryption.as_ref()) {
        // The names are `object_store`'s own.
        if let Ok(key) = key.parse() {
            builder = builder.with_config(key, value);
        }
    }
    builder
        .with_bucket_name(&options.bucket)
        .with_region(&options.region)
        .with_virtual_hosted_style_request(!options.force_path_style)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // One object at a time is removed here; see `Bucket::bulk`.
        .with_disable_bulk_delete(true)
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: options.max_retries,
            retry_timeout: options.retry_timeout,
        })
        .with_client_options(client)
}

fn encryption(encryption: Option<&Encryption>) -> Vec<(&'static str, String)> {
    match encryption {
        None => Vec::new(),
        Some(Encryption::Aes256) => vec![("aws_server_side_encryption", "AES256".to_owned())],
        Some(Encryption::Kms { key_id, bucket_key }) => {
            let key_id = key_id.iter().map(|id| ("aws_sse_kms_key_id", id.clone()));
            let bucket_key = bucket_key.then(|| ("aws_sse_bucket_key_enabled", "true".to_owned()));
            let kind = ("aws_server_side_encryption", "aws:kms".to_owned());
            [kind].into_iter().chain(key_id).chain(bucket_key).collect()
        }
    }
}

/// The endpoint as `object_store` wants it: with the bucket in its host's name unless it stands in the path.
fn endpoint(url: &str, options: &S3Options) -> String {
    let url = url.trim_end_matches('/');
    match url.split_once("://") {
        Some((scheme, host)) if !options.force_path_style => format!("{scheme}://{}.{host}", options.bucket),
        _ => url.to_owned(),
    }
}

/// Whether the store says that it has no such bucket.
pub(super) fn is_bucket_missing(error: &StoreError) -> bool {
    told(error).contains("NoSuchBucket")
}

/// Whether the store says that it never does what it was asked.
pub(super) fn is_not_implemented(error: &StoreError) -> bool {
    told(error).contains("501 Not Implemented")
}

/// What a person has to do, by the code of the store's answer; `None` when time may mend it.
pub(super) fn mend(error: &StoreError) -> Option<&'static str> {
    let told = told(error);
    let has = |codes: &[&str]| codes.iter().any(|code| told.contains(code));
    if has(&["NoSuchBucket"]) {
        return Some("Create the bucket, or mend [lake] url: Tidemark makes no buckets.");
    }
    // Its answers have codes of the store's, too.
    let passes = has(&["IDPCommunicationError", "Throttling"]);
    let no_identity =
        told.contains("sts.amazonaws.com/doc") && told.contains("<Type>Sender</Type>") && !passes;
    if no_identity || has(&["Failed to read token file"]) {
        return Some(
            "Look at AWS_ROLE_ARN, at the token in the file that AWS_WEB_IDENTITY_TOKEN_FILE names, and whether the role trusts \
             who it is for: no keys are given for this web identity.",
        );
    }
    if has(&["PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"]) {
        return Some("Name the bucket's region: [lake.s3] region, or AWS_REGION.");
    }
    if has(&["ExpiredToken", "InvalidToken", "TokenRefreshRequired"]) {
        return Some("The session token has run out: start with new keys, or let a role give them.");
    }
    if has(&["InvalidAccessKeyId", "SignatureDoesNotMatch"]) {
        return Some(
            "The store does not know these keys: mend access_key_id and secret_access_key of [lake.s3], or what the environment or the role gives.",
        );
    }
    if has(&["KMS.NotFound", "KMS.Disabled", "KMS.KMSInvalidState", "KMS.InvalidKeyUsage"]) {
        return Some(
            "Look at [lake.s3] sse_kms_key_id, or at the bucket's own key where there is none: KMS cannot use it, or has none of \
             that name in the bucket's region.",
        );
    }
    if has(&["RequestTimeTooSkewed"]) {
        return Some(
            "Set this machine's clock: the store refuses requests that are signed more than 15 minutes off.",
        );
    }
    let denied = matches!(error, StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. });
    (denied || has(&["AccessDenied"])).then_some(
        "Allow s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload below the \
         prefix (s3:ListBucketMultipartUploads on the bucket; kms:GenerateDataKey and kms:Decrypt with aws:kms).",
    )
}

/// An error with its causes: the last one holds the store's answer.
fn told(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_token_service_is_not_taken_for_one_of_the_store() {
        let told = |kind: &str| {
            let answer = format!(
                "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>{kind}</Type>\
                 <Code>ExpiredTokenException</Code></Error></ErrorResponse>"
            );
            mend(&StoreError::Generic { store: "S3", source: answer.into() }).unwrap_or_default()
        };
        assert!(told("Sender").contains("AWS_WEB_IDENTITY_TOKEN_FILE"));
        assert!(!told("Receiver").contains("AWS_WEB_IDENTITY_TOKEN_FILE"), "it may pass");
    }

    #[test]
    fn a_key_that_kms_cannot_use_is_for_the_operator_to_mend() {
        for code in ["KMS.NotFoundException", "KMS.DisabledException", "KMS.KMSInvalidStateException"] {
            let source = format!("400 Bad Request: <Error><Code>{code}</Code></Error>").into();
            let mend = mend(&StoreError::Generic { store: "S3", source }).unwrap();
            assert!(mend.contains("sse_kms_key_id"), "{code}: {mend}");
        }
    }
}
