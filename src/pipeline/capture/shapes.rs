//! Between two messages: a table's shape is taken in before the rows that have it.

use crate::change::TableName;
use crate::postgres::ddl::DdlMessage;
use crate::postgres::pgoutput::Relation;
use crate::runtime::Result;

use super::ddl;
use super::session::Session;
use super::told::Grown;

impl Session<'_> {
    /// Takes a table's shape in, and has its schemas registered before anything is encoded by them.
    pub(super) async fn describe(&mut self, relation: Relation) -> Result<()> {
        // A statement's own message describes the table as it was here; the catalog, as it is now.
        let catalog = match self.engine.tables.described(relation.oid) {
            Some(described) => Some(described.clone()),
            None => self.source.table(relation.oid).await?,
        };
        if self.registrar.may_wait() && !self.engine.appender.batch.is_empty() {
            // What came before it does not wait with it.
            self.submit().await?;
        }
        let name = TableName::new(relation.schema.clone(), relation.table.clone());
        let position = self.engine.progress().position;
        let grown = self.engine.tables.adopt(relation, catalog.as_ref(), position);
        self.registrar.register(&mut self.engine.tables, &name).await?;
        if let Some(grown) = grown {
            self.grown(grown);
        }
        Ok(())
    }

    /// Applies what the event trigger has told of a statement.
    pub(super) async fn ddl(&mut self, content: &[u8]) -> Result<()> {
        let mut message = match DdlMessage::parse(content) {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(%error, "a statement's schema changes are seen when rows of its tables come, and not before");
                return Ok(());
            }
        };
        for table in message.tables.iter_mut().filter(|table| table.schema.is_none()) {
            table.schema = self.source.table(table.oid).await?.filter(|schema| schema.name == table.name);
        }
        let published = self.source.published(&self.publication).await?;
        if self.registrar.may_wait() && !self.engine.appender.batch.is_empty() {
            self.submit().await?;
        }
        let position = self.engine.progress().position;
        for grown in ddl::apply(&mut self.engine.tables, &message, &published, position) {
            self.registrar.register(&mut self.engine.tables, &grown.change.after.name).await?;
            self.grown(grown);
        }
        Ok(())
    }

    /// Writes a change of shape, before the rows that follow.
    fn grown(&mut self, Grown { change, untold }: Grown) {
        let table = &change.after.name;
        for action in &change.actions {
            tracing::info!(%table, action = ?action.kind, column = action.column, applied = action.applied,
                detail = action.detail, position = %change.position, "the table's schema changed");
        }
        super::write_schema_change(&mut self.engine.appender, &self.name, &change);
        self.engine.begin_anew(&change);
        for rows in untold {
            tracing::warn!(%table, rows, "what these hold now was not told: ask for a copy of the table");
        }
    }
}
