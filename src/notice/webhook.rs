//! A webhook: one POST a message.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use ureq::Agent;

use super::{Message, Probed};
use crate::runtime::{Error, Result, hexadecimal, http};

/// What an answer's body may take in an error.
const TOLD_BYTES_MAX: u64 = 300;
const AGAIN: &str = "Days are published all the same, and the notice is sent again. Look at the other side.";

/// How a webhook is reached.
#[derive(Clone)]
pub struct WebhookOptions {
    /// Where to.
    pub url: String,
    /// `Authorization: Bearer …`.
    pub bearer_token: Option<String>,
    /// Signs each body: `X-Tidemark-Signature-256: sha256=<HMAC in hexadecimal>`.
    pub hmac_key: Option<String>,
    /// Authorities to trust instead of the system's, in PEM form.
    pub ca_file: Option<PathBuf>,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// Without what is secret: a URL may hold a token.
impl fmt::Debug for WebhookOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookOptions").field("at", &shown(&self.url)).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Webhook {
    agent: Agent,
    options: WebhookOptions,
}

impl Webhook {
    pub(super) fn new(options: WebhookOptions) -> Result<Self> {
        let agent = http::agent("[notices.webhook]", options.ca_file.as_deref(), options.timeout)?;
        Ok(Self { agent, options })
    }

    pub(super) fn send(&self, message: &Message) -> Result<()> {
        let mut request = self.agent.post(&self.options.url).header("Content-Type", "application/json");
        if let Some(token) = &self.options.bearer_token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(key) = &self.options.hmac_key {
            request = request.header("X-Tidemark-Signature-256", signature(key, &message.body)?);
        }
        let mut answer = request.send(&message.body[..]).map_err(|error| self.out_of_reach(error))?;
        let status = answer.status().as_u16();
        if (200..300).contains(&status) {
            return Ok(());
        }
        let body = answer.body_mut().with_config().limit(TOLD_BYTES_MAX).read_to_string().unwrap_or_default();
        let told = format!("the webhook at {} answers {status} {}", shown(&self.options.url), body.trim());
        Err(match status {
            408 | 425 | 429 | 500.. => Error::retry(told.trim_end().to_owned()).mend(AGAIN),
            _ => Error::operator(told.trim_end().to_owned())
                .mend("Look at url, bearer_token and hmac_key under [notices.webhook]; the notice is sent again meanwhile."),
        })
    }

    /// Asks for the head of what is there, which changes nothing: a webhook need not know of that, so only an answer is
    /// wanted.
    pub(super) fn probe(&self) -> Result<Probed> {
        let at = shown(&self.options.url);
        let answer = self.agent.head(&self.options.url).call().map_err(|error| self.out_of_reach(error))?;
        let status = answer.status().as_u16();
        if status >= 500 {
            let told = format!("the webhook at {at} answers {status} to HEAD");
            return Err(Error::retry(told).mend("Look at the other side."));
        }
        let answer = format!("{at} answers {status} to HEAD; only a notice shows whether it takes notices");
        Ok(Probed { answer, doubt: None })
    }

    fn out_of_reach(&self, error: ureq::Error) -> Error {
        let at = shown(&self.options.url);
        Error::retry(format!("the webhook at {at} is out of reach")).cause(error).mend(AGAIN)
    }
}

fn signature(key: &str, body: &[u8]) -> Result<String> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key.as_bytes())
        .map_err(|error| Error::operator("[notices.webhook] hmac_key is no key").cause(error.to_string()))?;
    mac.update(body);
    Ok(format!("sha256={}", hexadecimal(&mac.finalize().into_bytes())))
}

/// Scheme and host of a URL: what follows, or stands before an `@`, may be secret.
fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_in_a_url_is_not_shown() {
        assert_eq!(
            shown("https://me:geheim@hooks.example.com:8443/T0/geheim?token=geheim"),
            "https://hooks.example.com:8443"
        );
    }

    #[test]
    fn signatures_are_those_of_rfc_4231() {
        let body = b"what do ya want for nothing?";
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature("Jefe", body).unwrap(), expected);
    }
}
