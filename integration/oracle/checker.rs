//! The records of one table beside the oracle: each change once, in commit order, with the values the database had.

use std::fmt::Display;

use serde_json::{Map, Value as Json};
use tidemark::change::{Lsn, Position};
use tidemark::log::RecordRef;

use super::source::{Column, Kind, Table};
use super::{Change, History, Row, Rows, State, Transaction};

/// One record of a table, as far as cuts and sums need it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub position: Position,
    pub has_value: bool,
}

/// The position in a record's header.
pub fn position(record: &RecordRef<'_>) -> Position {
    let text = record.header("tidemark.position").expect("a record without a position");
    std::str::from_utf8(text).unwrap().parse().unwrap()
}

/// The point of the first copy that a row of it shows: where it was broken off before its first row, it began anew, later
/// than the table was described.
pub fn point_of_row(record: &RecordRef<'_>) -> Option<Lsn> {
    let value: Json = serde_json::from_slice(record.value?).unwrap();
    (value["op"] == "r").then(|| Lsn(position(record).commit_lsn.0 + 1))
}

/// One record that has to be there.
#[derive(Debug)]
struct Expected<'h> {
    transaction: usize,
    change: &'h Change,
    /// `c`, `u`, `d`, `t`; none for a tombstone.
    op: Option<char>,
    /// The row which has the record's key.
    key: Option<&'h Row>,
    before: Option<&'h Row>,
    after: Option<&'h Row>,
    /// Header and the row whose key it holds.
    other_key: Option<(&'static str, &'h Row)>,
}

/// The records of one table, one after the other.
pub struct Checker<'h> {
    table: &'static Table,
    history: &'h History,
    consistent_point: Lsn,
    /// Rows of the backfill still to come.
    base: Rows,
    /// Some of them are in the topic of later copies.
    is_part: bool,
    expected: std::vec::IntoIter<Expected<'h>>,
    last: Position,
    unchanged: u64,
}

impl<'h> Checker<'h> {
    /// Expects the rows of `base` as backfilled at the point, and then every change after it.
    pub fn new(table: &'static Table, history: &'h History, base: &State, consistent_point: Lsn) -> Self {
        let first = history.count_below(consistent_point);
        let mut expected = Vec::new();
        for (number, transaction) in history.transactions.iter().enumerate().skip(first) {
            for change in transaction.changes.iter().filter(|change| change.table.name == table.name) {
                expand(number, change, &mut expected);
            }
        }
        let (base, expected) = (base[table.name].clone(), expected.into_iter());
        let (last, is_part) = (Position::default(), false);
        Self { table, history, consistent_point, base, is_part, expected, last, unchanged: 0 }
    }

    /// The first copy was broken off: its other rows are beside.
    pub fn in_part(mut self, is_part: bool) -> Self {
        self.is_part = is_part;
        self
    }

    /// Compares a record with the one that has to come next. Panics at a difference.
    pub fn take(&mut self, place: &dyn Display, record: &RecordRef<'_>) -> Entry {
        let position = position(record);
        let value: Option<Json> = record.value.map(|value| serde_json::from_slice(value).unwrap());
        let shown =
            |value: &Option<Json>| value.as_ref().map_or_else(|| "tombstone".to_owned(), Json::to_string);
        let name = self.table.name;
        let at = || format!("{name} offset {place} position {position}");
        assert!(position >= self.last, "{}: stands before {}", at(), self.last);
        let entry = Entry { position, has_value: value.is_some() };
        if let Some(value) = value.as_ref().filter(|value| value["op"] == "r") {
            self.backfilled(&at, position, record, value);
            self.last = position;
            return entry;
        }
        assert!(
            self.is_part || self.base.is_empty(),
            "{}: {} rows of the backfill are missing: {:?}",
            at(),
            self.base.len(),
            self.base.first_key_value()
        );
        let Some(expected) = self.expected.next() else {
            panic!("{}: nothing more happened, yet the log has {}", at(), shown(&value));
        };
        let history = self.history;
        let transaction = &history.transactions[expected.transaction];
        let context = || {
            format!(
                "{}\n  expected {:?} of xid {} ordinal {} ending at {}: {:?}\n  found {} key {:?}",
                at(),
                expected.op,
                transaction.xid,
                expected.change.ordinal,
                transaction.end_lsn,
                expected.change,
                shown(&value),
                record.key.map(String::from_utf8_lossy),
            )
        };
        self.compare_place(&context, position, &expected, transaction, record);
        self.compare_key(&context, record.key, expected.key);
        match expected.other_key {
            Some((name, row)) => self.compare_key(&context, record.header(name), Some(row)),
            None => assert!(record.headers().count() == 2, "more headers than expected: {}", context()),
        }
        match (&value, expected.op) {
            (None, None) => {}
            (Some(value), Some(op)) => self.compare_value(&context, value, op, &expected, transaction),
            _ => panic!("a tombstone or none: {}", context()),
        }
        self.last = position;
        entry
    }

