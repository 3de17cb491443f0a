//! `connector.toml`, checked. No I/O but reading the file, the secrets beside it and the environment.
//!
//! ```text
//!   connector.toml ── document (TOML with places) ── sections read key by key ──> Config
//!                            ${NAME}, key_file ──────────┘        └──> problems, all at once
//! ```
//!
//! A key exists by being read: each section asks the document for its keys, what is left over is unknown, and
//! what was asked for is what suggestions are made from. Nothing is refused one at a time: a wrong value is
//! noted, its default stands in, and the reading goes on, so that one look at the answer mends the file.
//!
//! Relative paths are relative to the working directory of the process, not to the file.
//!
//! Secrets are held in [`Secret`], which prints as `***`; problems quote the file's own text, in which a
//! variable is still a `${NAME}`, and never quote a value that may hold a secret.

mod check;
mod coordinator;
mod document;
mod envelope;
mod expand;
mod kafka;
mod notices;
mod problem;
mod retention;
mod s3;
mod secret;
mod sections;
mod tables;
mod tail;
#[cfg(test)]
mod tests;
mod url;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use jiff::civil::Time;
use jiff::tz::TimeZone;

pub use notices::{KafkaNoticesConfig, NoticesConfig, SnsConfig, WebhookConfig};
pub use problem::{ConfigErrors, Problem};
pub use retention::RetentionConfig;
pub use s3::endpoint_of_environment;
pub use secret::Secret;
pub use tables::{NEVER_COPIED, TableFilter, TableGlob};
pub use tail::HistoricTailConfig;
pub use url::SourceUrl;

/// Where variables come from: `std::env::var` in production.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A whole `connector.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[source]` and `[[table]]`.
    pub source: SourceConfig,
    /// `[backfill]`.
    pub backfill: BackfillConfig,
    /// `[log]`.
    pub log: LogConfig,
    /// `[state]`.
    pub state: StateConfig,
    /// `[envelope]`.
    pub envelope: EnvelopeConfig,
    /// `[lake]`.
    pub lake: LakeConfig,
    /// `[notices]`.
    pub notices: NoticesConfig,
    /// `[cut]`.
    pub cut: CutConfig,
    /// `[coordinator]`.
    pub coordinator: CoordinatorConfig,
    /// `[ops]`.
    pub ops: OpsConfig,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn load(path: &Path, env: Environment<'_>) -> Result<Self, ConfigErrors> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text, env),
            Err(error) => Err(ConfigErrors::unreadable(path, &error)),
        }
    }

    /// Checks a file's text; `path` is only named in problems.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn parse(path: &Path, text: &str, env: Environment<'_>) -> Result<Self, ConfigErrors> {
        sections::read(text, env)
            .map(|(config, _)| config)
            .map_err(|problems| ConfigErrors::new(path, problems))
    }
}

/// The database.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceConfig {
    /// First part of every topic and folder; letters, digits, `_` and `-`, at most 100.
    pub name: String,
    /// Connection URL.
    pub url: SourceUrl,
    /// `password` or what `password_file` holds; without either the URL, `PGPASSWORD` or `.pgpass` says it.
    pub password: Option<Secret>,
    /// Replication slot; `[a-z0-9_]`, at most 63.
    pub slot: String,
    /// Publication, at most 63 bytes.
    pub publication: String,
    /// Whether a database that is new to the log is copied first.
    pub backfill: Backfill,
    /// Milliseconds between two heartbeats, logical messages in the WAL; 0: none.
    pub heartbeat_interval_ms: u64,
    /// Milliseconds between two looks at the catalog for changes of schemas.
    pub schema_poll_interval_ms: u64,
    /// Whether changes of schemas are told by event triggers at the source.
    pub ddl_trigger: DdlTrigger,
    /// Whether the slot is synchronised to standbys.
    pub failover: Failover,
    /// Whether transactions in progress are taken.
    pub streaming: Streaming,
    /// Bytes of transactions in progress that are kept.
    pub stream_spool_bytes_max: u64,
    /// When the source's figures are told, and what is done about WAL that is kept.
    pub limits: SourceLimits,
    /// A change or row that is larger, as the server sends it, becomes a dead letter without its long values.
    pub change_bytes_max: u64,
    /// Which tables are carried.
    pub tables: TableFilter,
}

