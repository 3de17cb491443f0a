//! Stretches of a day: made, several at once, from what was before and what has changed, and placed in order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::runtime::{Error, Result};

use super::super::manifest::PartFile;
use super::super::sort::{Run as SortedRun, SortLimits, Sorted};
use super::at_once::at_once;
use super::base::BaseCursor;
use super::blocking::Blocking;
use super::changes::{ChangeReader, Found};
use super::dead::{DeadWriter, Letters};
use super::division::{Division, Run};
use super::gather::Gather;
use super::keyed::KeyedMerge;
use super::moves::Completions;
use super::multiset::MultisetMerge;
use super::order::{KeyOrder, Seq};
use super::parts::{LocalPart, PartOptions, PartWriter, Rest};
use super::place::Placer;
use super::shape::Shape;
use super::{CHUNK_BYTES_MAX, MergeInput};

/// Changes in the order of keys, by the part of the day before that they belong to.
pub(super) type Round = BTreeMap<usize, SortedRun>;

/// Divides sorted changes among the parts that they belong to; `None` when their files have more than so many bytes.
pub(super) fn by_part(
    mut changes: Sorted,
    division: &Division,
    (input, reader): (&MergeInput, &ChangeReader),
    bytes_max: u64,
) -> Result<Option<Round>> {
    let limits = SortLimits::new(input.sort_bytes_max);
    let (mut round, mut bytes) = (Round::new(), 0);
    while let Some(cursor) = changes.peek() {
        input.store.check()?;
        let part = division.part_of(Seq::split(cursor.sort()).0).ok_or_else(defect)?;
        let upper = division.upper(part);
        let within = |sort: &[u8]| upper.is_none_or(|upper| Seq::split(sort).0 <= upper);
        let run = changes.run(&reader.schema, &input.scratch, limits, (within, || input.store.check()))?;
        bytes += run.bytes();
        if bytes > bytes_max {
            return Ok(None);
        }
        if round.insert(part, run).is_some() {
            return Err(defect());
        }
    }
    Ok(Some(round))
}

/// The changes of a stretch. Their files are removed unless they are to `stay`.
pub(super) fn of_stretch(
    rounds: &[Round],
    parts: &Range<usize>,
    last: bool,
    stay: bool,
    store: &Blocking,
) -> Result<Sorted> {
    let end = parts.end + usize::from(last);
    let store = store.clone();
    let series =
        rounds.iter().map(|round| round.range(parts.start..end).map(|(_, run)| run.clone()).collect());
    Sorted::of_series(series.collect(), stay, move || store.check())
}

fn defect() -> Error {
    Error::operator("a merge has changes of no part; please report it")
}

/// What was made of a stretch.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) parts: Vec<LocalPart>,
    pub(super) letters: Letters,
}

/// Where the changes of the stretches are.
pub(super) enum Changes {
    /// There is one stretch.
    Whole(Sorted),
    /// By part.
    Rounds(Vec<Round>),
}

/// What joining takes.
pub(super) struct Join<'a> {
    pub(super) input: &'a MergeInput,
    pub(super) shape: &'a Shape,
    pub(super) order: &'a Arc<KeyOrder>,
    pub(super) found: &'a Found,
    pub(super) division: &'a Division,
    pub(super) completions: Option<Mutex<Completions>>,
    pub(super) sorted_alike: bool,
}

/// What a day's joining has made.
pub(super) struct Joined {
    pub(super) files: Vec<PartFile>,
    pub(super) dead_letters: u64,
    pub(super) dead_letter_objects: usize,
}

