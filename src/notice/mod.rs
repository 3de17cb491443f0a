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

/// What trying an endpoint has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// What it answered.
    pub answer: String,
    /// Why that does not show yet that it will take notices, and what the operator can do.
    pub doubt: Option<String>,
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

    /// Finds out whether it would take notices, without sending one. Cancel-safe.
    ///
    /// # Errors
    /// As those of [`Self::send`]: where a notice would not be taken now.
    pub async fn probe(&self) -> Result<Probed> {
        let probed = match self.0.clone() {
            Kind::Webhook(webhook) => tokio::task::spawn_blocking(move || webhook.probe()),
            Kind::Kafka(kafka) => tokio::task::spawn_blocking(move || kafka.probe()),
            Kind::Sns(sns) => {
                let signed = sns.sign_probe().await?;
                tokio::task::spawn_blocking(move || sns.probe(signed))
            }
        };
        probed.await.map_err(|error| Error::retry("trying an endpoint was interrupted").cause(error))?
    }
}