/// When the source's figures are told, and what is done about WAL that is kept. Zero: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLimits {
    /// Milliseconds by which the log is behind the database: worth knowing …
    pub lag_ms_warn: u64,
    /// … and a person must look.
    pub lag_ms_max: u64,
    /// Bytes of WAL by which it is behind: worth knowing …
    pub lag_bytes_warn: u64,
    /// … and a person must look.
    pub lag_bytes_max: u64,
    /// Bytes of WAL which the slot may keep at the source.
    pub retained_wal_bytes_max: u64,
    /// Percent of that, or of `max_slot_wal_keep_size`, from which on it is told.
    pub retained_wal_percent_warn: u64,
    /// What happens at `retained_wal_bytes_max`.
    pub retained_wal_action: RetainedWalAction,
}

/// What happens when the slot keeps too much WAL at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetainedWalAction {
    /// It is told, and kept.
    Keep,
    /// The slot is dropped: changes are lost, the source's disk is saved.
    DropSlot,
}

/// Whether changes of schemas are told by event triggers at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DdlTrigger {
    /// Where they may be installed.
    Auto,
    /// Nothing goes without.
    On,
    /// They are not installed.
    Off,
}

/// Whether the slot is synchronised to standbys, from PostgreSQL 17 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failover {
    /// One that is made, where the server can.
    Auto,
    /// Nothing goes without.
    On,
    /// It is not asked for.
    Off,
}

/// pgoutput's `streaming`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    /// A transaction comes when it has committed.
    Off,
    /// A large one comes in parts, while it is in progress.
    On,
    /// The same, with what a parallel apply worker would need.
    Parallel,
}

/// What comes before the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backfill {
    /// A copy of every table.
    Initial,
    /// Nothing: the stream begins where the slot stands. Only for a log of changes, without snapshots.
    None,
}

/// What copies of tables may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackfillConfig {
    /// Sessions that read at once.
    pub connections: u32,
    /// Bytes of a piece that is read at once, as the source stores it, about.
    pub chunk_bytes: u64,
    /// Milliseconds that a snapshot is held at most.
    pub snapshot_age_max_ms: u64,
    /// Bytes read in a second, by all sessions together; 0: no limit.
    pub bytes_per_second_max: u64,
}

/// The log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// Which log.
    pub kind: LogKind,
    /// Bytes of records after which an append is made without waiting for more.
    pub append_bytes_max: u64,
    /// Milliseconds to wait for more records before an append.
    pub linger_ms: u64,
}

/// Which log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// A SQLite file.
    Embedded(EmbeddedLogConfig),
    /// Kafka.
    Kafka(KafkaLogConfig),
}

/// `[log.kafka]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaLogConfig {
    /// `host:port` of some brokers; the others are learned from them.
    pub brokers: Vec<String>,
    /// Kafka's name for the one writer.
    pub transactional_id: String,
    /// Partitions of a table's topic that is created.
    pub partitions: u32,
    /// Replicas of a topic that is created; the brokers' default when none is given.
    pub replication_factor: Option<u32>,
    /// Whether missing topics are created.
    pub create_topics: bool,
    /// Kafka's own settings for topics that are created.
    pub topic_config: BTreeMap<String, String>,
    /// librdkafka's own properties, any of which may be a secret.
    pub properties: BTreeMap<String, Secret>,
    /// The file that keeps appends while the brokers are away.
    pub spill_path: PathBuf,
    /// Its limit in bytes; 0: nothing is kept.
    pub spill_bytes_max: u64,
}

