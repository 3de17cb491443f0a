//! What is made of the next day before it ends: so that after the cut only what has changed lately is left.
//!
//! ```text
//!   each round:   new change files ──> sorted, by part ──> rounds ─┐   (scratch)
//!                       └─> parts with new changes: not made yet   │
//!                 parts with changes, but none in this round ──────┴─> join ──> made   (scratch)
//!
//!   at the cut:   the last change files ──> sorted, by part ───────┐
//!                       └─> parts with new changes ────────────────┴─> join ─┐
//!                 the others: as they were made ─────────────────────────────┴─> the day
//! ```
//!
//! Why the day is the same with it as without: what a stretch becomes follows from yesterday's parts, the plan, the shape
//! of the table and the changes that belong to it ([`super::division`]), so what was made of the same ones is what would be
//! made now. It is used only if yesterday's manifest, the plan and the shape are those of the cut, all change files that were
//! read are among the cut's (they never change), and none of the others has a change that belongs to the stretch. Anything
//! that reaches beyond its stretch is left to the cut: a stretch with a row whose values were left behind by a change of key,
//! or with dead letters; and all of them after a truncate, or with a value that the files do not have a column for. Files that were made are placed like any other, and compared with their
//! checksum on the way. All of it is a cache in the scratch folder of one process: it is lost with the process.
//!
//! A part is made when a round has passed it by, so those that change all the time are not made over and over again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use object_store::path::Path;

use crate::batch::Format;
use crate::change::TableSchema;
use crate::runtime::Result;

use super::super::manifest::Manifest;
use super::super::scratch::Scratch;
use super::super::sort::{Run as SortedRun, Sorted};
use super::changes::Found;
use super::division::{Division, Run};
use super::join::{Join, Made, Round, by_part, of_stretch};
use super::parts::LocalPart;
use super::{Context, Gathered, MergeFile, MergeInput, gather};

/// Rounds after which their changes are put together.
const ROUNDS_MAX: usize = 16;

/// Why a day may be left to its cut.
const NO_ROOM: &str = "[lake] premerge_bytes_max is used up, or the disk of the scratch folder nearly full";

/// What is on scratch for all tables of a process.
#[derive(Clone, Debug, Default)]
pub(in crate::lake) struct Room {
    used: Arc<AtomicU64>,
}

impl Room {
    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that are left; none when it is more than full.
    fn left(&self, scratch: &Scratch, bytes_max: u64) -> Result<Option<u64>> {
        let of_disk = scratch.room()?;
        let left = bytes_max.checked_sub(self.used()).map(|left| left.min(of_disk));
        Ok(left.filter(|left| *left > 0))
    }
}

/// What is made of a table's next day.
#[derive(Debug)]
pub struct Premerged {
    basis: Basis,
    scratch: Arc<Scratch>,
    /// The change files read.
    files: BTreeSet<Path>,
    bytes_changes: u64,
    records: u64,
    division: Option<Division>,
    /// Where rows are of which values were left behind.
    moved: Option<Division>,
    rounds: Vec<Round>,
    made: Stretches,
    /// Whether some stretch waits for the next round.
    waiting: bool,
    given_up: Option<&'static str>,
    room: Room,
    /// What of the room is this table's.
    bytes: u64,
}

/// What everything that was made depends on, beside the changes.
#[derive(Debug, PartialEq)]
struct Basis {
    previous: Option<(Arc<Manifest>, Format)>,
    schema: Arc<TableSchema>,
    exact: bool,
    format: Format,
    part_bytes_max: usize,
    row_group_bytes: usize,
}

impl Basis {
    fn of(input: &MergeInput, exact: bool) -> Self {
        Self {
            previous: input.previous.clone(),
            schema: Arc::clone(input.shapes.now()),
            exact,
            format: input.format,
            part_bytes_max: input.part_bytes_max,
            row_group_bytes: input.row_group_bytes,
        }
    }
}

/// What of a day was made before its cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// Changes that were sorted, and divided by part.
    pub changes: u64,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a premerged day brings to its merge.
pub(super) struct Ready {
    pub(super) files: BTreeSet<Path>,
    pub(super) bytes_changes: u64,
    pub(super) records: u64,
    pub(super) division: Division,
    /// Whether there are rows of which values were left behind.
    pub(super) moves: bool,
    rounds: Vec<Round>,
    made: Stretches,
    /// The files of all of it are there.
    _scratch: Arc<Scratch>,
}

impl Ready {
    /// The changes by part, with the last ones.
    pub(super) fn rounds(&mut self, last: Round) -> Vec<Round> {
        self.rounds.push(last);
        std::mem::take(&mut self.rounds)
    }

