//! Giving up a range of changes that cannot be had, as an operator asked: `tidemark accept-gap RANGE`.
//!
//! ```text
//!   claim ─> fence ─> what is missing? ─> exactly what was typed? ─> slot (the old one, or a new one) ─> state
//!                                                            next start: every table is copied anew
//! ```
//!
//! Why nothing is papered over: the range has to be typed as it was told, so that what is given up is what was read
//! about; a gap that has become another one since is refused with the new range. The state names it until copies of all
//! tables have been asked for in the same append that forgets it, and days name each table as lacking, with the range,
//! until its copy is whole. Died in between, the state is what it was: the same gap is found again, or that the slot
//! was made anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::change::Lsn;
use crate::log::{Append, Log, RecordBatch};
use crate::ops::Ops;
use crate::postgres::wire::{Client, Session};
use crate::postgres::{claim, slot};
use crate::runtime::{Error, Result};

use super::CaptureSettings;
use super::gap::{self, Gap, Verdict};
use super::open::known_tables;
use super::state::CaptureState;
use super::verify::examine;

/// The server believes in a process that has just ended for a moment.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5);

/// What was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The range, as it was typed.
    pub range: String,
    /// What had happened.
    pub what: String,
    /// Where the stream goes on.
    pub from: Lsn,
    /// Whether the slot was made anew.
    pub new_slot: bool,
}

/// Gives up exactly this range. No process may capture meanwhile: one that comes stands by until this is done. Not
/// cancel-safe.
///
/// # Errors
/// That there is no gap, or another one: then the error tells which. Nothing was changed then.
pub async fn accept_gap(settings: &CaptureSettings, log: &Arc<dyn Log>, range: &str) -> Result<Accepted> {
    let mut replication = Client::connect(&settings.connect, Session::Replication).await?;
    let _claim = claimed(settings).await?;
    let slot = slot::slot_state(&mut replication, &settings.slot).await?;
    let fenced = log.fence().await?;
    let all = CaptureState::read(&fenced.state)?;
    // Nobody watches it: this process only needs to know what the log holds.
    let (ops, _commands) = Ops::new(&settings.name);
    let tables = known_tables(settings, log, &all, &ops).await?;
    let Some(state) = all.stream else {
        return Err(Error::operator("the log holds nothing of this source yet: there is no gap in it").mend(
            "Check [log] and [state] dir: they have to be those of the connector that told of the gap.",
        ));
    };
    let gap = match examine(settings, &mut replication, &state, tables.whole_from(state.timeline)).await? {
        Verdict::GoesOn(_) => {
            return Err(Error::operator(format!(
                "there is no gap: the source has everything after {} of the log",
                state.flush_lsn
            ))
            .mend("Nothing was changed. `tidemark run` goes on."));
        }
        Verdict::Gap(gap) => gap,
    };
    if gap.range.to_string() != range {
        return Err(Error::operator(format!(
            "the gap is {}, not {range:?}, and nothing was changed: {}",
            gap.range, gap.what
        ))
        .mend(gap.mend()));
    }
    let identity = slot::identify_system(&mut replication).await?;
    let (from, new_slot) = match gap.resume {
        Some(from) => (from.max(resume_at_least(&gap)), false),
        None => (make_slot(settings, &mut replication, slot.is_some()).await?, true),
    };
    let next = gap::after(&state, &identity, from, &gap);
    let append = Append { records: RecordBatch::default(), state: vec![next.entry()] };
    log.append(fenced.epoch, append).await.map_err(|rejected| {
        rejected.error.context("the log did not take what was given up: nothing is accepted yet")
    })?;
    Ok(Accepted { range: range.to_owned(), what: gap.what, from, new_slot })
}

/// The session that has the claim on the slot, as a process on its way to stream has it.
async fn claimed(settings: &CaptureSettings) -> Result<Client> {
    let mut session = Client::connect(&settings.connect, Session::Sql).await?;
    claim::prepare(&mut session).await?;
    let started = Instant::now();
    while let Some(holder) = claim::try_claim(&mut session, &settings.slot).await? {
        if started.elapsed() >= CLAIM_PATIENCE {
            return Err(Error::operator(format!(
                "replication slot {:?} is in use by {holder}: there is no gap, or not here; nothing was changed",
                settings.slot
            ))
            .mend("`tidemark status` tells how the running connector is. A gap is accepted while none runs."));
        }
        tokio::time::sleep(CLAIM_PATIENCE / 50).await;
    }
    Ok(session)
}

/// Below the place where a promoted server left the log's timeline, the log has everything.
const fn resume_at_least(gap: &Gap) -> Lsn {
    gap.range.from
}

/// A new slot in the place of the old one. Gives where it begins.
async fn make_slot(settings: &CaptureSettings, replication: &mut Client, exists: bool) -> Result<Lsn> {
    if exists {
        slot::drop_slot(replication, &settings.slot).await?;
    }
    let failover = settings.failover.applies(replication).await?;
    let made = slot::create_slot(replication, &settings.slot, false, false).await?;
    if failover {
        slot::set_failover(replication, &settings.slot).await?;
    }
    Ok(made.consistent_point)
}
