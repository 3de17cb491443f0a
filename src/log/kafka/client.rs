//! What librdkafka tells by itself, and what its errors mean here.
//!
//! It logs, and it reports errors of connections which it goes on to mend. The former go to the log at levels that
//! fit (what it mends by itself wakes nobody), the latter are remembered: they are the reason why a call has
//! come to the end of its patience, which by itself says no more than "timed out".

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;

use crate::log::Offset;
use crate::runtime::{Class, Error};

/// A connection's error is believed for so long. librdkafka repeats one that goes on every half minute.
const FRESH: Duration = Duration::from_secs(45);

/// Without any success for so long, errors are more than a connection that was idle and is made anew.
const LASTING: Duration = Duration::from_secs(10);

/// The errors of connections since something has worked last. Shared by all clients of a log.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    errors: Mutex<Option<Errors>>,
}

#[derive(Debug)]
struct Errors {
    since: Instant,
    last: Instant,
    text: String,
}

impl Trouble {
    /// That all brokers are down follows from other errors, which say why.
    fn note(&self, text: String, follows: bool) {
        let last = Instant::now();
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *errors {
            Some(errors) => {
                errors.last = last;
                if !follows {
                    errors.text = text;
                }
            }
            none => *none = Some(Errors { since: last, last, text }),
        }
    }

    /// Something worked.
    pub fn clear(&self) {
        *self.errors.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The last error, if it is not an old one.
    pub fn last(&self) -> Option<String> {
        self.fresh(Duration::ZERO)
    }

    /// The last error, if nothing has worked for a while.
    pub fn lasting(&self) -> Option<String> {
        self.fresh(LASTING)
    }

    fn fresh(&self, lasting: Duration) -> Option<String> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let errors = errors.as_ref()?;
        let tell = errors.last.elapsed() < FRESH && errors.since.elapsed() >= lasting;
        tell.then(|| errors.text.clone())
    }
}

/// What became of the records of the transaction that is under way.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    /// The last offset, by slot: the number which a record was sent with.
    pub last: Vec<Option<Offset>>,
    /// The first error, with its slot.
    pub failed: Option<(usize, KafkaError)>,
}

/// The callbacks.
#[derive(Debug)]
pub(super) struct Context {
    trouble: Arc<Trouble>,
    pub deliveries: Mutex<Deliveries>,
}

impl Context {
    pub fn new(trouble: &Arc<Trouble>) -> Self {
        Self { trouble: Arc::clone(trouble), deliveries: Mutex::default() }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        // Whether a property concerns this kind of client is nothing that an operator can mend; and broken
        // connections are told by whoever waits for them.
        let mended_by_itself = ["CONFWARN", "FAIL", "ERROR", "COORD", "GETPID", "ADDPARTS", "MAXPOLL"];
        match level {
            _ if mended_by_itself.contains(&fac) => tracing::debug!(fac, message, "librdkafka"),
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => tracing::warn!(fac, message, "librdkafka"),
            RDKafkaLogLevel::Warning => tracing::info!(fac, message, "librdkafka"),
            _ => tracing::debug!(fac, message, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        tracing::debug!(?code, reason, "librdkafka reports an error");
        // That the group of a reader cannot be looked up does not matter: no group is used.
        if !matches!(code, Some(Code::GroupAuthorizationFailed | Code::PartitionEOF)) {
            self.trouble.note(reason.to_owned(), code == Some(Code::AllBrokersDown));
        }
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, slot: usize) {
        let mut deliveries = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(message) => {
                // Kafka answers without an offset when it had the record already.
                if let (Ok(offset), Some(last)) =
                    (u64::try_from(message.offset()), deliveries.last.get_mut(slot))
                {
                    *last = (*last).max(Some(offset));
                }
            }
            Err((error, _)) => {
                if deliveries.failed.is_none() {
                    deliveries.failed = Some((slot, error.clone()));
                }
            }
        }
    }
}

/// What an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The producer's epoch is over: by another writer, or by the broker after a transaction's timeout.
    Fenced,
    /// It may pass.
    Passing,
    /// A person has to act.
    Lasting,
}

