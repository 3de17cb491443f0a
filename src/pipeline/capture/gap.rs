//! Does the source still have what comes after the log? Decided from what the server says of itself; pure.
//!
//! ```text
//!   log:     ──────── timeline 1 ────────●position ──●flush_lsn
//!   source:  ──────── timeline 1 ───●switch
//!                                    └──── timeline 2 ──────●now
//! ```
//!
//! Why it is safe to go on, where it goes on: a server that was promoted has the WAL of the timelines before up to the
//! place where it switched, byte for byte. A change in the log whose commit record begins below that place happened
//! there too; one at or beyond it never did. So the stream is taken up at the switch, or before it where the log is not
//! as far, on the new timeline: a transaction of which the log holds a part comes again with the same commit LSN and
//! the same ordinals, and goes on after that part. Positions only grow, since their timeline does.
//!
//! A server that was set back without a new timeline (a disk, or a machine, as it was some time ago) is known by its WAL,
//! which ends before the log does; and when it has grown past that, by its slot: it was set back, too, and stands before
//! the transaction that the log's position lies in ([`expected`]), which that server then does not send. Until it has been
//! sent nothing is confirmed; what comes before it is below the position, and so not taken, and copies wait.
//!
//! Everything else is a [`Gap`]: a range of which the log and the source tell different things, or which nobody can
//! tell any more. It is never passed over. Whoever accepts it ([`super::accept`]) gives up that very range, and every
//! table is copied anew.
//!
//! Source: <https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES>.

use std::fmt;

use crate::change::{Lsn, Position, Timeline};
use crate::postgres::slot::{SlotState, SystemIdentity, WalStatus};

use super::state::{StreamState, Witness};

/// What the source is to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is missing after this state. It is the log's, moved on to the server's timeline.
    GoesOn(StreamState),
    /// Something is.
    Gap(Gap),
}

/// What cannot be told, or is told differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What happened, and what that means, in words.
    pub what: String,
    /// How it is named where it is accepted.
    pub range: Range,
    /// From where the slot that is there still serves.
    pub resume: Option<Lsn>,
    /// The source was set back within its timeline: this is where its WAL ends. It may grow past the log's end,
    /// after which nothing would show it any more.
    pub set_back: Option<Lsn>,
}

/// A range of WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends.
    pub to: End,
}

/// The end of a [`Range`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There.
    At(Lsn),
    /// Where the next slot begins.
    Slot,
    /// On another database system, of that identifier.
    System(u64),
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            End::At(to) => write!(f, "{}..{to}", self.from),
            End::Slot => write!(f, "{}..", self.from),
            End::System(system) => write!(f, "{}..system:{system}", self.from),
        }
    }
}

impl Gap {
    /// What the operator can do.
    pub fn mend(&self) -> String {
        format!(
            "If the source is the right one, give that range up: `tidemark accept-gap {}` makes a new slot where the old \
             one does not serve any more, and has every table copied anew by the next start; until its copy is whole, \
             days name a table as lacking. Nothing has to be moved or deleted by hand.",
            self.range
        )
    }
}

/// What the server says, beside the slot.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Who it is.
    pub identity: &'a SystemIdentity,
    /// Where its history leaves the timeline of the log, if it is another and has that one in it.
    pub switch: Option<Lsn>,
    /// Up to where the log holds rows of copies, which may be beyond the stream.
    pub copied: Lsn,
    /// The slot; none when there is none.
    pub slot: Option<&'a SlotState>,
    /// The slot's name.
    pub name: &'a str,
}

