//! Rows of a COPY become records, held in the log.

use std::sync::Arc;

use crate::change::{Op, TableSchema};
use crate::envelope::{RowChange, routing};
use crate::ops::Ops;
use crate::postgres::catalog;
use crate::postgres::copy::CopyText;
use crate::postgres::wire::{Client, CopyOut, quote_ident, sqlstate};
use crate::runtime::{Error, Result};

use super::super::appender::Appender;
use super::super::engine::{encode, recycle};
use super::super::registrar::Registrar;
use super::super::tables::Tables;
use super::super::told::Told;
use super::super::{CaptureSettings, append_held, write_schema_change};
use super::Wanted;
use super::point::ConsistentPoint;

/// The table is not there any more, or not with these columns.
const GONE: [&str; 2] = ["42P01", "42703"];

/// What came of a table.
pub enum Copied {
    /// Its rows are in the log, held.
    Whole,
    /// Nothing was written: it is not what it was at the point. The transaction has to be rolled back.
    Not,
    /// Nothing was written: it cannot be carried.
    Refused,
}

/// Copies tables.
pub struct Copy<'a> {
    pub tables: &'a mut Tables,
    /// Rows so far; also the ordinal of the last one.
    pub rows: u64,
    /// The server's time at the point, microseconds since 1970: rows have it as theirs.
    pub commit_us: i64,
    settings: &'a CaptureSettings,
    appender: &'a mut Appender,
    registrar: &'a Registrar,
    ops: &'a Ops,
    dead_letters: Arc<str>,
    text: CopyText,
}

impl<'a> Copy<'a> {
    pub fn new(
        settings: &'a CaptureSettings,
        tables: &'a mut Tables,
        appender: &'a mut Appender,
        registrar: &'a Registrar,
        ops: &'a Ops,
    ) -> Self {
        let dead_letters = routing::dead_letters_topic(&settings.name).into();
        let text = CopyText::default();
        Self { tables, rows: 0, commit_us: 0, settings, appender, registrar, ops, dead_letters, text }
    }

    /// Copies a table within the transaction that has begun under the point's snapshot.
    pub async fn table(
        &mut self,
        sql: &mut Client,
        point: &ConsistentPoint,
        wanted: &Wanted,
    ) -> Result<Copied> {
        if !lock_as_it_was(sql, wanted).await? {
            return Ok(Copied::Not);
        }
        let Some(whole) = catalog::load_whole_table(sql, wanted.oid).await? else { return Ok(Copied::Not) };
        let schema = wanted.published.shape(whole);
        if let Err(error) = self.tables.own_topic(&schema.name) {
            self.tables.isolate(&schema.name, &error);
            return Ok(Copied::Refused);
        }
        let Some(rows) = copy_out(sql, wanted, &schema).await? else { return Ok(Copied::Not) };
        let grown = self.tables.evolve(schema.clone(), point.position(self.rows), Told::default())?;
        self.registrar.register(self.tables, &schema.name).await?;
        if let Some(grown) = grown {
            write_schema_change(self.appender, &self.settings.name, &grown.change);
        }
        let columns = schema.columns.iter().map(|column| column.name.clone()).collect();
        self.tables.lay_out(&schema.name, columns);
        self.rows(rows, point, &schema).await?;
        Ok(Copied::Whole)
    }

    async fn rows(
        &mut self,
        mut rows: CopyOut<'_>,
        point: &ConsistentPoint,
        schema: &TableSchema,
    ) -> Result<()> {
        let name = &schema.name;
        let known = self
            .tables
            .by_name(name)
            .ok_or_else(|| Error::operator(format!("table {name} was not taken in before its copy")))?;
        let watch = self.ops.table(name);
        let (mut count, mut unreported, mut bytes) = (0_u64, 0_u64, 0_u64);
        let mut values = Vec::new();
        while let Some(row) = rows.next().await? {
            self.rows += 1;
            count += 1;
            unreported += 1;
            bytes += row.len() as u64;
            self.text.split(row, schema.columns.len()).map_err(|error| {
                Error::operator(format!("row {count} of COPY {name} cannot be read: {error}"))
            })?;
            let mut new = recycle(std::mem::take(&mut values));
            new.extend(self.text.values(row));
            let change = RowChange {
                op: Op::Read,
                position: point.position(self.rows),
                lsn: point.lsn,
                commit_us: self.commit_us,
                now_ms: self.commit_us / 1000,
                xid: None,
                snapshot: true,
                last_end_lsn: None,
                transaction: None,
                old: None,
                new: Some(&new),
            };
            encode(known, &change, self.appender, &self.dead_letters);
            values = recycle(new);
            if self.appender.is_full() {
                watch.backfilled(std::mem::take(&mut unreported), std::mem::take(&mut bytes));
                append_held(self.appender).await?;
            }
        }
        watch.backfilled(unreported, bytes);
        Ok(())
    }
}

/// Locks a table, within the transaction that has begun under a point's snapshot, so that it can be neither truncated
/// nor rewritten to its end; false when that has happened to it since the point.
pub(super) async fn lock_as_it_was(sql: &mut Client, wanted: &Wanted) -> Result<bool> {
    match sql.execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", wanted.name.quoted())).await {
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => wanted.storage.is_now(sql, wanted.oid).await,
    }
}

/// Begins to copy these columns of a table, and the rows that are published; none when it does not have them any more.
pub(super) async fn copy_out<'c>(
    sql: &'c mut Client,
    wanted: &Wanted,
    schema: &TableSchema,
) -> Result<Option<CopyOut<'c>>> {
    let table = wanted.name.quoted();
    let columns: Vec<String> = schema.columns.iter().map(|column| quote_ident(&column.name)).collect();
    // The query form also reads the partitions of a partitioned table; ONLY keeps to the table itself,
    // as replication does, where others inherit from it.
    let only = if wanted.storage.partitioned { "" } else { "ONLY " };
    // Rows for which it is null are not published, and not selected either.
    let filter =
        wanted.published.condition().map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
    let statement = format!("COPY (SELECT {} FROM {only}{table}{filter}) TO STDOUT", columns.join(", "));
    match sql.copy_out(&statement).await {
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(Error::retry(format!("copying {table}")).cause(error)),
        Ok(rows) => Ok(Some(rows)),
    }
}

fn is_gone(error: &Error) -> bool {
    sqlstate(error).is_some_and(|state| GONE.contains(&state))
}
