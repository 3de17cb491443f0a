//! A topic of Amazon SNS: one `Publish` a message, and through it SQS, Lambda and whatever else has subscribed.
//!
//! The request is signed by AWS's version 4; credentials come from the same chain as those of the lake's bucket. A FIFO topic
//! gets the messages of a connector in one group, so in their order, and takes a message that is sent again within five
//! minutes for the same.
//!
//! Source: Amazon SNS API Reference, "Publish"; IAM User Guide, "Signature Version 4".

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AwsAuthorizer};
use object_store::client::HttpRequest;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use ureq::Agent;
use ureq::http::Request;
use ureq::http::request::Parts;

use super::{Message, Probed};
use crate::runtime::{Error, Result, aws, hexadecimal, http};

/// What an answer's body may take in an error.
const TOLD_BYTES_MAX: u64 = 1000;
const VERSION: &str = "2010-03-31";
const AGAIN: &str =
    "Days are published all the same, and the notice is sent again. Look at SNS and the way to it.";

/// How a topic is reached.
#[derive(Clone)]
pub struct SnsOptions {
    /// `arn:aws:sns:<region>:<account>:<name>`, from which the region is taken.
    pub topic_arn: String,
    /// Where SNS is, if it is not AWS's.
    pub endpoint_url: Option<String>,
    /// Without them: the chain of AWS.
    pub credentials: Option<SnsCredentials>,
    /// Authorities to trust instead of the system's, in PEM form.
    pub ca_file: Option<PathBuf>,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// Keys that never change while the process runs.
#[derive(Clone)]
pub struct SnsCredentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<String>,
}

/// Without what is secret.
impl fmt::Debug for SnsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnsOptions").field("topic_arn", &self.topic_arn).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Sns {
    agent: Agent,
    /// Where the credentials come from.
    chain: object_store::aws::AmazonS3,
    url: String,
    region: String,
    options: SnsOptions,
}

/// A request that only has to be sent.
pub(super) struct Signed {
    head: Parts,
    body: String,
}

impl Sns {
    pub(super) fn new(options: SnsOptions) -> Result<Self> {
        // The client that asks for credentials takes the process's TLS, of which there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = http::agent("[notices.sns]", options.ca_file.as_deref(), options.timeout)?;
        let mut parts = options.topic_arn.split(':').skip(1);
        let (partition, region) =
            (parts.next().unwrap_or("aws"), parts.nth(1).unwrap_or_default().to_owned());
        let domain = if partition == "aws-cn" { "amazonaws.com.cn" } else { "amazonaws.com" };
        let url = match &options.endpoint_url {
            Some(url) => format!("{}/", url.trim_end_matches('/')),
            None => format!("https://sns.{region}.{domain}/"),
        };
        let builder = match &options.credentials {
            None => aws::chain(),
            Some(keys) => {
                let builder = AmazonS3Builder::new()
                    .with_access_key_id(&keys.access_key_id)
                    .with_secret_access_key(&keys.secret_access_key);
                keys.session_token.iter().fold(builder, AmazonS3Builder::with_token)
            }
        };
        // It wants a bucket, and is never asked for one.
        let chain = builder.with_region(&region).with_bucket_name("none").build().map_err(|error| {
            Error::usage("credentials for [notices.sns] cannot be used")
                .cause(error)
                .mend("Look at its access_key_id and secret_access_key, or the environment's AWS_ variables.")
        })?;
        Ok(Self { agent, chain, url, region, options })
    }

    /// The request for a message, which is good for some minutes.
    pub(super) async fn sign(&self, message: &Message) -> Result<Signed> {
        self.signed(form(&self.options.topic_arn, message)).await
    }

    /// The request for what the topic is.
    pub(super) async fn sign_probe(&self) -> Result<Signed> {
        let fields =
            [("Action", "GetTopicAttributes"), ("Version", VERSION), ("TopicArn", &self.options.topic_arn)];
        self.signed(encoded(&fields)).await
    }