/// Decides. The slot must be one of ours: pgoutput's, in the right database.
pub fn judge(state: &StreamState, seen: Seen<'_>) -> Verdict {
    let identity = seen.identity;
    if identity.system_identifier.to_string() != state.system_id {
        return Verdict::Gap(other_system(state, identity));
    }
    let mut now = state.clone();
    if identity.timeline != state.server_timeline() {
        let Some(switch) = seen.switch else { return Verdict::Gap(other_branch(state, identity)) };
        if state.position.commit_lsn.max(seen.copied) >= switch {
            return Verdict::Gap(diverged(state, seen, switch));
        }
        now.timeline = identity.timeline + state.lift;
        now.position.timeline = now.timeline;
        now.flush_lsn = state.flush_lsn.min(switch);
        now.last_end_lsn = state.last_end_lsn.filter(|end| *end <= switch);
        now.witness = state.witness.filter(|witness| witness.commit_lsn < switch);
    } else if let Some(end) = set_back(state, seen) {
        return Verdict::Gap(returned(state, end));
    }
    now.set_back = None;
    let usable = seen.slot.filter(|slot| is_usable(slot));
    match usable.and_then(|slot| slot.confirmed_flush_lsn) {
        Some(confirmed) if confirmed > now.flush_lsn => Verdict::Gap(moved_on(&now, seen.name, confirmed)),
        Some(_) => Verdict::GoesOn(now),
        None => Verdict::Gap(without_slot(&now, seen)),
    }
}

fn is_usable(slot: &SlotState) -> bool {
    slot.wal_status != Some(WalStatus::Lost) && slot.invalidation_reason.is_none()
}

/// Where the WAL of a server ended that had been set back, unless it has turned out to be another one: only the server
/// which had what the log holds was told beyond that place.
fn set_back(state: &StreamState, seen: Seen<'_>) -> Option<Lsn> {
    if seen.identity.current_lsn < state.flush_lsn {
        return Some(state.set_back.unwrap_or(seen.identity.current_lsn));
    }
    let confirmed = seen.slot.and_then(|slot| slot.confirmed_flush_lsn).unwrap_or_default();
    state.set_back.filter(|end| confirmed <= *end)
}

fn other_system(state: &StreamState, identity: &SystemIdentity) -> Gap {
    let what = format!(
        "the source is another database system: its identifier is {}, the log holds changes of {} up to {}; what the \
         former one did from {} on is not in the log, and the tables of this one may hold anything. With a wrong \
         [source] url, mend that; another database wants a connector with a [source] name and a [state] dir of its own",
        identity.system_identifier, state.system_id, state.position, state.flush_lsn
    );
    let range = Range { from: state.flush_lsn, to: End::System(identity.system_identifier) };
    Gap { what, range, resume: None, set_back: None }
}

fn other_branch(state: &StreamState, identity: &SystemIdentity) -> Gap {
    let what = format!(
        "the source is on timeline {}, whose history does not have timeline {} of the log, which holds changes up to \
         {}: it is a former primary that was started again, or was restored to a point before that timeline began. \
         Changes from {} on cannot be had here, and some that the log holds may never have happened here",
        identity.timeline,
        state.server_timeline(),
        state.position,
        state.flush_lsn
    );
    Gap { what, range: Range { from: state.flush_lsn, to: End::Slot }, resume: None, set_back: None }
}

fn diverged(state: &StreamState, seen: Seen<'_>, switch: Lsn) -> Gap {
    let usable = seen.slot.filter(|slot| is_usable(slot));
    let resume = usable.and_then(|slot| slot.confirmed_flush_lsn).filter(|confirmed| *confirmed <= switch);
    let since = if resume.is_some() {
        "what came after it on the new timeline can still be had".to_owned()
    } else {
        format!("what came after it on the new timeline cannot be had from slot {:?}", seen.name)
    };
    let what = format!(
        "the source is on timeline {}, which left timeline {} at {switch}, and the log holds changes of the latter up to \
         {}: those from {switch} up to {} never happened on this server ({since}). On PostgreSQL 17 and later, \
         synchronized_standby_slots on the primary keeps changes from being sent before its standbys have them",
        seen.identity.timeline,
        state.server_timeline(),
        state.position,
        state.flush_lsn.max(seen.copied)
    );
    let to = if resume.is_some() { End::At(state.flush_lsn.max(seen.copied)) } else { End::Slot };
    Gap { what, range: Range { from: switch, to }, resume, set_back: None }
}

fn returned(state: &StreamState, end: Lsn) -> Gap {
    let what = format!(
        "the source was set back: what the log holds beyond {end}, up to {} (position {}), did not happen there, or not \
         so, and what was written there instead is not in the log",
        state.flush_lsn, state.position
    );
    let range = Range { from: end, to: End::At(state.flush_lsn) };
    Gap { what, range, resume: None, set_back: Some(end) }
}

