//! `tidemark check`, `tidemark setup` and `tidemark accept-gap`.

use super::findings::{Finding, Level, print_findings};
use super::output::{print, print_json};
use super::run::runtime;
use super::{Outcome, print_error};
use crate::config::{Config, CoordinatorKind, LogKind};
use crate::log::Probe;
use crate::notice::Probed;
use crate::pipeline::capture::{CaptureSettings, accept_gap as accept, preflight_settings};
use crate::pipeline::settings;
use crate::postgres::wire::{Client, Session, quote_ident, quote_literal};
use crate::postgres::{ddl, preflight, setup};
use crate::runtime::{Error, Result};

/// Tries what could fail later, one thing after the other, and goes on after a failure.
pub(super) fn check(config: &Config, json: bool) -> Result<Outcome> {
    // What is wrong with the configuration itself leaves with 2, as everywhere.
    let capture = settings::capture(config)?;
    let findings = runtime()?.block_on(async {
        let mut findings = source(&capture).await;
        findings.extend(log(config).await);
        findings.push(local("coordinator", coordinator(config).await));
        if let Some(registry) = &capture.registry {
            let subjects = registry.subjects().await;
            findings
                .push(local("registry", subjects.map(|count| format!("answers; it has {count} subjects"))));
        }
        findings.extend(lake(config).await);
        findings.extend(notices(config).await);
        findings
    });
    print_findings(&findings, json)
}

async fn coordinator(config: &Config) -> Result<String> {
    match &config.coordinator.kind {
        CoordinatorKind::Embedded { .. } => {
            settings::open_coordinator(config)?;
            Ok("opens, and can be written".to_owned())
        }
        CoordinatorKind::Zookeeper(zookeeper) => {
            settings::open_zookeeper(zookeeper).probe().await?;
            Ok(format!("ZooKeeper answers, and all rights are there under {}", zookeeper.root))
        }
    }
}

async fn source(capture: &CaptureSettings) -> Vec<Finding> {
    let checked = async {
        let mut client = Client::connect(&capture.connect, Session::Sql).await?;
        let found = preflight::check(&mut client, &preflight_settings(capture, true)).await?;
        let mut findings: Vec<_> = found.into_iter().map(Finding::from).collect();
        let told = findings.iter().any(|finding| finding.subject == "role" && finding.level == Level::Fail);
        // pg_hba.conf has lines of its own for replication sessions, and max_wal_senders limits them.
        match Client::connect(&capture.connect, Session::Replication).await {
            Ok(client) => client.close().await,
            Err(_) if told => {}
            Err(error) => findings.push(local("replication", Err(error))),
        }
        Ok(findings)
    };
    match checked.await {
        Ok(found) => found,
        Err(error) => vec![local("source", Err(error))],
    }
}

async fn log(config: &Config) -> Vec<Finding> {
    let LogKind::Kafka(kafka) = &config.log.kind else {
        return vec![local(
            "log",
            settings::open_log(config).map(|_| "opens, and can be written".to_owned()),
        )];
    };
    let log = match settings::open_kafka(config, kafka) {
        Ok(log) => log,
        Err(error) => return vec![local("log", Err(error))],
    };
    log.probe().await.into_iter().map(|probe: Probe| local(probe.subject, probe.outcome)).collect()
}

async fn lake(config: &Config) -> Vec<Finding> {
    match settings::open_lake(config) {
        Ok(lake) => {
            lake.try_store().await.into_iter().map(|tried| local(tried.subject, tried.outcome)).collect()
        }
        Err(error) => vec![local("lake", Err(error))],
    }
}

/// Nobody is told of anything.
async fn notices(config: &Config) -> Vec<Finding> {
    let endpoints = match settings::endpoints(config) {
        Ok(endpoints) => endpoints,
        Err(error) => return vec![local("notices", Err(error))],
    };
    let mut findings = Vec::new();
    for endpoint in endpoints {
        let subject = endpoint.component();
        findings.push(match endpoint.probe().await {
            Ok(Probed { answer, doubt: Some(mend) }) => {
                Finding { level: Level::Warn, subject: subject.to_owned(), message: answer, mend: Some(mend) }
            }
            probed => local(subject, probed.map(|probed| probed.answer)),
        });
    }
    findings
}

