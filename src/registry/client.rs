//! HTTP to a registry: requests, and what their answers mean.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::json;
use ureq::Agent;

use super::{Answer, RegistryOptions};
use crate::runtime::{Error, Result, http};

const CONTENT: &str = "application/vnd.schemaregistry.v1+json";
/// What stays as it is in a subject within a path.
const SUBJECT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// A list of a hundred thousand subjects is some megabytes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    options: RegistryOptions,
    authorization: Option<String>,
    /// Index of the address that answered last.
    good: AtomicUsize,
}

/// What came back: a status, and the body's text.
struct Reply {
    url: String,
    status: u16,
    body: String,
}

#[derive(Deserialize)]
struct Registered {
    id: u32,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    error_code: i64,
    #[serde(default)]
    message: String,
}

impl Client {
    pub(super) fn new(options: RegistryOptions) -> Result<Self> {
        let agent = http::agent("[envelope.registry]", options.ca_file.as_deref(), options.timeout)?;
        let authorization = options.credentials.as_ref().map(|(user, password)| {
            format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
        });
        Ok(Self { agent, options, authorization, good: AtomicUsize::new(0) })
    }

    pub(super) fn id(&self, subject: &str, schema: &str) -> Result<Answer> {
        let name = utf8_percent_encode(subject, SUBJECT);
        let registered = if self.options.auto_register { "/versions" } else { "" };
        let path = format!("/subjects/{name}{registered}");
        let reply = self.ask(&path, Some(&json!({ "schema": schema }).to_string()))?;
        match reply.status {
            200..=299 => match serde_json::from_str::<Registered>(&reply.body) {
                Ok(Registered { id }) => Ok(Answer::Id(id)),
                Err(_) => Err(reply.unexpected()),
            },
            404 if !self.options.auto_register && reply.refusal().error_code >= 40_400 => {
                Ok(Answer::Refused(missing(subject, schema)))
            }
            409 | 413 | 422 => Ok(Answer::Refused(refused(subject, &reply))),
            _ => Err(reply.unexpected()),
        }
    }

    pub(super) fn subjects(&self) -> Result<usize> {
        let reply = self.ask("/subjects", None)?;
        match serde_json::from_str::<Vec<String>>(&reply.body) {
            Ok(subjects) if reply.status == 200 => Ok(subjects.len()),
            _ => Err(reply.unexpected()),
        }
    }

    /// A request, to each address until one has an answer of its own.
    fn ask(&self, path: &str, body: Option<&str>) -> Result<Reply> {
        let first = self.good.load(Relaxed);
        let mut last = None;
        for turn in 0..self.options.urls.len() {
            let index = (first + turn) % self.options.urls.len();
            match self.ask_one(&self.options.urls[index], path, body) {
                Ok(reply) if matches!(reply.status, 408 | 429 | 500..) => {
                    let text = format!("it answers {} {}", reply.status, reply.refusal().message);
                    last = Some(away(&self.options.urls[index]).cause(text.trim_end().to_owned()));
                }
                Ok(reply) => {
                    self.good.store(index, Relaxed);
                    return Ok(reply);
                }
                Err(error) => last = Some(unreached(&self.options.urls[index], error)),
            }
        }
        Err(last.unwrap_or_else(|| Error::operator("[envelope.registry] url names no address")))
    }

    fn ask_one(&self, base: &str, path: &str, body: Option<&str>) -> Result<Reply, ureq::Error> {
        let url = format!("{}{path}", base.trim_end_matches('/'));
        let authorization = self.authorization.as_deref();
        let mut answer = match body {
            Some(body) => {
                let request = self.agent.post(&url).header("Content-Type", CONTENT).header("Accept", CONTENT);
                let request = match authorization {
                    Some(authorization) => request.header("Authorization", authorization),
                    None => request,
                };
                request.send(body)?
            }
            None => {
                let request = self.agent.get(&url).header("Accept", CONTENT);
                let request = match authorization {
                    Some(authorization) => request.header("Authorization", authorization),
                    None => request,
                };
                request.call()?
            }
        };
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
        Ok(Reply { url, status, body })
    }
}

impl Reply {
    fn refusal(&self) -> Refusal {
        let told = serde_json::from_str(&self.body);
        told.unwrap_or_else(|_| Refusal { error_code: 0, message: String::new() })
    }

    /// A status that no schema can be blamed for.
    fn unexpected(&self) -> Error {
        let Self { url, status, .. } = self;
        let message = self.refusal().message;
        let told = if message.is_empty() { String::new() } else { format!(": {message}") };
        match status {
            401 | 403 => Error::operator(format!("the schema registry refuses us at {url}: status {status}{told}"))
                .mend("Look at user and password under [envelope.registry], and at what they may do there."),
            _ => Error::operator(format!("{url} does not answer as a schema registry: status {status}{told}")).mend(
                "[envelope.registry] url has to name the root of Confluent's API, such as http://registry:8081 or, \
                 for Apicurio, http://registry:8080/apis/ccompat/v7.",
            ),
        }
    }
}

fn away(url: &str) -> Error {
    Error::retry(format!("the schema registry at {url} is out of reach"))
        .mend("Nothing is lost: capture waits for it. Look at the registry.")
}

fn unreached(url: &str, error: ureq::Error) -> Error {
    let away = away(url);
    // Its kind is not told, other than in words.
    let away = if error.to_string().contains("certificate") {
        away.mend(
            "[envelope.registry] ca_file has to name the authority that has signed the registry's certificate, and the \
             certificate has to be for the host in url. Nothing is lost: capture waits for it.",
        )
    } else {
        away
    };
    away.cause(error)
}

/// Nothing is registered by us: what somebody has to.
fn missing(subject: &str, schema: &str) -> Error {
    tracing::warn!(subject, schema, "this schema has to be registered");
    Error::operator(format!("the schema registry has no such schema under subject {subject}")).mend(format!(
        "Register it (POST /subjects/{subject}/versions; its text is in the log of this process, in the line that \
         names the subject), or set [envelope.registry] auto_register = true; then start again. Until then the \
         table's changes are dead letters.",
    ))
}

/// A schema that is refused.
fn refused(subject: &str, reply: &Reply) -> Error {
    let Refusal { message, .. } = reply.refusal();
    let told = if message.is_empty() { format!("status {}", reply.status) } else { message };
    let why = match reply.status {
        409 => "it is not compatible with the versions before it",
        413 => "it is too large",
        _ => "it is not valid there",
    };
    Error::operator(format!(
        "the schema registry refuses the schema for subject {subject}, since {why}: {told}"
    ))
    .mend(format!(
        "Until then the table's changes are dead letters. Loosen the compatibility of the subject (PUT \
             /config/{subject}) or delete its versions there, then start again."
    ))
}
