//! `tidemark expire`: lists the days that the rules of retention let go, and removes them when it is told to.
//!
//! Removing needs a lease, `expire/<name>`, so that two do not work side by side; that they would do no harm, and that
//! deliver processes need no part in it, is argued in the lake's own module.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Outcome;
use super::output::{columns, print, print_json};
use super::run::runtime;
use crate::change::TableName;
use crate::config::Config;
use crate::coord::{Coordinator, Lease};
use crate::lake::{ExpiredDay, Lake, Retention};
use crate::pipeline::settings;
use crate::runtime::{Error, Result};

pub(super) fn run(config: &Config, delete: bool, table: Option<&TableName>, json: bool) -> Result<Outcome> {
    let rule = |table: &TableName| {
        let kept = config.source.tables.retention(table, config.lake.retention);
        Retention {
            days: usize::try_from(kept.keep_days).unwrap_or(usize::MAX),
            month_ends: kept.keep_month_ends,
        }
    };
    let days = runtime()?.block_on(async {
        let lake = settings::open_lake(config)?;
        if delete {
            let coordinator = settings::open_coordinator(config)?;
            let name = &config.source.name;
            let ttl = Duration::from_millis(config.coordinator.lease_ttl_ms);
            under_lease(&coordinator, name, ttl, remove(&lake, &rule, table)).await
        } else {
            lake.expired(&rule, table).await
        }
    })?;
    show(&days, delete, json)?;
    Ok(Outcome::Done)
}

async fn remove(
    lake: &Lake,
    rule: &(dyn Fn(&TableName) -> Retention + Sync),
    table: Option<&TableName>,
) -> Result<Vec<ExpiredDay>> {
    let days = lake.expired(rule, table).await?;
    for day in &days {
        lake.expire(day).await.map_err(|error| {
            error.context(format!(
                "removing {} of ds={} (what is begun is brought to its end by the next `tidemark expire --delete`)",
                day.table, day.ds
            ))
        })?;
        let (table, ds, bytes) = (&day.table, day.ds, day.bytes);
        tracing::info!(%table, %ds, bytes, reason = day.reason, "removed");
    }
    Ok(days)
}

/// Does the work under the lease, which is kept meanwhile.
async fn under_lease<T>(
    coordinator: &Arc<dyn Coordinator>,
    name: &str,
    ttl: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let lease = coordinator.acquire(&format!("expire/{name}"), ttl).await?.ok_or_else(|| {
        Error::operator(format!("another `tidemark expire --delete` of {name} is at work"))
            .mend(format!("Wait for its end. One that was killed is forgotten after {ttl:?}."))
    })?;
    let done = tokio::select! {
        done = work => done,
        lost = keep(coordinator, &lease, ttl) => Err(lost),
    };
    // What cannot be given back ends by itself.
    if let Err(error) = coordinator.release(&lease).await {
        tracing::warn!(%error, lease = lease.name, "the lease could not be given back");
    }
    done
}

/// Renews the lease until it is lost; why.
async fn keep(coordinator: &Arc<dyn Coordinator>, lease: &Lease, ttl: Duration) -> Error {
    loop {
        tokio::time::sleep(ttl / 3).await;
        match coordinator.renew(std::slice::from_ref(lease), ttl).await {
            Ok(kept) if kept.is_empty() => {
                return Error::fenced(format!("the lease {} ran out, or was taken over", lease.name));
            }
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

fn show(days: &[ExpiredDay], deleted: bool, json: bool) -> Result<()> {
    if json {
        return print_json(&json!({ "deleted": deleted, "days": days }));
    }
    let bytes: u64 = days.iter().map(|day| day.bytes).sum();
    let cells = |day: &ExpiredDay| {
        let reason = if day.begun { format!("{} (begun before)", day.reason) } else { day.reason.clone() };
        let size = format!("{} bytes in {} objects", day.bytes, day.objects);
        vec![day.table.to_string(), format!("ds={}", day.ds), size, reason]
    };
    let rows: Vec<_> = days.iter().map(cells).collect();
    let said = match (days.len(), deleted) {
        (0, _) => "no day goes\n".to_owned(),
        (count, true) => format!("{count} days removed, {bytes} bytes\n"),
        (count, false) => {
            format!("{count} days would go, {bytes} bytes; `tidemark expire --delete` removes them\n")
        }
    };
    print(&format!("{}{said}", columns(&rows, &[false; 4], |_, _, text| text.to_owned())))
}
