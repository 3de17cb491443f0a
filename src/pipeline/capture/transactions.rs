//! Debezium's transaction metadata: which record is which of its transaction, and the topic `<name>.transaction`.
//!
//! ```text
//!   Begin ─> nothing yet        first change that is carried ─> BEGIN, with its records       Commit ─> END
//!              └─ sent again: counts of the state          └─ each record: the next number      └─ with flush_lsn
//! ```
//!
//! Why each record of the topic is there once, and the numbers go on as if nothing had happened, wherever the process
//! died: BEGIN is written in the step that moves the position into its transaction, END in the step that moves
//! `flush_lsn` past it, and either step is in one append with what it says. So a transaction that the server sends
//! again has its BEGIN in the log if the position lies in it, and never its END. The numbers are counted by table
//! ([`TableCount::transaction`]) in the state which goes with each append, and are not worked out anew from what is
//! passed over: what became a dead letter, or was excluded, need not be so again.
//!
//! A transaction of which nothing is carried has BEGIN and END with a count of zero, like Debezium's. Rows of a
//! backfill have no transaction. If the metadata is switched on within a transaction that is in the log in part, that
//! one has no BEGIN, and counts from there.
//!
//! [`TableCount::transaction`]: super::state::TableCount::transaction

use std::sync::Arc;

use crate::change::{Lsn, Position};
use crate::envelope::avro::SchemaIds;
use crate::envelope::{
    Boundary, DataCollection, Options, TransactionEncoder, TransactionOrder, TransactionRecord, routing,
};
use crate::postgres::assemble::Transaction;

use super::appender::Appender;
use super::tables::{Table, Tables};

/// Numbers records, and writes BEGIN and END.
#[derive(Debug)]
pub struct Transactions {
    topic: Arc<str>,
    encoder: TransactionEncoder,
    open: Option<Open>,
}

/// The transaction being read.
#[derive(Debug)]
struct Open {
    transaction: Transaction,
    /// LSN of the message that began it.
    lsn: Lsn,
    /// Whether BEGIN is in the log, or in the batch.
    begun: bool,
    /// Records with a value so far.
    total: u64,
    /// The topics that have some of them.
    topics: Vec<Arc<str>>,
}

impl Transactions {
    /// For a source of that name. `ids` are those of the registered schemas, where there are any.
    pub fn new(name: &str, options: Options, ids: SchemaIds) -> Self {
        let encoder = TransactionEncoder::new(options, ids);
        Self { topic: routing::transaction_topic(name).into(), encoder, open: None }
    }

    /// A transaction begins with a message at `lsn`. `seen`: the log's position lies in it.
    pub fn begin(&mut self, transaction: Transaction, lsn: Lsn, seen: bool, tables: &Tables) {
        let mut open = Open { transaction, lsn, begun: seen, total: 0, topics: Vec::new() };
        for table in tables.iter().filter(|_| seen) {
            let records = table.count.of_transaction(transaction.commit_lsn);
            if records > 0 {
                open.total += records;
                open.topics.push(Arc::clone(&table.topic));
            }
        }
        self.open = Some(open);
    }

    /// A change of a table comes next: where its first record stands.
    pub fn next(
        &mut self,
        table: &Table,
        position: Position,
        appender: &mut Appender,
    ) -> Option<TransactionOrder> {
        self.write_begin(position, appender);
        let open = self.open.as_ref()?;
        let before = table.count.of_transaction(open.transaction.commit_lsn);
        Some(TransactionOrder { total: open.total + 1, data_collection: before + 1 })
    }

    /// The change became so many records with a value.
    pub fn counted(&mut self, table: &mut Table, records: u32) {
        let Some(open) = self.open.as_mut().filter(|_| records > 0) else { return };
        if table.count.add_of_transaction(open.transaction.commit_lsn, records) {
            open.topics.push(Arc::clone(&table.topic));
        }
        open.total += u64::from(records);
    }

    /// The transaction ended with a message at `lsn`; `last` is the position of its last change on the wire.
    pub fn end(&mut self, lsn: Lsn, last: Position, tables: &Tables, appender: &mut Appender) {
        self.write_begin(last, appender);
        let Some(Open { transaction, total, topics, .. }) = self.open.take() else { return };
        let mut data_collections: Vec<DataCollection> = topics
            .iter()
            .filter_map(|topic| tables.of_topic(topic))
            .map(|table| DataCollection {
                name: table.schema.name.to_string(),
                event_count: table.count.of_transaction(transaction.commit_lsn),
            })
            .collect();
        data_collections.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let end = |data_collections| TransactionRecord {
            xid: transaction.xid,
            lsn,
            position: last,
            commit_us: transaction.commit_us,
            boundary: Boundary::End { event_count: total, data_collections },
        };
        let bytes_max = appender.log().record_bytes_max(&self.topic).unwrap_or(usize::MAX);
        let records = appender.batch.topic(&self.topic);
        let mark = records.mark();
        self.encoder.encode(&end(Some(&data_collections)), records);
        if let Some(bytes) = records.too_large_since(mark, bytes_max) {
            records.rewind(mark);
            self.encoder.encode(&end(None), records);
            tracing::error!(topic = %self.topic, position = %last, tables = data_collections.len(), bytes, bytes_max,
                "the END of a transaction names too many tables for its topic: it has no data_collections");
        }
        appender.added();
    }

    /// Forgets the transaction, whose END is in the log already.
    pub fn pass(&mut self) {
        self.open = None;
    }

    fn write_begin(&mut self, within: Position, appender: &mut Appender) {
        let Some(open) = self.open.as_mut().filter(|open| !open.begun) else { return };
        open.begun = true;
        let begin = TransactionRecord {
            xid: open.transaction.xid,
            lsn: open.lsn,
            position: Position { ordinal: 0, ..within },
            commit_us: open.transaction.commit_us,
            boundary: Boundary::Begin,
        };
        self.encoder.encode(&begin, appender.batch.topic(&self.topic));
        appender.added();
    }
}