pub(super) fn code(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::Transaction(error) => Some(error.code()),
        other => other.rdkafka_error_code(),
    }
}

pub(super) fn meaning(error: &KafkaError) -> Meaning {
    match code(error) {
        Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch) => Meaning::Fenced,
        Some(
            Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::InvalidTransactionTimeout
            | Code::MessageSizeTooLarge
            | Code::InvalidTopic
            | Code::PolicyViolation
            | Code::InvalidConfig
            | Code::InvalidReplicationFactor
            | Code::InvalidPartitions
            | Code::InvalidTimestamp
            | Code::InvalidRequiredAcks
            | Code::InvalidRecord
            | Code::UnsupportedVersion
            | Code::UnsupportedFeature
            | Code::UnsupportedForMessageFormat,
        ) => Meaning::Lasting,
        _ => match error {
            KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) | KafkaError::Nul(_) => {
                Meaning::Lasting
            }
            _ => Meaning::Passing,
        },
    }
}

/// What the operator can do.
fn mend(code: Option<Code>) -> Option<&'static str> {
    Some(match code? {
        Code::TopicAuthorizationFailed => {
            "Give the user of [log.kafka.properties] the rights Read, Write, Describe and DescribeConfigs (and \
             Create, Alter, Delete where topics are to be created) on topics that begin with the connector's name."
        }
        Code::ClusterAuthorizationFailed => {
            "Give the user of [log.kafka.properties] the right Create on the cluster, or create the topics \
             beforehand and set [log.kafka] create_topics = false."
        }
        Code::TransactionalIdAuthorizationFailed => {
            "Give the user of [log.kafka.properties] the rights Write and Describe on the transactional id, which \
             is [log.kafka] transactional_id."
        }
        Code::InvalidTransactionTimeout => {
            "Lower \"transaction.timeout.ms\" under [log.kafka.properties], or raise the brokers' \
             transaction.max.timeout.ms."
        }
        Code::MessageSizeTooLarge => {
            "Raise max.message.bytes of the topic, \"message.max.bytes\" under [log.kafka.properties], and \
             message.max.bytes and replica.fetch.max.bytes of the brokers."
        }
        Code::InvalidTimestamp => {
            "The broker refuses times of commit that lie too far from its own clock: raise the topic's \
             message.timestamp.after.max.ms and message.timestamp.before.max.ms."
        }
        Code::InvalidReplicationFactor => {
            "Set [log.kafka] replication_factor to no more than there are brokers."
        }
        _ => return None,
    })
}

/// librdkafka's error as ours, with what is known of its connections.
pub(super) fn error(doing: &str, error: &KafkaError, trouble: &Trouble) -> Error {
    let code = code(error);
    let class = match meaning(error) {
        Meaning::Passing => Class::Retry,
        Meaning::Fenced => Class::Fenced,
        Meaning::Lasting => Class::Operator,
    };
    let reason = match error {
        KafkaError::Transaction(error) => error.string(),
        // The value may be a secret.
        KafkaError::ClientConfig(_, description, name, _) => format!("{name}: {description}"),
        other => match other.rdkafka_error_code() {
            Some(code) => code.to_string(),
            None => other.to_string(),
        },
    };
    let connection = trouble.last().filter(|_| class == Class::Retry);
    let connection = connection.map_or_else(String::new, |text| format!(" ({text})"));
    let told = Error::new(class, format!("cannot {doing}: {reason}{connection}"));
    match mend(code) {
        Some(text) => told.mend(text),
        None if class == Class::Retry && !connection.is_empty() => {
            told.mend("Check [log.kafka] brokers, and the brokers themselves.")
        }
        None => told,
    }
}
