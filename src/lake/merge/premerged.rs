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
//! Why the day is the same with it as without. What a stretch becomes follows from yesterday's parts, the plan, the shape of
//! the table and the changes that belong to it ([`super::division`]), so what was made of the same ones is what would be made
//! now. That they are the same is looked at when the day is made ([`Premerged::ready`]):
//!
//! * yesterday's manifest, the plan, the shape and whether values stand as text are those of the cut ([`Basis`]), and the
//!   table was not copied anew; a schema change, a new copy, or a plan that another process has made, and nothing is taken;
//! * the changes that were read are among the cut's, by their offsets: a record has one, and the same rows in whatever file,
//!   be it a piece of one that was open then ([`super::super::stage`]);
//! * what was made of a stretch is taken only if no change that was not read belongs to it (its keys
//!   mark it as they do without), and if it is one of the stretches of the day ([`Ready::made`]).
//!
//! Whatever reaches beyond its stretch is left to the cut: a stretch with a row whose values were left behind by a change of
//! key, or with dead letters; and all of them after a truncate, or with a value that the files do not have a column for. The
//! records that were read are counted, and come into the sum that has to be capture's before the day is published.
//!
//! What was made may have been altered where it lay: of a kept run, length and checksum are compared before anything is
//! decoded ([`super::super::sort`]), of a part its SHA-256 on its way into the lake. If that is not what was written, or is gone,
//! the day is made without; parts that were put by then are those that it will put. An error of the store ends the merge, and
//! the next attempt has nothing that was made. All of it is a cache in the scratch folder of one process, and lost with it.
//!
//! What it costs. A round ends at its next step when a cut is there: each file that is read, each batch that is sorted or
//! written, each piece of a part that is downloaded; only a call of the store that hangs is waited for. It takes no more than
//! its room, and gives it back ([`room`]). A part is made when a round has passed it by; if that was in vain, it has to be left
//! alone for twice as long each time ([`Habits`]), so those that change all the time are not made over and over again.

pub(in crate::lake) mod room;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::sync::Arc;

use crate::batch::Format;
use crate::change::TableSchema;
use crate::runtime::Result;

use super::super::layout::ChangeRange;
use super::super::manifest::Manifest;
use super::super::scratch::Scratch;
use super::super::sort::{Run as SortedRun, Sorted};
use super::changes::Found;
use super::division::{Division, Run};
use super::join::{Join, Made, Round, by_part, of_stretch};
use super::parts::LocalPart;
use super::{Context, Gathered, MergeFile, MergeInput, gather};
use room::Share;

/// Runs of a part after which they are put together.
const RUNS_MAX: usize = 16;

/// Why a day may be left to its cut.
const NO_ROOM: &str = "[lake] premerge_bytes_max is used up, or the disk of the scratch folder nearly full";

/// What is made of a table's next day.
#[derive(Debug)]
pub struct Premerged {
    basis: Basis,
    scratch: Arc<Scratch>,
    read: Read,
    records: u64,
    division: Option<Division>,
    /// Where rows are of which values were left behind.
    moved: Option<Division>,
    /// Each part's runs are in the first of them.
    rounds: Vec<Round>,
    made: Stretches,
    habits: Habits,
    /// Whether some stretch waits for the next round.
    waiting: bool,
    /// Why no further round does anything.
    ended: Option<&'static str>,
    share: Share,
}

/// By part of the day before: how it has been touched, by which it is told whether it pays to make it.
#[derive(Debug)]
struct Habits {
    /// Rounds with changes of the table, but none there, since the last one that had some.
    calm: Vec<u32>,
    /// How often what was made there was made in vain.
    vain: Vec<u32>,
}

impl Habits {
    fn new(parts: usize) -> Self {
        Self { calm: vec![0; parts], vain: vec![0; parts] }
    }

    /// A round with new changes.
    fn note(&mut self, newest: &Division) {
        for (part, calm) in self.calm.iter_mut().enumerate() {
            *calm = if newest.is_touched(&(part..part + 1)) { 0 } else { calm.saturating_add(1) };
        }
    }

