//! The log beside what Postgres decodes from the same WAL: each change once, in commit order, with its values; before
//! them the rows that were there, encoded as the same rows are when they are streamed.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde_json::Value as Json;
use serde_json::value::RawValue;
use tidemark::change::Position;
use tokio_postgres::Client;

use super::decoded::{Change, Field, Fields};
use super::tables::{Shape, Table};
use crate::oracle::source::Kind;
use crate::oracle::values::{self, sha256};
use crate::support::Record;

/// Texts of a type as [`Kind::text`] shows them, by the server itself.
pub struct Shown {
    major: u32,
    texts: HashMap<(String, String), String>,
}

/// An object of an envelope.
type Object<'r> = BTreeMap<String, &'r RawValue>;

#[derive(serde::Deserialize)]
struct Envelope<'r> {
    op: String,
    #[serde(borrow)]
    before: Option<Object<'r>>,
    #[serde(borrow)]
    after: Option<Object<'r>>,
    source: Json,
}

/// One record that has to be there.
struct Expected<'c> {
    /// None for a truncate where another table has got the name, which may be there.
    change: Option<&'c Change>,
    /// None for a tombstone.
    op: Option<char>,
    key: Option<&'c Fields>,
}

impl Shown {
    /// Of a server of this major.
    pub fn new(major: u32) -> Self {
        Self { major, texts: HashMap::new() }
    }

    /// Asks the server for all texts of these changes whose form it alone knows.
    pub async fn load(&mut self, sql: &Client, table: &Table, changes: &[Change]) {
        let mut wanted: HashMap<&(Kind, String), Vec<&str>> = HashMap::new();
        for fields in changes.iter().flat_map(|change| change.old.iter().chain(&change.new)) {
            for (name, field) in fields {
                let (Some(of), Field::Text(text)) = (table.kinds.get(name), field) else { continue };
                if printed(of.0, text).is_none() {
                    wanted.entry(of).or_default().push(text);
                }
            }
        }
        for ((kind, type_name), texts) in wanted {
            let query = format!(
                "SELECT text, {} FROM unnest($1::text[]) AS texts (text), LATERAL (SELECT text::{type_name} AS value) AS v",
                kind.text("value")
            );
            for row in sql.query(&query, &[&texts]).await.unwrap_or_else(|error| panic!("{query}: {error:?}"))
            {
                self.texts.insert((type_name.clone(), row.get(0)), row.get(1));
            }
        }
    }

    fn of(&self, (kind, type_name): &(Kind, String), text: &str) -> String {
        printed(*kind, text).unwrap_or_else(|| self.texts[&(type_name.clone(), text.to_owned())].clone())
    }
}

/// A text whose form does not have to be asked for.
fn printed(kind: Kind, text: &str) -> Option<String> {
    match kind {
        Kind::Int
        | Kind::Text
        | Kind::Printed
        | Kind::Decimal(_)
        | Kind::Numeric
        | Kind::Bits(_)
        | Kind::Bool => Some(text.to_owned()),
        Kind::Wide => Some(sha256(text.as_bytes())),
        Kind::Bytes => Some(text.trim_start_matches("\\x").to_owned()),
        Kind::Real
        | Kind::Double
        | Kind::Time(_)
        | Kind::Local(_)
        | Kind::Instant
        | Kind::Date
        | Kind::List(_) => None,
    }
}

/// What of a table's changes the publication sends, and as what.
pub fn published(table: &Table, mut changes: Vec<Change>) -> Vec<Change> {
    for change in &mut changes {
        for fields in [&mut change.old, &mut change.new].into_iter().flatten() {
            fields.retain(|name, _| table.carries(name));
        }
    }
    let Some(column) = &table.filter else { return changes };
    let passes = |fields: &Option<Fields>| match fields.as_ref().and_then(|fields| fields.get(column)) {
        Some(Field::Text(text)) => table.passes(text),
        _ => false,
    };
    let filtered = |mut change: Change| {
        let was = change.op == 'd'
            || change.op == 'u' && passes(change.old.as_ref().map_or(&change.new, |_| &change.old));
        let was = was && (change.op != 'd' || passes(&change.old));
        let is = passes(&change.new);
        match (change.op, was, is) {
            ('t', ..) | (_, true, true) => {}
            (_, false, false) => return None,
            (_, true, false) => (change.op, change.new) = ('d', None),
            (_, false, true) => {
                let old = change.old.take().unwrap_or_default();
                for (name, field) in change.new.iter_mut().flatten().filter(|(_, f)| **f == Field::Unchanged)
                {
                    *field = old.get(name).unwrap_or(field).clone();
                }
                change.op = 'i';
            }
        }
        Some(change)
    };
    changes.into_iter().filter_map(filtered).collect()
}