/// `[log.embedded]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedLogConfig {
    /// The file.
    pub path: PathBuf,
    /// Size of the file at which appends stop, so that the disk never fills.
    pub bytes_max: u64,
    /// Bytes of a record above which its change is a dead letter.
    pub record_bytes_max: u64,
    /// Milliseconds for which delivered records are kept.
    pub retention_ms: u64,
    /// Bytes of delivered records that are kept.
    pub retention_bytes: u64,
}

/// Local files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateConfig {
    /// The folder.
    pub dir: PathBuf,
}

/// How a change is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvelopeConfig {
    /// Encoding.
    pub format: EnvelopeFormat,
    /// Numerics with a fixed scale.
    pub decimal_handling: DecimalHandling,
    /// Whether records say which they are of their transaction, and transactions have a topic of their own.
    pub provide_transaction_metadata: bool,
}

/// Encoding of the envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvelopeFormat {
    /// Debezium's JSON.
    Json {
        /// Whether each key and value has its schema beside it.
        schemas_enable: bool,
    },
    /// Avro, with its schemas in a registry.
    Avro(RegistryConfig),
}

/// `[envelope.registry]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Addresses of the API's root; at least one.
    pub urls: Vec<String>,
    /// User of HTTP's basic authentication.
    pub user: Option<String>,
    /// Their password.
    pub password: Option<Secret>,
    /// File with the certificates of the authorities to trust; the system's without it.
    pub ca_file: Option<PathBuf>,
    /// Milliseconds that an answer may take.
    pub timeout_ms: u64,
    /// Whether schemas that are not there are registered.
    pub auto_register: bool,
    /// How subjects are named.
    pub subject_naming: SubjectNaming,
}

/// Confluent's strategies of naming a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectNaming {
    /// By topic.
    TopicName,
    /// By the record's full name.
    RecordName,
    /// By both.
    TopicRecordName,
}

/// Debezium's `decimal.handling.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecimalHandling {
    /// Base64 of the unscaled value.
    Precise,
    /// Digits.
    String,
}

/// The object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LakeConfig {
    /// Where.
    pub url: LakeUrl,
    /// Format and compression of snapshots.
    pub format: LakeFormat,
    /// Bytes after which a snapshot's part is closed.
    pub part_bytes_max: u64,
    /// Bytes of records after which a change file is written.
    pub stage_bytes_max: u64,
    /// Memory for sorting and merging, of the process.
    pub memory_bytes_max: u64,
    /// Ranges of keys that a merge writes at once.
    pub merge_threads: u64,
    /// Time between two rounds of making a table's next day before it ends; zero: it is made after its cut alone.
    pub premerge_interval_ms: u64,
    /// Bytes of a table's snapshot from which on it is worth it.
    pub premerge_table_bytes_min: u64,
    /// Bytes in the scratch folder for what was made.
    pub premerge_bytes_max: u64,
    /// Folder for runs that do not fit into memory.
    pub scratch_dir: PathBuf,
    /// `[lake.s3]`, for a bucket.
    pub s3: S3Config,
    /// `[lake.retention]`; a `[[table]]` may say otherwise: [`TableFilter::retention`].
    pub retention: RetentionConfig,
}

/// A checked `[lake] url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LakeUrl {
    /// `file:///…`: an absolute local folder.
    Folder(PathBuf),
    /// `s3://bucket/prefix`.
    Bucket {
        /// The bucket.
        bucket: String,
        /// What stands before every key, without slashes around it; may be empty.
        prefix: String,
    },
}

impl LakeUrl {
    /// Reads `file:///…` or `s3://bucket/prefix`.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        url::lake(text)
    }
}