    fn note_vain(&mut self, parts: &Range<usize>) {
        self.vain[parts.clone()].iter_mut().for_each(|vain| *vain += 1);
    }

    /// Whether a stretch is calm enough for what came of it before: each time that it was in vain, it has to be so for twice
    /// as long.
    fn pays(&self, parts: &Range<usize>) -> bool {
        let needed = |vain: u32| 1_u32.checked_shl(vain).map_or(u32::MAX, |rounds| rounds - 1);
        parts.clone().all(|part| self.calm[part] >= needed(self.vain[part]))
    }

    /// Whether it would without any further changes.
    fn may_pay(&self, parts: &Range<usize>) -> bool {
        self.vain[parts.clone()].iter().all(|vain| *vain == 0)
    }
}

/// What everything that was made depends on, beside the changes.
#[derive(Debug, PartialEq)]
struct Basis {
    previous: Option<(Arc<Manifest>, Format)>,
    schema: Arc<TableSchema>,
    exact: bool,
    /// Whether parts of the day before may be taken over.
    carry: bool,
    format: Format,
    part_bytes_max: usize,
    row_group_bytes: usize,
}

/// By log partition, the offsets of the changes that were read, whichever files they were in.
#[derive(Debug, Default)]
pub(super) struct Read(BTreeMap<u32, Range<u64>>);

impl Read {
    /// What was not read of a file; none if nothing is left.
    pub(super) fn rest_of(&self, file: &MergeFile) -> Option<MergeFile> {
        let ChangeRange { partition, .. } = file.file.range;
        let read = self.0.get(&partition).map_or(0, |read| read.end);
        let mut rest = file.clone();
        rest.offsets.start = rest.offsets.start.max(read);
        (rest.offsets.start < file.file.range.next()).then_some(rest)
    }

    /// Adds files, of each log partition in order and without a gap.
    fn extend(&mut self, files: &[MergeFile]) {
        for MergeFile { file, offsets } in files {
            let (range, first) = (file.range, file.range.first.max(offsets.start));
            let read = self.0.entry(range.partition).or_insert(first..first);
            read.end = read.end.max(range.next());
        }
    }

    /// Whether all of it is in those files, which have each offset once, and are read from their beginning.
    fn is_within(&self, files: &[MergeFile]) -> bool {
        self.0.iter().all(|(partition, read)| {
            let of = || files.iter().filter(|file| file.file.range.partition == *partition);
            let whole = of().all(|file| file.offsets == (0..u64::MAX));
            let first = of().map(|file| file.file.range.first).min();
            let next = of().map(|file| file.file.range.next()).max();
            whole && first == Some(read.start) && next.is_some_and(|next| next >= read.end)
        })
    }
}

