//! What could fail later, asked beforehand: the server's settings, our rights, the publication, each table's
//! replica identity, the slot. Nothing is changed, and every problem is reported, not only the first.
//!
//! The one that hurts others most: a published table without a usable replica identity makes every UPDATE and
//! DELETE on it fail *at the source* (`CheckCmdReplicaIdentity` in `src/backend/executor/execReplication.c`).

mod ddl;
mod publication;
mod server;
mod slot;
pub(super) mod tables;

use std::fmt;

use super::ddl::TriggerUse;
use super::slot::Failover;
use super::wire::Client;
use crate::change::TableName;
use crate::runtime::Result;

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with a danger or a loss that the operator should know of.
    Warn,
    /// Does not work.
    Fail,
}

/// One line of `tidemark check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at: a setting, `table public.orders`, `slot tidemark`.
    pub subject: String,
    /// What was found, in plain words.
    pub message: String,
    /// What to do about it: SQL where there is some, ending in a semicolon.
    pub mend: Option<String>,
}

impl Finding {
    pub(super) fn ok(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level: Level::Ok, subject: subject.into(), message: message.into(), mend: None }
    }

    pub(super) fn warn(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level: Level::Warn, ..Self::ok(subject, message) }
    }

    pub(super) fn fail(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level: Level::Fail, ..Self::ok(subject, message) }
    }

    pub(super) fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

/// What is to be captured, and through what.
#[derive(Clone, Copy)]
pub struct PreflightSettings<'a> {
    /// Slot.
    pub slot: &'a str,
    /// Publication.
    pub publication: &'a str,
    /// Whether a table is to be captured: the configuration's include and exclude globs.
    pub wanted: &'a dyn Fn(&TableName) -> bool,
    /// The condition for rows of a table that copies take, if that is not all of them.
    pub copied_where: &'a dyn Fn(&TableName) -> Option<String>,
    /// Whether a publication or slot that is missing will be made by us.
    pub create_missing: bool,
    /// Whether DDL is to be told by event triggers.
    pub ddl_trigger: TriggerUse,
    /// Whether the slot is to be synchronised to standbys.
    pub failover: Failover,
}

impl fmt::Debug for PreflightSettings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slot, publication, create_missing, ddl_trigger, failover, .. } = self;
        f.debug_struct("PreflightSettings")
            .field("slot", slot)
            .field("publication", publication)
            .field("create_missing", create_missing)
            .field("ddl_trigger", ddl_trigger)
            .field("failover", failover)
            .finish_non_exhaustive()
    }
}

/// Looks at everything over an SQL session. An error means that a question could not be asked at all; what is
/// wrong with the source comes as findings of level [`Level::Fail`].
pub async fn check(client: &mut Client, settings: &PreflightSettings<'_>) -> Result<Vec<Finding>> {
    let server = server::Server::load(client).await?;
    let mut findings = server.findings();
    if !server.is_supported() {
        // The other questions are asked in the words of a newer catalog.
        return Ok(findings);
    }
    let publication = publication::Publication::load(client, settings.publication).await?;
    let all = tables::load(client, settings.publication).await?;
    findings.extend(publication::findings(publication.as_ref(), &server, &all, settings));
    findings.extend(tables::findings(publication.as_ref(), &all, settings, &server.role));
    findings.extend(tables::conditions(client, &all, settings).await?);
    findings.extend(slot::findings(client, &server, settings).await?);
    let asked_for = publication.is_none() || settings.ddl_trigger == TriggerUse::On;
    let made_at_start = settings.create_missing && server.is_superuser && asked_for;
    findings.push(ddl::finding(client, settings.ddl_trigger, made_at_start).await?);
    Ok(findings)
}

pub(super) use publication::Publication;
pub(super) use server::Server;
