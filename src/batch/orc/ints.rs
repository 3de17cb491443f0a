//! Integers in runs of up to 512, each in the smallest of the four encodings of version 2.
//!
//! | header | encoding | for |
//! |---|---|---|
//! | `00` | short repeat | 3 to 10 times the same |
//! | `01` | direct | anything |
//! | `10` | patched base | small numbers above their minimum, but for a few |
//! | `11` | delta | rising or falling, and many times the same |
//!
//! Source: `ORCv1`, "Integer Run Length Encoding, version 2".

use super::proto::{varint, zigzag};
use super::stream::Stream;
use crate::runtime::Result;

const RUN_MAX: usize = 512;
/// As many times the same within others are a run of their own.
const REPEAT_MIN: usize = 6;
const SHORT_REPEAT: std::ops::RangeInclusive<usize> = 3..=10;
/// The list of patches has a length of five bits.
const PATCHES_MAX: usize = 31;
/// A gap has up to eight bits; a longer one is made of several.
const GAP_MAX: usize = 255;

/// Integers on their way into runs.
#[derive(Debug)]
pub(super) struct Ints {
    signed: bool,
    held: Vec<i64>,
}

impl Ints {
    /// Of both signs, or none below zero.
    pub(super) const fn new(signed: bool) -> Self {
        Self { signed, held: Vec::new() }
    }

    pub(super) fn push(&mut self, value: i64, out: &mut Stream) -> Result<()> {
        self.held.push(value);
        if self.held.len() < RUN_MAX { Ok(()) } else { self.finish(out) }
    }

    /// Ends the run and notes where the next one begins.
    pub(super) fn mark(&mut self, out: &mut Stream, positions: &mut Vec<u64>) -> Result<()> {
        self.finish(out)?;
        out.position(positions);
        positions.push(0);
        Ok(())
    }

    /// Ends the last run.
    pub(super) fn finish(&mut self, out: &mut Stream) -> Result<()> {
        let mut bytes = Vec::new();
        encode(&self.held, self.signed, &mut bytes);
        self.held.clear();
        out.write(&bytes)
    }
}

/// Writes up to 512 values.
fn encode(values: &[i64], signed: bool, out: &mut Vec<u8>) {
    let (mut start, mut at) = (0, 0);
    while at < values.len() {
        let same = values[at..].iter().take_while(|value| **value == values[at]).count();
        let whole = start == at && at + same == values.len() && same >= *SHORT_REPEAT.start();
        if same >= REPEAT_MIN || whole {
            varied(&values[start..at], signed, out);
            repeated(values[at], same, signed, out);
            start = at + same;
        }
        at += same;
    }
    varied(&values[start..], signed, out);
}

fn repeated(value: i64, times: usize, signed: bool, out: &mut Vec<u8>) {
    if !SHORT_REPEAT.contains(&times) {
        header(3, 0, times, out);
        varint(out, plain(value, signed));
        varint(out, 0);
        return;
    }
    let value = plain(value, signed);
    let bytes = bits(value).div_ceil(8).max(1) as usize;
    out.push((bytes as u8 - 1) << 3 | (times - SHORT_REPEAT.start()) as u8);
    out.extend_from_slice(&value.to_be_bytes()[8 - bytes..]);
}

/// Writes values in whichever encoding takes the fewest bytes.
fn varied(values: &[i64], signed: bool, out: &mut Vec<u8>) {
    if values.is_empty() {
        return;
    }
    let mut best = direct(values, signed);
    let others = [delta(values, signed), patched(values, best.len())];
    for other in others.into_iter().flatten() {
        if other.len() < best.len() {
            best = other;
        }
    }
    out.append(&mut best);
}

fn direct(values: &[i64], signed: bool) -> Vec<u8> {
    let most = values.iter().map(|value| plain(*value, signed)).max().unwrap_or(0);
    let width = width_for(bits(most));
    let mut out = Vec::with_capacity(2 + packed_bytes(values.len(), width));
    header(1, code(width), values.len(), &mut out);
    pack(values.iter().map(|value| plain(*value, signed)), width, &mut out);
    out
}

fn delta(values: &[i64], signed: bool) -> Option<Vec<u8>> {
    let steps = values.windows(2).map(|pair| pair[1].checked_sub(pair[0]));
    let steps: Vec<i64> = steps.collect::<Option<_>>()?;
    let (first, rest) = steps.split_first()?;
    let one_way = if *first < 0 { |step: &i64| *step <= 0 } else { |step: &i64| *step >= 0 };
    if !rest.iter().all(one_way) {
        return None;
    }
    let even = rest.iter().all(|step| step == first);
    let most = rest.iter().map(|step| step.unsigned_abs()).max().unwrap_or(0);
    // A width of one cannot be said: its code says that all steps are the same.
    let width = if even { 0 } else { width_for(bits(most)).max(2) };
    let mut out = Vec::new();
    header(3, if even { 0 } else { code(width) }, values.len(), &mut out);
    varint(&mut out, plain(values[0], signed));
    varint(&mut out, zigzag(*first));
    if !even {
        pack(rest.iter().map(|step| step.unsigned_abs()), width, &mut out);
    }
    Some(out)
}

