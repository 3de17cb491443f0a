//! What `tidemark check` tries: reaching the brokers, topics, the right to write, committing a transaction. Each is tried
//! whatever became of the one before, so that all that is missing is told at once.

use std::sync::PoisonError;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::client::{self, Context};
use super::offsets::Offsets;
use super::reader::Shared;
use super::topics::{self, Topics};
use crate::runtime::{Error, Result};

const PATIENCE: Duration = Duration::from_secs(15);

/// One thing that was tried.
#[derive(Debug)]
pub struct Probe {
    /// What.
    pub subject: &'static str,
    /// How it went.
    pub outcome: Result<String>,
}

/// Tries one thing after the other. Blocks.
pub(super) fn probe(shared: &Shared) -> Vec<Probe> {
    let found = |subject, outcome: Result<String>| Probe { subject, outcome };
    let brokers = shared.options.brokers();
    let reached = Offsets::new(&shared.options, &shared.trouble, true)
        .and_then(|offsets| offsets.brokers(&shared.options.state_topic()).map(|count| (offsets, count)));
    let (offsets, count) = match reached {
        Ok(reached) => reached,
        Err(error) => return vec![found("kafka brokers", Err(error))],
    };
    let state = shared.options.state_topic();
    let read = Topics::default()
        .ensure(shared, &offsets, &state)
        .and_then(|_| shared.refresh())
        .map(|_| format!("{state} is as it has to be, and can be read"));
    let mut probes = vec![
        found("kafka brokers", Ok(format!("{brokers}: {count} to be reached"))),
        found("kafka topics", read),
    ];
    if shared.options.create_topics {
        probes.push(found("kafka new topics", new_topics(shared)));
    }
    probes.push(found("kafka writing", writing(shared, &state)));
    probes.push(found("kafka transactions", transactions(shared)));
    probes
}

/// Has the brokers say whether they would make a table's topic as it is configured.
fn new_topics(shared: &Shared) -> Result<String> {
    let topic = format!("{}.check", shared.options.name);
    topics::ask_for(shared, &topics::admin(shared)?, &topic, true)?;
    Ok("would be created as configured".to_owned())
}

/// Tries to write, and writes nothing: brokers look at rights first, and then refuse a record without a key for a topic
/// that is compacted. A transaction would leave its marker, where a running writer does not expect it.
fn writing(shared: &Shared, state: &str) -> Result<String> {
    let doing = format!("write to topic {state}");
    let mut config = shared.options.producer();
    config.remove("transactional.id");
    config.set("enable.idempotence", "false").set("message.timeout.ms", PATIENCE.as_millis().to_string());
    let failed = |error: &KafkaError| client::error(&doing, error, &shared.trouble);
    let producer: BaseProducer<Context> =
        config.create_with_context(Context::new(&shared.trouble)).map_err(|e| failed(&e))?;
    let record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(state, 0).partition(0).payload(b"check");
    producer.send(record).map_err(|(error, _)| failed(&error))?;
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::from_millis(10));
    }
    let failure = producer.context().deliveries.lock().unwrap_or_else(PoisonError::into_inner).failed.take();
    match failure.map(|(_, error)| error) {
        Some(error) if client::code(&error) == Some(Code::InvalidRecord) => {
            Ok(format!("{state} may be written to"))
        }
        Some(error) => Err(failed(&error)),
        None => Err(Error::operator(format!(
            "topic {state} has taken a record without a key; it has to be compacted"
        ))),
    }
}

/// With another transactional id than the writer's, which would be fenced by it.
fn transactions(shared: &Shared) -> Result<String> {
    let id = shared.options.check_id();
    let mut config = shared.options.producer();
    config.set("transactional.id", &id);
    config
        .create_with_context(Context::new(&shared.trouble))
        .and_then(|producer: BaseProducer<Context>| producer.init_transactions(PATIENCE))
        .map_err(|error| {
            client::error(
                &format!(
                    "begin transactions as {id:?} (tried in the place of {:?}, so as not to fence a running writer)",
                    shared.options.transactional_id
                ),
                &error,
                &shared.trouble,
            )
        })?;
    Ok(format!("as {id:?}, in the place of {:?}", shared.options.transactional_id))
}
