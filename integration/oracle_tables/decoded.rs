//! What Postgres itself decodes from its WAL: the output of `test_decoding`, with the shape that each row had when it
//! was written, and the order of commits.
//!
//! ```text
//!   BEGIN 751
//!   table s1."T 0": UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:2 body[text]:unchanged-toast-datum
//!   COMMIT 751
//! ```

use std::collections::HashMap;

use tokio_postgres::Client;

use super::tables::Table;

/// A field of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    Null,
    /// As the type prints it.
    Text(String),
    /// Stored out of line, and not changed.
    Unchanged,
}

/// A row: its fields by the names of their columns.
pub type Fields = HashMap<String, Field>;

/// A change of a row, or a truncate.
#[derive(Clone, Debug)]
pub struct Change {
    pub xid: u32,
    /// `i`, `u`, `d` or `t`; `m` for a mark.
    pub op: char,
    /// The identity before, where it is logged; without nulls.
    pub old: Option<Fields>,
    pub new: Option<Fields>,
    /// How many marks of its table stand before it.
    pub shape: usize,
}

/// The prefix of messages that a table's change of shape leaves: `"schema", "table"` as JSON.
pub const MARK: &str = "oracle";

/// All changes in commit order, each with schema and name of its table.
pub type Decoded = Vec<(String, String, Change)>;

/// The changes of a table, and those of the rows of its partitions: a truncate is told of the table itself.
pub fn of_table(decoded: &Decoded, table: &Table) -> Vec<Change> {
    let is_ours = |name: &String, op| *name == table.name || op != 't' && table.leaves.contains(name);
    let ours =
        decoded.iter().filter(|(schema, name, change)| *schema == table.schema && is_ours(name, change.op));
    let (mut shape, mut changes) = (0, Vec::new());
    for (_, _, change) in ours {
        if change.op == 'm' {
            shape += 1;
        } else {
            changes.push(Change { shape, ..change.clone() });
        }
    }
    changes
}

/// Makes the slot whose changes are read.
pub async fn begin(sql: &Client) {
    sql.batch_execute("SELECT pg_create_logical_replication_slot('oracle', 'test_decoding')").await.unwrap();
}

/// Takes all changes since the last time.
pub async fn take(sql: &Client) -> Decoded {
    let rows = sql
        .query(
            "SELECT data FROM pg_logical_slot_get_changes('oracle', NULL, NULL, 'skip-empty-xacts', '1')",
            &[],
        )
        .await
        .unwrap();
    let (mut decoded, mut xid) = (Decoded::new(), 0);
    for row in &rows {
        let line: &str = row.get(0);
        if let Some(number) = line.strip_prefix("BEGIN ") {
            xid = number.parse().unwrap();
        } else if let Some(mark) =
            line.strip_prefix(&format!("message: transactional: 1 prefix: {MARK}, sz: "))
        {
            let (_, content) = mark.split_once("content:").unwrap();
            let [schema, table]: [String; 2] = serde_json::from_str(content).unwrap();
            decoded.push((schema, table, Change { xid, op: 'm', old: None, new: None, shape: 0 }));
        } else if let Some(rest) = line.strip_prefix("table ") {
            let mut cursor = Cursor { rest };
            loop {
                let schema = cursor.name();
                cursor.skip(".");
                let table = cursor.name();
                let more = cursor.rest.starts_with(", ");
                if !more {
                    cursor.skip(": ");
                }
                if more || cursor.rest.starts_with("TRUNCATE") {
                    // The last one's operation is that of all.
                    let change = Change { xid, op: 't', old: None, new: None, shape: 0 };
                    decoded.push((schema, table, change));
                    if more {
                        cursor.skip(", ");
                        continue;
                    }
                } else {
                    decoded.push((schema, table, cursor.change(xid)));
                }
                break;
            }
        }
    }
    decoded
}

struct Cursor<'t> {
    rest: &'t str,
}

impl Cursor<'_> {
    fn skip(&mut self, text: &str) {
        self.rest =
            self.rest.strip_prefix(text).unwrap_or_else(|| panic!("{text:?} expected at {:?}", self.rest));
    }

    /// A name, quoted or not.
    fn name(&mut self) -> String {
        if self.rest.starts_with('"') {
            return self.until_quote('"');
        }
        let end = self.rest.find(['.', ':', '[', ',']).unwrap();
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        name.to_owned()
    }

    /// A text within quotes, in which they are doubled.
    fn until_quote(&mut self, quote: char) -> String {
        let (mut text, mut chars) = (String::new(), self.rest.char_indices().skip(1).peekable());
        while let Some((at, char)) = chars.next() {
            if char == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
                self.rest = &self.rest[at + 1..];
                return text;
            }
            text.push(char);
        }
        panic!("no end of {:?}", self.rest)
    }

    fn change(&mut self, xid: u32) -> Change {
        let (op, rest) =
            self.rest.split_once(':').unwrap_or_else(|| panic!("no operation in {:?}", self.rest));
        // Of an old row whose fields are all null, nothing is printed.
        self.rest = rest.strip_prefix(' ').unwrap_or(rest);
        let (mut old, mut new) = (None, None);
        match op {
            "INSERT" => new = Some(self.fields()),
            "DELETE" => old = Some(self.fields()),
            "UPDATE" => {
                if self.rest.starts_with("old-key: ") {
                    self.skip("old-key: ");
                    old = Some(self.fields());
                    self.skip("new-tuple: ");
                }
                new = Some(self.fields());
            }
            other => panic!("operation {other}"),
        }
        Change { xid, op: op.to_ascii_lowercase().chars().next().unwrap(), old, new, shape: 0 }
    }

    fn fields(&mut self) -> Fields {
        let mut fields = Fields::new();
        while !self.rest.is_empty() && !self.rest.starts_with("new-tuple: ") {
            if self.rest == "(no-tuple-data)" {
                self.rest = "";
                break;
            }
            let name = self.name();
            self.skip("[");
            let (_, rest) = self.rest.split_once("]:").unwrap();
            self.rest = rest;
            let field = self.field();
            fields.insert(name, field);
            self.rest = self.rest.strip_prefix(' ').unwrap_or(self.rest);
        }
        fields
    }

    fn field(&mut self) -> Field {
        self.rest = self.rest.strip_prefix('B').filter(|rest| rest.starts_with('\'')).unwrap_or(self.rest);
        if self.rest.starts_with('\'') {
            return Field::Text(self.until_quote('\''));
        }
        let (word, rest) = self.rest.split_at(self.rest.find(' ').unwrap_or(self.rest.len()));
        self.rest = rest;
        match word {
            "null" => Field::Null,
            "unchanged-toast-datum" => Field::Unchanged,
            value => Field::Text(value.to_owned()),
        }
    }
}
