//! Where a stream begins: at its slot, if it has no state yet and is to have no backfill; and whether a first copy that was
//! broken off may begin anew.
//!
//! It may as long as the log holds no row and no change: then nothing can be missing or be there twice, whatever became of
//! the slot and of what the source did meanwhile, since the new copy has its own point, and the slot is there before that.
//! What the log may hold is the shapes of tables. They are continued, so the source has to be the same system, and the
//! new point above them: a source that was set back, and another one, is told as for any other start.

use crate::change::{Lsn, Position};
use crate::postgres::slot;
use crate::postgres::wire::{Client, Session};
use crate::runtime::{Error, Result};

use super::appender::Progress;
use super::backfill::now_us;
use super::cutter::Cutter;
use super::state::{CaptureState, CutState, StreamState};
use super::{CaptureSettings, first_state};

/// Whether a first copy begins, with rows in the tables' own topics, whatever the state says of an earlier one.
pub async fn begins_anew(settings: &CaptureSettings, state: &CaptureState) -> Result<bool> {
    let Some(stream) = state.stream.as_ref().filter(|_| settings.backfill && state.has_no_rows()) else {
        return Ok(false);
    };
    let mut replication = Client::connect(&settings.connect, Session::Replication).await?;
    let identity = slot::identify_system(&mut replication).await?;
    let now = Position { timeline: identity.timeline, commit_lsn: identity.current_lsn, ordinal: 0 };
    Ok(identity.system_identifier.to_string() == stream.system_id && now > stream.position)
}

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
