//! Changes of a table's shape while it is captured.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::draw::Draw;
use super::tables::{Identity, literal, quoted};
use super::traffic::Seed;
use super::types::{TYPES, Values};

/// A kind of change. `ORACLE_SCHEMA_CHANGES` names those which a run has, by comma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaChange {
    /// `add`: a column, null in the rows that are there.
    Add,
    /// `add_default`: a column with a constant default, which the rows that are there have from then on.
    AddDefault,
    /// `volatile`: a column with a default of its own for each row, which writes them all anew.
    Volatile,
    /// `drop`: a column.
    Drop,
    /// `rename`: a column; now and then its rows are written again.
    Rename,
    /// `widen`: a type that holds all that the one before did.
    Widen,
    /// `again`: a column is dropped, and one of its name and type added.
    Again,
    /// `rewrite`: the values of a column become others with its type.
    Rewrite,
    /// `label`: of an enum.
    Label,
}

/// All of them, with their names.
const ALL: &[(&str, SchemaChange)] = &[
    ("add", SchemaChange::Add),
    ("add_default", SchemaChange::AddDefault),
    ("volatile", SchemaChange::Volatile),
    ("drop", SchemaChange::Drop),
    ("rename", SchemaChange::Rename),
    ("widen", SchemaChange::Widen),
    ("again", SchemaChange::Again),
    ("rewrite", SchemaChange::Rewrite),
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
    pub fn chosen(draw: Draw) -> Vec<Self> {
        let Ok(names) = std::env::var("ORACLE_SCHEMA_CHANGES") else {
            // Rows that are written anew under the same type go unseen without the triggers, as `tidemark check` says.
            let told = |change: &Self| draw.triggers || *change != Self::Rewrite;
            return ALL.iter().map(|(_, change)| *change).filter(told).collect();
        };
        let find = |name: &str| ALL.iter().find(|(known, _)| *known == name).map(|(_, change)| *change);
        let names = names.split(',').filter(|name| !name.is_empty());
        names
            .map(|name| find(name).unwrap_or_else(|| panic!("ORACLE_SCHEMA_CHANGES: unknown change {name}")))
            .collect()
    }

    /// How often it is drawn: what is followed by a copy takes the longest.
    pub const fn weight(self) -> u32 {
        if matches!(self, Self::Volatile | Self::Again | Self::Rewrite) { 1 } else { 3 }
    }

    /// SQL of such a change to a table, which is then thought of as changed; none where there is nothing to change.
    pub fn apply(self, seed: &mut Seed, at: usize) -> Option<String> {
        let table = seed.tables[at].quoted();
        if seed.tables[at].listed.is_some() && !matches!(self, Self::Add | Self::AddDefault | Self::Label) {
            // The publication holds on to its columns.
            return None;
        }
        let change = self.change(seed, at, &table)?;
        let why = match self {
            Self::Volatile | Self::Again | Self::Rewrite => Some("rows were written without events"),
            Self::Widen if !seed.tables[at].leaves.is_empty() => Some("partitions were rewritten"),
            _ if !seed.draw.triggers => Some("what happened is not told"),
            _ => None,
        };
        seed.tables[at].may_lack = why.or(seed.tables[at].may_lack);
        Some(change)
    }

    fn change(self, seed: &mut Seed, at: usize, table: &str) -> Option<String> {
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
            Self::Volatile => {
                let name = seed.tables[at].new_name(&mut seed.random);
                let uuid = *TYPES.iter().find(|of| of.sql == "uuid")?;
                let column = seed.tables[at].add(name, uuid);
                format!(
                    "ALTER TABLE {table} ADD COLUMN {} uuid DEFAULT gen_random_uuid()",
                    quoted(&column.name)
                )
            }
            Self::Again => {
                let place = seed.loose(at, false)?;
                // It stands at the end from then on.
                let column = seed.tables[at].columns.remove(place);
                let (name, sql) = (quoted(&column.name), column.sql.clone());
                seed.tables[at].columns.push(column);
                format!("ALTER TABLE {table} DROP COLUMN {name}; ALTER TABLE {table} ADD COLUMN {name} {sql}")
            }
            Self::Rewrite => {
                let place = seed.loose(at, false)?;
                let column = &seed.tables[at].columns[place];
                let (name, sql) = (quoted(&column.name), &column.sql);
                format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {sql} USING NULL::{sql}")
            }
            Self::Drop => {
                let place = seed.loose(at, true)?;
                if seed.tables[at].written().count() == 1 {
                    return None;
                }
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
                let rename = format!("ALTER TABLE {table} RENAME {old} TO {new}");
                if seed.tables[at].identity == Identity::Nothing || seed.random.random_bool(0.5) {
                    return Some(rename);
                }
                format!("{rename}; UPDATE {table} SET {new} = {new}")
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
