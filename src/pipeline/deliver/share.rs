//! Which tables go together, and which process has which: pure.
//!
//! A lease for each of ten thousand tables would keep the coordinator busy with renewals, so tables are divided into a
//! fixed number of shares by their topics, and a share is what a process takes. A few tables are each alone in theirs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::change::Ds;

/// Shares of a source's tables. Part of the leases' names, since processes of different numbers would not see each other.
pub const SHARES: u32 = 128;

/// What a table costs beside its bytes: also empty ones are to be spread.
const TABLE_BYTES: u64 = 1 << 20;

/// Number of a share.
pub type Share = u32;

/// Number of a process's place; one that starts takes the lowest that is free, and with it what it had before.
pub type Place = u32;

/// The share of a table.
pub fn share_of(topic: &str) -> Share {
    crc32fast::hash(topic.as_bytes()) % SHARES
}

/// Who has what, as the leader says.
pub type Assignment = BTreeMap<Share, Place>;

/// What the owner of a share tells of it, under its lease: whoever owns it next goes by it, and so does the day's manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareState {
    /// By topic.
    pub tables: BTreeMap<String, TableStanding>,
}

/// How far a table is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStanding {
    /// The last day of which it is known whether the table is in it.
    pub decided: Option<Ds>,
    /// Days which the table is not in, and why, as long as their manifests are not made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: BTreeMap<Ds, String>,
    /// Bytes of its last snapshot, and of what was staged since.
    pub bytes: u64,
}

impl TableStanding {
    /// Whether the difference is worth telling others.
    pub fn is_news(&self, told: Option<&Self>) -> bool {
        let Some(told) = told else { return true };
        let moved = self.bytes.abs_diff(told.bytes);
        (self.decided, &self.missing) != (told.decided, &told.missing)
            || (moved > 16 << 20 && moved > told.bytes / 4)
    }
}

impl ShareState {
    /// What it costs to have a share of that many tables.
    pub fn cost(&self, tables: usize) -> u64 {
        let bytes: u64 = self.tables.values().map(|table| table.bytes).sum();
        bytes.saturating_add((tables as u64).saturating_mul(TABLE_BYTES))
    }
}

/// Divides shares by their costs. What a process has it keeps, unless that evens out a difference worth the move; so
/// the same question again moves nothing.
pub fn assign(current: &Assignment, places: &BTreeSet<Place>, costs: &BTreeMap<Share, u64>) -> Assignment {
    let mut loads: BTreeMap<Place, u64> = places.iter().map(|place| (*place, 0)).collect();
    let mut assigned = Assignment::new();
    if loads.is_empty() {
        return assigned;
    }
    let mut free = Vec::new();
    for (share, cost) in costs {
        match current.get(share).and_then(|place| Some((*place, loads.get_mut(place)?))) {
            Some((place, load)) => {
                *load += cost;
                assigned.insert(*share, place);
            }
            None => free.push((*cost, *share)),
        }
    }
    free.sort_unstable_by(|a, b| b.cmp(a));
    for (cost, share) in free {
        if let Some((place, load)) = loads.iter_mut().min_by_key(|(place, load)| (**load, **place)) {
            *load += cost;
            assigned.insert(share, *place);
        }
    }
    let worth = (loads.values().sum::<u64>() / loads.len() as u64 / 4).max(1);
    for _ in 0..costs.len() {
        let Some((share, from, to)) = best_move(&assigned, &loads, costs, worth) else { break };
        let cost = costs.get(&share).copied().unwrap_or_default();
        *loads.entry(from).or_default() -= cost;
        *loads.entry(to).or_default() += cost;
        assigned.insert(share, to);
    }
    assigned
}

