//! The versions of a table's shape, and what rows written under an older one hold in the columns of a newer.
//!
//! ```text
//!   version 1   a, b         rows written under it:   a = their a, b = their b, c = their b, d = 'x'
//!   version 2   a, b†, c     c was renamed from b
//!   version 3   a, b†, c, d  d was added, with the constant 'x' in the rows there were
//! ```
//!
//! The newest shape alone says it, column by column, in terms of the cells of those rows as they were written
//! ([`Existing`](crate::change::Existing)). So it does not matter which days were made in between: a snapshot's rows
//! are rows of the version that its manifest names. Only the type in which a constant was told is looked up in the
//! version that brought it, since the column may have been widened since.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::batch::{Origin, name_at_rest};
use crate::change::{Column, ColumnType, Datum, Holds, SchemaVersion, TableSchema};
use crate::runtime::{Error, Result};

/// Reads a value of a type from Postgres's text; or says why it is none.
pub type ReadText = Arc<dyn Fn(&ColumnType, &str) -> Result<Datum<'static>, String> + Send + Sync>;

/// The shape of a table at some point, with all before it.
#[derive(Clone)]
pub struct Shapes {
    versions: BTreeMap<SchemaVersion, Arc<TableSchema>>,
    now: Arc<TableSchema>,
    read_text: ReadText,
}

impl fmt::Debug for Shapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shapes").field("now", &self.now).finish_non_exhaustive()
    }
}

impl Shapes {
    /// The table as of the version of `now`; `versions` may hold later ones, too. `read_text` reads the constants
    /// which rows have in columns that came after them.
    pub fn new(
        now: Arc<TableSchema>,
        versions: impl IntoIterator<Item = Arc<TableSchema>>,
        read_text: ReadText,
    ) -> Self {
        let versions = versions.into_iter().map(|schema| (schema.version, schema)).collect();
        Self { versions, now, read_text }
    }

    /// The table as of another version.
    pub(super) fn at(&self, now: Arc<TableSchema>) -> Self {
        Self { now, ..self.clone() }
    }

    /// The shape at that point.
    pub const fn now(&self) -> &Arc<TableSchema> {
        &self.now
    }

    /// Takes in a version, if it is new.
    pub(super) fn know(&mut self, schema: &Arc<TableSchema>) {
        self.versions.entry(schema.version).or_insert_with(|| Arc::clone(schema));
    }

    /// A version of the table, if it is known.
    pub(super) fn version(&self, version: SchemaVersion) -> Option<&Arc<TableSchema>> {
        self.versions.get(&version)
    }

    /// Whether rows of the version `from` can stand in a file beside those of `to`, a later one: as rows of that, with
    /// nothing lost of them. Their key has to have the same names, too, by which an old key is told.
    pub(super) fn carries(&self, from: SchemaVersion, to: &Arc<TableSchema>) -> bool {
        let names = |schema: &TableSchema| -> Vec<String> {
            schema.key_columns().map(|column| column.name.clone()).collect()
        };
        if from >= to.version {
            return false;
        }
        let since: Vec<_> = self.versions.range(from..to.version).map(|(_, schema)| schema).collect();
        since.len() as u32 == to.version.0.saturating_sub(from.0)
            && since.iter().all(|schema| schema.oid == to.oid && names(schema) == names(to))
            && self.at(Arc::clone(to)).readable_since(from).is_ok()
    }

    /// What rows of a version hold in each column of the shape.
    pub(super) fn origins(&self, version: SchemaVersion) -> Result<Vec<Origin>> {
        self.now.columns.iter().map(|column| self.origin(column, version)).collect()
    }

    fn origin(&self, column: &Column, version: SchemaVersion) -> Result<Origin> {
        match column.in_rows_of(version) {
            Holds::Null => Ok(Origin::Null),
            Holds::Column(name) => {
                let name = name_at_rest(&name).into_owned();
                Ok(Origin::Column { name, types: self.types(column, version) })
            }
            Holds::Value(text) => {
                // It is told in the type which the column had when it came.
                let told = column.existing.iter().find(|existing| version < existing.below);
                let types = self.types(column, told.map_or(version, |told| told.below));
                let first = types.first().unwrap_or(&column.column_type);
                (self.read_text)(first, &text)
                    .and_then(|value| Origin::constant(&value, types))
                    .map_err(|reason| self.lost(column, &reason))
            }
        }
    }

    /// The types which a column has had since a version, each once. It may have been renamed since: its number is the
    /// same. One that is gone kept its type when it went, whatever became of its number.
    fn types(&self, column: &Column, since: SchemaVersion) -> Vec<ColumnType> {
        let is_gone = |schema: &&Arc<TableSchema>| {
            let here = schema.columns.iter().find(|other| other.name == column.name);
            here.is_some_and(|other| other.dropped && other.number == column.number)
        };
        let newest_first = self.versions.range(..=self.now.version).rev().map(|(_, schema)| schema);
        let went = newest_first.take_while(is_gone).last().map_or(self.now.version, |schema| schema.version);
        let same = |other: &&Column| match column.number {
            0 => other.name == column.name,
            number => other.number == number && !other.dropped,
        };
        // A table that was there before under this name had other columns, and its rows are gone.
        let versions = self.versions.range(since.min(went)..went).map(|(_, schema)| schema);
        let mut types: Vec<ColumnType> = versions
            .filter(|schema| schema.oid == self.now.oid)
            .filter_map(|schema| schema.columns.iter().find(same))
            .chain([column])
            .map(|column| column.column_type.clone())
            .collect();
        types.dedup();
        types
    }

    fn lost(&self, column: &Column, reason: &str) -> Error {
        let table = &self.now.name;
        Error::operator(format!(
            "rows of {table} from before column {:?} hold a default in it that cannot be kept: {reason}",
            column.name
        ))
        .mend(format!("`tidemark backfill {table}` copies the table again, with the values it has."))
    }

    /// Refuses a table of which a row written under a version since `from` cannot be read in this shape: since its key
    /// was another one (apart from its columns' names), so that changes made under the one cannot be matched with rows
    /// held under the other; or since it holds a default which cannot be kept. `Operator`: it stays so, and only a copy
    /// of the table made under this shape can stand for those rows.
    pub fn readable_since(&self, from: SchemaVersion) -> Result<()> {
        let versions = self.versions.range(from.min(self.now.version)..self.now.version);
        for (version, schema) in versions.filter(|(_, schema)| schema.oid == self.now.oid) {
            let origins = self.origins(*version)?;
            let key = self.now.key.iter().map(|index| match &origins[*index] {
                Origin::Column { name, .. } => Some(name.as_str().into()),
                Origin::Null | Origin::Constant { .. } => None,
            });
            if !key.eq(schema.key_columns().map(|column| Some(name_at_rest(&column.name)))) {
                return Err(self.other_key(schema));
            }
        }
        Ok(())
    }

    fn other_key(&self, before: &TableSchema) -> Error {
        let key = |schema: &TableSchema| {
            let names: Vec<_> = schema.key_columns().map(|column| column.name.as_str()).collect();
            if names.is_empty() { "none".to_owned() } else { format!("({})", names.join(", ")) }
        };
        let (now, table) = (&self.now, &self.now.name);
        Error::operator(format!(
            "the key of {table} changed between versions {} and {}, from {} to {}: changes of rows from before it cannot \
             be matched with those after",
            before.version.0,
            now.version.0,
            key(before),
            key(now),
        ))
        .mend(format!("`tidemark backfill {table}` copies the table again."))
    }
}