    async fn signed(&self, body: String) -> Result<Signed> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::retry("a notice for [notices.sns] cannot be signed").cause(error).mend(
                "Days are published all the same. Give access_key_id and secret_access_key, or see that the chain of AWS \
                 has credentials: environment, web identity, container, instance.",
            )
        };
        let credential =
            self.chain.credentials().get_credential().await.map_err(|error| failed(error.into()))?;
        let mut request: HttpRequest = Request::post(&self.url)
            .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
            .body(body.clone().into())
            .map_err(|error| failed(error.into()))?;
        AwsAuthorizer::new(&credential, "sns", &self.region)
            .try_authorize(&mut request, None)
            .map_err(|error| failed(error.into()))?;
        Ok(Signed { head: request.into_parts().0, body })
    }

    pub(super) fn send(&self, signed: Signed) -> Result<()> {
        let answer = self.run(signed)?;
        if answer.is_success() { Ok(()) } else { Err(self.refused(&answer)) }
    }

    /// Whoever may publish need not have the right to ask.
    pub(super) fn probe(&self, signed: Signed) -> Result<Probed> {
        let (answer, topic) = (self.run(signed)?, &self.options.topic_arn);
        if answer.is_success() {
            return Ok(Probed { answer: format!("SNS knows {topic}"), doubt: None });
        }
        if answer.element("Code") == "AuthorizationError" {
            return Ok(Probed {
                answer: format!("SNS answers, and does not tell these keys of {topic}"),
                doubt: Some(
                    "Give them the right sns:GetTopicAttributes, and see that they have sns:Publish."
                        .to_owned(),
                ),
            });
        }
        Err(self.refused(&answer))
    }

    fn run(&self, Signed { head, body }: Signed) -> Result<Answer> {
        let mut answer = self.agent.run(Request::from_parts(head, body)).map_err(|error| {
            let topic = &self.options.topic_arn;
            Error::retry(format!("SNS is out of reach for {topic}, at {}", self.url)).cause(error).mend(AGAIN)
        })?;
        let body = answer.body_mut().with_config().limit(TOLD_BYTES_MAX).read_to_string().unwrap_or_default();
        Ok(Answer { status: answer.status().as_u16(), body })
    }

    fn refused(&self, answer: &Answer) -> Error {
        let (status, code, topic) = (answer.status, answer.element("Code"), &self.options.topic_arn);
        let told = format!("SNS answers {status} {code} {} for {topic}", answer.element("Message"));
        match status {
            408 | 429 | 500.. => Error::retry(told).mend(AGAIN),
            _ if code.contains("Throttl") => Error::retry(told).mend(AGAIN),
            _ => Error::operator(told).mend(
                "Look at topic_arn and the keys under [notices.sns], and whether they may sns:Publish; the notice is sent \
                 again meanwhile.",
            ),
        }
    }
}

struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }

    /// The text of an element of the answer's XML, for people.
    fn element(&self, name: &str) -> &str {
        let after = self.body.split_once(&format!("<{name}>")).map_or("", |(_, after)| after);
        after.split_once("</").map_or("", |(text, _)| text)
    }
}

fn form(topic_arn: &str, message: &Message) -> String {
    let text = String::from_utf8_lossy(&message.body);
    let mut fields = vec![
        ("Action", "Publish"),
        ("Version", VERSION),
        ("TopicArn", topic_arn),
        ("Message", &text),
        ("MessageAttributes.entry.1.Name", "id"),
        ("MessageAttributes.entry.1.Value.DataType", "String"),
        ("MessageAttributes.entry.1.Value.StringValue", &message.id),
    ];
    // Ids may be longer than what SNS takes, and have other characters.
    let deduplication = hexadecimal(&Sha256::digest(message.id.as_bytes()));
    let group = hexadecimal(&Sha256::digest(message.group.as_bytes()));
    if topic_arn.rsplit_once('.').is_some_and(|(_, end)| end == "fifo") {
        fields.extend([("MessageGroupId", group.as_str()), ("MessageDeduplicationId", &deduplication)]);
    }
    encoded(&fields)
}

fn encoded(fields: &[(&str, &str)]) -> String {
    let pairs =
        fields.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    pairs.collect::<Vec<_>>().join("&")
}
