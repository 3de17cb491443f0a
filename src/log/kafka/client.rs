//! What librdkafka tells by itself, and what its errors mean here.
//!
//! It logs, and it reports errors of connections which it goes on to mend. The former go to the log at levels that
//! fit (what it mends by itself wakes nobody), the latter are remembered: they are the reason why a call has
//! come to the end of its patience, which by itself says no more than "timed out".

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;

use super::options::KafkaLogOptions;
use crate::log::Offset;
use crate::runtime::{Class, Error};

/// A connection's error is believed for so long. librdkafka repeats one that goes on every half minute.
const FRESH: Duration = Duration::from_secs(45);

/// Without any success for so long, errors are more than a connection that was idle and is made anew.
const LASTING: Duration = Duration::from_secs(10);

/// Why brokers do not let us in. It may pass where it has worked before (a password that is being changed); else it is
/// the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// They do not know the user, or the password is another one.
    Password,
    /// We do not trust their certificate, or they do not trust ours.
    Certificate,
}

impl Refusal {
    /// librdkafka gives one code to a refusal and to a connection that broke meanwhile, and has none for an alert that
    /// comes after the handshake: the text is needed, too.
    fn of(code: Option<Code>, text: &str) -> Option<Self> {
        let broken = text.contains("Disconnected") || text.contains("hung up");
        match code {
            Some(Code::Authentication | Code::SaslAuthenticationFailed) if !broken => Some(Self::Password),
            Some(Code::SSL | Code::BrokerTransportFailure) if text.contains("certificate") => {
                Some(Self::Certificate)
            }
            _ => None,
        }
    }

    const fn mend(self) -> &'static str {
        match self {
            Self::Password => {
                "Check \"sasl.mechanism\", \"sasl.username\" and \"sasl.password\" (or \"sasl.password_file\") under \
                 [log.kafka.properties]."
            }
            Self::Certificate => {
                "Under [log.kafka.properties], \"ssl.ca.location\" has to name the authority that has signed the brokers' \
                 certificates; these have to be for the host names in [log.kafka] brokers and in the brokers' \
                 advertised.listeners; and where brokers want a certificate of ours, \"ssl.certificate.location\" and \
                 \"ssl.key.location\" have to be one that they trust."
            }
        }
    }
}

/// The errors of connections since something has worked last, and what to do about those that are about rights. Shared
/// by all clients of a log.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    errors: Mutex<Option<Errors>>,
    /// Something has worked, once.
    worked: AtomicBool,
    /// The commands that give all rights.
    rights: String,
}

#[derive(Debug)]
struct Errors {
    since: Instant,
    last: Instant,
    text: String,
    refusal: Option<Refusal>,
}

impl Trouble {
    pub fn new(options: &KafkaLogOptions) -> Self {
        Self { rights: options.rights(), ..Self::default() }
    }

    fn note(&self, code: Option<Code>, text: String) {
        let last = Instant::now();
        let refusal = Refusal::of(code, &text);
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *errors {
            Some(errors) => {
                errors.last = last;
                // That all brokers are down follows from other errors, which say why.
                if code != Some(Code::AllBrokersDown) {
                    (errors.text, errors.refusal) = (text, refusal);
                }
            }
            none => *none = Some(Errors { since: last, last, text, refusal }),
        }
    }

    /// A broker has answered.
    pub fn let_in(&self) {
        self.worked.store(true, Relaxed);
    }

    /// Something worked.
    pub fn clear(&self) {
        self.let_in();
        *self.errors.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether brokers do not let us in.
    pub fn is_refused(&self) -> bool {
        self.refusal().is_some()
    }

    fn refusal(&self) -> Option<Refusal> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors.as_ref().filter(|errors| errors.last.elapsed() < FRESH)?.refusal
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
            self.trouble.note(code, reason.to_owned());
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
        KafkaError::AdminOp(code) => Some(*code),
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
            "[log.kafka] replication_factor has to be no more than there are brokers, and all of these are needed while a \
             topic is made."
        }
        _ => return None,
    })
}

/// librdkafka's error as ours, with what is known of its connections.
pub(super) fn error(doing: &str, error: &KafkaError, trouble: &Trouble) -> Error {
    let code = code(error);
    let refusal = trouble.refusal().filter(|_| meaning(error) == Meaning::Passing);
    let class = match meaning(error) {
        // Who was never let in is more likely configured wrongly than too early.
        Meaning::Passing if refusal.is_some() && !trouble.worked.load(Relaxed) => Class::Operator,
        Meaning::Passing => Class::Retry,
        Meaning::Fenced => Class::Fenced,
        Meaning::Lasting => Class::Operator,
    };
    let reason = match error {
        KafkaError::Transaction(error) => error.string(),
        // The value may be a secret.
        KafkaError::ClientConfig(_, description, name, _) => format!("{name}: {description}"),
        other => code.map_or_else(|| other.to_string(), |code| code.to_string()),
    };
    let connection = trouble.last().filter(|_| meaning(error) == Meaning::Passing);
    let connection = connection.map_or_else(String::new, |text| format!(" ({text})"));
    let told = Error::new(class, format!("cannot {doing}: {reason}{connection}"));
    let about_rights = matches!(
        code,
        Some(
            Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
        )
    );
    match (mend(code), refusal) {
        _ if about_rights => told.mend(format!(
            "A right is missing. All that are needed, for NAME, the user or the name in the certificate:\n{}",
            trouble.rights
        )),
        (Some(text), _) => told.mend(text),
        (None, Some(refusal)) => told.mend(refusal.mend()),
        (None, None) if class == Class::Retry && !connection.is_empty() => told.mend(
            "Check [log.kafka] brokers, \"security.protocol\" under [log.kafka.properties], and the brokers themselves.",
        ),
        (None, None) => told,
    }
}