impl Join<'_> {
    /// Makes the parts, but for stretches that are `ready`, and places them.
    pub(super) fn run(
        &self,
        runs: &[Run],
        changes: Changes,
        mut ready: BTreeMap<usize, Vec<LocalPart>>,
    ) -> Result<Joined> {
        let input = self.input;
        let mut whole = None;
        let mut rounds = Vec::new();
        match changes {
            Changes::Whole(sorted) => whole = Some(sorted),
            Changes::Rounds(by_part) => rounds = by_part,
        }
        let missing = runs.iter().filter_map(|run| match run {
            Run::Rewritten(parts) if !ready.contains_key(&parts.start) => Some(parts.clone()),
            _ => None,
        });
        let work = missing.map(|parts| (parts, whole.take())).collect();
        if whole.is_some_and(|rest| rest.peek().is_some()) {
            return Err(defect());
        }
        let make = |(parts, changes): (Range<usize>, Option<Sorted>)| {
            let changes = match changes {
                Some(changes) => changes,
                None => of_stretch(&rounds, &parts, self.division.is_last(&parts), false, &input.store)?,
            };
            self.make(&parts, changes)
        };
        at_once(work, input.threads, make, |next| {
            let (mut placer, mut dead) = (self.placer(), self.dead_writer());
            for run in runs {
                match run {
                    Run::Carried(parts) => {
                        if let Some((manifest, _)) = &input.previous {
                            placer.carry(manifest, parts.clone());
                        }
                    }
                    Run::Rewritten(parts) => {
                        let parts = match ready.remove(&parts.start) {
                            Some(parts) => parts,
                            None => {
                                let Made { parts, letters } = next()?;
                                dead.take(letters)?;
                                parts
                            }
                        };
                        parts.into_iter().try_for_each(|part| placer.put(part))?;
                    }
                }
            }
            // There is always at least one part.
            if placer.parts.is_empty() {
                let empty = self.part_writer(None).finish_empty()?;
                empty.into_iter().try_for_each(|part| placer.put(part))?;
            }
            let (dead_letters, dead_letter_objects) = dead.finish()?;
            Ok(Joined { files: placer.finish()?, dead_letters, dead_letter_objects })
        })
    }

    /// Makes a stretch.
    pub(super) fn make(&self, parts: &Range<usize>, changes: Sorted) -> Result<Made> {
        self.input.room.give_if_short(&self.input.scratch);
        let (input, schema, scratch) = (self.input, self.shape.table.as_ref(), &self.input.scratch);
        let chunk_bytes = (input.part_bytes_max / 8).clamp(1024, CHUNK_BYTES_MAX) as u64;
        let rest = (!self.division.is_last(parts)).then(|| Rest::of(input.files(parts)));
        let out = Gather::new(self.shape.rows(), chunk_bytes, self.part_writer(rest));
        let dead = Letters::new(scratch, schema.version);
        let (truncated, base) = (self.found.truncated, self.base(parts)?);
        let left_out = input.left_out.as_deref();
        let (out, letters) = if schema.key.is_empty() {
            let all_equal = schema.columns.iter().all(|column| !column.dropped);
            let in_part = left_out.is_some();
            let mut merge = MultisetMerge { changes, all_equal, truncated, in_part, out, dead };
            merge.run(base)?;
            (merge.out, merge.dead)
        } else {
            let settled = input.replaced.as_ref().map(|copy| copy.end);
            let completions = self.completions.as_ref();
            let mut merge =
                KeyedMerge { schema, changes, completions, truncated, settled, left_out, out, dead };
            merge.run(base)?;
            (merge.out, merge.dead)
        };
        Ok(Made { parts: out.finish()?.finish()?, letters })
    }

    fn base(&self, parts: &Range<usize>) -> Result<BaseCursor> {
        let base =
            if self.sorted_alike { self.input.base(self.shape, self.found, parts.clone())? } else { None };
        Ok(BaseCursor::new(base, Arc::clone(self.order), self.shape.rows()))
    }

    fn part_writer(&self, rest: Option<Rest>) -> PartWriter {
        let options = PartOptions {
            scratch: Arc::clone(&self.input.scratch),
            format: self.input.format,
            part_bytes_max: self.input.part_bytes_max,
            row_group_bytes: self.input.row_group_bytes,
        };
        let order = (!self.shape.table.key.is_empty()).then(|| Arc::clone(self.order));
        PartWriter::new(self.input.store.clone(), options, self.shape.clone(), order, rest)
    }

    fn placer(&self) -> Placer {
        Placer {
            store: self.input.store.clone(),
            layout: self.input.layout.clone(),
            table: self.shape.table.name.clone(),
            ds: self.input.ds,
            format: self.input.format,
            parts: Vec::new(),
        }
    }

    fn dead_writer(&self) -> DeadWriter {
        let (store, layout) = (self.input.store.clone(), self.input.layout.clone());
        DeadWriter::new(store, layout, self.input.ds, &self.shape.table)
    }
}
