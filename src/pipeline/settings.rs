//! From the configuration to what each part has to know.

use std::sync::Arc;
use std::time::Duration;

use crate::change::Calendar;
use crate::config::{
    self, Backfill, Config, CoordinatorKind, DdlTrigger, DecimalHandling, EnvelopeFormat, HistoricTailConfig,
    KafkaLogConfig, LakeFormat, LakeUrl, LogKind, OrcCompression, ParquetCompression, RetainedWalAction,
    S3Config, S3Encryption, Secret, SubjectNaming, ZookeeperConfig,
};
use crate::coord::{Coordinator, SqliteCoordinator, ZookeeperCoordinator, ZookeeperOptions};
use crate::envelope::{self, Format, routing};
use crate::lake::{Encryption, Lake, LakeOptions, S3Credentials, S3Options, Store, TailRule};
use crate::log::{KafkaLog, KafkaLogOptions, Log, SpillLog, SqliteLog, SqliteLogOptions};
use crate::notice::{
    Endpoint, EndpointOptions, KafkaEndpointOptions, SnsCredentials, SnsOptions, WebhookOptions,
};
use crate::ops::SourceThresholds;
use crate::postgres::ddl::TriggerUse;
use crate::postgres::slot::Failover;
use crate::postgres::wire::{ConnectOptions, Streaming};
use crate::registry::{self, Registry, RegistryOptions};
use crate::runtime::{Error, Result, aws};

use super::capture::{CaptureSettings, CopyLimits, has_passed};
use super::deliver::{DeliverSettings, HistoricTails, PremergeSettings};
use super::watch::{LogFile, WatchedSlot};

/// In the state folder, for transactions in progress.
const SPOOL_FOLDER: &str = "stream-spool";

/// A smaller file would not take one batch.
const SPILL_BYTES_MIN: u64 = 64 << 20;

/// How to connect to the source: its URL, what the environment and `.pgpass` add, and the configured password.
pub fn connect_options(config: &Config) -> Result<ConnectOptions> {
    let env = |name: &str| std::env::var(name).ok();
    let options = ConnectOptions::parse(config.source.url.expose(), &env)
        .map_err(|error| error.context("[source] url"))
        .map_err(|error| match error.mend_text() {
            Some(_) => error,
            None => error
                .mend("Expected postgresql://user@host:5432/database, with libpq's parameters after a `?`."),
        })?;
    let options = match usize::try_from(config.source.change_bytes_max) {
        Ok(bytes_max) => options.with_change_bytes_max(bytes_max),
        Err(_) => options,
    };
    Ok(match &config.source.password {
        Some(password) => options.with_password(password.expose()),
        None => options,
    })
}

/// For capture.
pub fn capture(config: &Config) -> Result<CaptureSettings> {
    let (filter, rules) = (config.source.tables.clone(), config.source.tables.clone());
    Ok(CaptureSettings {
        name: config.source.name.clone(),
        connect: connect_options(config)?,
        origin: None,
        slot: config.source.slot.clone(),
        publication: config.source.publication.clone(),
        backfill: config.source.backfill == Backfill::Initial,
        ddl_trigger: match config.source.ddl_trigger {
            DdlTrigger::Auto => TriggerUse::Auto,
            DdlTrigger::On => TriggerUse::On,
            DdlTrigger::Off => TriggerUse::Off,
        },
        failover: match config.source.failover {
            config::Failover::Auto => Failover::Auto,
            config::Failover::On => Failover::On,
            config::Failover::Off => Failover::Off,
        },
        heartbeat_interval: match config.source.heartbeat_interval_ms {
            0 => None,
            interval_ms => Some(Duration::from_millis(interval_ms)),
        },
        schema_poll_interval: Duration::from_millis(config.source.schema_poll_interval_ms),
        streaming: match config.source.streaming {
            config::Streaming::Off => Streaming::Off,
            config::Streaming::On => Streaming::On,
            config::Streaming::Parallel => Streaming::Parallel,
        },
        spool: (config.state.dir.join(SPOOL_FOLDER), config.source.stream_spool_bytes_max),
        filter: Arc::new(move |table| filter.takes(table)),
        copied_where: Arc::new(move |table| rules.backfill_where(table).map(str::to_owned)),
        envelope: envelope(config),
        transaction_metadata: config.envelope.provide_transaction_metadata,
        registry: registry(config)?,
        calendar: calendar(config),
        copy: CopyLimits {
            connections: config.backfill.connections,
            chunk_bytes: config.backfill.chunk_bytes,
            snapshot_age_max: Duration::from_millis(config.backfill.snapshot_age_max_ms),
            bytes_per_second_max: Some(config.backfill.bytes_per_second_max).filter(|bytes| *bytes > 0),
        },
        append_bytes_max: usize::try_from(config.log.append_bytes_max).unwrap_or(usize::MAX),
        linger: Duration::from_millis(config.log.linger_ms),
    })
}