/// Compares the records of a table with its changes. Gives the `after` of the backfilled rows.
pub fn check<'r>(
    table: &Table,
    shown: &Shown,
    changes: &[Change],
    records: &'r [Record],
) -> Result<Vec<&'r str>, String> {
    let mut expected = expected(table, changes);
    let (mut backfilled, mut last, mut begun) = (Vec::new(), Position::default(), false);
    'records: for record in records {
        let at = format!("offset {} position {}", record.offset, record.position);
        let position: Position = record.position.parse().unwrap();
        if position < last {
            return Err(format!("{at}: stands before {last}"));
        }
        last = position;
        let Some(bytes) = &record.bytes else {
            let next =
                expected.pop_front().ok_or_else(|| format!("{at}: a tombstone after the last change"))?;
            check_op(&at, &next, None)?;
            check_key(&at, table, shown, &next, &record.key)?;
            continue;
        };
        let envelope: Envelope<'r> =
            serde_json::from_slice(bytes).map_err(|error| format!("{at}: {error}"))?;
        if envelope.op == "r" {
            if begun {
                return Err(format!("{at}: a backfilled row after a change"));
            }
            backfilled.push(after_text(bytes));
            continue;
        }
        begun = true;
        let xid = envelope.source["txId"].as_u64();
        while expected.front().is_some_and(|next| next.change.is_none()) {
            expected.pop_front();
            let is_next = |next: &Expected<'_>| {
                next.op == Some('t') && next.change.is_some_and(|c| Some(u64::from(c.xid)) == xid)
            };
            if envelope.op == "t" && !expected.front().is_some_and(is_next) {
                continue 'records;
            }
        }
        let Some(next) = expected.pop_front() else {
            return Err(format!(
                "{at}: nothing more happened, yet there is {}",
                String::from_utf8_lossy(bytes)
            ));
        };
        check_op(&at, &next, Some(&envelope.op))?;
        check_key(&at, table, shown, &next, &record.key)?;
        let context = || {
            format!(
                "{at}\n  expected {:?} of {:?}\n  found {}",
                next.op,
                next.change,
                String::from_utf8_lossy(bytes)
            )
        };
        if xid != next.change.map(|change| u64::from(change.xid)) {
            return Err(format!("another transaction: {}", context()));
        }
        check_values(table, shown, &next, &envelope).map_err(|error| format!("{error}: {}", context()))?;
    }
    expected.retain(|next| next.change.is_some());
    match expected.front() {
        Some(next) => Err(format!(
            "{} records are missing, the first is {:?} of {:?}",
            expected.len(),
            next.op,
            next.change
        )),
        None => Ok(backfilled),
    }
}

/// The text of the `after` of a record's value.
pub fn after_text(bytes: &[u8]) -> &str {
    #[derive(serde::Deserialize)]
    struct After<'r> {
        #[serde(borrow)]
        after: &'r RawValue,
    }
    serde_json::from_slice::<After<'_>>(bytes).unwrap().after.get()
}

fn expected<'c>(table: &Table, changes: &'c [Change]) -> VecDeque<Expected<'c>> {
    let (mut expected, mut shape) = (VecDeque::new(), 0);
    let anew = |from: usize, to: usize| {
        let many = table.shapes[from + 1..=to].iter().filter(|shape| shape.anew).count();
        (0..many).map(|_| Expected { change: None, op: Some('t'), key: None })
    };
    for change in changes {
        expected.extend(anew(shape, change.shape));
        shape = change.shape;
        expected.extend(expand(&table.shapes[shape], change));
    }
    expected.extend(anew(shape, table.shapes.len() - 1));
    expected
}

fn expand<'c>(shape: &Shape, change: &'c Change) -> Vec<Expected<'c>> {
    let keyed = !shape.key.is_empty();
    let of = |op, key: &'c Option<Fields>| {
        let key = key.as_ref().filter(|_| keyed);
        Expected { change: Some(change), op, key }
    };
    let moved = change.old.as_ref().zip(change.new.as_ref()).is_some_and(|(old, new)| {
        shape.key.iter().any(|name| new[name] != Field::Unchanged && old.get(name) != new.get(name))
    });
    match change.op {
        'i' => vec![of(Some('c'), &change.new)],
        'u' if moved => vec![of(Some('d'), &change.old), of(None, &change.old), of(Some('c'), &change.new)],
        'u' => vec![of(Some('u'), &change.new)],
        'd' if keyed => vec![of(Some('d'), &change.old), of(None, &change.old)],
        'd' => vec![of(Some('d'), &change.old)],
        _ => vec![of(Some('t'), &None)],
    }
}