/// A slot that stands before the log's position has to send the witness again, unless the source was set back, and has
/// grown past the log since: nothing else shows that. None: the slot stands behind it, as mostly while the server lives.
/// Where prepared transactions hold the slot back, that says nothing.
pub fn expected(state: &StreamState, slot: Option<&SlotState>) -> Option<Expected> {
    let confirmed = slot.filter(|slot| !slot.two_phase)?.confirmed_flush_lsn?;
    let witness = state.witness.filter(|witness| confirmed <= witness.commit_lsn)?;
    Some(Expected { witness, confirmed })
}

/// What the stream has to send before anything that is not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The transaction.
    pub witness: Witness,
    /// Where the slot stood.
    pub confirmed: Lsn,
}

impl Expected {
    /// The source does not have it.
    pub fn missed(self, state: &StreamState) -> Gap {
        returned(state, self.confirmed)
    }
}

fn moved_on(state: &StreamState, name: &str, confirmed: Lsn) -> Gap {
    let what = format!(
        "replication slot {name:?} was moved on by someone else, or made anew: it stands at {confirmed}, the log at {}: \
         the changes between them cannot be had",
        state.flush_lsn
    );
    let range = Range { from: state.flush_lsn, to: End::At(confirmed) };
    Gap { what, range, resume: Some(confirmed), set_back: None }
}

fn without_slot(state: &StreamState, seen: Seen<'_>) -> Gap {
    // Changes that are written from now on are lost, too, until there is a slot again.
    let gap = format!(
        "changes from {} up to {} (now) and on cannot be had",
        state.flush_lsn, seen.identity.current_lsn
    );
    let name = seen.name;
    let what = match seen.slot {
        None => format!("replication slot {name:?} does not exist any more: {gap}"),
        Some(slot) => {
            let reason = slot.invalidation_reason.as_deref().unwrap_or("its WAL was removed");
            format!("replication slot {name:?} has been invalidated ({reason}): {gap}{}", prevention(reason))
        }
    };
    Gap { what, range: Range { from: state.flush_lsn, to: End::Slot }, resume: None, set_back: None }
}

/// What keeps a slot from being invalidated for that reason.
fn prevention(reason: &str) -> &'static str {
    match reason {
        "idle_timeout" => {
            ". idle_replication_slot_timeout = 0 on the server keeps slots that nobody reads for a while"
        }
        "wal_level_insufficient" => ". wal_level has to stay \"logical\", on the primary of a standby too",
        "rows_removed" => {
            ". On a standby, hot_standby_feedback = on keeps the rows of the catalog that a slot needs"
        }
        reason if reason.contains("rows_removed") => {
            ". On a standby, hot_standby_feedback = on keeps the rows of the catalog that a slot needs; wal_level has to \
             stay \"logical\" on its primary"
        }
        _ => ". A larger max_slot_wal_keep_size keeps WAL for longer",
    }
}

