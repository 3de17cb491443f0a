//! Requests for copies: which tables are meant, and whether they can be copied.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::change::{LogEnd, TableName};
use crate::config::{NEVER_COPIED, TableGlob};
use crate::envelope::routing;
use crate::ops::{Accepted, BackfillOf};
use crate::postgres::catalog;
use crate::postgres::wire::Client;
use crate::runtime::{Error, Result};

use super::super::appender::Appender;
use super::super::state::BackfillState;
use super::super::tables::Tables;
use super::asked::{Backfills, show_pause};
use super::needed::Reason;

impl Backfills {
    /// Takes a request in: sets state with the next append, after which it may be answered. Errors name every table
    /// that cannot be copied, and then nothing is asked for.
    pub async fn ask(
        &mut self,
        of: &BackfillOf,
        sql: &mut Client,
        tables: &mut Tables,
        appender: &mut Appender,
    ) -> Result<Accepted> {
        let mut accepted = Accepted::default();
        for table in self.chosen(of, sql, tables).await? {
            let topic: Arc<str> = routing::topic_name(&self.settings.name, &table).into();
            let after = of.after();
            let covered = |from: &[LogEnd]| after.iter().all(|lost| covers(from, *lost));
            let state = self.states.get(&topic);
            let known = state.is_some_and(|state| {
                state.wanted && state.progress.as_ref().is_none_or(|progress| covered(&progress.from))
            });
            // Delivery does not know yet of a copy which no cut has told of, or only one that it has not read.
            let news = match of {
                BackfillOf::Table { known, .. } => self.copied_since(&topic, *known),
                BackfillOf::Matching(_) => None,
            };
            if known || news.is_some_and(|copy| covered(&copy.from)) {
                accepted.already.push(table);
                continue;
            }
            if matches!(of, BackfillOf::Table { .. }) && self.is_never_copied(&table) {
                // Delivery would have it begun anew, with later changes alone: that is for its owner to say.
                let reason = Reason::Gap("delivery lacks changes of it, or a day".to_owned());
                self.left_to_its_owner(&reason, &table, &topic, appender);
                accepted.already.push(table);
                continue;
            }
            // What was read of it counts from among what is lost.
            self.leave(&topic);
            let state =
                self.states.entry(Arc::clone(&topic)).or_insert_with(|| BackfillState::new(table.clone()));
            state.wanted = true;
            appender.set(state.entry(&topic));
            tracing::info!(%table, "a new copy of the table is asked for");
            if let Some(known) = tables.by_name(&table) {
                known.watch.backfill_waits(0, 0);
            }
            accepted.asked.push(table);
        }
        Ok(accepted)
    }

    /// Holds up the copies of tables, or lets them go on: sets state with the next append, after which it may be answered.
    /// Errors name every pattern without a copy that is not whole, and then nothing is done.
    pub fn hold(&mut self, patterns: &[String], pause: bool, appender: &mut Appender) -> Result<Accepted> {
        let mut topics = BTreeSet::new();
        let mut without = Vec::new();
        for pattern in patterns {
            let glob = TableGlob::parse(pattern)
                .map_err(|expected| Error::usage(format!("{pattern:?}: expected {expected}")))?;
            let meant = self.states.iter().filter(|(_, state)| state.wanted && glob.is_match(&state.table));
            let before = topics.len();
            let found: Vec<_> = meant.map(|(topic, _)| Arc::clone(topic)).collect();
            topics.extend(found.iter().cloned());
            if topics.len() == before && found.is_empty() {
                without.push(pattern.as_str());
            }
        }
        if !without.is_empty() {
            return Err(Error::operator(format!("no copy is on its way of {}", without.join(", "))).mend(
                "Nothing was changed. `tidemark status` shows the copies; `tidemark backfill` asks for one.",
            ));
        }
        let mut accepted = Accepted::default();
        for topic in topics {
            if pause {
                self.leave_out(&topic);
            }
            let Some(state) = self.states.get_mut(&topic) else { continue };
            if state.paused == pause {
                accepted.already.push(state.table.clone());
                continue;
            }
            state.paused = pause;
            tracing::info!(table = %state.table, pause, "the copy of the table is held up, or goes on");
            appender.set(state.entry(&topic));
            if pause {
                show_pause(&self.ops, state);
            } else {
                self.ops.table(&state.table).backfill_resumed();
            }
            accepted.asked.push(state.table.clone());
        }
        Ok(accepted)
    }

