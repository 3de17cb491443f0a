//! Which parts of the day before are made anew, and which are taken over as they are.
//!
//! ```text
//!   yesterday      [a ── f]   [h ── k]   [m ── p]   [r ── t]
//!   changes              g               n                   z
//!   today          carried    rewritten  rewritten  carried   written: what is beyond the last part
//! ```
//!
//! A key belongs to the first part whose last key is not below it, so what lies between two parts goes to the latter;
//! what lies beyond the last part goes to that one while it is small, and else to parts of its own. Why a part that is
//! carried is exact: the ranges of yesterday's parts ascend and do not overlap (checked before they were published, and
//! again today), so the only part that may hold a key's row is the one it belongs to; and every change marks the part its
//! key belongs to, a change of key both. Bounds are the bytes by which rows are ordered, whole; no statistics.
//!
//! Small parts beside rewritten ones are rewritten with them, so that they are joined again. Each part that is rewritten
//! is a stretch of its own, but for small ones, which go with the one before them: what is made of a stretch depends on
//! nothing outside it, so stretches can be made at once, or before the day ends. Everything follows from yesterday's
//! manifest, the plan and the keys that changed.

use std::ops::Range;

use crate::runtime::{Error, Result};

use super::super::manifest::PartFile;

/// A small part has less than this share of the size that parts should have.
pub(super) const SMALL: u64 = 4;

/// A stretch of today's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// These parts of the day before, as they are.
    Carried(Range<usize>),
    /// Parts made of these, of the changes that belong to them, and if they are the last ones of all that is beyond.
    Rewritten(Range<usize>),
}

/// Yesterday's parts, and what is known of them.
#[derive(Clone, Debug)]
pub(super) struct Division {
    /// The last key of each part; none when keys do not tell which part they belong to.
    last_keys: Option<Vec<Vec<u8>>>,
    bytes: Vec<u64>,
    part_bytes: u64,
    /// By part, and last what is beyond all of them: whether something changed there.
    touched: Vec<bool>,
    /// So many of the first parts are carried with nothing around them, since what changed in them is deferred.
    kept: usize,
}

impl Division {
    /// All of them are rewritten.
    pub(super) fn whole(parts: &[PartFile]) -> Self {
        Self {
            last_keys: None,
            bytes: sizes(parts),
            part_bytes: 0,
            touched: vec![true; parts.len() + 1],
            kept: 0,
        }
    }

    /// All of them are rewritten, and told apart by their bounds, which have to be of today's order.
    pub(super) fn all(parts: &[PartFile], part_bytes: usize) -> Result<Self> {
        let mut all = Self::new(parts, true, part_bytes)?;
        all.touched.fill(true);
        Ok(all)
    }

    /// Those that nothing touches are carried. With `keyed`, parts are told apart by their bounds, where they have any.
    pub(super) fn new(parts: &[PartFile], keyed: bool, part_bytes: usize) -> Result<Self> {
        let bounds = if keyed { bounds(parts)? } else { None };
        Ok(Self {
            last_keys: bounds.map(|bounds| bounds.into_iter().map(|(_, last)| last).collect()),
            bytes: sizes(parts),
            part_bytes: part_bytes as u64,
            touched: vec![false; parts.len() + 1],
            kept: 0,
        })
    }

    /// So many parts, of which these are touched.
    #[cfg(test)]
    pub(super) fn touched_only(parts: usize, which: &[usize]) -> Self {
        let touched = (0..=parts).map(|part| which.contains(&part)).collect();
        Self { last_keys: None, bytes: vec![0; parts], part_bytes: 0, touched, kept: 0 }
    }

    /// Has the first parts carried, in which nothing may be noted, also where they are small.
    pub(super) const fn keep(&mut self, parts: usize) {
        self.kept = parts;
    }

    /// Whether keys tell the parts that they belong to.
    pub(super) const fn is_by_key(&self) -> bool {
        self.last_keys.is_some()
    }

