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

use crate::batch::Origin;
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

    /// The shape at that point.
    pub const fn now(&self) -> &Arc<TableSchema> {
        &self.now
    }

    /// What rows of a version hold in each column of the shape.
    pub(super) fn origins(&self, version: SchemaVersion) -> Result<Vec<Origin>> {
        self.now.columns.iter().map(|column| self.origin(column, version)).collect()
    }

    fn origin(&self, column: &Column, version: SchemaVersion) -> Result<Origin> {
        match column.in_rows_of(version) {
            Holds::Null => Ok(Origin::Null),
            Holds::Column(name) => Ok(Origin::Column(name)),
            Holds::Value(text) => {
                let column_type = self.type_of_constant(column, version);
                (self.read_text)(column_type, &text)
                    .and_then(|value| Origin::constant(column_type, &value))
                    .map_err(|reason| self.lost(column, &reason))
            }
        }
    }

    /// The type which a column had when it came with the constant that rows of a version hold in it.
    fn type_of_constant<'a>(&'a self, column: &'a Column, version: SchemaVersion) -> &'a ColumnType {
        let told = column.existing.iter().find(|existing| version < existing.below);
        let came = told.and_then(|told| {
            let columns = &self.versions.get(&told.below)?.columns;
            // Renamed since, perhaps: its number is the same.
            let same = |other: &&Column| match column.number {
                0 => other.name == column.name,
                number => other.number == number,
            };
            columns.iter().filter(same).find(|other| other.existing.last() == Some(told))
        });
        &came.unwrap_or(column).column_type
    }

    fn lost(&self, column: &Column, reason: &str) -> Error {
        let table = &self.now.name;
        Error::operator(format!(
            "rows of {table} from before column {:?} hold a default in it that cannot be kept: {reason}",
            column.name
        ))
        .mend(format!("`tidemark backfill {table}` copies the table again, with the values it has."))
    }

    /// Refuses a table whose key is another one now than under a version since `from`, apart from its columns' names:
    /// changes made under the one cannot be matched with rows held under the other.
    pub fn same_key(&self, from: SchemaVersion) -> Result<()> {
        for (version, schema) in self.versions.range(from..self.now.version) {
            let origins = self.origins(*version)?;
            let key = self.now.key.iter().map(|index| &origins[*index]);
            let same = key.eq(schema
                .key_columns()
                .map(|c| Origin::Column(c.name.clone()))
                .collect::<Vec<_>>()
                .iter());
            if !same {
                let names = |schema: &TableSchema| {
                    schema.key_columns().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ")
                };
                return Err(Error::operator(format!(
                    "the key of {} changed from ({}) to ({}) between versions {} and {}: the days before and after it cannot be merged",
                    self.now.name,
                    names(schema),
                    names(&self.now),
                    version.0,
                    self.now.version.0
                ))
                .mend(
                    "Exclude the table, or begin it anew: move the log and this source's folders in the lake aside \
                     and start again.",
                ));
            }
        }
        Ok(())
    }
}
