//! Which rows of a table a piece of its copy reads. Pure.
//!
//! ```text
//!   pages   [0, 512) [512, 1024) … [n, ∞)       of every file that holds rows of the table, whatever its partitions
//!   keys    (-∞, k1] (k1, k2] … (kn, ∞)         in the order of the index that identifies rows
//!   rows    k, k', …                            by their keys, one by one
//! ```
//!
//! The first are together all rows of the table, whatever it holds, and no two have a row in common: every row has one
//! place and one key.

use serde::{Deserialize, Serialize};

use crate::postgres::wire::{quote_ident, quote_literal};

/// The values of a row's key as text, in the order of the key's columns.
pub type Key = Vec<String>;

/// Rows of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// Those in pages from one on, and before another.
    Pages {
        /// The first page.
        from: u32,
        /// The first page beyond; none: whatever the files' size.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<u32>,
    },
    /// Those with keys behind one, up to another.
    Keys {
        /// Not itself in; none: from the first key on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Key>,
        /// The last key; none: all that follow.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<Key>,
    },
    /// Those with these keys.
    Rows {
        /// At least one.
        keys: Vec<Key>,
    },
}

impl Range {
    /// All rows, by place.
    pub const ALL_PAGES: Self = Self::Pages { from: 0, to: None };
    /// All rows, by key.
    pub const ALL_KEYS: Self = Self::Keys { after: None, to: None };

    /// SQL that holds for these rows of a table with that key; none when it holds for all.
    pub fn condition(&self, key: &[String]) -> Option<String> {
        let conditions: Vec<String> = match self {
            Self::Pages { from, to } => {
                let from = (*from > 0).then(|| format!("ctid >= '({from},0)'"));
                from.into_iter().chain(to.map(|to| format!("ctid < '({to},0)'"))).collect()
            }
            Self::Keys { after, to } => {
                let after = after.as_ref().map(|after| format!("{} > {}", columns(key), literals(after)));
                let to = to.as_ref().map(|to| format!("{} <= {}", columns(key), literals(to)));
                after.into_iter().chain(to).collect()
            }
            Self::Rows { keys } => {
                let keys: Vec<String> = keys.iter().map(|key| literals(key)).collect();
                vec![format!("{} IN ({})", columns(key), keys.join(", "))]
            }
        };
        (!conditions.is_empty()).then(|| conditions.join(" AND "))
    }

    /// Takes so many pages off the front where the files have `pages`; none: it is all one.
    pub fn take_pages(&mut self, count: u32, pages: u32) -> Option<Self> {
        let Self::Pages { from, to } = self else { return None };
        let middle = from.checked_add(count.max(1)).filter(|middle| *middle < to.unwrap_or(pages))?;
        let first = Self::Pages { from: *from, to: Some(middle) };
        *from = middle;
        Some(first)
    }

    /// Takes off the front what goes up to a key within.
    pub fn take_keys(&mut self, last: Key) -> Option<Self> {
        let Self::Keys { after, .. } = self else { return None };
        let first = Self::Keys { after: after.replace(last.clone()), to: Some(last) };
        Some(first)
    }
}

/// SQL for a key's columns as a row.
fn columns(key: &[String]) -> String {
    let columns: Vec<String> = key.iter().map(|name| quote_ident(name)).collect();
    row(&columns)
}

fn literals(key: &[String]) -> String {
    let literals: Vec<String> = key.iter().map(|value| quote_literal(value)).collect();
    row(&literals)
}

/// Of one column it is a plain comparison.
fn row(values: &[String]) -> String {
    format!("({})", values.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[&str]) -> Key {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn pieces_of_pages_follow_one_another_and_the_last_is_open() {
        let (mut left, mut taken) = (Range::ALL_PAGES, Vec::new());
        while let Some(first) = left.take_pages(4, 10) {
            taken.extend(first.condition(&[]));
        }
        taken.extend(left.condition(&[]));
        assert_eq!(
            taken,
            ["ctid < '(4,0)'", "ctid >= '(4,0)' AND ctid < '(8,0)'", "ctid >= '(8,0)'"],
            "rows that came behind the end since are none of the snapshot's, and do no harm"
        );
        let mut empty = Range::ALL_PAGES;
        assert_eq!(empty.take_pages(4, 0), None, "an empty table is one piece");
        let mut bounded = Range::Pages { from: 8, to: Some(12) };
        assert_eq!(bounded.take_pages(4, 1000), None, "no more than is left");
        assert!(bounded.take_pages(3, 1000).is_some());
    }

    #[test]
    fn pieces_of_keys_have_each_key_once() {
        let names = key(&["a", "b"]);
        let mut left = Range::ALL_KEYS;
        assert_eq!(left.condition(&names), None, "all rows");
        let first = left.take_keys(key(&["1", "it's"])).unwrap();
        assert_eq!(first.condition(&names).unwrap(), "(\"a\", \"b\") <= ('1', 'it''s')");
        let second = left.take_keys(key(&["2", "x"])).unwrap();
        assert_eq!(
            second.condition(&names).unwrap(),
            "(\"a\", \"b\") > ('1', 'it''s') AND (\"a\", \"b\") <= ('2', 'x')"
        );
        assert_eq!(left.condition(&names).unwrap(), "(\"a\", \"b\") > ('2', 'x')");
        let rows = Range::Rows { keys: vec![key(&["1"]), key(&["2"])] };
        assert_eq!(rows.condition(&key(&["a"])).unwrap(), "(\"a\") IN (('1'), ('2'))");
    }

    #[test]
    fn what_is_left_reads_back_from_the_state() {
        for range in [
            Range::ALL_PAGES,
            Range::ALL_KEYS,
            Range::Pages { from: 3, to: Some(9) },
            Range::Keys { after: Some(key(&["\u{7}\t'"])), to: None },
            Range::Rows { keys: vec![key(&["1", ""])] },
        ] {
            let text = serde_json::to_string(&range).unwrap();
            assert_eq!(serde_json::from_str::<Range>(&text).unwrap(), range, "{text}");
        }
    }
}