    /// Which part a key belongs to, their number if it is beyond all of them; none when keys do not tell.
    pub(super) fn part_of(&self, key: &[u8]) -> Option<usize> {
        Some(self.last_keys.as_ref()?.partition_point(|last| last.as_slice() < key))
    }

    /// The last key that belongs to a part; none when all that follow do.
    pub(super) fn upper(&self, part: usize) -> Option<&[u8]> {
        self.last_keys.as_ref().and_then(|keys| keys.get(part)).map(Vec::as_slice)
    }

    /// Notes that something changed at a key.
    pub(super) fn touch(&mut self, key: &[u8]) {
        match self.part_of(key) {
            Some(part) => self.touched[part] = true,
            None => self.touched.fill(true),
        }
    }

    /// The same parts, with nothing noted.
    pub(super) fn untouched(&self) -> Self {
        Self { touched: vec![false; self.touched.len()], ..self.clone() }
    }

    /// Notes what another division of the same parts has noted.
    pub(super) fn touch_all(&mut self, other: &Self) {
        for (touched, also) in self.touched.iter_mut().zip(&other.touched) {
            *touched |= also;
        }
    }

    /// Whether a stretch has what is beyond all parts.
    pub(super) const fn is_last(&self, parts: &Range<usize>) -> bool {
        parts.end == self.bytes.len()
    }

    /// Whether anything changed.
    pub(super) fn is_any_touched(&self) -> bool {
        self.touched.contains(&true)
    }

    /// Whether something changed in a stretch.
    pub(super) fn is_touched(&self, parts: &Range<usize>) -> bool {
        let end = parts.end + usize::from(self.is_last(parts));
        self.touched[parts.start..end].contains(&true)
    }

    /// The stretches, in the order of keys.
    pub(super) fn runs(&self) -> Vec<Run> {
        let parts = self.bytes.len();
        if self.last_keys.is_none() {
            let rewritten = self.touched.contains(&true);
            return vec![if rewritten { Run::Rewritten(0..parts) } else { Run::Carried(0..parts) }];
        }
        let mut rewritten = self.touched.clone();
        let small = |part: usize| part >= self.kept && self.bytes[part] < self.part_bytes / SMALL;
        if parts > self.kept && rewritten[parts] && self.bytes[parts - 1] < self.part_bytes / 2 {
            rewritten[parts - 1] = true;
        }
        for part in 1..parts {
            rewritten[part] |= rewritten[part - 1] && small(part);
        }
        for part in (0..parts).rev() {
            rewritten[part] |= rewritten[part + 1] && small(part);
        }
        let mut runs: Vec<Run> = Vec::new();
        let beyond = rewritten.pop().unwrap_or_default();
        for (part, rewritten) in rewritten.into_iter().enumerate() {
            match (runs.last_mut(), rewritten) {
                (Some(Run::Carried(range)), false) => range.end = part + 1,
                (Some(Run::Rewritten(range)), true) if small(part) || range.clone().all(small) => {
                    range.end = part + 1;
                }
                (_, true) => runs.push(Run::Rewritten(part..part + 1)),
                (_, false) => runs.push(Run::Carried(part..part + 1)),
            }
        }
        if beyond && !matches!(runs.last(), Some(Run::Rewritten(_))) {
            runs.push(Run::Rewritten(parts..parts));
        }
        runs
    }
}

fn sizes(parts: &[PartFile]) -> Vec<u64> {
    parts.iter().map(|part| part.bytes).collect()
}

/// First and last key of a part.
pub(in crate::lake) type Bounds = (Vec<u8>, Vec<u8>);