/// The state of a stream that goes on at `start`, whatever it misses: positions go on to grow, if need be above the
/// server's timeline.
pub fn after(state: &StreamState, identity: &SystemIdentity, start: Lsn, gap: &Gap) -> StreamState {
    let at = |lift: Timeline| Position {
        timeline: identity.timeline + lift,
        commit_lsn: Lsn(start.0.saturating_sub(1)),
        ordinal: 0,
    };
    let mut lift = state.lift;
    while at(lift) <= state.position {
        lift += 1;
    }
    StreamState {
        system_id: identity.system_identifier.to_string(),
        timeline: identity.timeline + lift,
        lift,
        position: at(lift),
        flush_lsn: start,
        last_end_lsn: None,
        set_back: None,
        witness: None,
        publication: None,
        resumed_at: Some(at(lift)),
        given_up: Some(format!("the range {} was given up: {}", gap.range, gap.what)),
        ..state.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(timeline: Timeline, commit: u64, flush: u64) -> StreamState {
        StreamState {
            system_id: "7".into(),
            database: "shop".into(),
            slot: "s".into(),
            timeline,
            position: Position { timeline, commit_lsn: Lsn(commit), ordinal: 3 },
            flush_lsn: Lsn(flush),
            last_end_lsn: Some(Lsn(flush)),
            lift: 0,
            given_up: None,
            set_back: None,
            witness: None,
            publication: None,
            resumed_at: None,
        }
    }

    fn identity(timeline: Timeline, now: u64) -> SystemIdentity {
        SystemIdentity { system_identifier: 7, timeline, current_lsn: Lsn(now), database: None }
    }

    fn slot(confirmed: u64) -> SlotState {
        SlotState {
            plugin: Some("pgoutput".into()),
            database: Some("shop".into()),
            temporary: false,
            active_pid: None,
            restart_lsn: Some(Lsn(1)),
            confirmed_flush_lsn: Some(Lsn(confirmed)),
            wal_status: Some(WalStatus::Reserved),
            invalidation_reason: None,
            safe_wal_bytes: None,
            retained_bytes: None,
            failover: true,
            synced: false,
            two_phase: false,
        }
    }

    fn of(
        state: &StreamState,
        identity: &SystemIdentity,
        switch: Option<u64>,
        slot: Option<&SlotState>,
    ) -> Verdict {
        judge(state, Seen { identity, switch: switch.map(Lsn), copied: Lsn(0), slot, name: "s" })
    }

    fn gap(verdict: Verdict) -> Gap {
        match verdict {
            Verdict::Gap(gap) => gap,
            Verdict::GoesOn(state) => panic!("it goes on: {state:?}"),
        }
    }

    fn goes_on(verdict: Verdict) -> StreamState {
        match verdict {
            Verdict::GoesOn(state) => state,
            Verdict::Gap(gap) => panic!("{gap:?}"),
        }
    }

    #[test]
    fn after_a_promotion_the_stream_goes_on_at_the_switch_and_positions_grow() {
        let log = state(1, 100, 120);
        let on = goes_on(of(&log, &identity(2, 200), Some(150), Some(&slot(90))));
        assert_eq!((on.timeline, on.flush_lsn, on.last_end_lsn), (2, Lsn(120), Some(Lsn(120))));
        assert!(on.position > log.position && on.position.commit_lsn == log.position.commit_lsn);
        // Told of WAL without changes beyond the switch: it is read again from there.
        let on = goes_on(of(&log, &identity(2, 200), Some(110), Some(&slot(90))));
        assert_eq!((on.flush_lsn, on.last_end_lsn), (Lsn(110), None));
        let later = goes_on(of(&on, &identity(4, 400), Some(300), Some(&slot(90))));
        assert_eq!((later.timeline, later.flush_lsn), (4, Lsn(110)));
    }

    #[test]
    fn a_slot_before_the_log_has_to_send_its_last_transaction_if_the_server_can_have_it() {
        let witness = |commit| Some(Witness { commit_lsn: Lsn(commit), xid: 7, commit_us: 1 });
        let log = |commit| StreamState {
            witness: witness(commit),
            publication: Some("p".into()),
            ..state(1, 100, 120)
        };
        let wanted = |state: &StreamState, slot: &SlotState| expected(state, Some(slot)).is_some();
        assert!(wanted(&log(100), &slot(90)) && wanted(&log(100), &slot(100)), "it begins there, or behind");
        assert!(!wanted(&log(100), &slot(101)), "the server does not send it any more");
        assert!(!wanted(&log(100), &SlotState { two_phase: true, ..slot(90) }));
        let mut other = log(100);
        other.streams_by("other");
        assert!(!wanted(&other, &slot(90)), "another publication need not have it");
        other.streams_by("p");
        assert!(!wanted(&other, &slot(90)), "nor need the former one, which nothing has come by since");
        assert!(!wanted(&state(1, 100, 120), &slot(90)), "of a log by an older version nothing is known");
        // A promoted server has what committed before the switch, and need not have anything else.
        let promoted = |log: &StreamState| goes_on(of(log, &identity(2, 200), Some(105), Some(&slot(90))));
        assert_eq!(promoted(&log(100)).witness, witness(100));
        assert_eq!(promoted(&log(105)).witness, None);
        let accepted = gap(of(&log(100), &identity(1, 60), None, Some(&slot(50))));
        assert_eq!(after(&log(100), &identity(1, 60), Lsn(60), &accepted).witness, None);
    }

    #[test]
    fn what_the_new_primary_never_had_is_a_gap_from_the_switch_on() {
        for commit in [100, 110] {
            let found = gap(of(&state(1, commit, 120), &identity(2, 200), Some(100), Some(&slot(90))));
            assert_eq!((found.range.to_string().as_str(), found.resume), ("0/64..0/78", Some(Lsn(90))));
        }
        let (log, primary) = (state(1, 100, 120), identity(2, 200));
        let seen =
            Seen { identity: &primary, switch: Some(Lsn(110)), copied: Lsn(130), slot: None, name: "s" };
        assert_eq!(gap(judge(&log, seen)).range.to_string(), "0/6E..", "rows of a copy beyond the switch");
        let found = gap(of(&state(1, 100, 120), &identity(2, 200), Some(100), None));
        assert_eq!((found.range.to_string().as_str(), found.resume), ("0/64..", None));
    }

    #[test]
    fn a_former_primary_and_another_system_are_told_apart_from_a_promotion() {
        let found = gap(of(&state(2, 100, 120), &identity(1, 200), None, Some(&slot(90))));
        assert!(found.what.contains("former primary"), "{}", found.what);
        let other = SystemIdentity { system_identifier: 8, ..identity(1, 500) };
        let found = gap(of(&state(1, 100, 120), &other, None, Some(&slot(90))));
        assert_eq!(found.range.to_string(), "0/78..system:8");
    }

    #[test]
    fn a_source_that_was_set_back_is_refused_also_after_it_has_grown_past_the_log() {
        let mut log = state(1, 100, 120);
        let found = gap(of(&log, &identity(1, 60), None, Some(&slot(50))));
        assert_eq!((found.range.to_string().as_str(), found.set_back), ("0/3C..0/78", Some(Lsn(60))));
        log.set_back = found.set_back;
        let later = gap(of(&log, &identity(1, 500), None, Some(&slot(50))));
        assert_eq!(later.range.to_string(), "0/3C..0/78", "the same range");
        let again = gap(of(&log, &identity(1, 70), None, Some(&slot(50))));
        assert_eq!(again.range.to_string(), "0/3C..0/78");
        // The right server again, after a wrong URL: it was told of what the other never had.
        assert_eq!(goes_on(of(&log, &identity(1, 500), None, Some(&slot(120)))).set_back, None);
    }

    #[test]
    fn a_slot_that_cannot_serve_any_more_is_a_gap_with_its_reason() {
        let log = state(1, 100, 120);
        let found = gap(of(&log, &identity(1, 200), None, None));
        assert!(found.what.contains("does not exist any more"), "{}", found.what);
        for (reason, says) in [
            ("wal_removed", "max_slot_wal_keep_size"),
            ("rows_removed", "hot_standby_feedback"),
            ("wal_level_insufficient", "wal_level"),
            ("idle_timeout", "idle_replication_slot_timeout"),
        ] {
            let lost = SlotState { invalidation_reason: Some(reason.into()), ..slot(90) };
            let found = gap(of(&log, &identity(1, 200), None, Some(&lost)));
            assert!(found.what.contains(reason) && found.what.contains(says), "{}", found.what);
            assert_eq!((found.range.to_string().as_str(), found.resume), ("0/78..", None));
        }
        let found = gap(of(&log, &identity(1, 200), None, Some(&slot(130))));
        assert_eq!((found.range.to_string().as_str(), found.resume), ("0/78..0/82", Some(Lsn(130))));
        assert!(matches!(of(&log, &identity(1, 200), None, Some(&slot(120))), Verdict::GoesOn(_)));
    }

    #[test]
    fn positions_grow_across_an_accepted_gap_wherever_it_leads() {
        let log = state(3, 100, 120);
        let found = gap(of(&log, &identity(3, 60), None, None));
        for (timeline, start, lift) in [(3, 50, 1), (3, 500, 0), (1, 500, 2), (1, 50, 3), (4, 50, 0)] {
            let next = after(&log, &identity(timeline, 600), Lsn(start), &found);
            assert!(next.position > log.position, "{next:?}");
            assert_eq!((next.lift, next.server_timeline(), next.flush_lsn), (lift, timeline, Lsn(start)));
            assert_eq!(next.timeline, next.position.timeline);
        }
    }
}
