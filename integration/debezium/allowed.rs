//! The differences from Debezium that are meant, each with its reason.

use serde_json::Value as Json;

use super::compare::Difference;

/// One of them.
struct Rule {
    /// What Debezium does, and why Tidemark does not.
    reason: &'static str,
    covers: fn(&Difference) -> bool,
}

/// A rule that covers a column of `public.types` wherever it is: in rows and in their schemas.
macro_rules! column {
    ($column:literal, $reason:literal) => {
        Rule {
            reason: $reason,
            covers: |difference| difference.topic == "public.types" && difference.column() == Some($column),
        }
    };
}

const RULES: &[Rule] = &[
    Rule {
        reason: "Debezium says in each record's headers which connector and run made it: names",
        covers: |d| d.path.starts_with("header.__debezium.context.") && d.ours.is_none(),
    },
    // Rows.
    Rule {
        reason: "Debezium fills in NOT NULL columns of an old row that was not sent, with zeros or the column's default",
        covers: |d| {
            d.op == "d" && d.is_in("value.before") && d.topic == "public.orders" && d.ours == Some(Json::Null)
        },
    },
    Rule {
        reason: "Debezium has a placeholder, which can be a value, for a TOAST value that the statement left alone",
        covers: |d| d.theirs == Some(Json::from("__debezium_unavailable_value")) && d.ours.is_none(),
    },
    Rule {
        reason: "Debezium follows a delete of a table without a key by a tombstone without one: it deletes nothing, and a \
                 compacted topic refuses it",
        covers: |d| d.path == "record" && d.topic == "public.bag" && d.ours.is_none(),
    },
    // The copy.
    Rule {
        reason: "Debezium says which row of the copy is the first or last of a table: a copy here may be made again, \
                 table by table, and is seen all at once",
        covers: |d| {
            let words = ["first", "last", "first_in_data_collection", "last_in_data_collection"];
            let theirs = d.theirs.as_ref().and_then(Json::as_str).unwrap_or_default();
            d.op == "r"
                && d.path == "value.source.snapshot"
                && words.contains(&theirs)
                && d.ours == Some("true".into())
        },
    },
    Rule {
        reason: "Debezium gives copied rows the id of the transaction that reads them, which changed nothing",
        covers: |d| d.op == "r" && d.path == "value.source.txId" && d.ours == Some(Json::Null),
    },
    // Types.
    column!("aiv", "Debezium drops columns of interval[]"),
    column!("nneg", "Debezium takes a negative scale for a very large one"),
    column!("comp", "Debezium sends a composite as the bytes of its text, if asked to send it at all"),
    column!("mr", "Debezium sends a multirange as the bytes of its text, if asked to send it at all"),
    column!("lsn", "Debezium sends a pg_lsn as the bytes of its text, if asked to send it at all"),
    column!(
        "mo",
        "Debezium reads money by its own locale, which need not be the server's: it travels as text"
    ),
    column!("vb", "Debezium's bytes forget how many bits a varbit has: it travels as text"),
    column!("pt", "geometric types travel as text"),
    column!("tz", "Debezium moves a timetz to UTC, and its zone is lost"),
    Rule {
        reason: "Debezium strips a numeric's trailing zeros, and has null for NaN",
        covers: |d| d.is_in("value.after") && d.column() == Some("nfree"),
    },
    Rule {
        reason: "Debezium has a date infinity that is a date",
        covers: |d| d.path == "value.after.d" && d.ours == Some(i32::MAX.into()),
    },
    Rule {
        reason: "Debezium has the largest number for a streamed timestamp infinity, and another one for a copied one",
        covers: |d| d.path == "value.after.ts6" && d.theirs == Some(i64::MAX.into()),
    },
    // Schemas.
    Rule {
        reason: "Debezium says that the elements of an enum's array are never null: they may be",
        covers: |d| d.is_in("value.schema") && d.path.ends_with(".am.items.optional"),
    },
    Rule {
        reason: "NOT NULL is not on the wire and may be dropped at any time: columns outside of the key may be null",
        covers: |d| d.is_in("value.schema") && d.path.ends_with(".optional") && d.ours == Some(true.into()),
    },
    Rule {
        reason: "Debezium has the defaults of the catalog: no record needs them, and they are not those of its time",
        covers: |d| d.is_in("value.schema") && d.path.ends_with(".default") && d.ours.is_none(),
    },
];

/// The list, and what of it was met.
#[derive(Default)]
pub struct Allowed {
    met: std::collections::BTreeSet<usize>,
}

impl Allowed {
    /// Whether a difference is meant.
    pub fn takes(&mut self, difference: &Difference) -> bool {
        let covering = RULES.iter().position(|rule| (rule.covers)(difference));
        self.met.extend(covering);
        covering.is_some()
    }

    /// Those that were never met.
    pub fn not_met(&self) -> Vec<&'static str> {
        let unmet = RULES.iter().enumerate().filter(|(number, _)| !self.met.contains(number));
        unmet.map(|(_, rule)| rule.reason).collect()
    }
}
