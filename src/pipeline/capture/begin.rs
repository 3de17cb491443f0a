//! Where a stream begins that has no state yet and is to have no backfill: at its slot.

use crate::change::{Lsn, Position};
use crate::postgres::slot;
use crate::postgres::wire::{Client, Session};
use crate::runtime::{Error, Result};

use super::appender::Progress;
use super::backfill::now_us;
use super::cutter::Cutter;
use super::state::{CutState, StreamState};
use super::{CaptureSettings, first_state};

/// The state of a stream that begins where its slot stands: transactions that commit from there on are in.
pub async fn at_slot(settings: &CaptureSettings, sql: &mut Client) -> Result<(StreamState, CutState)> {
    let mut replication = Client::connect(&settings.connect, Session::Replication).await?;
    let identity = slot::identify_system(&mut replication).await?;
    let slot = slot::slot_state(sql, &settings.slot).await?;
    let Some(at) = slot.and_then(|slot| slot.confirmed_flush_lsn) else {
        return Err(Error::operator(format!(
            "replication slot {:?} does not exist, and without a backfill it is where the stream begins",
            settings.slot
        ))
        .mend("Create it with `tidemark setup`, or set [source] backfill = \"initial\"."));
    };
    let before =
        Position { timeline: identity.timeline, commit_lsn: Lsn(at.0.saturating_sub(1)), ordinal: 0 };
    let progress = Progress { position: before, flush_lsn: at, commit_us: 0, held: false };
    let first_cut = Cutter::first(&settings.calendar, now_us(sql).await?);
    tracing::info!(slot = settings.slot, %at, "beginning at the slot, without a backfill");
    Ok((first_state(settings, identity.system_identifier, progress), first_cut))
}
