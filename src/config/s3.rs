//! `[lake.s3]`: how the bucket of `[lake] url = "s3://…"` is reached, in the words of AWS.

use super::document::{Document, Section};
use super::{AwsKeys, S3Config, S3Encryption, check, url};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

pub(super) fn read(document: &Document<'_>) -> S3Config {
    let section = document.section("lake.s3");
    let region = section.text("region", |text| {
        let fits =
            (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if fits {
            Ok(text.to_owned())
        } else {
            Err("the name of a region, such as \"eu-central-1\"".to_owned())
        }
    });
    let endpoint_url = section.text("endpoint_url", url::endpoint);
    let allow_http = section.boolean("allow_http").unwrap_or(false);
    let force_path_style = section.boolean("force_path_style");
    if let Some(url) = &endpoint_url {
        if lacks_tls(url, allow_http) {
            section.note("endpoint_url", format!("found {LACKS_TLS} beside it"));
        }
        if lacks_name(url, force_path_style) {
            section.note("force_path_style", format!("found false with {LACKS_NAME}"));
        }
    }
    let keys = keys(&section);
    let words = [("AES256", false), ("aws:kms", true)];
    let kms = section.text("server_side_encryption", |text| check::word(text, &words, &[]));
    let key_id = section.text("sse_kms_key_id", |text| {
        let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if fits { Ok(text.to_owned()) } else { Err("the id, ARN or alias of a key".to_owned()) }
    });
    let bucket_key = section.boolean("sse_bucket_key_enabled");
    for (key, given) in
        [("sse_kms_key_id", key_id.is_some()), ("sse_bucket_key_enabled", bucket_key.is_some())]
    {
        if given && kms != Some(true) {
            section.note(
                key,
                "given without server_side_encryption = \"aws:kms\", which it belongs to".to_owned(),
            );
        }
    }
    let encryption = kms.map(|kms| {
        let bucket_key = bucket_key.unwrap_or(false);
        if kms { S3Encryption::Kms { key_id, bucket_key } } else { S3Encryption::Aes256 }
    });
    S3Config {
        region,
        endpoint_url,
        force_path_style,
        allow_http,
        ca_file: section.text("ca_file", check::path),
        keys,
        encryption,
        multipart_threshold_bytes: section.integer(
            "multipart_threshold_bytes",
            "bytes",
            5 * MIB,
            5 * GIB,
            128 * MIB,
        ),
        multipart_chunk_bytes: section.integer("multipart_chunk_bytes", "bytes", 5 * MIB, GIB, 16 * MIB),
        max_retries: section.integer("max_retries", "tries", 0, 100, 5),
        retry_timeout_ms: section.integer("retry_timeout_ms", "milliseconds", 0, 300_000, 30_000),
        request_timeout_ms: section.integer("request_timeout_ms", "milliseconds", 100, 3_600_000, 120_000),
        connect_timeout_ms: section.integer("connect_timeout_ms", "milliseconds", 100, 600_000, 5_000),
    }
}

/// Checks an endpoint of the environment, which stands for `endpoint_url`: what was found and expected.
pub fn endpoint_of_environment(text: &str, config: &S3Config) -> Result<String, String> {
    // It is not shown: it may hold keys.
    let url = url::endpoint(text).map_err(|expected| format!("expected {expected}"))?;
    if lacks_tls(&url, config.allow_http) {
        return Err(format!("found {LACKS_TLS} in [lake.s3]"));
    }
    if lacks_name(&url, config.force_path_style) {
        return Err(format!("[lake.s3] force_path_style is false with {LACKS_NAME}"));
    }
    Ok(url)
}

const LACKS_TLS: &str = "an address without TLS; expected https://, or allow_http = true";
const LACKS_NAME: &str = "an address of numbers for the endpoint, which has no name to put a bucket before; expected true, or \
                          the store's name there";

fn lacks_tls(url: &str, allow_http: bool) -> bool {
    url.starts_with("http://") && !allow_http
}

fn lacks_name(url: &str, force_path_style: Option<bool>) -> bool {
    force_path_style == Some(false) && url::is_of_an_address(url)
}

/// Keys of a section; none: the chain of AWS.
pub(super) fn keys(section: &Section<'_, '_>) -> Option<AwsKeys> {
    let id = section.secret("access_key_id", "access_key_id_file");
    let secret = section.secret("secret_access_key", "secret_access_key_file");
    let session_token = section.secret("session_token", "session_token_file");
    let has = |key: &str, key_file: &str| section.has(key) || section.has(key_file);
    let has_id = has("access_key_id", "access_key_id_file");
    if has_id != has("secret_access_key", "secret_access_key_file") {
        let (given, lacking) = if has_id {
            ("access_key_id", "secret_access_key")
        } else {
            ("secret_access_key", "access_key_id")
        };
        section.note(given, format!("given without {lacking}; expected both, or none for the chain of AWS"));
    }
    if session_token.is_some() && !has_id {
        section.note(
            "session_token",
            "given without access_key_id; expected all three of one session".to_owned(),
        );
    }
    id.zip(secret).map(|(access_key_id, secret_access_key)| AwsKeys {
        access_key_id,
        secret_access_key,
        session_token,
    })
}
