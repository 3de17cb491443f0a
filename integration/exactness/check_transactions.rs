//! Transaction metadata beside the oracle: each record its number, each transaction its BEGIN and END once.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use tidemark::change::{Lsn, Position};
use tidemark::log::{SqliteLog, SqliteLogOptions};

use super::check_log::{CheckedLog, read};
use super::connector::Connector;
use crate::oracle::History;
use crate::oracle::checker::position;
use crate::oracle::source::TABLES;

/// A record of a table with a value.
struct Counted {
    position: Position,
    table: String,
    /// The block, and the id that it has to have.
    block: Json,
    id: String,
}

/// Compares what the log says of its transactions with its records, which [`super::check_log`] has found right, and
/// with the transactions that the oracle has. Panics at the first difference.
pub async fn check(connector: &Connector, history: &History, checked: &CheckedLog) {
    let log = SqliteLog::open(SqliteLogOptions::new(connector.log())).unwrap();
    let mut records: BTreeMap<Lsn, Vec<Counted>> = BTreeMap::new();
    for table in TABLES {
        let topic = format!("public.{}", table.name);
        let take = |_, record: tidemark::log::RecordRef<'_>| {
            let value: Json = serde_json::from_slice(record.value?).unwrap();
            let (source, block) = (&value["source"], &value["transaction"]);
            if value["op"] == "r" {
                assert!(block.is_null(), "a backfilled row has a transaction: {value}");
                return None;
            }
            let id = format!("{}:{}", source["txId"], source["lsn"]);
            Some(Counted { position: position(&record), table: topic.clone(), block: block.clone(), id })
        };
        for counted in read(&log, &topic, take).await.into_iter().flatten() {
            records.entry(counted.position.commit_lsn).or_default().push(counted);
        }
    }
    let mut boundaries = read(&log, "transaction", |_, record| {
        let value: Json = serde_json::from_slice(record.value.unwrap()).unwrap();
        let key: Json = serde_json::from_slice(record.key.unwrap()).unwrap();
        assert_eq!(key["id"], value["id"]);
        (position(&record), value)
    })
    .await
    .into_iter()
    .peekable();
    let first = history.count_below(checked.first_point);
    let mut transactions = 0;
    for transaction in &history.transactions[first..] {
        let xid = format!("{}:", transaction.xid & 0xFFFF_FFFF);
        let is_next = |value: &Json| value["id"].as_str().is_some_and(|id| id.starts_with(&xid));
        // Servers before 15 send empty ones, too.
        if !transaction.is_sent() && !boundaries.peek().is_some_and(|(_, value)| is_next(value)) {
            continue;
        }
        let mut next = |status: &str| {
            let (position, value) =
                boundaries.next().unwrap_or_else(|| panic!("no {status} of {transaction:?}"));
            let xid = value["id"].as_str().unwrap().split_once(':').unwrap().0;
            let found = (value["status"].as_str().unwrap(), xid.parse().unwrap());
            assert_eq!(
                found,
                (status, transaction.xid & 0xFFFF_FFFF),
                "{value} at {position}: {transaction:?}"
            );
            assert_eq!(value["ts_ms"], transaction.commit_us.div_euclid(1000), "{value}");
            (position, value)
        };
        let ((begin, _), (_, end)) = (next("BEGIN"), next("END"));
        assert_eq!(end["id"], format!("{xid}{}", transaction.end_lsn.0), "{end}");
        let mut of_transaction = records.remove(&begin.commit_lsn).unwrap_or_default();
        of_transaction.sort_by_key(|record| (record.position, record.block["total_order"].as_u64()));
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for (total, record) in (1_u64..).zip(&of_transaction) {
            let of_table = counts.entry(&record.table).or_default();
            *of_table += 1;
            let Counted { position, table, block, id } = record;
            assert_eq!(block["id"].as_str(), Some(&**id), "{table} at {position}");
            assert_eq!(block["total_order"], total, "{table} at {position}: {block}");
            assert_eq!(block["data_collection_order"], *of_table, "{table} at {position}: {block}");
        }
        assert_eq!(end["event_count"], of_transaction.len(), "{end} at {begin}");
        let listed = end["data_collections"].as_array().unwrap().iter().map(|collection| {
            (collection["data_collection"].as_str().unwrap(), collection["event_count"].as_u64().unwrap())
        });
        assert!(listed.eq(counts.iter().map(|(table, count)| (*table, *count))), "{end}: {counts:?}");
        transactions += 1;
    }
    assert!(boundaries.next().is_none(), "a BEGIN or END of no transaction");
    assert!(records.is_empty(), "records of no transaction at {:?}", records.keys());
    eprintln!("{transactions} transactions have their BEGIN, END and numbers");
}
