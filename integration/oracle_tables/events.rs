//! What happens to a seed's tables while no transaction of its sessions is open.

use std::collections::BTreeMap;

use rand::Rng;
use rand::seq::IndexedRandom;
use tokio_postgres::Client;

use super::decoded::MARK;
use super::draw::{Draw, Published};
use super::tables::{Identity, Table, quoted};
use super::traffic::Seed;
use crate::support::Running;

/// A kind of event. `ORACLE_EVENTS` names those which a run has, by comma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// `cascade`: rows and a TRUNCATE go on to a table that refers to them.
    Cascade,
    /// `identity`: whole rows are logged from then on, or no more; without a key, nothing of them is.
    Identity,
    /// `recreate`: a table is dropped, and another one of its name made.
    Recreate,
    /// `swap`: two tables change their names.
    Swap,
    /// `partition`: one is detached, or attached again.
    Partition,
    /// `backfill`: a copy is asked for.
    Backfill,
}

/// All of them, with their names.
const ALL: &[(&str, Event)] = &[
    ("cascade", Event::Cascade),
    ("identity", Event::Identity),
    ("recreate", Event::Recreate),
    ("swap", Event::Swap),
    ("partition", Event::Partition),
    ("backfill", Event::Backfill),
];

/// The name that two tables change theirs by.
pub const BETWEEN: &str = "between";
/// Where the tables of [`Event::Cascade`] stand.
const HUB: usize = 2;
const SPOKE: usize = 3;

impl Event {
    /// Those which a run has.
    pub fn chosen(draw: Draw) -> Vec<Self> {
        let Ok(names) = std::env::var("ORACLE_EVENTS") else {
            // Without the triggers the catalog is asked, which may not have the former table any more: its key, under
            // FULL, and types of its own are nowhere else.
            let told = |event: &Self| draw.triggers || !matches!(event, Self::Recreate | Self::Swap);
            return ALL.iter().map(|(_, event)| *event).filter(told).collect();
        };
        let find = |name: &str| ALL.iter().find(|(known, _)| *known == name).map(|(_, event)| *event);
        let names = names.split(',').filter(|name| !name.is_empty());
        names
            .map(|name| find(name).unwrap_or_else(|| panic!("ORACLE_EVENTS: unknown event {name}")))
            .collect()
    }

    /// Lets it happen, where it can.
    pub async fn happen(self, seed: &mut Seed, sql: &Client, running: &Running) {
        let at = usize::from(seed.random.random_bool(0.5));
        let statements = match self {
            Self::Cascade => Some(cascade(seed)),
            Self::Identity => identity(seed, at),
            Self::Recreate => recreate(seed, at),
            Self::Swap => swap(seed),
            Self::Partition => partition(seed, at),
            Self::Backfill => {
                let table = format!("{}.{}", seed.schema, seed.tables[at].name);
                let asked = running.command(&["backfill", &table]);
                assert!(asked.status.success(), "{table}: {asked:?}");
                seed.done.push((seed.tables[at].name.clone(), format!("-- backfill {table}")));
                None
            }
        };
        if let Some(statements) = statements {
            seed.run(sql, "", format!("BEGIN; {statements}; COMMIT")).await.unwrap();
        }
    }
}

fn mark(table: &Table) -> String {
    let name = serde_json::json!([table.schema, table.name]).to_string().replace('\'', "''");
    format!("SELECT pg_logical_emit_message(true, '{MARK}', '{name}')")
}

fn cascade(seed: &mut Seed) -> String {
    let (hub, spoke) = (seed.tables[HUB].quoted(), seed.tables[SPOKE].quoted());
    let (one, other) = (seed.random.random_range(0..5), seed.random.random_range(10..15));
    match seed.random.random_range(0..4) {
        0 => format!("TRUNCATE {hub} CASCADE"),
        1 => format!("DELETE FROM {hub} WHERE id % 5 = {one}"),
        2 => format!("UPDATE {hub} SET id = id + 100 WHERE id % 5 = {one}"),
        _ => format!(
            "INSERT INTO {hub} VALUES ({one}), ({other}) ON CONFLICT DO NOTHING;
             INSERT INTO {spoke} SELECT i, {one} FROM generate_series({other}, {other} + 3) i ON CONFLICT DO NOTHING"
        ),
    }
}

fn identity(seed: &mut Seed, at: usize) -> Option<String> {
    let table = &mut seed.tables[at];
    table.identity = match table.identity {
        Identity::Primary if table.may_be_full() => Identity::PrimaryFull,
        Identity::PrimaryFull => Identity::Primary,
        Identity::Full => Identity::Nothing,
        _ => return None,
    };
    table.shapes.push(table.shape(false));
    if !seed.draw.triggers {
        table.may_lack = Some("what happened is not told");
    }
    Some(format!("{}; {}", mark(table), table.identity_sql()))
}

fn recreate(seed: &mut Seed, at: usize) -> Option<String> {
    if seed.draw.published != Published::All {
        return None;
    }
    let table = &mut seed.tables[at];
    let mut drop = format!("DROP TABLE {}", table.quoted());
    for (leaf, _) in &table.detached {
        drop = format!("{drop}; DROP TABLE {}", table.in_schema(leaf));
    }
    table.draw(&mut seed.random);
    table.may_lack = Some("it is another table");
    let make = format!("{drop}; {}; {}", mark(table), table.sql_alone(&mut seed.random));
    let insert = seed.insert(at, 1);
    Some(format!("{make} {insert}"))
}

fn swap(seed: &mut Seed) -> Option<String> {
    let [one, other, ..] = &mut seed.tables[..] else { return None };
    if seed.draw.published == Published::Filtered || !(one.leaves.is_empty() && other.leaves.is_empty()) {
        return None;
    }
    let (schema, between) = (quoted(&one.schema), quoted(BETWEEN));
    let rename = |from: &str, to: &str| format!("ALTER TABLE {schema}.{from} RENAME TO {to}");
    let names = [quoted(&one.name), quoted(&other.name)];
    let renamed = [rename(&names[0], &between), rename(&names[1], &names[0]), rename(&between, &names[1])];
    let statements = format!("{}; {}; {}", mark(one), mark(other), renamed.join("; "));
    std::mem::swap(&mut one.columns, &mut other.columns);
    std::mem::swap(&mut one.key, &mut other.key);
    std::mem::swap(&mut one.identity, &mut other.identity);
    one.kinds.extend(other.kinds.clone());
    other.kinds.clone_from(&one.kinds);
    one.generated.extend(other.generated.clone());
    other.generated.clone_from(&one.generated);
    for table in [one, other] {
        table.shapes.push(table.shape(true));
        table.may_lack = Some("it is another table");
    }
    Some(statements)
}

fn partition(seed: &mut Seed, at: usize) -> Option<String> {
    let table = &mut seed.tables[at];
    let leaf = table.partitions.choose(&mut seed.random)?.clone();
    let shape: BTreeMap<_, _> = table.columns.iter().map(|c| (c.name.clone(), c.sql.clone())).collect();
    if let Some((leaf, left)) = table.detached.pop() {
        if left != shape {
            // It is no partition for a table that has changed since.
            table.detached.push((leaf, left));
            return None;
        }
        table.may_lack = Some("rows came or went with a partition");
        return Some(table.attach_sql(&leaf));
    }
    table.may_lack = Some("rows came or went with a partition");
    let detach = format!("ALTER TABLE {} DETACH PARTITION {}", table.quoted(), table.in_schema(&leaf));
    table.detached.push((leaf, shape));
    Some(detach)
}