fn check_op(at: &str, next: &Expected<'_>, op: Option<&str>) -> Result<(), String> {
    let expected = next.op.map(String::from);
    if expected.as_deref() == op {
        return Ok(());
    }
    Err(format!("{at}: operation {op:?} instead of {expected:?} of {:?}", next.change))
}

fn check_key(at: &str, table: &Table, shown: &Shown, next: &Expected<'_>, key: &Json) -> Result<(), String> {
    let Some(fields) = next.key else {
        return if key.is_null() { Ok(()) } else { Err(format!("{at}: a key where there is none: {key}")) };
    };
    let found = key.as_object().ok_or_else(|| format!("{at}: no key"))?;
    let columns = &table.shapes[next.change.map_or(0, |change| change.shape)].key;
    if found.len() != columns.len() {
        return Err(format!("{at}: columns of the key: {key}"));
    }
    for name in columns {
        let of = &table.kinds[name];
        let value = found.get(name).map(|value| values::shown(of.0, &value.to_string()));
        let Some(Field::Text(text)) = fields.get(name) else { continue };
        if value != Some(Some(shown.of(of, text))) {
            return Err(format!("{at}: key {name:?} is {value:?}, not {text:?}: {key}"));
        }
    }
    Ok(())
}

fn check_values(
    table: &Table,
    shown: &Shown,
    next: &Expected<'_>,
    envelope: &Envelope<'_>,
) -> Result<(), String> {
    let Some(Change { old, new, shape, .. }) = next.change else { return Ok(()) };
    let has_after = matches!(next.op, Some('c' | 'u'));
    match (&envelope.after, new.as_ref().filter(|_| has_after)) {
        (None, None) => {}
        (Some(found), Some(fields)) => check_after(table, shown, found, fields, old.as_ref())?,
        _ => return Err("after: a row or none".to_owned()),
    }
    let has_before = next.op == Some('d') || next.op == Some('u') && table.shapes[*shape].full;
    match (&envelope.before, old.as_ref().filter(|_| has_before)) {
        (None, None) => Ok(()),
        (Some(found), Some(fields)) => check_before(table, shown, found, fields),
        _ => Err("before: a row or none".to_owned()),
    }
}

fn check_after(
    table: &Table,
    shown: &Shown,
    found: &Object<'_>,
    fields: &Fields,
    old: Option<&Fields>,
) -> Result<(), String> {
    if let Some(name) = found.keys().find(|name| !fields.contains_key(*name)) {
        let null = found[name].get() == "null";
        return if null && table.kinds.contains_key(name) {
            Ok(())
        } else {
            Err(format!("a field {name:?}"))
        };
    }
    for (name, field) in fields {
        // A value that did not change is that of the old row, where the whole of it is logged.
        let field = match field {
            Field::Unchanged => old.and_then(|old| old.get(name)).unwrap_or(field),
            field => field,
        };
        compare(table, shown, found, name, field)?;
    }
    Ok(())
}

fn check_before(table: &Table, shown: &Shown, found: &Object<'_>, fields: &Fields) -> Result<(), String> {
    for (name, field) in fields {
        // 14 reads a partition's old row without the defaults of columns that are newer than the row (`CreateTupleDescCopy`
        // in its pgoutput.c): the stream itself says null.
        let lost = shown.major == 14 && !table.leaves.is_empty();
        if lost && found.get(name).is_some_and(|value| value.get() == "null") {
            continue;
        }
        // Whole rows are told whole; of others the key alone.
        compare(table, shown, found, name, field)?;
    }
    match found.iter().find(|(name, value)| !fields.contains_key(*name) && value.get() != "null") {
        Some((name, value)) => Err(format!("before: {name:?} is {value}, and is not logged")),
        None => Ok(()),
    }
}

fn compare(
    table: &Table,
    shown: &Shown,
    found: &Object<'_>,
    name: &str,
    field: &Field,
) -> Result<(), String> {
    let of = table.kinds.get(name).ok_or_else(|| format!("a column {name:?} that the test does not know"))?;
    let value = found.get(name).map(|value| values::shown(of.0, value.get()));
    let expected = match field {
        Field::Unchanged => None,
        Field::Null => Some(None),
        Field::Text(text) => Some(Some(shown.of(of, text))),
    };
    if value == expected { Ok(()) } else { Err(format!("{name:?} is {value:?}, not {expected:?}")) }
}
