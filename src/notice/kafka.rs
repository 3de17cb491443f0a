//! A topic of Kafka: one record a message.
//!
//! The producer is idempotent, and each message is waited for: what the brokers have not acknowledged in time is taken out
//! of the producer again, so that a later try cannot be overtaken by it unnoticed but as one more copy of the same id.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig};

use super::{Message, Probed};
use crate::runtime::{Error, Result};

/// How a topic is reached.
#[derive(Clone)]
pub struct KafkaEndpointOptions {
    /// `host:port` of some brokers.
    pub brokers: Vec<String>,
    /// The topic. It has to be there, unless the brokers make topics by themselves.
    pub topic: String,
    /// librdkafka's own properties, any of which may be a secret.
    pub properties: Vec<(String, String)>,
    /// How long an acknowledgement may take.
    pub timeout: Duration,
}

/// Without what is secret.
impl std::fmt::Debug for KafkaEndpointOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("KafkaEndpointOptions");
        shown.field("brokers", &self.brokers).field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// What became of the message that is under way.
#[derive(Debug, Default)]
struct Delivery {
    error: Mutex<Option<String>>,
}

impl ClientContext for Delivery {}

impl ProducerContext for Delivery {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): Self::DeliveryOpaque) {
        if let Err((error, _)) = result {
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
    }
}

pub(super) struct KafkaEndpoint {
    producer: BaseProducer<Delivery>,
    options: KafkaEndpointOptions,
}

impl std::fmt::Debug for KafkaEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KafkaEndpoint").field(&self.options).finish()
    }
}

impl KafkaEndpoint {
    pub(super) fn new(options: KafkaEndpointOptions) -> Result<Self> {
        // As the log on Kafka has it: what is initialised so is not freed under threads at exit.
        openssl_sys::init();
        let mut config = ClientConfig::new();
        for (name, value) in &options.properties {
            config.set(name, value);
        }
        config
            .set("bootstrap.servers", options.brokers.join(","))
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", options.timeout.as_millis().to_string());
        let producer = config.create_with_context(Delivery::default()).map_err(|error| {
            Error::operator("[notices.kafka] cannot be used")
                .cause(error)
                .mend("Look at the properties: they are librdkafka's own.")
        })?;
        Ok(Self { producer, options })
    }

    pub(super) fn send(&self, message: &Message) -> Result<()> {
        let KafkaEndpointOptions { topic, timeout, .. } = &self.options;
        let failed = |why: String| {
            Error::retry(format!("topic {topic} of [notices.kafka] did not take a notice"))
                .cause(why)
                .mend("Days are published all the same, and the notice is sent again. Look at the brokers and the topic.")
        };
        *self.delivery().error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let record = BaseRecord::to(topic).key(&message.key).payload(&message.body);
        self.producer.send(record).map_err(|(error, _)| failed(error.to_string()))?;
        // A little longer than the message's own end: its outcome comes by then.
        let flushed = self.producer.flush(*timeout + Duration::from_secs(1));
        if let Err(error) = flushed {
            self.producer.purge(PurgeConfig::default().queue().inflight());
            return Err(failed(error.to_string()));
        }
        let error = self.delivery().error.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.map_or(Ok(()), |error| Err(failed(error)))
    }

    /// Asks for all topics, since asking for one may make it.
    pub(super) fn probe(&self) -> Result<Probed> {
        let KafkaEndpointOptions { topic, timeout, brokers, .. } = &self.options;
        let found = self.producer.client().fetch_metadata(None, *timeout).map_err(|error| {
            Error::retry(format!("no broker of [notices.kafka] answers, of {}", brokers.join(", ")))
                .cause(error)
                .mend("Look at brokers and the properties under [notices.kafka], and whether the brokers are up.")
        })?;
        let known = found.topics().iter().find(|known| known.name() == topic);
        Ok(match known {
            Some(known) => {
                let partitions = known.partitions().len();
                Probed {
                    answer: format!("topic {topic} is there, with {partitions} partitions"),
                    doubt: None,
                }
            }
            None => Probed {
                answer: format!("the brokers answer, and show no topic {topic}"),
                doubt: Some(format!(
                    "Create topic {topic}, or allow this user to describe it; where the brokers make topics by \
                     themselves, the first notice does."
                )),
            },
        })
    }

    fn delivery(&self) -> &Delivery {
        self.producer.context()
    }
}
