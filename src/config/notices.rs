//! `[notices]`: who is told of published days.

use std::path::PathBuf;

use super::document::Document;
use super::{AwsKeys, KafkaLogConfig, LogKind, Secret, check, kafka, s3, url};

/// `[notices]`. Nobody is told without it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoticesConfig {
    /// `[notices.webhook]`.
    pub webhook: Option<WebhookConfig>,
    /// `[notices.kafka]`.
    pub kafka: Option<KafkaNoticesConfig>,
    /// `[notices.sns]`.
    pub sns: Option<SnsConfig>,
}

/// `[notices.sns]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnsConfig {
    /// The topic, with its region.
    pub topic_arn: String,
    /// Where SNS is, if it is not AWS's.
    pub endpoint_url: Option<String>,
    /// Keys; none: the chain of AWS.
    pub keys: Option<AwsKeys>,
    /// Authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Milliseconds that an answer may take.
    pub timeout_ms: u64,
}

/// `[notices.webhook]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookConfig {
    /// Where messages are posted; it may hold a token.
    pub url: Secret,
    /// `Authorization: Bearer …`.
    pub bearer_token: Option<Secret>,
    /// Key of the signatures.
    pub hmac_key: Option<Secret>,
    /// Authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Milliseconds that an answer may take.
    pub timeout_ms: u64,
}

/// `[notices.kafka]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaNoticesConfig {
    /// `host:port` of some brokers.
    pub brokers: Vec<String>,
    /// The topic.
    pub topic: String,
    /// librdkafka's own properties, any of which may be a secret.
    pub properties: Vec<(String, Secret)>,
    /// Milliseconds that an acknowledgement may take.
    pub timeout_ms: u64,
}

pub(super) fn read(document: &Document<'_>, log: &LogKind) -> NoticesConfig {
    let log = match log {
        LogKind::Kafka(kafka) => Some(kafka),
        LogKind::Embedded(_) => None,
    };
    document.section("notices");
    NoticesConfig { webhook: webhook(document), kafka: kafka(document, log), sns: sns(document) }
}

fn webhook(document: &Document<'_>) -> Option<WebhookConfig> {
    let section = document.section("notices.webhook");
    let address = section.secret("url", "url_file");
    let bearer_token = section.secret("bearer_token", "bearer_token_file");
    let hmac_key = section.secret("hmac_key", "hmac_key_file");
    let ca_file = section.text("ca_file", check::path);
    let timeout_ms = section.integer("timeout_ms", "milliseconds", 100, 300_000, 10_000);
    let has_url = section.has("url") || section.has("url_file");
    for (key, given) in [("bearer_token", bearer_token.is_some()), ("hmac_key", hmac_key.is_some())] {
        if given && !has_url {
            section.note(key, "given without url, which it belongs to".to_owned());
        }
    }
    if address.as_ref().is_some_and(|address| !is_url(address.expose())) {
        let text = "expected a URL such as https://hooks.example.com/tidemark (it is not shown, since it may hold a token)";
        section.note("url", text.to_owned());
    }
    address.map(|url| WebhookConfig { url, bearer_token, hmac_key, ca_file, timeout_ms })
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    !host.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

fn sns(document: &Document<'_>) -> Option<SnsConfig> {
    let section = document.section("notices.sns");
    let topic_arn = section.text("topic_arn", topic_arn);
    let endpoint_url = section.text("endpoint_url", url::endpoint);
    let allow_http = section.boolean("allow_http").unwrap_or(false);
    if endpoint_url.as_ref().is_some_and(|url| url.starts_with("http://")) && !allow_http {
        let text = "found an address without TLS; expected https://, or allow_http = true beside it";
        section.note("endpoint_url", text.to_owned());
    }
    let keys = s3::keys(&section);
    if keys.is_some() && !section.has("topic_arn") {
        section.note("access_key_id", "given without topic_arn, which it belongs to".to_owned());
    }
    let ca_file = section.text("ca_file", check::path);
    let timeout_ms = section.integer("timeout_ms", "milliseconds", 100, 300_000, 10_000);
    topic_arn.map(|topic_arn| SnsConfig { topic_arn, endpoint_url, keys, ca_file, timeout_ms })
}

fn topic_arn(text: &str) -> Result<String, String> {
    let parts: Vec<_> = text.split(':').collect();
    let fits = matches!(parts[..], ["arn", partition, "sns", region, account, name]
        if [partition, region, account, name].iter().all(|part| !part.is_empty()))
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.".contains(&b));
    if fits {
        Ok(text.to_owned())
    } else {
        Err("the ARN of a topic, such as \"arn:aws:sns:eu-central-1:123456789012:lake-notices\"".to_owned())
    }
}

fn kafka(document: &Document<'_>, log: Option<&KafkaLogConfig>) -> Option<KafkaNoticesConfig> {
    let section = document.section("notices.kafka");
    let topic = section.text("topic", |text| {
        let fits = (1..=249).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if fits { Ok(text.to_owned()) } else { Err("a topic's name".to_owned()) }
    });
    let brokers = section.list("brokers", kafka::broker).unwrap_or_default();
    let mut properties = Vec::new();
    for property in document.free("notices.kafka.properties") {
        let (name, value) = property.secret();
        if ["bootstrap.servers", "metadata.broker.list", "message.timeout.ms", "enable.idempotence"]
            .contains(&name.as_str())
        {
            property.note("cannot be set: it is the connector's".to_owned());
        } else if let Some(value) = value {
            properties.push((name, Secret::new(value)));
        }
    }
    let timeout_ms = section.integer("timeout_ms", "milliseconds", 1000, 300_000, 10_000);
    let topic = topic?;
    // Without brokers of their own they go to those of the log, in its way.
    let (brokers, properties) = match (brokers.is_empty(), log) {
        (true, Some(log)) => {
            let log_properties = log.properties.iter().map(|(name, value)| (name.clone(), value.clone()));
            (log.brokers.clone(), log_properties.chain(properties).collect())
        }
        (true, None) => {
            let text =
                "missing; expected addresses of brokers, such as [\"kafka-1.example.com:9092\"]".to_owned();
            section.note("brokers", text);
            (brokers, properties)
        }
        (false, _) => (brokers, properties),
    };
    Some(KafkaNoticesConfig { brokers, topic, properties, timeout_ms })
}
