//! Which tables are carried.

use globset::{Glob, GlobMatcher};

use super::retention::{RetentionConfig, RetentionRule};
use super::tail::HistoricTailConfig;
use crate::change::TableName;

/// A pattern on `schema.table`: a glob on each side of the first dot.
#[derive(Clone, Debug)]
pub struct TableGlob {
    text: String,
    schema: GlobMatcher,
    table: GlobMatcher,
}

impl PartialEq for TableGlob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl TableGlob {
    /// Reads `schema.table`, with wildcards in either.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "a pattern on schema.table, such as \"public.*\" or \"sales.order_{head,line}\"";
        let (schema, table) = text.split_once('.').ok_or(EXPECTED)?;
        if schema.is_empty() || table.is_empty() {
            return Err(EXPECTED.to_owned());
        }
        let glob = |part: &str| match Glob::new(part) {
            Ok(glob) => Ok(glob.compile_matcher()),
            Err(error) => Err(format!("{EXPECTED} ({})", error.kind())),
        };
        Ok(Self { text: text.to_owned(), schema: glob(schema)?, table: glob(table)? })
    }

    /// Whether the table is one of those meant.
    pub fn is_match(&self, table: &TableName) -> bool {
        self.schema.is_match(&table.schema) && self.table.is_match(&table.table)
    }
}

/// Which tables are carried: those that match `tables` and not `exclude`, unless a `[[table]]` says otherwise,
/// the last that matches. Postgres's own schemas (`pg_*`, `information_schema`) never are.
#[derive(Clone, Debug, PartialEq)]
pub struct TableFilter {
    pub(super) tables: Vec<TableGlob>,
    pub(super) exclude: Vec<TableGlob>,
    pub(super) rules: Vec<TableRule>,
}

/// A `[[table]]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TableRule {
    pub(super) glob: TableGlob,
    pub(super) exclude: bool,
    /// SQL condition for rows that a copy takes; none: all.
    pub(super) backfill_where: Option<String>,
    pub(super) retention: RetentionRule,
    pub(super) historic_tail: Option<HistoricTailConfig>,
}

/// The condition of a table that is never copied.
pub const NEVER_COPIED: &str = "false";

impl TableFilter {
    /// Whether a table is carried.
    pub fn takes(&self, table: &TableName) -> bool {
        if table.schema.starts_with("pg_") || table.schema == "information_schema" {
            return false;
        }
        let any = |globs: &[TableGlob]| globs.iter().any(|glob| glob.is_match(table));
        let excluded = self.rule(table).map_or_else(|| any(&self.exclude), |rule| rule.exclude);
        any(&self.tables) && !excluded
    }

    fn rule(&self, table: &TableName) -> Option<&TableRule> {
        self.rules.iter().rev().find(|rule| rule.glob.is_match(table))
    }

    /// SQL condition for the rows of a table that a copy takes; none: all. [`NEVER_COPIED`] takes none.
    pub fn backfill_where(&self, table: &TableName) -> Option<&str> {
        self.rule(table)?.backfill_where.as_deref()
    }

    /// Which of a table's published days are kept; `general` is `[lake.retention]`.
    pub fn retention(&self, table: &TableName, general: RetentionConfig) -> RetentionConfig {
        self.rule(table).map_or(general, |rule| rule.retention.or(general))
    }

    /// What of a table is published weekly; none: every day is whole.
    pub fn historic_tail(&self, table: &TableName) -> Option<HistoricTailConfig> {
        self.rule(table)?.historic_tail
    }

    /// Whether every table is carried, so that a publication `FOR ALL TABLES` fits.
    pub fn takes_all(&self) -> bool {
        self.tables.iter().any(|glob| glob.text == "*.*")
            && self.exclude.is_empty()
            && self.rules.iter().all(|rule| !rule.exclude)
    }
}
