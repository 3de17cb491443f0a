//! What `tidemark check` tries: reaching the brokers, creating topics, committing a transaction.

use std::time::Duration;

use rdkafka::producer::{BaseProducer, Producer};

use super::client::{self, Context};
use super::offsets::Offsets;
use super::reader::Shared;
use super::topics::Topics;
use crate::runtime::{Error, Result};

const PATIENCE: Duration = Duration::from_secs(15);

/// One thing that was tried.
#[derive(Debug)]
pub struct Probe {
    /// What.
    pub subject: &'static str,
    /// How it went.
    pub outcome: Result<String>,
    /// A failure that need not be one.
    pub warning: bool,
}

/// Tries one thing after the other. Blocks.
pub(super) fn probe(shared: &Shared) -> Vec<Probe> {
    let found = |subject, outcome: Result<String>| Probe { subject, outcome, warning: false };
    let brokers = shared.options.brokers();
    let reached = Offsets::new(&shared.options, &shared.trouble, true)
        .and_then(|offsets| offsets.brokers(&shared.options.state_topic()).map(|count| (offsets, count)));
    let offsets = match reached {
        Ok((offsets, count)) => {
            let told = format!("{brokers}: {count} to be reached");
            (offsets, found("kafka brokers", Ok(told)))
        }
        Err(error) => return vec![found("kafka brokers", Err(error))],
    };
    let (offsets, first) = offsets;
    let state = shared.options.state_topic();
    let topics = Topics::default()
        .ensure(shared, &offsets, &state)
        .and_then(|_| shared.refresh())
        .map(|_| format!("{state} is as it has to be, and can be read"));
    let mut probes = vec![first, found("kafka topics", topics)];
    probes.push(transactions(shared));
    probes
}

/// With another transactional id than the writer's, which would be fenced by it. Where rights are given for that
/// one id only, nothing follows from a refusal.
fn transactions(shared: &Shared) -> Probe {
    let id = format!("{}-check", shared.options.transactional_id);
    let mut config = shared.options.producer();
    config.set("transactional.id", &id);
    let outcome = config
        .create_with_context(Context::new(&shared.trouble))
        .and_then(|producer: BaseProducer<Context>| producer.init_transactions(PATIENCE));
    match outcome {
        Ok(()) => Probe {
            subject: "kafka transactions",
            outcome: Ok(format!("as {:?}", shared.options.transactional_id)),
            warning: false,
        },
        Err(error) => {
            let unsure = client::code(&error)
                == Some(rdkafka::error::RDKafkaErrorCode::TransactionalIdAuthorizationFailed);
            let told = client::error(&format!("begin transactions as {id:?}"), &error, &shared.trouble);
            let told = if unsure {
                Error::operator(told.message()).mend(format!(
                    "Tried with another id, so as not to fence a running writer. Make sure that the user has the \
                     rights Write and Describe on {:?}.",
                    shared.options.transactional_id
                ))
            } else {
                told
            };
            Probe { subject: "kafka transactions", outcome: Err(told), warning: unsure }
        }
    }
}
