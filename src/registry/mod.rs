//! The schema registry, by Confluent's API: what an Avro schema's id is.
//!
//! ```text
//!   subject + schema ──> known? ──> id
//!                          └ no ── POST /subjects/S/versions   (auto_register: registers, or finds it there)
//!                                  POST /subjects/S            (else: only finds it)
//! ```
//!
//! An answer is final for a pair of subject and schema, so that it is kept: a registry is asked once for each version
//! of a table and process. Three kinds of trouble are told apart, because they have different victims:
//!
//! * the registry is away, overloaded or has no leader (class `Retry`): everybody waits, nothing is lost;
//! * it refuses this schema ([`Answer::Refused`]): the table waits for a person, the others go on;
//! * it refuses us, or is no registry (class `Operator`): a person is needed at once.
//!
//! Calls block a thread of their own, never the runtime. Of several addresses, the one that answered last is asked
//! first.

mod client;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::runtime::{Error, Result};
use client::Client;

/// How to reach a registry, and what to do there.
#[derive(Clone)]
pub struct RegistryOptions {
    /// Addresses of the API's root, tried in turn.
    pub urls: Vec<String>,
    /// User and password of HTTP's basic authentication.
    pub credentials: Option<(String, String)>,
    /// File with the certificates of the authorities to trust; the system's without it.
    pub ca_file: Option<PathBuf>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Whether schemas that are not there are registered.
    pub auto_register: bool,
    /// How subjects are named.
    pub naming: SubjectNaming,
}

/// Without the password.
impl std::fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryOptions").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// Confluent's strategies of naming a subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubjectNaming {
    /// `<topic>-key`, `<topic>-value`.
    #[default]
    TopicName,
    /// The full name of the schema's record.
    RecordName,
    /// `<topic>-<full name of the record>`.
    TopicRecordName,
}

impl SubjectNaming {
    /// The subject of a schema; `part` is `key` or `value`, `record` the full name of the schema's record.
    pub fn subject(self, topic: &str, part: &str, record: &str) -> String {
        match self {
            Self::TopicName => format!("{topic}-{part}"),
            Self::RecordName => record.to_owned(),
            Self::TopicRecordName => format!("{topic}-{record}"),
        }
    }
}

/// What a registry says of a schema.
#[derive(Debug)]
pub enum Answer {
    /// Its id.
    Id(u32),
    /// It does not take the schema: why, and what can be done.
    Refused(Error),
}

/// A registry. Clones share what is known.
#[derive(Clone, Debug)]
pub struct Registry {
    client: Arc<Client>,
    naming: SubjectNaming,
    known: Arc<Mutex<HashMap<(String, String), u32>>>,
}

impl Registry {
    /// A client; nothing is asked yet.
    ///
    /// # Errors
    /// Class `Operator` when `ca_file` cannot be read.
    pub fn new(options: RegistryOptions) -> Result<Self> {
        let naming = options.naming;
        Ok(Self { client: Arc::new(Client::new(options)?), naming, known: Arc::default() })
    }

    /// How subjects are named.
    pub const fn naming(&self) -> SubjectNaming {
        self.naming
    }

    /// The id of a schema. Cancel-safe: the call goes on, and asking again finds what it did.
    ///
    /// # Errors
    /// `Retry` when no address answers, `Operator` when the registry refuses us.
    pub async fn id(&self, subject: &str, schema: &str) -> Result<Answer> {
        let key = (subject.to_owned(), schema.to_owned());
        if let Some(id) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Answer::Id(*id));
        }
        let (client, (subject, schema)) = (Arc::clone(&self.client), key.clone());
        let answer = blocking(move || client.id(&subject, &schema)).await?;
        if let Answer::Id(id) = answer {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, id);
        }
        Ok(answer)
    }

    /// The number of subjects: whether it answers at all, and us. Cancel-safe.
    ///
    /// # Errors
    /// As [`Registry::id`].
    pub async fn subjects(&self) -> Result<usize> {
        let client = Arc::clone(&self.client);
        blocking(move || client.subjects()).await
    }
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(call).await;
    done.map_err(|error| Error::retry("the call to the schema registry died").cause(error))?
}
