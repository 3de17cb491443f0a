//! The SQL side of the source while it streams: the catalog, and markers.

use std::time::Duration;

use crate::change::TableSchema;
use crate::postgres::catalog;
use crate::postgres::wire::{Client, ConnectOptions, Session, quote_literal};
use crate::runtime::{Error, Result};

use super::cutter::{MARKER_PREFIX, Marker};

const PATIENCE: Duration = Duration::from_secs(30);

/// A connection for questions, made when the first is asked and again when it broke.
#[derive(Debug)]
pub struct Source {
    options: ConnectOptions,
    client: Option<Client>,
}

impl Source {
    /// Nothing is connected yet.
    pub const fn new(options: ConnectOptions) -> Self {
        Self { options, client: None }
    }

    /// The connection.
    pub async fn client(&mut self) -> Result<&mut Client> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.options, Session::Sql).await?,
        };
        Ok(self.client.insert(client))
    }

    /// The shape of a table as the catalog has it now; none when it is gone.
    pub async fn table(&mut self, oid: u32) -> Result<Option<TableSchema>> {
        let asked = async { catalog::load_table(self.client().await?, oid).await };
        let result = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(result) => result,
            Err(_) => Err(Error::retry(format!(
                "the source did not answer a question about table {oid} in {PATIENCE:?}"
            ))),
        };
        if result.is_err() {
            self.client = None;
        }
        result
    }

    /// Leaves a marker in the stream, from a task and a connection of its own: the stream does not wait for it,
    /// and what comes of it is seen in the stream.
    pub fn send_marker(&self, marker: Marker) {
        let options = self.options.clone();
        tokio::spawn(async move {
            let sent = tokio::time::timeout(PATIENCE, async {
                let content = serde_json::to_string(&marker).unwrap_or_default();
                let sql = format!(
                    "SELECT pg_catalog.pg_logical_emit_message(true, {}, {})",
                    quote_literal(MARKER_PREFIX),
                    quote_literal(&content)
                );
                Client::connect(&options, Session::Sql).await?.execute(&sql).await
            });
            match sent.await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the marker for a cut could not be sent: trying again")
                }
                Err(_) => tracing::warn!(
                    "the source did not take the marker for a cut in {PATIENCE:?}: trying again"
                ),
            }
        });
    }
}