impl Basis {
    fn of(input: &MergeInput, exact: bool) -> Self {
        Self {
            previous: input.previous.clone(),
            schema: Arc::clone(input.shapes.now()),
            exact,
            carry: input.carry,
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
    pub(super) read: Read,
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
    pub(in crate::lake) fn new(input: &MergeInput, exact: bool, scratch: Scratch) -> Result<Self> {
        let scratch = Arc::new(scratch);
        let division = input.division(exact)?;
        let by_key = division.is_by_key();
        Ok(Self {
            basis: Basis::of(input, exact),
            share: input.room.share(&scratch),
            scratch,
            read: Read::default(),
            records: 0,
            moved: by_key.then(|| division.untouched()),
            division: by_key.then_some(division),
            rounds: Vec::new(),
            made: BTreeMap::new(),
            habits: Habits::new(input.files_before()),
            waiting: false,
            ended: (!by_key).then_some("no keys tell its files apart, or their order is another one now"),
        })
    }

    /// Whether it is of that basis; if not, it is worth nothing.
    pub(in crate::lake) fn is_of(&self, input: &MergeInput, exact: bool) -> bool {
        self.basis == Basis::of(input, exact)
    }

    /// Why what comes from now on is left to the cut; none while further rounds do something.
    pub const fn ended(&self) -> Option<&'static str> {
        self.ended
    }

    /// Whether another round has something to do, even without new changes.
    pub const fn is_waiting(&self) -> bool {
        self.waiting && self.ended.is_none()
    }

    /// Whether the disk is nearly full: what was made gives way then.
    pub fn is_in_the_way(&self) -> bool {
        self.scratch.room().is_ok_and(|left| left == 0)
    }

    /// Stretches that are made, and the bytes of their parts.
    pub fn made(&self) -> (usize, u64) {
        let parts = self.made.values().filter_map(|(_, parts)| parts.as_ref());
        parts.fold((0, 0), |(count, bytes), parts| (count + 1, bytes + size(parts)))
    }

    /// For the merge of the day, or why not, unless that was told before: it has to be of the same basis, and all that was
    /// read has to belong to the day.
    pub(super) fn ready(mut self, input: &MergeInput, exact: bool) -> Result<Ready, Option<&'static str>> {
        let Some(division) = self.division.take() else { return Err(None) };
        if !self.is_of(input, exact) || input.replaced.is_some() {
            return Err(Some(
                "the day is made from another day before, in another shape, or by another plan",
            ));
        }
        if !self.read.is_within(&input.files) {
            return Err(Some("changes were read that do not belong to the day"));
        }
        Ok(Ready {
            division,
            moves: self.moved.as_ref().is_some_and(Division::is_any_touched),
            read: std::mem::take(&mut self.read),
            records: self.records,
            rounds: std::mem::take(&mut self.rounds),
            made: std::mem::take(&mut self.made),
            _scratch: Arc::clone(&self.scratch),
        })
    }

