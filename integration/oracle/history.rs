//! What the database says happened: every transaction in commit order, with its changes.

use std::collections::{BTreeMap, HashMap};

use tidemark::change::Lsn;
use tokio_postgres::Client;

use super::source::{TABLES, Table, table};

/// A row: a text a column, none for null.
pub type Row = Vec<Option<String>>;

/// Rows of a table and how often each is there.
pub type Rows = BTreeMap<Row, i64>;

/// A table's rows, by its name.
pub type State = HashMap<&'static str, Rows>;

/// One change of one row, or a truncate.
#[derive(Debug)]
pub struct Change {
    pub table: &'static Table,
    /// `i`, `u`, `d` or `t`; `x` and `y` where a row goes and comes with a leaf of its table.
    pub op: u8,
    pub old: Option<Row>,
    pub new: Option<Row>,
    /// Its place in the transaction as the publication shows it, from 1.
    pub ordinal: u64,
}

impl Change {
    /// Whether no event tells of it.
    pub const fn is_silent(&self) -> bool {
        matches!(self.op, b'x' | b'y')
    }
}

/// A committed transaction.
#[derive(Debug)]
pub struct Transaction {
    pub xid: u64,
    /// Just past the commit record.
    pub end_lsn: Lsn,
    /// Commit time, microseconds since 1970.
    pub commit_us: i64,
    pub changes: Vec<Change>,
    /// Whether it holds a logical message.
    pub has_message: bool,
    /// Content of the message which asks for a cut, if it is one.
    pub marker: Option<String>,
}

impl Transaction {
    /// Whether it shows anything to the publication.
    pub fn is_sent(&self) -> bool {
        self.has_message || !self.changes.iter().all(Change::is_silent)
    }
}

/// All that happened.
#[derive(Debug)]
pub struct History {
    pub transactions: Vec<Transaction>,
}

impl History {
    /// Asks the database.
    pub async fn load(sql: &Client) -> Self {
        let mut changes = audit(sql).await;
        let messages = messages(sql).await;
        let commits = sql
            .query(
                "SELECT (lsn - '0/0')::bigint, xid::text::bigint, (extract(epoch FROM
                   substring(data FROM '\\(at (.*)\\)')::timestamptz) * 1000000)::bigint
                 FROM pg_logical_slot_peek_changes('oracle', NULL, NULL, 'include-timestamp', '1', 'skip-empty-xacts', '0')
                 WITH ORDINALITY AS s (lsn, xid, data, place) WHERE data LIKE 'COMMIT%' ORDER BY place",
                &[],
            )
            .await
            .unwrap();
        let transactions: Vec<_> = commits
            .iter()
            .map(|row| {
                let xid = row.get::<_, i64>(1) as u64;
                let message = messages.get(&xid);
                Transaction {
                    xid,
                    end_lsn: Lsn(row.get::<_, i64>(0) as u64),
                    commit_us: row.get(2),
                    changes: changes.remove(&xid).unwrap_or_default(),
                    has_message: message.is_some(),
                    marker: message
                        .and_then(|text| text.split_once("prefix: tidemark.cut").map(|(_, t)| t.to_owned())),
                }
            })
            .collect();
        assert!(transactions.is_sorted_by_key(|t| t.end_lsn), "the oracle's commits are not in order");
        assert!(
            changes.is_empty(),
            "the oracle has changes of transactions that never committed: {:?}",
            changes.keys()
        );
        Self { transactions }
    }

    /// Number of transactions whose commit record lies below `lsn`, which stands between two transactions.
    pub fn count_below(&self, lsn: Lsn) -> usize {
        self.transactions.partition_point(|t| t.end_lsn <= lsn)
    }

    /// The transaction whose commit record lies at `lsn`.
    pub fn at_commit(&self, lsn: Lsn) -> &Transaction {
        &self.transactions[self.transactions.partition_point(|t| t.end_lsn <= lsn)]
    }

    /// The state at each of some places, ascending.
    pub fn states_at(&self, lsns: &[Lsn]) -> Vec<State> {
        let mut states = Vec::new();
        self.each_state(lsns, |_, state| states.push(state.clone()));
        states
    }

    /// Shows the state at each of some places, ascending.
    pub fn each_state(&self, lsns: &[Lsn], mut show: impl FnMut(Lsn, &State)) {
        assert!(lsns.is_sorted(), "ascending");
        let mut state: State = TABLES.iter().map(|table| (table.name, Rows::new())).collect();
        let mut done = 0;
        for lsn in lsns {
            let until = self.count_below(*lsn);
            for transaction in &self.transactions[done..until] {
                transaction.changes.iter().for_each(|change| apply(&mut state, change));
            }
            done = until;
            show(*lsn, &state);
        }
    }
}

fn apply(state: &mut State, change: &Change) {
    let rows = state.get_mut(change.table.name).unwrap();
    if change.op == b't' {
        rows.clear();
    }
    if let Some(old) = &change.old {
        let count = rows.get_mut(old).unwrap_or_else(|| panic!("the oracle contradicts itself: {change:?}"));
        *count -= 1;
        if *count == 0 {
            rows.remove(old);
        }
    }
    if let Some(new) = &change.new {
        *rows.entry(new.clone()).or_default() += 1;
    }
}

/// The changes by transaction.
async fn audit(sql: &Client) -> HashMap<u64, Vec<Change>> {
    let rows = sql
        .query("SELECT xid, \"table\", op, many, old_row, new_row FROM oracle.audit ORDER BY seq", &[])
        .await
        .unwrap();
    let mut changes: HashMap<u64, Vec<Change>> = HashMap::new();
    // The last ordinal given out, and the TRUNCATE of several tables that it belongs to.
    let mut last: HashMap<u64, (u64, Option<String>)> = HashMap::new();
    for row in rows {
        let xid = row.get::<_, i64>(0) as u64;
        let (op, many): (String, Option<String>) = (row.get(2), row.get(3));
        let (ordinal, together) = last.entry(xid).or_default();
        if many.is_none() || *together != many {
            *ordinal += 1;
        }
        *together = many;
        let of_transaction = changes.entry(xid).or_default();
        if op != "m" {
            let (table, op, ordinal) = (table(row.get(1)), op.as_bytes()[0], *ordinal);
            of_transaction.push(Change { table, op, old: row.get(4), new: row.get(5), ordinal });
        }
    }
    changes
}

/// Logical messages by transaction, as `test_decoding` prints them.
async fn messages(sql: &Client) -> HashMap<u64, String> {
    let rows = sql
        .query(
            "SELECT xid::text::bigint, data FROM pg_logical_slot_peek_changes('oracle', NULL, NULL)
             WHERE data LIKE 'message: transactional: 1%'",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| (row.get::<_, i64>(0) as u64, row.get(1))).collect()
}