    /// The parts made of those of the `runs` in which nothing changed `since`, by the first part of each.
    pub(super) fn made(&mut self, since: &Division, runs: &[Run]) -> BTreeMap<usize, Vec<LocalPart>> {
        let fits =
            |parts: &Range<usize>| !since.is_touched(parts) && runs.contains(&Run::Rewritten(parts.clone()));
        let made = std::mem::take(&mut self.made).into_iter();
        made.filter_map(|(first, (parts, made))| Some((first, made.filter(|_| fits(&parts))?))).collect()
    }
}

/// By its first part: a stretch, and what was made of it; none if it is left to the cut.
type Stretches = BTreeMap<usize, (Range<usize>, Option<Vec<LocalPart>>)>;

impl Premerged {
    /// Nothing yet, for the day after the one that `input` begins with. `scratch` is to live as long as it.
    pub(in crate::lake) fn new(
        input: &MergeInput,
        exact: bool,
        room: Room,
        scratch: Scratch,
    ) -> Result<Self> {
        let division = input.division(exact)?;
        let by_key = division.is_by_key();
        Ok(Self {
            basis: Basis::of(input, exact),
            scratch: Arc::new(scratch),
            files: BTreeSet::new(),
            bytes_changes: 0,
            records: 0,
            moved: by_key.then(|| division.untouched()),
            division: by_key.then_some(division),
            rounds: Vec::new(),
            made: BTreeMap::new(),
            waiting: false,
            given_up: (!by_key).then_some("no keys tell its files apart, or all of them are written anew"),
            room,
            bytes: 0,
        })
    }

    /// Whether it is of that basis; if not, it is worth nothing.
    pub(in crate::lake) fn is_of(&self, input: &MergeInput, exact: bool) -> bool {
        self.basis == Basis::of(input, exact)
    }

