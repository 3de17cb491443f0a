//! Between two messages: a table's shape is taken in before the rows that have it.

use std::sync::Arc;

use crate::change::{ActionKind, Column, Position, SchemaChange, TableName, TableSchema};
use crate::postgres::ddl::DdlMessage;
use crate::postgres::pgoutput::Relation;
use crate::runtime::{Error, Result};

use super::backfill::{Absence, Reason};
use super::ddl;
use super::polled::Look;
use super::session::Session;
use super::source::PATIENCE;
use super::tables::Table;
use super::told::{Grown, Told};

impl Session<'_> {
    /// Takes a table's shape in, and has its schemas registered before anything is encoded by them.
    pub(super) async fn describe(&mut self, relation: Relation) -> Result<()> {
        // A statement's own message describes the table as it was here; the catalog, as it is now.
        let catalog = match self.engine.tables.described(relation.oid) {
            Some(described) => Some(described.clone()),
            None if !self.engine.tables.is_news(&relation) => None,
            None => self.source.table(relation.oid, true, self.engine.xid()).await?,
        };
        if self.registrar.may_wait() && !self.engine.appender.batch.is_empty() {
            // What came before it does not wait with it.
            self.submit().await?;
        }
        let name = TableName::new(relation.schema.clone(), relation.table.clone());
        let position = self.engine.progress().position;
        if let Some(grown) = self.engine.tables.end_if_renamed(relation.oid, &name, position) {
            // Its rows may go on under another name, and come back: what they were meanwhile is not of this one.
            self.registrar.register(&mut self.engine.tables, &grown.change.after.name).await?;
            self.grown(grown);
        }
        let grown = self.engine.tables.adopt(relation, catalog.as_ref(), position);
        self.registrar.register(&mut self.engine.tables, &name).await?;
        if let Some(grown) = grown {
            self.grown(grown);
        }
        Ok(())
    }

    /// Applies what the event trigger has told of a statement. Whoever dies before the changes are in the batch has not
    /// passed the message, and gets it again.
    pub(super) async fn ddl(&mut self, content: &[u8], position: Position) -> Result<()> {
        let xid = self.engine.xid();
        let mut message = match DdlMessage::parse(content) {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(%error, "a statement's schema changes are seen when rows of its tables come, and not before");
                return Ok(());
            }
        };
        let columns = self.source.published_columns(&self.publication).await?;
        for table in message.tables.iter_mut().filter(|table| table.schema.is_none()) {
            let asked = self.source.table(table.oid, columns.generated, xid).await?;
            table.schema = asked.filter(|schema| schema.name == table.name);
        }
        if self.registrar.may_wait() && !self.engine.appender.batch.is_empty() {
            self.submit().await?;
        }
        let grown = ddl::apply(&mut self.engine.tables, &message, &self.publication, &columns, xid, position);
        for grown in grown {
            self.registrar.register(&mut self.engine.tables, &grown.change.after.name).await?;
            self.grown(grown);
        }
        self.engine.applied(position);
        Ok(())
    }

    /// Looks at the catalog from time to time, and takes in what is new there.
    pub(super) async fn poll(&mut self) -> Result<()> {
        if self.polled.is_due() {
            let oids = self.engine.tables.oids();
            let looked = async { Look::at(self.source.client().await?, &self.publication, oids).await };
            let look = tokio::time::timeout(PATIENCE, looked)
                .await
                .unwrap_or_else(|_| Err(Error::retry(format!("the source did not answer in {PATIENCE:?}"))));
            if let Err(error) = &look {
                tracing::warn!(%error, "the catalog could not be looked at for changes of schemas: trying again later");
                self.source.disconnect();
            }
            self.polled.looked(look.ok());
        }
        if self.engine.xid().is_some() {
            return Ok(());
        }
        let progress = self.engine.progress();
        let Some(look) = self.polled.passed(progress.flush_lsn) else { return Ok(()) };
        for source in &look.tables {
            let known =
                self.engine.tables.of_oid(source.oid).filter(|known| known.schema.name == source.name);
            let saw = |known: &Table| known.came_with().is_none_or(|xid| look.saw(xid));
            if known.is_none_or(|known| !saw(known)) {
                continue;
            }
            match self.engine.tables.evolve(source.clone(), progress.position, Told::default()) {
                Ok(Some(grown)) => {
                    self.registrar.register(&mut self.engine.tables, &source.name).await?;
                    self.grown(grown);
                }
                Ok(None) => {}
                Err(error) => self.engine.tables.isolate(&source.name, &error),
            }
        }
        Ok(())
    }

    /// Writes a change of shape, before the rows that follow.
    fn grown(&mut self, Grown { change, untold }: Grown) {
        let table = &change.after.name;
        let (xid, commit_lsn) = (self.engine.xid(), self.engine.open_commit_lsn());
        self.engine.tables.shaped_by(&change, xid, commit_lsn);
        super::write_schema_change(&mut self.engine.appender, &self.name, &change);
        self.engine.begin_anew(&change);
        if change.actions.iter().any(|action| action.kind == ActionKind::RecreateTable) {
            // What was known of the former one does not count any more.
            let topic = Arc::from(change.topic.as_str());
            for entry in self.published.forget(&topic) {
                self.engine.appender.set(entry);
            }
        }
        if change.after.dropped {
            self.backfills.ended(table, &mut self.engine.appender);
        }
        if change.actions.iter().any(|action| action.kind == ActionKind::CreateTable) {
            self.backfills.not_needed(&Reason::FirstSeen, table, &mut self.engine.appender);
        }
        // One that days lack, with its former rows, is another one now.
        let lacks = self.backfills.absence(&change.topic) == Some(Absence::Dropped) && !change.after.dropped;
        let again = || lacks.then_some(Reason::MadeAgain);
        if let Some(reason) = needs_copy(&change, &untold).or_else(again) {
            let at = self.engine.open_commit_lsn();
            self.backfills.needed(&reason, table, at, &mut self.engine.appender);
        }
    }
}

/// Whether rows are identified by the same columns, whatever these are called.
fn is_same_key(before: &TableSchema, after: &TableSchema) -> bool {
    let (one, other): (Vec<_>, Vec<_>) = (before.key_columns().collect(), after.key_columns().collect());
    let is_same = |(one, other): (&&Column, &&Column)| {
        let numbered = before.oid == after.oid && one.number != 0 && other.number != 0;
        if numbered { one.number == other.number } else { one.name == other.name }
    };
    one.len() == other.len() && one.iter().zip(&other).all(is_same)
}

/// Why a table needs a copy after its shape has changed, if it does.
fn needs_copy(change: &SchemaChange, untold: &[String]) -> Option<Reason> {
    if change.actions.iter().any(|action| action.kind == ActionKind::FirstSeen) {
        return Some(Reason::FirstSeen);
    }
    let before = change.before.as_ref()?;
    if !is_same_key(before, &change.after) {
        let names = |schema: &TableSchema| schema.key_columns().map(|column| column.name.clone()).collect();
        return Some(Reason::Key { before: names(before), after: names(&change.after) });
    }
    (!untold.is_empty()).then(|| Reason::Untold(untold.join("; ")))
}
