//! The SQL side of the source while it streams: the catalog, and markers.

use std::time::Duration;

use crate::change::{TableName, TableSchema};
use crate::postgres::catalog::{self, PublishedColumns};
use crate::postgres::published::{self, KnownParts, Sight};
use crate::postgres::snapshot::Snapshot;
use crate::postgres::wire::{Client, ConnectOptions, Session, quote_literal};
use crate::runtime::{Error, Result};

use super::cutter::{MARKER_PREFIX, Marker};

/// Prefix of the logical messages which only move the stream on.
const HEARTBEAT_PREFIX: &str = "tidemark.heartbeat";

/// A question is answered in this time, or the connection is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until others see what a transaction did which is in the stream: see [`Snapshot`].
async fn wait_until_seen(client: &mut Client, xid: Option<u32>) -> Result<()> {
    let Some(xid) = xid else { return Ok(()) };
    while !Snapshot::current(client).await?.sees(xid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

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

    /// The shape of a table as the catalog has it now, or a moment later, with or without its generated columns: it has
    /// what the transaction did. None when the table is gone.
    pub async fn table(
        &mut self,
        oid: u32,
        generated: bool,
        xid: Option<u32>,
    ) -> Result<Option<TableSchema>> {
        let asked = async {
            let client = self.client().await?;
            wait_until_seen(client, xid).await?;
            Ok(catalog::load_tables(client, &[oid], generated).await?.pop())
        };
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

    /// Which columns the publication has now.
    pub async fn published_columns(&mut self, publication: &str) -> Result<PublishedColumns> {
        let asked = async { PublishedColumns::load(self.client().await?, publication).await };
        let result = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
            Err(Error::retry(format!(
                "the source did not answer what {publication} publishes in {PATIENCE:?}"
            )))
        });
        if result.is_err() {
            self.client = None;
        }
        result
    }

    /// What the publication publishes now, in all that decides whether the stream tells it.
    pub async fn look(&mut self, publication: &str, known: &KnownParts) -> Result<Sight> {
        let asked = async { published::look(self.client().await?, publication, known).await };
        let result = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
            Err(Error::retry(format!("the source did not tell what it publishes in {PATIENCE:?}")))
        });
        if result.is_err() {
            self.client = None;
        }
        result
    }

    /// The name of a table now; none when it is gone.
    pub async fn name_of(&mut self, oid: u32) -> Result<Option<TableName>> {
        let asked = async { published::name_of(self.client().await?, oid).await };
        let result = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
            Err(Error::retry(format!(
                "the source did not answer a question about table {oid} in {PATIENCE:?}"
            )))
        });
        if result.is_err() {
            self.client = None;
        }
        result
    }

    /// Gives the connection up: what it was asked was not answered, or not in time.
    pub fn disconnect(&mut self) {
        self.client = None;
    }

    /// Leaves a marker in the stream, from a task and a connection of its own: the stream does not wait for it,
    /// and what comes of it is seen in the stream.
    pub fn send_marker(&self, marker: &Marker) {
        let content = serde_json::to_string(marker).unwrap_or_default();
        self.emit("the marker for a cut", MARKER_PREFIX, content);
    }

    /// Leaves a sign of life in the stream in the same way. It touches no table and asks for no right beyond
    /// connecting; a standby, which cannot take it, says so in the log.
    pub fn send_heartbeat(&self) {
        self.emit("a heartbeat", HEARTBEAT_PREFIX, String::new());
    }

    /// A transactional logical message: its commit is a place to which the slot can move.
    fn emit(&self, what: &'static str, prefix: &'static str, content: String) {
        let options = self.options.clone();
        tokio::spawn(async move {
            let sent = tokio::time::timeout(PATIENCE, async {
                let sql = format!(
                    "SELECT pg_catalog.pg_logical_emit_message(true, {}, {})",
                    quote_literal(prefix),
                    quote_literal(&content)
                );
                Client::connect(&options, Session::Sql).await?.execute(&sql).await
            });
            match sent.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "{what} could not be sent: trying again"),
                Err(_) => tracing::warn!("the source did not take {what} in {PATIENCE:?}: trying again"),
            }
        });
    }
}