    /// Nothing may be missing. Gives the number of fields that were left out because their values did not change.
    pub fn end(mut self) -> u64 {
        assert!(
            self.is_part || self.base.is_empty(),
            "{}: {} rows of the backfill are missing",
            self.table.name,
            self.base.len()
        );
        if let Some(missing) = self.expected.next() {
            let transaction = &self.history.transactions[missing.transaction];
            panic!("{}: the log ends too early; missing {missing:?} of {transaction:?}", self.table.name);
        }
        self.unchanged
    }

    fn backfilled(
        &mut self,
        at: &dyn Fn() -> String,
        position: Position,
        record: &RecordRef<'_>,
        value: &Json,
    ) {
        assert_eq!(
            position.commit_lsn.0 + 1,
            self.consistent_point.0,
            "{}: a backfilled row at another place",
            at()
        );
        assert!(position > self.last, "{}: a position was given twice", at());
        assert_eq!(
            (&value["before"], &value["source"]["snapshot"]),
            (&Json::Null, &"true".into()),
            "{}",
            at()
        );
        let row = self.whole_row(at, &value["after"]);
        self.compare_key(at, record.key, (!self.table.key.is_empty()).then_some(&row));
        let Some(count) = self.base.get_mut(&row) else {
            panic!(
                "{}: the table did not hold the backfilled row (so often) at {}: {row:?}",
                at(),
                self.consistent_point
            );
        };
        *count -= 1;
        if *count == 0 {
            self.base.remove(&row);
        }
    }

    fn compare_place(
        &self,
        context: &dyn Fn() -> String,
        position: Position,
        expected: &Expected<'_>,
        transaction: &Transaction,
        record: &RecordRef<'_>,
    ) {
        let before = expected.transaction.checked_sub(1).map(|n| self.history.transactions[n].end_lsn);
        assert!(
            position.commit_lsn < transaction.end_lsn
                && before.is_none_or(|before| before <= position.commit_lsn),
            "not the position of the transaction, which is between {before:?} and {}: {}",
            transaction.end_lsn,
            context()
        );
        assert_eq!(
            (position.timeline, position.ordinal),
            (1, expected.change.ordinal),
            "ordinal: {}",
            context()
        );
        assert_eq!(record.timestamp_ms, transaction.commit_us.div_euclid(1000), "time: {}", context());
        assert_eq!(record.header("tidemark.schema"), Some(&b"1"[..]), "schema: {}", context());
    }

    fn compare_key(&self, context: &dyn Fn() -> String, key: Option<&[u8]>, row: Option<&Row>) {
        let key: Option<Map<String, Json>> = key.map(|key| serde_json::from_slice(key).unwrap());
        let expected: Option<Vec<_>> = row.map(|row| {
            self.table.key_columns().iter().map(|at| (self.table.columns[*at], row[*at].clone())).collect()
        });
        let expected = expected.filter(|key| !key.is_empty());
        match (&key, &expected) {
            (None, None) => {}
            (Some(key), Some(expected)) => {
                assert_eq!(key.len(), expected.len(), "columns of the key: {}", context());
                for ((name, value), (column, text)) in key.iter().zip(expected) {
                    assert_eq!(
                        (name.as_str(), shown(column, value)),
                        (column.name, text.clone()),
                        "key: {}",
                        context()
                    );
                }
            }
            _ => panic!("a key or none: {}", context()),
        }
    }