/// For deliver. Its endpoints of notices are made ready; nothing is sent.
///
/// # Errors
/// An endpoint's: a file that cannot be read, a property that librdkafka does not know.
pub fn deliver(config: &Config) -> Result<DeliverSettings> {
    Ok(DeliverSettings {
        name: config.source.name.clone(),
        envelope: envelope(config),
        lease_ttl: Duration::from_millis(config.coordinator.lease_ttl_ms),
        memory_bytes_max: usize::try_from(config.lake.memory_bytes_max).unwrap_or(usize::MAX),
        premerge: PremergeSettings {
            interval: Some(Duration::from_millis(config.lake.premerge_interval_ms))
                .filter(|every| !every.is_zero()),
            table_bytes_min: config.lake.premerge_table_bytes_min,
        },
        historic_tails: historic_tails(config),
        database: config.source.url.database().unwrap_or_default(),
        endpoints: endpoints(config)?,
    })
}

fn historic_tails(config: &Config) -> HistoricTails {
    let tables = config.source.tables.clone();
    HistoricTails(Arc::new(move |table| {
        let HistoricTailConfig { weekday, recent_rows } = tables.historic_tail(table)?;
        Some(TailRule { recent_rows, weekday })
    }))
}

/// Where notices go to; nothing is sent.
///
/// # Errors
/// As those of [`deliver`].
pub fn endpoints(config: &Config) -> Result<Vec<Endpoint>> {
    let exposed = |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
    let webhook = config.notices.webhook.as_ref().map(|webhook| {
        EndpointOptions::Webhook(WebhookOptions {
            url: webhook.url.expose().to_owned(),
            bearer_token: exposed(&webhook.bearer_token),
            hmac_key: exposed(&webhook.hmac_key),
            ca_file: webhook.ca_file.clone(),
            timeout: Duration::from_millis(webhook.timeout_ms),
        })
    });
    let kafka = config.notices.kafka.as_ref().map(|kafka| {
        let properties = kafka.properties.iter();
        EndpointOptions::Kafka(KafkaEndpointOptions {
            brokers: kafka.brokers.clone(),
            topic: kafka.topic.clone(),
            properties: properties.map(|(name, value)| (name.clone(), value.expose().to_owned())).collect(),
            timeout: Duration::from_millis(kafka.timeout_ms),
        })
    });
    let sns = config.notices.sns.as_ref().map(|sns| {
        EndpointOptions::Sns(SnsOptions {
            topic_arn: sns.topic_arn.clone(),
            endpoint_url: sns.endpoint_url.clone(),
            credentials: sns.keys.as_ref().map(|keys| SnsCredentials {
                access_key_id: keys.access_key_id.expose().to_owned(),
                secret_access_key: keys.secret_access_key.expose().to_owned(),
                session_token: exposed(&keys.session_token),
            }),
            ca_file: sns.ca_file.clone(),
            timeout: Duration::from_millis(sns.timeout_ms),
        })
    });
    webhook.into_iter().chain(kafka).chain(sns).map(Endpoint::open).collect()
}

/// From where on the source's figures are told.
pub(super) fn thresholds(config: &Config) -> SourceThresholds {
    let limits = &config.source.limits;
    SourceThresholds {
        lag_seconds_warn: limits.lag_ms_warn as f64 / 1000.0,
        lag_seconds_max: limits.lag_ms_max as f64 / 1000.0,
        lag_bytes_warn: limits.lag_bytes_warn,
        lag_bytes_max: limits.lag_bytes_max,
        retained_bytes_max: limits.retained_wal_bytes_max,
        retained_percent_warn: limits.retained_wal_percent_warn,
        drops_slot: limits.retained_wal_action == RetainedWalAction::DropSlot,
    }
}

/// The slot, to be watched.
pub(super) fn watched_slot(config: &Config) -> Result<WatchedSlot> {
    let (connect, slot) = (connect_options(config)?, config.source.slot.clone());
    Ok(WatchedSlot { connect, slot, thresholds: thresholds(config) })
}

/// The rule of days.
pub fn calendar(config: &Config) -> Calendar {
    Calendar::new(config.cut.at, config.cut.time_zone.clone())
}

/// Opens the log. Brokers are reached with its first use, not here.
pub fn open_log(config: &Config) -> Result<Arc<dyn Log>> {
    match &config.log.kind {
        LogKind::Embedded(embedded) => Ok(Arc::new(SqliteLog::open(SqliteLogOptions {
            bytes_max: Some(embedded.bytes_max),
            record_bytes_max: usize::try_from(embedded.record_bytes_max).unwrap_or(usize::MAX),
            retention_ms: embedded.retention_ms,
            retention_bytes: Some(embedded.retention_bytes),
            ..SqliteLogOptions::new(&embedded.path)
        })?)),
        LogKind::Kafka(kafka) => Ok(Arc::new(open_kafka(config, kafka)?)),
    }
}