    /// A round: reads of the change files of `input` what was not read yet, and makes what this round has passed by. An error
    /// leaves what was there before, and so does an end by [`super::blocking::Blocking::check`].
    pub(in crate::lake) fn advance(&mut self, input: &MergeInput, bytes_max: u64) -> Result<()> {
        let Some(mut division) = self.division.clone().filter(|_| self.ended.is_none()) else {
            return Ok(());
        };
        let context = Context::new(input, self.basis.exact, false)?;
        let new = |file: &MergeFile| self.read.rest_of(file);
        // Sorting writes them once, dividing them by part once more.
        let left = self.share.left(&self.scratch, bytes_max)?.unwrap_or(0) / 2;
        let gathered = gather(input, &context, division.untouched(), new, left)?;
        let Some(Gathered { found, touched: newest, moved, sorter }) = gathered else {
            self.ended = Some(NO_ROOM);
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
        let sorted = sorter.finish(|| input.store.check())?;
        let Some(mut round) = by_part(sorted, &newest, (input, &context.reader), left)? else {
            self.ended = Some(NO_ROOM);
            return Ok(());
        };
        round.values_mut().try_for_each(|run| run.move_to(&self.scratch))?;
        division.touch_all(&newest);
        self.moved.get_or_insert_with(|| division.untouched()).touch_all(&moved);
        self.read.extend(&input.files);
        self.records += found.records;
        if !round.is_empty() {
            self.habits.note(&newest);
        }
        for (part, run) in round {
            self.add(part, run);
        }
        let runs = division.runs();
        self.made.retain(|_, (parts, made)| {
            let stays = !newest.is_touched(parts) && runs.contains(&Run::Rewritten(parts.clone()));
            if let Some(made) = made.as_deref().filter(|_| !stays) {
                self.habits.note_vain(parts);
                remove(made);
            }
            stays
        });
        self.division = Some(division);
        // Until the stretches that are missing are made, too.
        self.waiting = true;
        self.count();
        self.together(input, &context, bytes_max)?;
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
                waiting |= self.habits.may_pay(parts);
                continue;
            }
            if !self.habits.pays(parts) {
                continue;
            }
            let of_part = |round: &Round| -> u64 {
                round.range(parts.start..=parts.end).map(|(_, run)| run.bytes()).sum()
            };
            let about = input.files(parts).iter().map(|part| part.bytes).sum::<u64>()
                + self.rounds.iter().map(of_part).sum::<u64>();
            self.count();
            // Beside what becomes of it, a file that it is made from lies there for as long.
            if self.share.left(&self.scratch, bytes_max)?.is_none_or(|left| left < about * 2) {
                continue;
            }
            let last = newest.is_last(parts);
            let changes = of_stretch(&self.rounds, parts, last, true, &input.store)?;
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

    /// Adds a part's newest run.
    fn add(&mut self, part: usize, run: SortedRun) {
        match self.rounds.iter_mut().find(|round| !round.contains_key(&part)) {
            Some(round) => {
                round.insert(part, run);
            }
            None => self.rounds.push(Round::from([(part, run)])),
        }
    }

    /// Puts the runs of parts that have many of them together, as far as there is room: each of them is open while a stretch
    /// is made. What was done of it stays whatever comes.
    fn together(&mut self, input: &MergeInput, context: &Context, bytes_max: u64) -> Result<()> {
        let last = self.rounds.get(RUNS_MAX).into_iter().flat_map(BTreeMap::keys);
        for part in last.copied().collect::<Vec<_>>() {
            let runs: Vec<_> = self.rounds.iter().filter_map(|round| round.get(&part).cloned()).collect();
            let bytes: u64 = runs.iter().map(SortedRun::bytes).sum();
            if self.share.left(&self.scratch, bytes_max)?.is_none_or(|left| left < bytes) {
                continue;
            }
            let store = input.store.clone();
            let series = runs.iter().map(|run| vec![run.clone()]).collect();
            let mut changes = Sorted::of_series(series, true, move || store.check())?;
            let mut run = changes.run(
                &context.reader.schema,
                &input.scratch,
                context.limits,
                (|_: &[u8]| true, || input.store.check()),
            )?;
            run.move_to(&self.scratch)?;
            for (number, round) in self.rounds.iter_mut().enumerate() {
                round.remove(&part);
                if number == 0 {
                    round.insert(part, run.clone());
                }
            }
            runs.iter().for_each(SortedRun::remove);
            self.count();
        }
        self.rounds.retain(|round| !round.is_empty());
        Ok(())
    }

    /// Nothing of it is of use.
    fn give_up(&mut self, reason: &'static str) {
        for (_, made) in std::mem::take(&mut self.made).into_values() {
            remove(made.as_deref().unwrap_or_default());
        }
        std::mem::take(&mut self.rounds).iter().flat_map(BTreeMap::values).for_each(SortedRun::remove);
        self.division = None;
        self.ended = Some(reason);
        self.count();
    }

    /// Counts what of the room is taken.
    fn count(&mut self) {
        let rounds = self.rounds.iter().flat_map(BTreeMap::values).map(SortedRun::bytes).sum::<u64>();
        self.share.set(rounds + self.made().1);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(parts: usize, which: &[usize]) -> Division {
        Division::touched_only(parts, which)
    }

    #[test]
    fn a_part_that_was_made_in_vain_is_made_again_only_after_twice_as_many_rounds_have_passed_it_by() {
        let mut habits = Habits::new(2);
        assert!(habits.pays(&(0..2)) && habits.may_pay(&(0..2)));
        for rounds in [1, 3, 7, 15] {
            habits.note_vain(&(0..1));
            habits.note(&touched(2, &[0, 1]));
            assert!(!habits.may_pay(&(0..1)) && habits.pays(&(1..2)), "the other one was not made in vain");
            for _ in 0..rounds {
                assert!(!habits.pays(&(0..1)) && !habits.pays(&(0..2)));
                habits.note(&touched(2, &[1]));
            }
            assert!(habits.pays(&(0..1)));
        }
        (0..40).for_each(|_| habits.note_vain(&(0..1)));
        assert!(!habits.pays(&(0..1)));
    }
}
