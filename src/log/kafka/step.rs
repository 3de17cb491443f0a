//! The transactions of a fence: state, and records that are written again.

use rdkafka::producer::BaseProducer;

use super::client::Context;
use super::fence::INIT_PATIENCE;
use super::offsets::Offsets;
use super::reader::Shared;
use super::state::Entry;
use super::transaction::{Failure, Transaction};
use crate::log::{LogPartition, Offset, record};

/// Records for a log partition: its next offset, and their frames.
pub(super) type Again = (LogPartition, Offset, Vec<u8>);

/// Writes one transaction after the other.
pub(super) struct Steps<'s> {
    pub shared: &'s Shared,
    pub offsets: &'s Offsets,
    pub producer: &'s BaseProducer<Context>,
    /// Where the next record of the state topic will stand.
    pub next: Offset,
}

impl Steps<'_> {
    /// Writes records and what the state learns, given the ends of their log partitions. The view has it afterwards.
    pub fn write(
        &mut self,
        records: &[Again],
        entries: impl FnOnce(&[(LogPartition, Offset)]) -> Vec<Entry>,
    ) -> Result<(), Failure> {
        let mut transaction = Transaction::begin(self.producer)?;
        let sent = self.send(&mut transaction, records, entries);
        let committed = sent
            .and_then(|entries| transaction.commit(self.offsets, INIT_PATIENCE).map(|()| entries))
            .map_err(|failure| failure.with_fatal(self.producer));
        let entries = match committed {
            Ok(entries) => entries,
            Err(failure) => {
                transaction.abort(&failure);
                return Err(failure);
            }
        };
        let mut view = self.shared.view();
        for (at, (key, value)) in entries.iter().enumerate() {
            if let Err(error) = view.apply(self.next + at as u64, key, value.as_deref()) {
                tracing::warn!(%error, "the state just written cannot be read");
            }
        }
        // And the marker.
        self.next += entries.len() as u64 + 1;
        Ok(())
    }

    fn send(
        &self,
        transaction: &mut Transaction<'_>,
        records: &[Again],
        entries: impl FnOnce(&[(LogPartition, Offset)]) -> Vec<Entry>,
    ) -> Result<Vec<Entry>, Failure> {
        for (partition, next, frames) in records {
            let slot = transaction.slot(partition.clone(), *next);
            for record in record::frames(frames) {
                transaction.send(slot, &record)?;
            }
        }
        let entries = entries(transaction.slots());
        let slot = transaction.slot(self.shared.state_partition(), self.next);
        for entry in &entries {
            transaction.send_state(slot, entry)?;
        }
        Ok(entries)
    }
}