/// The log for capture: that on Kafka with a file beside it, which keeps appends while the brokers are away.
pub fn capture_log(config: &Config, log: &Arc<dyn Log>) -> Result<Arc<dyn Log>> {
    match &config.log.kind {
        LogKind::Kafka(kafka) if kafka.spill_bytes_max > 0 => {
            let spill = SqliteLog::open(SqliteLogOptions {
                record_bytes_max: SqliteLogOptions::RECORD_BYTES_MAX,
                path: kafka.spill_path.clone(),
                bytes_max: Some(kafka.spill_bytes_max.max(SPILL_BYTES_MIN)),
                bytes_max_key: "[log.kafka] spill_bytes_max",
                retention_ms: 0,
                retention_bytes: Some(0),
                exclusive: Some(
                    "One process captures, and each connector needs a [state] dir, or a [log.kafka] spill_path, of its own.",
                ),
            })?;
            Ok(Arc::new(SpillLog::new(Arc::clone(log), Arc::new(spill), &kafka.transactional_id, has_passed)))
        }
        LogKind::Kafka(_) | LogKind::Embedded(_) => Ok(Arc::clone(log)),
    }
}

/// Opens the log on Kafka.
pub fn open_kafka(config: &Config, kafka: &KafkaLogConfig) -> Result<KafkaLog> {
    let name = &config.source.name;
    let properties = kafka.properties.iter().map(|(name, value)| (name.clone(), value.expose().to_owned()));
    KafkaLog::open(KafkaLogOptions {
        name: name.clone(),
        brokers: kafka.brokers.clone(),
        transactional_id: kafka.transactional_id.clone(),
        partitions: kafka.partitions,
        replication_factor: kafka.replication_factor,
        create_topics: kafka.create_topics,
        topic_config: kafka.topic_config.clone(),
        properties: properties.collect(),
        kept_topics: vec![routing::ddl_topic(name), routing::cuts_topic(name)],
        single_topics: vec![routing::dead_letters_topic(name), routing::transaction_topic(name)],
        single_topics_prefix: Some(routing::backfill_topics_prefix(name)),
    })
}

/// The embedded log's file, to be watched.
pub(super) fn log_file(config: &Config) -> Option<LogFile> {
    match &config.log.kind {
        LogKind::Embedded(embedded) => {
            Some(LogFile { path: embedded.path.clone(), bytes_max: embedded.bytes_max })
        }
        LogKind::Kafka(_) => None,
    }
}

/// Opens the coordinator. ZooKeeper is reached with its first use, not here.
pub fn open_coordinator(config: &Config) -> Result<Arc<dyn Coordinator>> {
    Ok(match &config.coordinator.kind {
        CoordinatorKind::Embedded { path } => Arc::new(SqliteCoordinator::open(path)?),
        CoordinatorKind::Zookeeper(zookeeper) => Arc::new(open_zookeeper(zookeeper)),
    })
}

/// Opens the coordinator on ZooKeeper.
pub fn open_zookeeper(zookeeper: &ZookeeperConfig) -> ZookeeperCoordinator {
    let password = zookeeper.password.as_ref().map_or("", Secret::expose);
    ZookeeperCoordinator::new(ZookeeperOptions {
        servers: zookeeper.servers.clone(),
        root: zookeeper.root.clone(),
        session_timeout: Duration::from_millis(zookeeper.session_timeout_ms),
        credentials: zookeeper.user.as_ref().map(|user| (user.clone(), password.to_owned())),
    })
}

/// Opens the lake. A bucket is reached with its first use, not here.
pub fn open_lake(config: &Config) -> Result<Lake> {
    open_lake_at(config, &config.lake.url)
}

