//! A log whose topics get a prefix: on one broker, the logs of the conformance suite must not share topics.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tidemark::log::{
    Append, Epoch, Fenced, Fetched, Log, LogPartition, Offset, OffsetRange, RecordBatch, RecordRef, Rejected,
};
use tidemark::runtime::Result;

/// The wrapper.
#[derive(Debug)]
pub struct Prefixed {
    prefix: String,
    inner: Arc<dyn Log>,
}

impl Prefixed {
    /// Topics of `inner` are those of callers, after `<name>.`.
    pub fn new(name: &str, inner: Arc<dyn Log>) -> Self {
        Self { prefix: format!("{name}."), inner }
    }

    fn inside(&self, partition: &LogPartition) -> LogPartition {
        let topic = format!("{}{}", self.prefix, partition.topic).into();
        LogPartition { topic, partition: partition.partition }
    }
}

/// Copies a record.
pub fn copy(record: RecordRef<'_>, topic: &Arc<str>, to: &mut RecordBatch) {
    let mut writer = to.topic(topic).begin(record.timestamp_ms);
    for field in [record.key, record.value] {
        match field {
            Some(bytes) => writer.field(|b| b.extend_from_slice(bytes)),
            None => writer.null(),
        }
    }
    for (name, value) in record.headers() {
        writer.header(name, |b| b.extend_from_slice(value));
    }
    writer.finish();
}

#[async_trait]
impl Log for Prefixed {
    async fn fence(&self) -> Result<Fenced> {
        self.inner.fence().await
    }

    async fn append(&self, epoch: Epoch, append: Append) -> Result<Append, Rejected> {
        let mut records = RecordBatch::default();
        for from in append.records.topics() {
            let topic: Arc<str> = format!("{}{}", self.prefix, from.topic()).into();
            from.iter().for_each(|record| copy(record, &topic, &mut records));
        }
        let inside = Append { records, state: append.state.clone() };
        match self.inner.append(epoch, inside).await {
            Ok(_) => Ok(append),
            Err(rejected) => Err(Rejected { append, ..rejected }),
        }
    }

    async fn ranges(&self) -> Result<BTreeMap<LogPartition, OffsetRange>> {
        let ranges = self.inner.ranges().await?;
        let outside = |(partition, range): (LogPartition, OffsetRange)| {
            let topic = partition.topic.strip_prefix(&self.prefix).unwrap().into();
            (LogPartition { topic, partition: partition.partition }, range)
        };
        Ok(ranges.into_iter().map(outside).collect())
    }

    async fn read(&self, partition: &LogPartition, from: Offset, bytes_max: usize) -> Result<Fetched> {
        self.inner.read(&self.inside(partition), from, bytes_max).await
    }

    async fn trim(&self, partition: &LogPartition, before: Offset) -> Result<()> {
        self.inner.trim(&self.inside(partition), before).await
    }

    async fn appended(&self) {
        self.inner.appended().await;
    }
}