/// Values above the smallest one, of which nineteen in twenty have few bits; the others' higher bits are patches.
/// `None` when that cannot be smaller than `limit` bytes.
fn patched(values: &[i64], limit: usize) -> Option<Vec<u8>> {
    let base = *values.iter().min()?;
    let base_bytes = (bits(base.unsigned_abs()) + 1).div_ceil(8) as usize;
    let above: Vec<u64> = values
        .iter()
        .map(|value| value.checked_sub(base).map(|above| above as u64))
        .collect::<Option<_>>()?;
    let mut widths = [0_usize; 65];
    for value in &above {
        widths[bits(*value) as usize] += 1;
    }
    let most = (0..=64).rev().find(|width| widths[*width as usize] > 0)?;
    let mut few = most;
    let mut patches = 0;
    while few > 0 && patches + widths[few as usize] <= (values.len() / 20).min(PATCHES_MAX) {
        patches += widths[few as usize];
        few -= 1;
    }
    let width = width_for(few);
    if base_bytes > 7 || width >= most || 4 + base_bytes + packed_bytes(values.len(), width) >= limit {
        return None;
    }
    let patch_width = width_for(most - width);
    let list = patches_of(&above, width, patch_width)?;
    let gap_width = list.iter().map(|(gap, _)| bits(*gap as u64)).max()?.max(1);
    if gap_width + patch_width > 64 {
        return None;
    }
    let mut out = Vec::new();
    header(2, code(width), values.len(), &mut out);
    out.push((base_bytes as u8 - 1) << 5 | code(patch_width));
    out.push((gap_width as u8 - 1) << 5 | list.len() as u8);
    let sign = if base < 0 { 1 << (base_bytes * 8 - 1) } else { 0 };
    out.extend_from_slice(&(base.unsigned_abs() | sign).to_be_bytes()[8 - base_bytes..]);
    let mask = (1 << width) - 1;
    pack(above.iter().map(|value| value & mask), width, &mut out);
    let entries = list.iter().map(|(gap, patch)| (*gap as u64) << patch_width | patch);
    pack(entries, width_for(gap_width + patch_width), &mut out);
    Some(out)
}

/// The values' bits from `width` on: how far from the one before, and which. `None` when they are too many.
fn patches_of(above: &[u64], width: u32, patch_width: u32) -> Option<Vec<(usize, u64)>> {
    let mut list = Vec::new();
    let mut last = 0;
    for (at, value) in above.iter().enumerate().filter(|(_, value)| *value >> width > 0) {
        let mut gap = at - last;
        while gap > GAP_MAX {
            list.push((GAP_MAX, 0));
            gap -= GAP_MAX;
        }
        list.push((gap, value >> width));
        last = at;
    }
    (patch_width <= 56 && !list.is_empty() && list.len() <= PATCHES_MAX).then_some(list)
}

fn header(encoding: u8, code: u8, values: usize, out: &mut Vec<u8>) {
    let less = values as u16 - 1;
    out.extend([encoding << 6 | code << 1 | (less >> 8) as u8, less as u8]);
}

const fn plain(value: i64, signed: bool) -> u64 {
    if signed { zigzag(value) } else { value as u64 }
}

/// Bits that a value needs.
const fn bits(value: u64) -> u32 {
    64 - value.leading_zeros()
}

/// The smallest width that there is a code for.
pub(super) fn width_for(bits: u32) -> u32 {
    match bits {
        0 => 1,
        1..=24 => bits,
        25..=32 => bits.next_multiple_of(2),
        _ => bits.next_multiple_of(8),
    }
}

fn code(width: u32) -> u8 {
    match width {
        0..=24 => width.saturating_sub(1) as u8,
        25..=32 => (width / 2 + 11) as u8,
        _ => (width / 8 + 23) as u8,
    }
}

const fn packed_bytes(values: usize, width: u32) -> usize {
    (values * width as usize).div_ceil(8)
}

/// Writes the lowest bits of values, the highest bit first.
fn pack(values: impl Iterator<Item = u64>, width: u32, out: &mut Vec<u8>) {
    let (mut open, mut filled) = (0_u128, 0);
    for value in values {
        open = open << width | u128::from(value);
        filled += width;
        while filled >= 8 {
            filled -= 8;
            out.push((open >> filled) as u8);
        }
        open &= (1 << filled) - 1;
    }
    if filled > 0 {
        out.push((open << (8 - filled)) as u8);
    }
}