/// The move from the busiest to the idlest process that evens them out best, if their difference is worth one.
fn best_move(
    assigned: &Assignment,
    loads: &BTreeMap<Place, u64>,
    costs: &BTreeMap<Share, u64>,
    worth: u64,
) -> Option<(Share, Place, Place)> {
    let (from, most) = loads.iter().max_by_key(|(place, load)| (**load, **place))?;
    let (to, least) = loads.iter().min_by_key(|(place, load)| (**load, **place))?;
    let gap = most - least;
    let candidates = assigned.iter().filter(|(_, place)| *place == from).filter_map(|(share, _)| {
        let left = gap.abs_diff(costs.get(share)?.saturating_mul(2));
        (gap > worth && left < gap).then_some((left, *share))
    });
    candidates.min().map(|(_, share)| (share, *from, *to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(numbers: &[Place]) -> BTreeSet<Place> {
        numbers.iter().copied().collect()
    }

    fn loads(assigned: &Assignment, costs: &BTreeMap<Share, u64>) -> BTreeMap<Place, u64> {
        let mut loads = BTreeMap::new();
        for (share, place) in assigned {
            *loads.entry(*place).or_default() += costs[share];
        }
        loads
    }

    #[test]
    fn every_share_is_someones_and_the_same_question_again_moves_nothing() {
        // A small generator of its own: every case is the same at each run.
        let mut state = 7_u64;
        let mut next = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for case in 0..2000 {
            let count = next(40) + 1;
            let costs: BTreeMap<Share, u64> = (0..count)
                .map(|share| (share as Share, (TABLE_BYTES + next(1000) * next(1000)) << next(12)))
                .collect();
            let members: BTreeSet<Place> = (0..=next(6)).map(|_| next(8) as Place).collect();
            let mut current = Assignment::new();
            for share in costs.keys().filter(|share| !share.is_multiple_of(3)) {
                current.insert(*share, next(8) as Place);
            }
            let assigned = assign(&current, &members, &costs);
            assert_eq!(assigned.keys().collect::<Vec<_>>(), costs.keys().collect::<Vec<_>>(), "case {case}");
            assert!(assigned.values().all(|place| members.contains(place)), "case {case}");
            assert_eq!(assign(&assigned, &members, &costs), assigned, "case {case}: to and fro");
            // No more than one share above the mean, and a difference that was not worth it.
            let (loads, largest) = (loads(&assigned, &costs), costs.values().max().unwrap());
            let mean = costs.values().sum::<u64>() / members.len() as u64;
            assert!(
                loads.values().all(|load| *load <= mean + largest + mean / 4 + 1),
                "case {case}: {loads:?}"
            );
        }
    }

    #[test]
    fn only_what_has_to_moves_when_processes_come_and_go() {
        let costs: BTreeMap<Share, u64> = (0..12).map(|share| (share, 100)).collect();
        let alone = assign(&Assignment::new(), &places(&[0]), &costs);
        let two = assign(&alone, &places(&[0, 1]), &costs);
        assert_eq!(loads(&two, &costs), [(0, 600), (1, 600)].into());
        let three = assign(&two, &places(&[0, 1, 2]), &costs);
        assert_eq!(loads(&three, &costs), [(0, 400), (1, 400), (2, 400)].into());
        assert!(
            three.iter().all(|(share, place)| *place == 2 || two[share] == *place),
            "only to the new one"
        );
        let left = assign(&three, &places(&[0, 2]), &costs);
        assert!(
            left.iter().all(|(share, place)| three[share] == *place || three[share] == 1),
            "only from the one that left"
        );
        assert_eq!(loads(&left, &costs), [(0, 600), (2, 600)].into());
    }

    #[test]
    fn one_large_table_has_a_process_to_itself() {
        let mut costs: BTreeMap<Share, u64> = (1..10).map(|share| (share, 10)).collect();
        costs.insert(0, 1000);
        let assigned = assign(&Assignment::new(), &places(&[0, 1]), &costs);
        let with: Vec<_> = assigned.iter().filter(|(_, place)| **place == assigned[&0]).collect();
        assert_eq!(with.len(), 1);
    }
}
