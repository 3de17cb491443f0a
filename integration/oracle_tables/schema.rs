//! Changes of a table's shape while it is captured.

use rand::seq::IndexedRandom;

use super::tables::{literal, quoted};
use super::traffic::Seed;
use super::types::{TYPES, Values};

/// A kind of change. `ORACLE_SCHEMA_CHANGES` names those which a run has, by comma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaChange {
    /// `add`: a column, null in the rows that are there.
    Add,
    /// `add_default`: a column with a constant default, which the rows that are there have from then on.
    AddDefault,
    /// `drop`: a column.
    Drop,
    /// `rename`: a column; then its rows are written again, since downstream it is a new one.
    Rename,
    /// `widen`: a type that holds all that the one before did.
    Widen,
    /// `label`: of an enum.
    Label,
}

/// All of them, with their names.
const ALL: &[(&str, SchemaChange)] = &[
    ("add", SchemaChange::Add),
    ("add_default", SchemaChange::AddDefault),
    ("drop", SchemaChange::Drop),
    ("rename", SchemaChange::Rename),
    ("widen", SchemaChange::Widen),
    ("label", SchemaChange::Label),
];

const WIDENINGS: &[(&str, &str)] = &[
    ("smallint", "integer"),
    ("integer", "bigint"),
    ("varchar(20)", "text"),
    ("numeric(12,3)", "numeric(20,3)"),
];

impl SchemaChange {
    /// Those which a run has.
    pub fn chosen() -> Vec<Self> {
        let Ok(names) = std::env::var("ORACLE_SCHEMA_CHANGES") else {
            return ALL.iter().map(|(_, change)| *change).collect();
        };
        let find = |name: &str| ALL.iter().find(|(known, _)| *known == name).map(|(_, change)| *change);
        let names = names.split(',').filter(|name| !name.is_empty());
        names
            .map(|name| find(name).unwrap_or_else(|| panic!("ORACLE_SCHEMA_CHANGES: unknown change {name}")))
            .collect()
    }

    /// SQL of such a change to a table, which is then thought of as changed; none where there is nothing to change.
    pub fn apply(self, seed: &mut Seed, at: usize) -> Option<String> {
        let table = seed.tables[at].quoted();
        Some(match self {
            Self::Add => {
                let name = seed.tables[at].new_name(&mut seed.random);
                let column = seed.tables[at].add(name, *TYPES.choose(&mut seed.random)?);
                format!("ALTER TABLE {table} ADD COLUMN {} {}", quoted(&column.name), column.sql)
            }
            Self::AddDefault => {
                let name = seed.tables[at].new_name(&mut seed.random);
                let of = *TYPES.choose(&mut seed.random)?;
                let default = literal(&of.values.pick(&mut seed.random));
                let column = seed.tables[at].add(name, of);
                format!(
                    "ALTER TABLE {table} ADD COLUMN {} {} DEFAULT {default}",
                    quoted(&column.name),
                    column.sql
                )
            }
            Self::Drop => {
                let place = seed.loose(at, true)?;
                let column = seed.tables[at].columns.remove(place);
                format!("ALTER TABLE {table} DROP COLUMN {}", quoted(&column.name))
            }
            Self::Rename => {
                let place = seed.loose(at, false)?;
                let new = seed.tables[at].new_name(&mut seed.random);
                let columns = &mut seed.tables[at].columns;
                let mut column = columns[place].clone();
                let old = std::mem::replace(&mut column.name, new.clone());
                columns[place] = column.clone();
                seed.tables[at].kinds.insert(new.clone(), (column.of.kind, column.sql));
                let (old, new) = (quoted(&old), quoted(&new));
                format!("ALTER TABLE {table} RENAME {old} TO {new}; UPDATE {table} SET {new} = {new}")
            }
            Self::Widen => {
                let place = seed.loose(at, false)?;
                let column = &mut seed.tables[at].columns[place];
                let (_, wider) = WIDENINGS.iter().find(|(from, _)| *from == column.sql)?;
                column.of = *TYPES.iter().find(|of| of.sql == *wider).unwrap_or(&column.of);
                (*wider).clone_into(&mut column.sql);
                let (name, kind) = (column.name.clone(), column.of.kind);
                seed.tables[at].kinds.insert(name.clone(), (kind, (*wider).to_owned()));
                format!("ALTER TABLE {table} ALTER COLUMN {} TYPE {wider}", quoted(&name))
            }
            Self::Label => {
                // Two sessions at once would wait for each other.
                if at > 0 {
                    return None;
                }
                seed.labels += 1;
                let label: &'static str = Box::leak(format!("label {}", seed.labels).into_boxed_str());
                for column in &mut seed.tables[at].columns {
                    if column.of.sql == "{s}.mood" {
                        let labels: Vec<&'static str> = vec!["sad", "ok", label];
                        column.of.values = Values::Of(Box::leak(labels.into_boxed_slice()));
                    }
                }
                format!("ALTER TYPE {}.mood ADD VALUE '{label}' BEFORE 'ok'", seed.schema)
            }
        })
    }
}