    /// Why the day is left to its cut; none while it is premerged.
    pub const fn given_up(&self) -> Option<&'static str> {
        self.given_up
    }

    /// Whether another round has something to do, even without new changes.
    pub const fn is_waiting(&self) -> bool {
        self.waiting && self.given_up.is_none()
    }

    /// Stretches that are made, and the bytes of their parts.
    pub fn made(&self) -> (usize, u64) {
        let parts = self.made.values().filter_map(|(_, parts)| parts.as_ref());
        parts.fold((0, 0), |(count, bytes), parts| (count + 1, bytes + size(parts)))
    }

    /// For the merge of the day, or why not: it has to be of the same basis, and all that was read has to belong to the day.
    pub(super) fn ready(mut self, input: &MergeInput, exact: bool) -> Result<Ready, &'static str> {
        let Some(division) = self.division.take() else { return Err(self.given_up.unwrap_or(NO_ROOM)) };
        if !self.is_of(input, exact) || input.replaced.is_some() {
            return Err("the day is made from another day before, in another shape, or by another plan");
        }
        let all = |file: &&MergeFile| file.offsets == (0..u64::MAX);
        let there: BTreeSet<_> = input.files.iter().filter(all).map(|file| &file.file.path).collect();
        if !self.files.iter().all(|file| there.contains(file)) {
            return Err("a change file was read that does not belong to the day");
        }
        Ok(Ready {
            division,
            moves: self.moved.as_ref().is_some_and(Division::is_any_touched),
            files: std::mem::take(&mut self.files),
            bytes_changes: self.bytes_changes,
            records: self.records,
            rounds: std::mem::take(&mut self.rounds),
            made: std::mem::take(&mut self.made),
            _scratch: Arc::clone(&self.scratch),
        })
    }

    /// A round: reads the change files of `input` that were not read yet, and makes what this round has passed by. An error
    /// leaves what was there before, and so does an end by [`super::blocking::Blocking::check`].
    pub(in crate::lake) fn advance(&mut self, input: &MergeInput, bytes_max: u64) -> Result<()> {
        let Some(mut division) = self.division.clone().filter(|_| self.given_up.is_none()) else {
            return Ok(());
        };
        let context = Context::new(input, self.basis.exact)?;
        let new = |file: &MergeFile| !self.files.contains(&file.file.path);
        // Sorting writes them once, dividing them by part once more.
        let gathered = match self.room.left(&self.scratch, bytes_max)? {
            Some(left) => gather(input, &context, division.untouched(), new, left / 2)?,
            None => None,
        };
        let Some(Gathered { found, touched: newest, moved, sorter, bytes }) = gathered else {
            self.give_up(NO_ROOM);
            return Ok(());
        };
        let beyond = [
            (found.truncated.is_some(), "it was truncated"),
            (found.exact && !self.basis.exact, "a value is beyond its type"),
        ];
        if let Some((_, reason)) = beyond.into_iter().find(|(is, _)| *is) {
            self.give_up(reason);
            return Ok(());
        }
        let mut round = by_part(sorter.finish(|| input.store.check())?, &newest, (input, &context.reader))?;
        round.values_mut().try_for_each(|run| run.move_to(&self.scratch))?;
        division.touch_all(&newest);
        self.moved.get_or_insert_with(|| division.untouched()).touch_all(&moved);
        self.files.extend(input.files.iter().map(|file| file.file.path.clone()));
        self.records += found.records;
        self.bytes_changes += bytes;
        self.rounds.extend((!round.is_empty()).then_some(round));
        let runs = division.runs();
        self.made.retain(|_, (parts, made)| {
            let stays = !newest.is_touched(parts) && runs.contains(&Run::Rewritten(parts.clone()));
            if !stays {
                remove(made.as_deref().unwrap_or_default());
            }
            stays
        });
        self.division = Some(division);
        // Until the stretches that are missing are made, too.
        self.waiting = true;
        self.count();
        self.together(input, &context)?;
        self.count();
        let made = self.make_missing(input, &context, (&newest, &runs), bytes_max);
        self.count();
        made
    }

    /// Makes the stretches that have changes, but none in the newest round.
    fn make_missing(
        &mut self,
        input: &MergeInput,
        context: &Context,
        (newest, runs): (&Division, &[Run]),
        bytes_max: u64,
    ) -> Result<()> {
        let mut waiting = false;
        let Context { shape, order, .. } = context;
        let found = Found::default();
        let join = Join {
            input,
            shape,
            order,
            found: &found,
            division: newest,
            completions: None,
            sorted_alike: true,
        };
        for run in runs {
            let Run::Rewritten(parts) = run else { continue };
            let moved = self.moved.as_ref().is_some_and(|moved| moved.is_touched(parts));
            if moved || self.made.contains_key(&parts.start) {
                continue;
            }
            if newest.is_touched(parts) {
                waiting = true;
                continue;
            }
            let of_part = |round: &Round| -> u64 {
                round.range(parts.start..=parts.end).map(|(_, run)| run.bytes()).sum()
            };
            let about = input.files(parts).iter().map(|part| part.bytes).sum::<u64>()
                + self.rounds.iter().map(of_part).sum::<u64>();
            self.count();
            // Beside what becomes of it, a file that it is made from lies there for as long.
            if self.room.left(&self.scratch, bytes_max)?.is_none_or(|left| left < about * 2) {
                continue;
            }
            let last = newest.is_last(parts);
            let changes = of_stretch(&self.rounds, parts, last, true)?;
            let Made { parts: mut made, letters } = join.make(parts, changes)?;
            // What is not taken over goes with the folder of the round.
            let made = if letters.is_empty() {
                for part in &mut made {
                    part.path = self.scratch.adopt(&part.path, "part")?;
                }
                Some(made)
            } else {
                None
            };
            self.made.insert(parts.start, (parts.clone(), made));
        }
        self.waiting = waiting;
        Ok(())
    }

    /// Puts the changes of many rounds together: each of them is open while a stretch is made.
    fn together(&mut self, input: &MergeInput, context: &Context) -> Result<()> {
        if self.rounds.len() <= ROUNDS_MAX {
            return Ok(());
        }
        let parts: BTreeSet<usize> = self.rounds.iter().flat_map(|round| round.keys().copied()).collect();
        let mut one = Round::new();
        for part in parts {
            let runs = self.rounds.iter().filter_map(|round| Some(vec![round.get(&part)?.clone()]));
            let mut changes = Sorted::of_series(runs.collect(), true)?;
            let run = changes.run(
                &context.reader.schema,
                &input.scratch,
                context.limits,
                (|_: &[u8]| true, || input.store.check()),
            )?;
            one.insert(part, run);
        }
        one.values_mut().try_for_each(|run| run.move_to(&self.scratch))?;
        for run in std::mem::replace(&mut self.rounds, vec![one]).iter().flat_map(BTreeMap::values) {
            run.remove();
        }
        Ok(())
    }

    fn give_up(&mut self, reason: &'static str) {
        for (_, made) in std::mem::take(&mut self.made).into_values() {
            remove(made.as_deref().unwrap_or_default());
        }
        for run in std::mem::take(&mut self.rounds).iter().flat_map(BTreeMap::values) {
            run.remove();
        }
        self.division = None;
        self.given_up = Some(reason);
        self.count();
    }

    /// Counts what of the room is taken.
    fn count(&mut self) {
        let rounds = self.rounds.iter().flat_map(BTreeMap::values).map(SortedRun::bytes).sum::<u64>();
        let bytes = rounds + self.made().1;
        self.room.used.fetch_add(bytes, Ordering::Relaxed);
        self.room.used.fetch_sub(std::mem::replace(&mut self.bytes, bytes), Ordering::Relaxed);
    }
}

impl Drop for Premerged {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn size(parts: &[LocalPart]) -> u64 {
    parts.iter().map(|part| part.file.bytes).sum()
}

/// What stays goes with the folder.
fn remove(parts: &[LocalPart]) {
    for part in parts {
        let _ = fs::remove_file(&part.path);
    }
}
