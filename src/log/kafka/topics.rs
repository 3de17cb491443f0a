//! Topics: created on first sight, or refused with the settings that they have to have.
//!
//! The number of partitions of a topic is noted in the state with its first records and must never change: a
//! key would move to another partition, and its older and newer changes would be read in any order. A topic that
//! is noted and not there any more was deleted, and is not made again in silence.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::client::{self, Context};
use super::offsets::{Offsets, PATIENCE};
use super::options::{FRAMING_BYTES, KafkaLogOptions};
use super::reader::Shared;
use crate::log::LogPartition;
use crate::runtime::{Error, Result};

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The writer's state: compacted, one partition.
    State,
    /// Read from its beginning for ever: one partition, no retention.
    Kept,
    /// One partition.
    Single,
    /// A table's.
    Table,
}

/// What a topic was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Topic {
    pub partitions: u32,
    /// The largest record that the topic takes, in bytes of key, value and headers.
    pub record_bytes_max: usize,
}

/// Settings of a topic to create: partitions, and Kafka's own settings.
fn settings(options: &KafkaLogOptions, topic: &str) -> (u32, BTreeMap<String, String>) {
    let kind = options.kind(topic);
    let mut config: BTreeMap<String, String> = BTreeMap::new();
    // Times of records are the source's times of commit, by its own clock.
    config.insert("message.timestamp.after.max.ms".into(), i64::MAX.to_string());
    config.extend(options.topic_config.clone());
    let own: &[(&str, &str)] = match kind {
        Kind::State => &[
            ("cleanup.policy", "compact"),
            // A segment that is written to is never compacted, and a new writer reads all of it.
            ("segment.bytes", "16777216"),
            ("segment.ms", "600000"),
            ("min.cleanable.dirty.ratio", "0.1"),
            ("min.compaction.lag.ms", "0"),
            ("delete.retention.ms", "604800000"),
        ],
        Kind::Kept => &[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")],
        Kind::Single => &[("cleanup.policy", "delete")],
        Kind::Table => &[],
    };
    config.extend(own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    (if kind == Kind::Table { options.partitions } else { 1 }, config)
}

/// Makes sure that a topic is there and as it has to be. Blocks.
fn ensure(shared: &Shared, admin: &AdminClient<Context>, offsets: &Offsets, topic: &str) -> Result<Topic> {
    let options = &shared.options;
    let noted = shared.view().topics.get(topic).copied();
    let found = offsets.partitions(topic)?;
    match (noted, found) {
        (Some(noted), None) => {
            return Err(Error::operator(format!(
                "topic {topic} is not there any more; it had {noted} partitions and its records are gone with it"
            ))
            .mend("Restore it. If it is to go for good, begin anew with another [source] name, which takes a new backfill."));
        }
        (Some(noted), Some(found)) if noted != found => {
            return Err(Error::operator(format!(
                "topic {topic} has {found} partitions now and had {noted}: its keys would move between \
                 partitions, and their changes would come in any order"
            ))
            .mend("Partitions cannot be taken away again: begin anew with another [source] name, which takes a new backfill."));
        }
        (None, None) => create(shared, admin, offsets, topic)?,
        (_, Some(_)) => {}
    }
    let partitions = match found {
        Some(partitions) => partitions,
        None => settings(options, topic).0,
    };
    if options.kind(topic) != Kind::Table && partitions != 1 {
        return Err(Error::operator(format!("topic {topic} has {partitions} partitions; expected one"))
            .mend("Its order is the order of one partition. Delete it if it is not in use."));
    }
    let record_bytes_max = check(shared, admin, topic)?;
    Ok(Topic { partitions, record_bytes_max })
}

fn create(shared: &Shared, admin: &AdminClient<Context>, offsets: &Offsets, topic: &str) -> Result<()> {
    let options = &shared.options;
    let (partitions, config) = settings(options, topic);
    if !options.create_topics {
        return Err(Error::operator(format!(
            "topic {topic} is not there, and [log.kafka] create_topics is false"
        ))
        .mend(format!("Create it: {}", command(options, topic, partitions, &config))));
    }
    ask_for(shared, admin, topic, false)?;
    // Until every broker knows of it, and leads its partitions.
    let started = Instant::now();
    let name: Arc<str> = topic.into();
    let all = || (0..partitions).map(|partition| LogPartition { topic: Arc::clone(&name), partition });
    while offsets.partitions(topic)? != Some(partitions) || offsets.ends(all()).is_err() {
        if started.elapsed() > PATIENCE {
            return Err(Error::retry(format!("topic {topic} was created and is not there yet")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    tracing::info!(topic, partitions, "created");
    Ok(())
}

/// Has the brokers make a topic, or (`only_asked`) say whether they would. Blocks.
pub(super) fn ask_for(
    shared: &Shared,
    admin: &AdminClient<Context>,
    topic: &str,
    only_asked: bool,
) -> Result<()> {
    let options = &shared.options;
    let (partitions, mut config) = settings(options, topic);
    let mut created = try_create(shared, admin, topic, partitions, &config, only_asked);
    if let Err(KafkaError::AdminOp(Code::InvalidConfig)) = &created
        && config.remove("message.timestamp.after.max.ms").is_some()
    {
        // Brokers before 3.6 do not know it, and have no such limit.
        created = try_create(shared, admin, topic, partitions, &config, only_asked);
    }
    finish_create(shared, options, topic, &created)
}

fn try_create(
    shared: &Shared,
    admin: &AdminClient<Context>,
    topic: &str,
    partitions: u32,
    config: &BTreeMap<String, String>,
    only_asked: bool,
) -> Result<(), KafkaError> {
    // -1: the brokers' default.
    let replicas = shared.options.replication_factor.map_or(-1, |replicas| replicas as i32);
    let mut new = NewTopic::new(topic, partitions as i32, TopicReplication::Fixed(replicas));
    for (name, value) in config {
        new = new.set(name, value);
    }
    let limits = AdminOptions::new()
        .request_timeout(Some(PATIENCE))
        .operation_timeout(Some(PATIENCE))
        .validate_only(only_asked);
    match block_on(admin.create_topics([&new], &limits))?.pop() {
        Some(Err((_, code))) if code != Code::TopicAlreadyExists => Err(KafkaError::AdminOp(code)),
        _ => Ok(()),
    }
}

fn finish_create(
    shared: &Shared,
    options: &KafkaLogOptions,
    topic: &str,
    created: &Result<(), KafkaError>,
) -> Result<()> {
    let Err(error) = created else { return Ok(()) };
    let told = client::error(&format!("create topic {topic}"), error, &shared.trouble);
    Err(match (told.mend_text(), client::code(error)) {
        (None, Some(Code::InvalidConfig | Code::PolicyViolation | Code::InvalidPartitions)) => {
            let (partitions, config) = settings(options, topic);
            told.mend(format!(
                "Change [log.kafka] topic_config, or create it by hand: {}",
                command(options, topic, partitions, &config)
            ))
        }
        _ => told,
    })
}

/// The command by which an administrator creates a topic.
fn command(
    options: &KafkaLogOptions,
    topic: &str,
    partitions: u32,
    config: &BTreeMap<String, String>,
) -> String {
    let mut text = format!(
        "kafka-topics.sh --bootstrap-server {} --create --topic {topic} --partitions {partitions}",
        options.brokers()
    );
    if let Some(replicas) = options.replication_factor {
        let _ = write!(text, " --replication-factor {replicas}");
    }
    for (name, value) in config {
        let _ = write!(text, " --config {name}={value}");
    }
    text
}

/// The settings of a topic as a broker has them; none where they may not be read. A broker that hears of the topic only now
/// may not know it, or answer without its settings: it is asked again for a while. Blocks.
fn describe(shared: &Shared, admin: &AdminClient<Context>, topic: &str) -> Result<Option<ConfigResource>> {
    let limits = AdminOptions::new().request_timeout(Some(PATIENCE));
    let resource = [ResourceSpecifier::Topic(topic)];
    let is_whole = |described: &ConfigResource| {
        described.get("cleanup.policy").is_some_and(|entry| entry.value.is_some())
    };
    let started = Instant::now();
    loop {
        let described = block_on(admin.describe_configs(resource.iter(), &limits));
        let described = described.and_then(|mut found| found.pop().transpose().map_err(KafkaError::AdminOp));
        let is_late = started.elapsed() > PATIENCE;
        match described {
            Ok(Some(described)) if is_whole(&described) => return Ok(Some(described)),
            Ok(_) if is_late => {
                return Err(Error::retry(format!("the brokers do not tell the settings of topic {topic}")));
            }
            Err(error) if client::code(&error) == Some(Code::TopicAuthorizationFailed) => {
                tracing::warn!(
                    topic,
                    "the settings of the topic cannot be read: the right DescribeConfigs is missing"
                );
                return Ok(None);
            }
            Err(error) if is_late || client::code(&error) != Some(Code::UnknownTopicOrPartition) => {
                let action = format!("read the settings of topic {topic}");
                return Err(client::error(&action, &error, &shared.trouble));
            }
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Looks at the settings which exactness hangs on; gives the largest record that the topic takes.
fn check(shared: &Shared, admin: &AdminClient<Context>, topic: &str) -> Result<usize> {
    let largest = shared.options.record_bytes_max();
    let Some(described) = describe(shared, admin, topic)? else { return Ok(largest) };
    let get = |name: &str| described.get(name).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
    let wanted: &[(&str, &str)] = match shared.options.kind(topic) {
        Kind::State => &[("cleanup.policy", "compact")],
        Kind::Kept => &[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")],
        Kind::Single | Kind::Table => &[],
    };
    let wrong: Vec<_> = wanted.iter().filter(|(name, value)| get(name) != *value).collect();
    if !wrong.is_empty() {
        let list = |join: &dyn Fn(&(&str, &str)) -> String| {
            wrong.iter().map(|w| join(w)).collect::<Vec<_>>().join(",")
        };
        return Err(Error::operator(format!(
            "topic {topic} has {}; expected {}",
            list(&|(name, _)| format!("{name}={}", get(name))),
            list(&|(name, value)| format!("{name}={value}"))
        ))
        .mend(format!(
            "kafka-configs.sh --bootstrap-server {} --alter --topic {topic} --add-config {}",
            shared.options.brokers(),
            list(&|(name, value)| format!("{name}={value}"))
        )));
    }
    let replicas = shared.options.replication_factor.unwrap_or(1);
    if replicas > 1 && get("min.insync.replicas") == "1" {
        tracing::warn!(
            topic,
            "min.insync.replicas is 1: a broker that is lost can take records with it; set it to 2"
        );
    }
    let topic_bytes = get("max.message.bytes").parse().unwrap_or(usize::MAX);
    Ok(largest.min(topic_bytes.saturating_sub(FRAMING_BYTES)))
}

/// A client for what administrators do.
pub(super) fn admin(shared: &Shared) -> Result<AdminClient<Context>> {
    shared
        .options
        .admin()
        .create_with_context(Context::new(&shared.trouble))
        .map_err(|e| client::error("make a Kafka client", &e, &shared.trouble))
}

/// The topics that were written to, each looked at once.
#[derive(Default)]
pub(super) struct Topics {
    known: BTreeMap<Arc<str>, Topic>,
    admin: Option<AdminClient<Context>>,
}

impl Topics {
    pub fn get(&self, topic: &str) -> Option<Topic> {
        self.known.get(topic).copied()
    }

    /// Makes sure that a topic is there and as it has to be. Blocks when it was not seen before.
    ///
    /// A client asks the broker that it has learned for the controller, and learns of another one with its metadata, minutes
    /// later (`rd_kafka_broker_controller_async`): after an error a new one has to learn it anew.
    pub fn ensure(&mut self, shared: &Shared, offsets: &Offsets, topic: &Arc<str>) -> Result<Topic> {
        if let Some(known) = self.known.get(topic) {
            return Ok(*known);
        }
        let admin = match &self.admin {
            Some(admin) => admin,
            None => self.admin.insert(admin(shared)?),
        };
        let found = ensure(shared, admin, offsets, topic).inspect_err(|_| self.admin = None)?;
        self.known.insert(Arc::clone(topic), found);
        Ok(found)
    }

    /// Looks at all of them again.
    pub fn forget(&mut self) {
        self.known.clear();
    }
}