/// First and last keys of parts whose ranges ascend; none when a part does not tell them. `Operator`: they overlap.
pub(in crate::lake) fn bounds(parts: &[PartFile]) -> Result<Option<Vec<Bounds>>> {
    let mut bounds: Vec<Bounds> = Vec::with_capacity(parts.len());
    for part in parts {
        let (Some(min), Some(max)) = (&part.min_order, &part.max_order) else { return Ok(None) };
        let (Some(min), Some(max)) = (bytes(min), bytes(max)) else {
            return Err(Error::operator(format!("the bounds of part {} are not hexadecimal", part.path))
                .mend("Is the manifest damaged? `tidemark verify` compares checksums."));
        };
        let ascends = bounds.last().is_none_or(|(_, before)| *before < min);
        if !ascends || min > max {
            return Err(Error::operator(format!(
                "part {} begins with key {}, which is not above the keys before it",
                part.path,
                part.min_key.as_deref().unwrap_or_default()
            ))
            .mend("Please report it: the day is not published, and the log and the change files hold all changes."));
        }
        bounds.push((min, max));
    }
    Ok(Some(bounds))
}

/// The bytes of lower-case hexadecimal.
fn bytes(hexadecimal: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let pairs = hexadecimal.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::super::super::store::hexadecimal;
    use super::*;

    fn part(first: &[u8], last: &[u8], bytes: u64) -> PartFile {
        PartFile {
            path: "part".to_owned(),
            rows: 1,
            bytes,
            bytes_decoded: bytes,
            sha256: String::new(),
            min_key: None,
            max_key: None,
            min_order: Some(hexadecimal(first)),
            max_order: Some(hexadecimal(last)),
            exact: BTreeMap::new(),
            copied_from: None,
            as_of: None,
        }
    }

    #[test]
    fn what_lies_between_two_parts_goes_to_the_latter_and_what_is_beyond_all_to_parts_of_its_own() {
        let parts = [part(b"a", b"f", 100), part(b"h", b"k", 100), part(b"m", b"p", 100)];
        let runs = |keys: &[&str]| {
            let mut division = Division::new(&parts, true, 100).unwrap();
            for key in keys {
                division.touch(key.as_bytes());
            }
            division.runs()
        };
        let (carried, rewritten) = (Run::Carried, Run::Rewritten);
        assert_eq!(runs(&[]), [carried(0..3)]);
        assert_eq!(runs(&["", "f"]), [rewritten(0..1), carried(1..3)]);
        assert_eq!(runs(&["f\0"]), [carried(0..1), rewritten(1..2), carried(2..3)]);
        assert_eq!(runs(&["k", "kz"]), [carried(0..1), rewritten(1..2), rewritten(2..3)]);
        assert_eq!(runs(&["p"]), [carried(0..2), rewritten(2..3)]);
        assert_eq!(runs(&["p\0", "z"]), [carried(0..3), rewritten(3..3)]);
        assert_eq!(runs(&["n", "z"]), [carried(0..2), rewritten(2..3)]);
    }

    #[test]
    fn small_parts_are_rewritten_with_their_neighbours_and_grow_at_the_end() {
        let sizes = [10, 100, 10, 20, 100, 100, 49];
        let key = |part: usize| [b'a' + part as u8];
        let parts: Vec<_> =
            sizes.iter().enumerate().map(|(at, bytes)| part(&key(at), &key(at), *bytes)).collect();
        let runs = |touched: &[u8]| {
            let mut division = Division::new(&parts, true, 100).unwrap();
            for key in touched {
                division.touch(&[*key]);
            }
            division.runs()
        };
        let (carried, rewritten) = (Run::Carried, Run::Rewritten);
        assert_eq!(runs(b"b"), [rewritten(0..4), carried(4..7)]);
        assert_eq!(runs(b"e"), [carried(0..2), rewritten(2..5), carried(5..7)]);
        assert_eq!(runs(b"f"), [carried(0..5), rewritten(5..6), carried(6..7)]);
        assert_eq!(runs(b"z"), [carried(0..6), rewritten(6..7)]);
    }

    #[test]
    fn parts_that_overlap_are_refused_and_those_without_bounds_are_rewritten_or_carried_together() {
        assert!(Division::new(&[part(b"a", b"f", 1), part(b"f", b"k", 1)], true, 1).is_err());
        assert!(Division::new(&[part(b"b", b"a", 1)], true, 1).is_err());
        let mut parts = [part(b"a", b"f", 1), part(b"g", b"k", 1)];
        parts[1].max_order = None;
        let mut division = Division::new(&parts, true, 1).unwrap();
        assert_eq!(division.runs(), [Run::Carried(0..2)]);
        division.touch(b"a");
        assert_eq!(division.runs(), [Run::Rewritten(0..2)]);
        assert_eq!(Division::whole(&parts).runs(), [Run::Rewritten(0..2)]);
        assert_eq!(Division::whole(&[]).runs(), [Run::Rewritten(0..0)]);
        let parts = [part(b"a", b"f", 1), part(b"g", b"k", 9), part(b"l", b"m", 9)];
        let all = Division::all(&parts, 10).unwrap().runs();
        assert_eq!(all, [Run::Rewritten(0..2), Run::Rewritten(2..3)]);
    }

    /// Against looking at every key of every part.
    #[test]
    fn no_changed_key_is_ever_within_reach_of_a_carried_part() {
        let seed = std::env::var("TIDEMARK_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(rand::random::<u64>);
        let mut random = StdRng::seed_from_u64(seed);
        for round in 0..2000 {
            let mut keys: Vec<Vec<u8>> = (0..random.random_range(1..40))
                .map(|_| (0..random.random_range(0..4)).map(|_| random.random_range(0..3)).collect())
                .collect();
            keys.sort();
            keys.dedup();
            let mut parts = Vec::new();
            let mut rest = keys.as_slice();
            while !rest.is_empty() {
                let (held, after) = rest.split_at(random.random_range(1..=rest.len().min(6)));
                parts.push(part(&held[0], &held[held.len() - 1], random.random_range(0..120)));
                rest = after;
            }
            let mut division = Division::new(&parts, true, 100).unwrap();
            let changed: Vec<Vec<u8>> = (0..random.random_range(0..4))
                .map(|_| (0..random.random_range(0..4)).map(|_| random.random_range(0..3)).collect())
                .collect();
            for key in &changed {
                division.touch(key);
            }
            let bounds = bounds(&parts).unwrap().unwrap();
            let (mut at, mut taken) = (0, 0);
            for run in division.runs() {
                match run {
                    Run::Carried(range) => {
                        assert!(range.start == at && !range.is_empty(), "seed {seed}, round {round}");
                        at = range.end;
                        for (min, max) in &bounds[range] {
                            let within = changed.iter().find(|key| *key >= min && *key <= max);
                            assert_eq!(within, None, "seed {seed}, round {round}");
                        }
                    }
                    Run::Rewritten(range) => {
                        assert_eq!(range.start, at, "seed {seed}, round {round}");
                        at = range.end;
                        // Each change belongs to one stretch.
                        let last = range.end == parts.len();
                        let of = |key: &&Vec<u8>| division.part_of(key).unwrap();
                        let within = |part: &usize| range.contains(part) || (last && *part == range.end);
                        taken += changed.iter().filter(|key| within(&of(key))).count();
                        let (lower, upper) = (range.start.checked_sub(1), range.end.checked_sub(1));
                        for key in changed.iter().filter(|key| within(&of(key))) {
                            assert!(lower.is_none_or(|before| *key > bounds[before].1), "seed {seed}");
                            let upper = upper.and_then(|last| division.upper(last)).filter(|_| !last);
                            assert!(upper.is_none_or(|upper| key.as_slice() <= upper), "seed {seed}");
                        }
                    }
                }
            }
            assert_eq!((at, taken), (parts.len(), changed.len()), "seed {seed}, round {round}");
        }
    }
}
