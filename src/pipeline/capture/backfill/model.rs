//! The argument of the module's head as a model: a small table, every kind of change, rounds and kills in any order; what
//! is in the log then is merged by the lake's rule, and has to be the table.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::progress::Moved;
use super::range::{Key, Range};
use crate::change::Lsn;

/// Rows by key: a value that is always sent, and one that is not where an update leaves it alone.
type Rows = BTreeMap<u8, (u32, u32)>;

#[derive(Clone, Debug)]
enum Step {
    Insert(u8),
    /// The value that is sent.
    Update(u8),
    /// The large one.
    Rewrite(u8),
    /// To another key, with the large value left alone.
    Move(u8, u8),
    Delete(u8),
    /// The snapshot goes: a kill, or its age.
    Round,
    /// A piece up to that key is read.
    Piece(u8),
    /// A piece is read, and the process killed before the state says so.
    Killed(u8),
}

#[derive(Clone, Debug)]
enum Record {
    Row(u8, (u32, u32)),
    /// Old key, new key, values; no large value: not sent.
    Change(Option<u8>, Option<u8>, u32, Option<u32>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || 0..6_u8;
    let step = prop_oneof![
        1 => key().prop_map(Step::Insert),
        1 => key().prop_map(Step::Update),
        1 => key().prop_map(Step::Rewrite),
        3 => (key(), key()).prop_map(|(from, to)| Step::Move(from, to)),
        1 => key().prop_map(Step::Delete),
        2 => Just(Step::Round),
        3 => key().prop_map(Step::Piece),
        1 => key().prop_map(Step::Killed),
    ];
    prop::collection::vec(step, 0..40)
}

fn text(key: u8) -> Key {
    vec![key.to_string()]
}

fn holds(range: &Range, key: u8) -> bool {
    let number = |key: &Key| key[0].parse::<u8>().unwrap();
    match range {
        Range::Keys { after, to } => {
            after.as_ref().is_none_or(|after| key > number(after))
                && to.as_ref().is_none_or(|to| key <= number(to))
        }
        Range::Rows { keys } => keys.contains(&text(key)),
        Range::Pages { .. } => true,
    }
}

/// A table, its log, and the copy on its way.
#[derive(Default)]
struct World {
    rows: Rows,
    now: u64,
    /// By position: changes at their commits, rows just below their points.
    log: Vec<(u64, Record)>,
    /// The snapshot of the round, and its point.
    snapshot: Option<(u64, Rows)>,
    first: Option<u64>,
    left: Vec<Range>,
    moved: Moved,
    /// The point is taken, and the stream has not passed it.
    waiting: bool,
}

impl World {
    /// A transaction commits: a row goes from one key to another, or comes, or goes.
    fn change(&mut self, old: Option<u8>, new: Option<u8>, large: Option<u32>) {
        self.now += 8;
        let n = self.now as u32;
        let before = old.and_then(|old| self.rows.remove(&old));
        if let Some(key) = new {
            let held = large.or_else(|| before.map(|(_, large)| large));
            self.rows.insert(key, (n, held.unwrap()));
        }
        if let (Some(from), Some(to), None) = (old, new, large)
            && from != to
        {
            self.moved.note(Lsn(self.now), text(to));
        }
        self.log.push((self.now, Record::Change(old, new, n, large)));
    }

    /// Takes the next round's snapshot.
    fn round(&mut self) {
        self.now += 8;
        self.snapshot = Some((self.now, self.rows.clone()));
        self.waiting = true;
    }

    /// The stream has passed the point, and more: [`super::asked`] lets the rows come.
    fn describe(&mut self) {
        let Some((point, _)) = self.snapshot.clone().filter(|_| std::mem::take(&mut self.waiting)) else {
            return;
        };
        if self.first.is_none() || self.moved.is_lost() || matches!(self.left[..], [Range::ALL_KEYS]) {
            self.first = Some(point);
            self.left = vec![Range::ALL_KEYS];
            self.moved.begin_at(Lsn(point));
        } else {
            let keys = self.moved.take(Lsn(point)).unwrap_or_default();
            if !keys.is_empty() {
                self.left.insert(0, Range::Rows { keys });
            }
        }
    }

    /// Reads the first piece; keys end it there, if they are within.
    fn piece(&mut self, last: u8, told: bool) {
        self.describe();
        let Some((point, rows)) = &self.snapshot else { return };
        let Some(mut rest) = self.left.first().cloned() else { return };
        let first = if matches!(rest, Range::Keys { .. }) && holds(&rest, last) {
            rest.take_keys(text(last))
        } else {
            None
        };
        let piece = first.clone().unwrap_or_else(|| rest.clone());
        for (key, values) in rows.iter().filter(|(key, _)| holds(&piece, **key)) {
            self.log.push((point - 1, Record::Row(*key, *values)));
        }
        if told {
            self.left.remove(0);
            if first.is_some() {
                self.left.insert(0, rest);
            }
        } else {
            self.snapshot = None;
        }
    }

    fn step(&mut self, step: &Step) {
        let is_there = |key: &u8| self.rows.contains_key(key);
        match step {
            Step::Insert(key) if !is_there(key) => self.change(None, Some(*key), Some(self.now as u32)),
            Step::Update(key) if is_there(key) => self.change(Some(*key), Some(*key), None),
            Step::Rewrite(key) if is_there(key) => self.change(Some(*key), Some(*key), Some(self.now as u32)),
            Step::Move(from, to) if is_there(from) && !is_there(to) => {
                self.change(Some(*from), Some(*to), None);
            }
            Step::Delete(key) if is_there(key) => self.change(Some(*key), None, None),
            Step::Round => self.round(),
            Step::Piece(last) => self.piece(*last, true),
            Step::Killed(last) => self.piece(*last, false),
            _ => {}
        }
    }

    /// What the lake makes of the log: all in the order of positions, and a value that was not sent from the row held.
    fn merged(&self) -> BTreeMap<u8, (u32, Option<u32>)> {
        let first = self.first.unwrap();
        let mut log: Vec<_> = self.log.iter().filter(|(position, _)| *position >= first - 1).collect();
        log.sort_by_key(|(position, _)| *position);
        let mut rows = BTreeMap::new();
        for (_, record) in log {
            match record {
                Record::Row(key, (n, large)) => {
                    rows.insert(*key, (*n, Some(*large)));
                }
                Record::Change(old, new, n, large) => {
                    let before = old.and_then(|old| rows.remove(&old));
                    let held = large.or_else(|| before.and_then(|(_, large)| large));
                    if let Some(key) = new {
                        rows.insert(*key, (*n, held));
                    }
                }
            }
        }
        rows
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_copy_of_any_rounds_and_the_changes_beside_it_are_the_table(
        before in prop::collection::btree_set(0..6_u8, 0..6),
        steps in steps(),
        after in steps(),
    ) {
        let mut world = World::default();
        for key in before {
            world.step(&Step::Insert(key));
        }
        world.round();
        for step in &steps {
            world.step(step);
        }
        while world.first.is_none() || !world.left.is_empty() {
            if world.snapshot.is_none() {
                world.round();
            }
            world.piece(2, true);
        }
        let whole: Vec<_> = after
            .into_iter()
            .filter(|step| !matches!(step, Step::Round | Step::Piece(_) | Step::Killed(_)))
            .collect();
        for step in &whole {
            world.step(step);
        }
        let expected: BTreeMap<_, _> =
            world.rows.iter().map(|(key, (n, large))| (*key, (*n, Some(*large)))).collect();
        prop_assert_eq!(world.merged(), expected);
    }
}