    fn compare_value(
        &mut self,
        context: &dyn Fn() -> String,
        value: &Json,
        op: char,
        expected: &Expected<'_>,
        transaction: &Transaction,
    ) {
        assert_eq!(value["op"], op.to_string(), "operation: {}", context());
        let source = &value["source"];
        assert_eq!(
            source["txId"].as_u64(),
            Some(transaction.xid & 0xFFFF_FFFF),
            "transaction: {}",
            context()
        );
        assert_eq!(source["ts_us"].as_i64(), Some(transaction.commit_us), "commit time: {}", context());
        assert_eq!(
            (&source["snapshot"], &source["table"]),
            (&"false".into(), &self.table.name.into()),
            "{}",
            context()
        );
        match expected.before {
            None => assert!(value["before"].is_null(), "before: {}", context()),
            Some(row) => {
                let keyed = self.table.key_columns();
                let row: Row = (0..row.len())
                    .map(|at| row[at].clone().filter(|_| self.table.full || keyed.contains(&at)))
                    .collect();
                assert_eq!(self.whole_row(context, &value["before"]), row, "before: {}", context());
            }
        }
        match expected.after {
            None => assert!(value["after"].is_null(), "after: {}", context()),
            Some(row) => self.compare_after(context, &value["after"], row, expected.change),
        }
    }

    /// A new row: a field may be missing only where its value is long and did not change.
    fn compare_after(&mut self, context: &dyn Fn() -> String, after: &Json, row: &Row, change: &Change) {
        let after = after.as_object().unwrap_or_else(|| panic!("after: {}", context()));
        let mut seen = after.iter();
        for (at, column) in self.table.columns.iter().enumerate() {
            if !after.contains_key(column.name) {
                let old = change.old.as_ref().filter(|_| change.op == b'u' && !self.table.full);
                let may = column.kind == Kind::Wide
                    && old.is_some_and(|old| old[at] == row[at] && old[at].is_some());
                assert!(may, "{} is missing: {}", column.name, context());
                self.unchanged += 1;
                continue;
            }
            let (name, value) = seen.next().unwrap();
            assert_eq!(
                (name.as_str(), shown(column, value)),
                (column.name, row[at].clone()),
                "after: {}",
                context()
            );
        }
        assert!(seen.next().is_none(), "more fields than columns: {}", context());
    }

    fn whole_row(&self, context: &dyn Fn() -> String, object: &Json) -> Row {
        whole_row(self.table, context, object)
    }
}

/// A row of an envelope that has every column.
pub fn whole_row(table: &Table, context: &dyn Fn() -> String, object: &Json) -> Row {
    let object = object.as_object().unwrap_or_else(|| panic!("no row: {}", context()));
    assert_eq!(object.len(), table.columns.len(), "fields: {}", context());
    let texts = table.columns.iter().zip(object).map(|(column, (name, value))| {
        assert_eq!(name, column.name, "fields: {}", context());
        shown(column, value)
    });
    texts.collect()
}

/// The records of a change.
fn expand<'h>(transaction: usize, change: &'h Change, records: &mut Vec<Expected<'h>>) {
    let table = change.table;
    let (old, new) = (change.old.as_ref(), change.new.as_ref());
    let keys = table.key_columns();
    let moved = old.zip(new).is_some_and(|(old, new)| keys.iter().any(|at| old[*at] != new[*at]));
    let record = |op, key, before, after, other_key| Expected {
        transaction,
        change,
        op,
        key,
        before,
        after,
        other_key,
    };
    match change.op {
        b'i' => records.push(record(Some('c'), new, None, new, None)),
        b'u' if moved => {
            records.push(record(Some('d'), old, old, None, new.map(|row| ("__debezium.newkey", row))));
            records.push(record(None, old, None, None, new.map(|row| ("__debezium.newkey", row))));
            records.push(record(Some('c'), new, None, new, old.map(|row| ("__debezium.oldkey", row))));
        }
        b'u' => records.push(record(Some('u'), new, old.filter(|_| table.full), new, None)),
        b'd' => {
            records.push(record(Some('d'), old, old, None, None));
            if !keys.is_empty() {
                records.push(record(None, old, None, None, None));
            }
        }
        b't' => records.push(record(Some('t'), None, None, None, None)),
        _ if change.is_silent() => {}
        other => panic!("operation {other}"),
    }
}

/// A value of an envelope as the oracle shows it.
pub fn shown(column: &Column, value: &Json) -> Option<String> {
    super::values::shown(column.kind, &value.to_string())
}
