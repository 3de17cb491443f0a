//! What a sight means for the tables: a copy, a state, or nothing.

use std::collections::HashMap;
use std::sync::Arc;

use crate::change::{Lsn, TableName};
use crate::postgres::published::Sight;
use crate::runtime::Result;

use super::super::appender::Appender;
use super::super::backfill::{Absence, Backfills, Reason};
use super::super::source::Source;
use super::super::tables::{Table, Tables};
use super::{Publication, Standing};

impl Publication {
    /// Compares the tables with a sight that the stream has passed: asks for copies of those which need one, tells those
    /// that are not captured any more, and notes the others. True: state goes with the next append.
    pub async fn compare(
        &mut self,
        sight: &Sight,
        tables: &mut Tables,
        backfills: &mut Backfills,
        source: &mut Source,
        appender: &mut Appender,
    ) -> Result<bool> {
        let mut news = false;
        for (name, now) in sight.tables.iter().filter(|(name, _)| tables.wants(name)) {
            let topic = match tables.own_topic(name) {
                Ok(topic) => topic,
                Err(error) => {
                    // Told also when nothing of it comes.
                    tables.isolate(name, &error);
                    continue;
                }
            };
            let known = tables.of_topic(&topic);
            if backfills.is_wanted(&topic) || known.is_some_and(|table| self.is_too_new(table, sight)) {
                continue;
            }
            let reason = match (backfills.absence(&topic), self.known.get(&topic)) {
                (Some(absence), _) => Some(Reason::Returned(absence.reason().to_owned())),
                (None, Some(standing)) => {
                    standing.lost(now, known.map_or(&[][..], |table| &table.truncated_by))
                }
                // Known by its changes alone, and nothing is missing of it.
                (None, None) if known.is_some() => None,
                (None, None) => Some(Reason::Added),
            };
            let gone = || self.leaves.gone(&topic, now, sight.complete_to).map(Reason::Detached);
            // Its copy was given up while it was not published for a moment, which no sight has seen.
            let returned = || {
                let lacks = backfills.lacking(&topic).is_some() && !backfills.is_never_copied(name);
                lacks.then(|| Reason::Returned(Absence::Unpublished.reason().to_owned()))
            };
            let reason = reason.or_else(gone).or_else(returned);
            match reason {
                Some(reason) => news |= backfills.needed(&reason, name, sight.pass, appender),
                None => {
                    let standing = self.known.get(&topic).map(|standing| standing.later(now));
                    let noted = self.note(&topic, standing.unwrap_or_else(|| Standing::from(now)));
                    let accounted = self.accounted(&topic, sight.complete_to);
                    for entry in noted.into_iter().chain(accounted) {
                        appender.set(entry);
                        news = true;
                    }
                }
            }
        }
        for (name, absence) in self.absent(sight, tables, source).await? {
            news |= backfills.absent(absence, &name, appender);
        }
        Ok(news)
    }

    /// Whether the stream has made a table, or a copy read it, that the sight may not have seen, or saw otherwise: a later sight
    /// tells of it.
    fn is_too_new(&mut self, table: &Table, sight: &Sight) -> bool {
        let known_at = table.made_at().max(self.copied.get(&table.topic).copied());
        let after = known_at.filter(|known_at| *known_at >= sight.complete_to);
        self.untold = self.untold.max(after);
        after.is_some()
    }

    /// Tables that are captured no more.
    async fn absent(
        &mut self,
        sight: &Sight,
        tables: &Tables,
        source: &mut Source,
    ) -> Result<Vec<(TableName, Absence)>> {
        let mut absent = Vec::new();
        for table @ Table { schema, .. } in tables.iter().filter(|table| !table.schema.dropped) {
            let absence = if !tables.wants(&schema.name) {
                Absence::Excluded
            } else if sight.tables.contains_key(&schema.name) || self.is_too_new(table, sight) {
                continue;
            } else if source.name_of(schema.oid).await?.as_ref() == Some(&schema.name) {
                Absence::Unpublished
            } else {
                Absence::Dropped
            };
            absent.push((schema.name.clone(), absence));
        }
        Ok(absent)
    }

    /// Why tables are not in the day that a cut ends, by topic. `open` is the transaction that comes next, if one is open:
    /// what it did is not below the cut. Looks at the source unless that has been done since.
    ///
    /// What a day lacks the next ones lack, too, until there is a copy. So one is asked for here, with the next append, which
    /// has to be durable before the cut is: what the stream tells afterwards (the TRUNCATE that emptied a partition, behind
    /// the cut), or a partition that goes again before anybody looks, would leave no reason for one.
    pub async fn at_cut(
        &mut self,
        cut: Lsn,
        open: Option<u32>,
        tables: &Tables,
        backfills: &mut Backfills,
        source: &mut Source,
        appender: &mut Appender,
    ) -> Result<HashMap<Arc<str>, String>> {
        let mut lacking: HashMap<Arc<str>, String> = HashMap::new();
        if !self.settings.backfill {
            return Ok(lacking);
        }
        if self.at(cut).is_none() {
            let sight = source.look(&self.settings.publication, &self.parts()).await?;
            self.take(sight);
        }
        let Some(sight) = self.at(cut) else { return Ok(lacking) };
        for table in tables.iter().filter(|table| tables.wants(&table.schema.name)) {
            if let Some(reason) = backfills.lacking(&table.topic) {
                lacking.insert(Arc::clone(&table.topic), reason.to_owned());
                continue;
            }
            let told: Vec<u32> = table.truncated_by.iter().copied().chain(open).collect();
            let Some(now) = sight.tables.get(&table.schema.name) else {
                lacking.insert(Arc::clone(&table.topic), Absence::Unpublished.reason().to_owned());
                continue;
            };
            let lost = self.known.get(&table.topic).and_then(|standing| standing.lost(now, &told));
            let gone = || self.leaves.gone(&table.topic, now, cut).map(Reason::Detached);
            if let Some(reason) = lost.or_else(gone) {
                lacking.insert(Arc::clone(&table.topic), reason.to_string());
                backfills.needed(&reason, &table.schema.name, sight.pass, appender);
            }
        }
        Ok(lacking)
    }
}