/// The same somewhere else.
pub fn open_lake_at(config: &Config, url: &LakeUrl) -> Result<Lake> {
    let lake = &config.lake;
    let options = LakeOptions {
        format: match lake.format {
            LakeFormat::Parquet(compression) => crate::batch::Format::Parquet {
                compression: match compression {
                    ParquetCompression::Zstd => crate::batch::Compression::Zstd(1),
                    ParquetCompression::Snappy => crate::batch::Compression::Snappy,
                    ParquetCompression::None => crate::batch::Compression::None,
                },
            },
            LakeFormat::Orc(compression) => crate::batch::Format::Orc {
                compression: match compression {
                    OrcCompression::Zstd => crate::batch::OrcCompression::Zstd(1),
                    OrcCompression::Zlib => crate::batch::OrcCompression::Zlib,
                    OrcCompression::Snappy => crate::batch::OrcCompression::Snappy,
                    OrcCompression::None => crate::batch::OrcCompression::None,
                },
            },
            LakeFormat::Csv => crate::batch::Format::CsvGzip,
        },
        calendar: calendar(config),
        part_bytes_max: lake.part_bytes_max as usize,
        stage_bytes_max: lake.stage_bytes_max as usize,
        memory_bytes_max: lake.memory_bytes_max as usize,
        merge_threads: lake.merge_threads as usize,
        premerge_bytes_max: lake.premerge_bytes_max,
        scratch_dir: lake.scratch_dir.clone(),
    };
    let store = match url {
        LakeUrl::Folder(_) => Store::open(&url.to_string())?,
        LakeUrl::Bucket { bucket, prefix } => Store::s3(s3(&lake.s3, bucket, prefix)?)?,
    };
    Ok(Lake::on(store, &config.source.name, options))
}

/// What the file does not say of a bucket, the environment does by the names of AWS; it is AWS's own without an endpoint.
fn s3(config: &S3Config, bucket: &str, prefix: &str) -> Result<S3Options> {
    let region = config
        .region
        .clone()
        .or_else(|| aws::variable(&["AWS_REGION", "AWS_DEFAULT_REGION"]).map(|(_, region)| region));
    let endpoint_url = match &config.endpoint_url {
        Some(url) => Some(url.clone()),
        None => aws::variable(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
            .map(|(name, text)| {
                config::endpoint_of_environment(&text, config).map_err(|wrong| {
                    Error::usage(format!("{name} of the environment, for [lake] url: {wrong}"))
                        .mend("Mend the variable, or give [lake.s3] endpoint_url, which stands above it.")
                })
            })
            .transpose()?,
    };
    let expose = |secret: &Secret| secret.expose().to_owned();
    Ok(S3Options {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        region: region.unwrap_or_else(|| "us-east-1".to_owned()),
        // A certificate for *.s3.amazonaws.com does not fit a bucket with dots.
        force_path_style: config.force_path_style.unwrap_or(endpoint_url.is_some() || bucket.contains('.')),
        endpoint_url,
        allow_http: config.allow_http,
        ca_file: config.ca_file.clone(),
        credentials: config.keys.as_ref().map(|keys| S3Credentials {
            access_key_id: expose(&keys.access_key_id),
            secret_access_key: expose(&keys.secret_access_key),
            session_token: keys.session_token.as_ref().map(expose),
        }),
        server_side_encryption: config.encryption.as_ref().map(|encryption| match encryption {
            S3Encryption::Aes256 => Encryption::Aes256,
            S3Encryption::Kms { key_id, bucket_key } => {
                Encryption::Kms { key_id: key_id.clone(), bucket_key: *bucket_key }
            }
        }),
        multipart_threshold_bytes: config.multipart_threshold_bytes as usize,
        multipart_chunk_bytes: config.multipart_chunk_bytes as usize,
        max_retries: config.max_retries as usize,
        retry_timeout: Duration::from_millis(config.retry_timeout_ms),
        request_timeout: Duration::from_millis(config.request_timeout_ms),
        connect_timeout: Duration::from_millis(config.connect_timeout_ms),
    })
}

/// The schema registry, where the format needs one.
pub fn registry(config: &Config) -> Result<Option<Registry>> {
    let EnvelopeFormat::Avro(registry) = &config.envelope.format else { return Ok(None) };
    let password = registry.password.as_ref().map_or("", Secret::expose);
    let options = RegistryOptions {
        urls: registry.urls.clone(),
        credentials: registry.user.as_ref().map(|user| (user.clone(), password.to_owned())),
        ca_file: registry.ca_file.clone(),
        timeout: Duration::from_millis(registry.timeout_ms),
        auto_register: registry.auto_register,
        naming: match registry.subject_naming {
            SubjectNaming::TopicName => registry::SubjectNaming::TopicName,
            SubjectNaming::RecordName => registry::SubjectNaming::RecordName,
            SubjectNaming::TopicRecordName => registry::SubjectNaming::TopicRecordName,
        },
    };
    Registry::new(options).map(Some)
}

/// How values are written in the log.
pub fn envelope(config: &Config) -> envelope::Options {
    envelope::Options {
        format: match config.envelope.format {
            EnvelopeFormat::Json { schemas_enable: false } => Format::Json,
            EnvelopeFormat::Json { schemas_enable: true } => Format::JsonWithSchemas,
            EnvelopeFormat::Avro(_) => Format::Avro,
        },
        decimal_handling: match config.envelope.decimal_handling {
            DecimalHandling::Precise => envelope::DecimalHandling::Precise,
            DecimalHandling::String => envelope::DecimalHandling::String,
        },
    }
}