/// As a URL.
impl fmt::Display for LakeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => f.write_str(&url::file_url(path)),
            Self::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// How a bucket is reached. What is not given is the environment's (`AWS_…`), or has a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Config {
    /// Region of the bucket.
    pub region: Option<String>,
    /// Where the store is, if it is not AWS's.
    pub endpoint_url: Option<String>,
    /// Whether the bucket stands in the path; none: with an endpoint, or with a dot in its name.
    pub force_path_style: Option<bool>,
    /// Whether the endpoint may be reached without TLS.
    pub allow_http: bool,
    /// Authorities to trust beside the system's, in PEM form.
    pub ca_file: Option<PathBuf>,
    /// Keys; none: the chain of AWS.
    pub keys: Option<AwsKeys>,
    /// How the store encrypts; none: as the bucket has it.
    pub encryption: Option<S3Encryption>,
    /// An object of more bytes is uploaded in parts.
    pub multipart_threshold_bytes: u64,
    /// Bytes of such a part.
    pub multipart_chunk_bytes: u64,
    /// How often a request is sent again at once.
    pub max_retries: u64,
    /// For how long.
    pub retry_timeout_ms: u64,
    /// How long one request may take.
    pub request_timeout_ms: u64,
    /// How long a connection may take.
    pub connect_timeout_ms: u64,
}

/// Keys of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsKeys {
    /// The key's name.
    pub access_key_id: Secret,
    /// The key.
    pub secret_access_key: Secret,
    /// What belongs to keys of a session.
    pub session_token: Option<Secret>,
}

/// `server_side_encryption`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum S3Encryption {
    /// `AES256`.
    Aes256,
    /// `aws:kms`.
    Kms {
        /// The key; none: the account's for S3.
        key_id: Option<String>,
        /// Whether the bucket's key spares requests to KMS.
        bucket_key: bool,
    },
}

/// Format of snapshots with the compressions that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LakeFormat {
    /// Parquet.
    Parquet(ParquetCompression),
    /// ORC.
    Orc(OrcCompression),
    /// Gzipped CSV.
    Csv,
}

/// Compression within ORC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrcCompression {
    /// Zstandard.
    Zstd,
    /// Deflate.
    Zlib,
    /// Snappy.
    Snappy,
    /// None.
    None,
}

/// Compression within Parquet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParquetCompression {
    /// Zstandard.
    Zstd,
    /// Snappy.
    Snappy,
    /// None.
    None,
}

/// When a day ends.
#[derive(Clone, Debug, PartialEq)]
pub struct CutConfig {
    /// Time of day.
    pub at: Time,
    /// The zone in which a `ds` is a day. Its IANA name is [`CutConfig::time_zone_name`].
    pub time_zone: TimeZone,
}

impl CutConfig {
    /// The zone's IANA name.
    pub fn time_zone_name(&self) -> &str {
        self.time_zone.iana_name().unwrap_or("UTC")
    }
}

/// Leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorConfig {
    /// Which coordinator.
    pub kind: CoordinatorKind,
    /// Milliseconds after which a lease that is not renewed is free.
    pub lease_ttl_ms: u64,
}

/// Which coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoordinatorKind {
    /// A SQLite file.
    Embedded {
        /// The file.
        path: PathBuf,
    },
    /// ZooKeeper.
    Zookeeper(ZookeeperConfig),
}

/// ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZookeeperConfig {
    /// `host:port` of servers.
    pub servers: Vec<String>,
    /// The node below which everything is.
    pub root: String,
    /// Milliseconds without a server after which a session has ended.
    pub session_timeout_ms: u64,
    /// Of the scheme `digest`.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
}

/// Watching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpsConfig {
    /// `host:port` of the HTTP endpoint.
    pub listen: String,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// Least level that is logged; `TIDEMARK_LOG` and `RUST_LOG` go before it.
    pub log_level: LogLevel,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Least level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// A human must look.
    Error,
    /// Something is unusual.
    Warn,
    /// What happens.
    Info,
    /// Why it happens.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word of `log_level`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}
