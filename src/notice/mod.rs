//! Where notices go: a webhook, a topic of Kafka, or one of SNS. What they say is the lake's; when they are sent is delivery's.
//!
//! A message counts as sent when the other side has said so: a status of 2xx, or the brokers' acknowledgement by all
//! replicas in sync. Whoever has no answer sends it again, with the same id: at least once.

mod kafka;
mod sns;
mod webhook;

use std::sync::Arc;

use crate::runtime::{Error, Result};

pub use kafka::KafkaEndpointOptions;
pub use sns::{SnsCredentials, SnsOptions};
pub use webhook::WebhookOptions;

use kafka::KafkaEndpoint;
use sns::Sns;
use webhook::Webhook;

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The same each time it is sent, and no other's.
    pub id: String,
    /// The connector: in a FIFO topic of SNS messages of one group stay in order.
    pub group: String,
    /// The key in Kafka: messages of one key stay in order.
    pub key: String,
    /// JSON.
    pub body: Vec<u8>,
}

/// How an endpoint is reached.
#[derive(Clone, Debug)]
pub enum EndpointOptions {
    /// HTTP.
    Webhook(WebhookOptions),
    /// Kafka.
    Kafka(KafkaEndpointOptions),
    /// Amazon SNS.
    Sns(SnsOptions),
}

/// An endpoint. Clones share it.
#[derive(Clone, Debug)]
pub struct Endpoint(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Webhook(Arc<Webhook>),
    Kafka(Arc<KafkaEndpoint>),
    Sns(Arc<Sns>),
}

impl Endpoint {
    /// Makes ready; nothing is sent yet.
    ///
    /// # Errors
    /// `Operator`: `ca_file` cannot be read, or librdkafka does not know a property. `Usage`: credentials that cannot be.
    pub fn open(options: EndpointOptions) -> Result<Self> {
        Ok(Self(match options {
            EndpointOptions::Webhook(options) => Kind::Webhook(Arc::new(Webhook::new(options)?)),
            EndpointOptions::Kafka(options) => Kind::Kafka(Arc::new(KafkaEndpoint::new(options)?)),
            EndpointOptions::Sns(options) => Kind::Sns(Arc::new(Sns::new(options)?)),
        }))
    }

    /// Its name in the lake and in metrics.
    pub const fn name(&self) -> &'static str {
        match &self.0 {
            Kind::Webhook(_) => "webhook",
            Kind::Kafka(_) => "kafka",
            Kind::Sns(_) => "sns",
        }
    }

    /// Its name as a component of health.
    pub const fn component(&self) -> &'static str {
        match &self.0 {
            Kind::Webhook(_) => "notices.webhook",
            Kind::Kafka(_) => "notices.kafka",
            Kind::Sns(_) => "notices.sns",
        }
    }

    /// Sends a message and waits until the other side has it. After an error it may have it, too. Cancel-safe: then, too.
    ///
    /// # Errors
    /// `Retry` where time may mend it, `Operator` where the other side refuses it.
    pub async fn send(&self, message: &Message) -> Result<()> {
        let (kind, message) = (self.0.clone(), message.clone());
        let sent = match kind {
            Kind::Webhook(webhook) => tokio::task::spawn_blocking(move || webhook.send(&message)),
            Kind::Kafka(kafka) => tokio::task::spawn_blocking(move || kafka.send(&message)),
            Kind::Sns(sns) => {
                let signed = sns.sign(&message).await?;
                tokio::task::spawn_blocking(move || sns.send(signed))
            }
        };
        sent.await.map_err(|error| Error::retry("sending a notice was interrupted").cause(error))?
    }
}