    /// The tables that are meant.
    async fn chosen(&self, of: &BackfillOf, sql: &mut Client, tables: &Tables) -> Result<Vec<TableName>> {
        let published = catalog::published_tables(sql, &self.settings.publication).await?;
        let mut published: Vec<TableName> = published.into_iter().map(|(_, name)| name).collect();
        published.retain(|name| tables.wants(name));
        let mut chosen = Vec::new();
        let mut problems = Vec::new();
        match of {
            BackfillOf::Table { table, .. } if published.contains(table) => chosen.push(table.clone()),
            BackfillOf::Table { table, .. } => {
                problems.push(self.why_not(&table.to_string(), sql, tables).await?);
            }
            BackfillOf::Matching(patterns) => {
                for pattern in patterns {
                    let glob = TableGlob::parse(pattern)
                        .map_err(|expected| Error::usage(format!("{pattern:?}: expected {expected}")))?;
                    let (found, never): (Vec<_>, Vec<_>) =
                        published.iter().filter(|name| glob.is_match(name)).cloned().partition(|name| {
                            !self.is_never_copied(name) || self.is_to_begin_anew(name, pattern)
                        });
                    if found.is_empty() {
                        problems.push(match never.first() {
                            Some(table) => format!("table {table} is not copied: [[table]] backfill = false"),
                            None => self.why_not(pattern, sql, tables).await?,
                        });
                    }
                    chosen.extend(found);
                }
            }
        }
        chosen.sort();
        chosen.dedup();
        chosen.iter().try_for_each(|table| tables.own_topic(table).map(drop))?;
        if problems.is_empty() {
            return Ok(chosen);
        }
        Err(Error::operator(problems.join("; ")).mend(
            "Nothing was asked for. `tidemark status` lists the tables; one that is to be captured has to be in the \
             publication and among [source] tables.",
        ))
    }

    /// Of a table that is never copied: it is asked for by its name, and days lack it until then.
    fn is_to_begin_anew(&self, table: &TableName, pattern: &str) -> bool {
        let topic = routing::topic_name(&self.settings.name, table);
        table.to_string() == pattern && self.lacking(&topic).is_some()
    }

    /// A copy would leave the lake with nothing but later changes.
    pub fn is_never_copied(&self, table: &TableName) -> bool {
        (self.settings.copied_where)(table).as_deref() == Some(NEVER_COPIED)
    }

    async fn why_not(&self, pattern: &str, sql: &mut Client, tables: &Tables) -> Result<String> {
        let rows = sql
            .query(
                "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p')",
            )
            .await?;
        let exists = |glob: &TableGlob| {
            let name = |row: &crate::postgres::wire::Row| {
                TableName::new(row.get(0).unwrap_or_default(), row.get(1).unwrap_or_default())
            };
            rows.iter().map(name).find(|name| glob.is_match(name))
        };
        let (publication, database) = (&self.settings.publication, &self.settings.connect.database);
        Ok(match TableGlob::parse(pattern).ok().and_then(|glob| exists(&glob)) {
            None => format!("no table {pattern} in database {database}"),
            Some(table) if !tables.wants(&table) => {
                format!("table {table} is left out by [source] tables, exclude or a [[table]]")
            }
            Some(table) => format!("table {table} is not in the publication {publication}"),
        })
    }
}

fn covers(from: &[LogEnd], lost: LogEnd) -> bool {
    from.iter().any(|known| known.partition == lost.partition && known.end >= lost.end)
}
