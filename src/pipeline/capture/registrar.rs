//! Has a table's schemas registered before its first change is encoded by them.
//!
//! ```text
//!   a table is described ──> ids of its schemas? ──┬─ known, or registered ──> its encoder writes them
//!                                                  ├─ registry away ──> wait; the source's keepalives are answered
//!                                                  │                    by another task, and its slot keeps the WAL
//!                                                  └─ refused ──> the table's changes become dead letters
//! ```
//!
//! Why nothing is lost: no record is encoded before its ids are known, and a change that waits here has not been
//! acknowledged. Dying in between is no harm: registering again finds what is there.

use std::time::Duration;

use crate::change::TableName;
use crate::envelope::avro::{AvroSchemas, Named, SchemaIds};
use crate::envelope::routing;
use crate::ops::{Component, Ops};
use crate::registry::{Answer, Registry};
use crate::runtime::{Backoff, Class, Error, Result, Shutdown};

use super::tables::Tables;

/// Asks the registry, if there is one.
#[derive(Debug)]
pub struct Registrar {
    registry: Option<(Registry, Component)>,
    shutdown: Shutdown,
}

impl Registrar {
    /// Nothing is asked yet.
    pub fn new(registry: Option<Registry>, ops: &Ops, shutdown: &Shutdown) -> Self {
        let registry = registry.map(|registry| {
            let component = ops.component("registry");
            component.ok();
            (registry, component)
        });
        Self { registry, shutdown: shutdown.clone() }
    }

    /// Whether [`Registrar::register`] may take long.
    pub const fn may_wait(&self) -> bool {
        self.registry.is_some()
    }

    /// Makes a table ready for its changes: its encoder has the ids of its schemas, or refuses with the reason. Waits
    /// for a registry that is away. Cancel-safe.
    ///
    /// # Errors
    /// `Operator` when the registry refuses us; `Retry` when the process is to stop.
    pub async fn register(&self, tables: &mut Tables, name: &TableName) -> Result<()> {
        let Some((topic, schemas)) = tables.schemas(name) else { return Ok(()) };
        match self.ids(&topic, &schemas).await? {
            Ok(ids) => tables.registered(name, ids),
            Err(error) => {
                tracing::error!(table = %name, %error, "the table is isolated");
                tables.refused(name, &error);
            }
        }
        Ok(())
    }

    /// The ids of the schemas of `<name>.transaction`. Waits for a registry that is away. Cancel-safe.
    ///
    /// # Errors
    /// `Operator` when the registry refuses us or the schemas; `Retry` when the process is to stop.
    pub async fn register_transactions(&self, name: &str, schemas: &AvroSchemas) -> Result<SchemaIds> {
        self.ids(&routing::transaction_topic(name), schemas).await?
    }

    /// The ids of a topic's schemas, or why one of them is refused.
    async fn ids(&self, topic: &str, schemas: &AvroSchemas) -> Result<Result<SchemaIds>> {
        let Some((registry, component)) = &self.registry else { return Ok(Ok(SchemaIds::default())) };
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let answer = tokio::select! {
                answer = ids(registry, topic, schemas.key.as_ref(), &schemas.value) => answer,
                () = self.shutdown.raised() => Err(Error::retry("the schema registry was asked while the process is to stop")),
            };
            let error = match answer {
                Ok(found) => {
                    component.ok();
                    return Ok(found);
                }
                Err(error) => error,
            };
            component.failed(&error);
            if error.class() != Class::Retry || self.shutdown.is_raised() {
                return Err(error);
            }
            let wait = backoff.next_wait();
            tracing::warn!(topic, %error, wait_ms = wait.as_millis() as u64, "capture waits for the schema registry");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shutdown.raised() => return Err(error),
            }
        }
    }
}

/// Asks once.
async fn ids(
    registry: &Registry,
    topic: &str,
    key: Option<&Named>,
    value: &Named,
) -> Result<Result<SchemaIds, Error>> {
    let mut ids = SchemaIds::default();
    let parts = [("key", key, &mut ids.key), ("value", Some(value), &mut ids.value)];
    for (part, schema, id) in parts {
        let Some(Named { name, schema }) = schema else { continue };
        match registry.id(&registry.naming().subject(topic, part, name), schema).await? {
            Answer::Id(found) => *id = found,
            Answer::Refused(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(ids))
}