fn local(subject: &str, result: Result<String>) -> Finding {
    let (level, message, mend) = match result {
        Ok(message) => (Level::Ok, message, None),
        Err(error) => (Level::Fail, error.message(), error.mend_text().map(str::to_owned)),
    };
    Finding { level, subject: subject.to_owned(), message, mend }
}

impl From<preflight::Finding> for Finding {
    fn from(found: preflight::Finding) -> Self {
        let level = match found.level {
            preflight::Level::Ok => Level::Ok,
            preflight::Level::Warn => Level::Warn,
            preflight::Level::Fail => Level::Fail,
        };
        Self { level, subject: found.subject, message: found.message, mend: found.mend }
    }
}

/// Creates what is missing at the source, or prints the SQL that does.
pub(super) fn setup(config: &Config, only_print: bool) -> Result<Outcome> {
    runtime()?.block_on(async {
        let capture = settings::capture(config)?;
        let mut client = Client::connect(&capture.connect, Session::Sql).await?;
        let plan = setup::plan(&mut client, &preflight_settings(&capture, true)).await?;
        if only_print {
            print(&plan.script())?;
            return Ok(Outcome::Done);
        }
        for statement in &plan.statements {
            print(&format!("-- {}\n{};\n", statement.purpose, statement.sql))?;
        }
        match setup::apply(&mut client, &plan).await {
            Err(error) => {
                print_error(&error);
                return Err(Error::operator("setup stopped there; what was made before stays").mend(
                    "Give this role the right, or have the DBA run what `tidemark setup --print` prints.",
                ));
            }
            Ok(left_out) => {
                for left_out in left_out {
                    print(&format!("-- {left_out}\n"))?;
                }
            }
        }
        let done = if plan.statements.is_empty() { "Nothing was missing.\n" } else { "Done.\n" };
        print(done)?;
        Ok(Outcome::Done)
    })
}

/// Gives a range of changes up, and says what that means.
pub(super) fn accept_gap(config: &Config, range: &str, json: bool) -> Result<Outcome> {
    let accepted = runtime()?.block_on(async {
        let capture = settings::capture(config)?;
        let log = settings::capture_log(config, &settings::open_log(config)?)?;
        accept(&capture, &log, range).await
    })?;
    if json {
        print_json(&serde_json::json!({
            "range": accepted.range,
            "reason": accepted.what,
            "from": accepted.from.to_string(),
            "new_slot": accepted.new_slot,
        }))?;
        return Ok(Outcome::Done);
    }
    let slot = if accepted.new_slot { "a new slot was made" } else { "the slot stays" };
    print(&format!(
        "Given up: {}.\n{}.\n{slot}, and the stream goes on at {}. Start `tidemark run` (or capture): every table is \
         copied anew. Until its copy is whole, days name a table as lacking, with this range.\n",
        accepted.range, accepted.what, accepted.from
    ))?;
    Ok(Outcome::Done)
}

/// Takes the event triggers away, or prints the SQL that does, and says what stays.
pub(super) fn uninstall(config: &Config, only_print: bool) -> Result<Outcome> {
    let sql =
        format!("-- The event triggers, in one transaction.\nBEGIN;\n{};\nCOMMIT;\n", ddl::UNINSTALL_SQL);
    let stays = format!(
        "-- Slot and publication stay. Without them nothing can be captured any more:\n\
         -- SELECT pg_drop_replication_slot({}); DROP PUBLICATION {};\n",
        quote_literal(&config.source.slot),
        quote_ident(&config.source.publication)
    );
    print(&format!("{sql}\n{stays}"))?;
    if only_print {
        return Ok(Outcome::Done);
    }
    runtime()?.block_on(async {
        let capture = settings::capture(config)?;
        let mut client = Client::connect(&capture.connect, Session::Sql).await?;
        setup::uninstall(&mut client).await.map_err(|error| {
            error.mend("It takes who installed it, or a superuser: `tidemark setup --uninstall --print` prints the SQL.")
        })?;
        print("Done. ddl_trigger = \"off\" under [source] keeps `tidemark setup` from installing it again.\n")?;
        Ok(Outcome::Done)
    })
}
