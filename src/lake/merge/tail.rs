//! Which changes a day of a table with a historic tail takes, by their key and by when they came.
//!
//! ```text
//!                          keys:   at or below the bound (tail)       above it (window)
//!   changes up to yesterday's cut  deferred until the day is whole    in the parts of the day before
//!   changes since                  deferred                           applied
//! ```
//!
//! On a day that defers, the tail's parts are carried and the rest of the table is merged as ever. Why it is exact: the
//! bound is the last key of the tail's last part, so that a key is the tail's or the window's by itself alone, and what
//! a day holds of a key follows from that key's own changes. The one thing that reaches from a key to another is a change
//! of key with values left behind ([`super::moves`]); a day with one is whole, as is one with a truncate, or with a value
//! that the files have no column for. So none of these is ever among the changes deferred.
//!
//! On a day that is whole, what was deferred comes first: the change files since the tail's cut are read again, of which
//! the rows at or below the bound count. They are compared in the order of the day before, by which they were deferred;
//! days that defer have one shape and one order. How many there are must be what the day before has said.

use std::sync::Arc;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_select::filter::filter_record_batch;

use crate::change::Op;
use crate::runtime::{Error, Result};

use super::super::sort::{arrow_error, sort_column};
use super::changes::{ChangeReader, Found, op_and_unchanged};
use super::order::{KeyOrder, Seq};
use super::shape::Shape;
use super::{MergeFile, MergeInput};

/// The historic tail of the day before.
pub(in crate::lake) struct Tail {
    /// So many of its parts, from the first on.
    pub(in crate::lake) parts: usize,
    /// The last key of the last of them, in the order of the day before.
    pub(in crate::lake) bound: Vec<u8>,
    /// Whether the day may leave it as it is.
    pub(in crate::lake) may_defer: bool,
    /// The change files since its cut, up to the cut of the day before.
    pub(in crate::lake) late: Vec<MergeFile>,
    /// How many changes in them are deferred.
    pub(in crate::lake) deferred: u64,
}

/// What a day has done about the tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::lake) struct Deferral {
    /// So many of the first parts are the tail's as it was; zero: the day is whole.
    pub(in crate::lake) parts: usize,
    /// Changes of the day that are deferred.
    pub(in crate::lake) deferred: u64,
    /// Changes deferred before that were taken.
    pub(in crate::lake) late: u64,
    /// Of a day that defers, rows that came: to the window, and to the tail.
    pub(in crate::lake) came: (u64, u64),
}

/// How rows of change files are told apart.
#[derive(Debug)]
pub(super) enum Route {
    /// There is no tail: all count.
    All,
    /// Those at or below the bound are deferred.
    Defers(Vec<u8>),
    /// All count; of files from before yesterday's cut those at or below the bound.
    Whole {
        bound: Vec<u8>,
        /// Reads keys in the order of the bound, where today's is another one.
        before: Option<Box<ChangeReader>>,
    },
}

/// Rows of a file from before yesterday's cut that were deferred, as far as it takes another order to tell: by row.
pub(super) type Told = Option<std::vec::IntoIter<bool>>;

impl MergeInput {
    /// Whether the day can leave the tail as it is.
    pub(super) fn can_defer(&self, exact: bool) -> bool {
        if !self.tail.as_ref().is_some_and(|tail| tail.may_defer) {
            return false;
        }
        let can = self.carry && self.reads_alike(exact);
        if !can {
            self.tell_whole("its shape, or how its files are written, is another one than the day before");
        }
        can
    }

    /// Whether what a day's change files hold can be deferred in part.
    pub(super) fn can_defer_all(&self, found: &Found, exact: bool) -> bool {
        let forbids = [
            (found.truncated.is_some(), "it was truncated"),
            (found.moves, "a row changed its key and left values behind"),
            (found.exact && !exact, "a value is beyond its type"),
        ];
        let forbidden = forbids.into_iter().find(|(is, _)| *is);
        if let Some((_, reason)) = forbidden {
            self.tell_whole(reason);
        }
        forbidden.is_none()
    }

    fn tell_whole(&self, reason: &str) {
        let table = &self.shapes.now().name;
        tracing::info!(%table, ds = %self.ds, reason, "the day is whole, its historic tail too");
    }

    /// Whether keys have the same bytes as in the day before.
    fn reads_alike(&self, exact: bool) -> bool {
        let same = |held: &super::Manifest| {
            held.schema == **self.shapes.now() && held.exact.is_some() == exact && !held.schema.key.is_empty()
        };
        self.previous.as_ref().is_some_and(|(manifest, _)| same(manifest))
    }

    /// How the rows of the day's change files are told apart.
    pub(super) fn route(&self, exact: bool, defers: bool) -> Result<Route> {
        let Some((tail, (manifest, _))) = self.tail.as_ref().zip(self.previous.as_ref()) else {
            return Ok(Route::All);
        };
        let bound = tail.bound.clone();
        if defers {
            return Ok(Route::Defers(bound));
        }
        let before = if self.reads_alike(exact) {
            None
        } else {
            let table = Arc::new(manifest.schema.clone());
            let shapes = self.shapes.at(Arc::clone(&table));
            let shape = Shape { table, exact: manifest.exact.is_some(), orc: false };
            let order = Arc::new(KeyOrder::new(&shape)?);
            Some(Box::new(ChangeReader::new(&shapes, shape, order, Route::All)))
        };
        Ok(Route::Whole { bound, before })
    }

    /// The change files of a day, and whether each is from before yesterday's cut.
    pub(super) fn each_file(&self, route: &Route) -> impl Iterator<Item = (&MergeFile, bool)> {
        let late = match (route, &self.tail) {
            (Route::Whole { .. }, Some(tail)) => tail.late.as_slice(),
            _ => &[],
        };
        late.iter().map(|file| (file, true)).chain(self.files.iter().map(|file| (file, false)))
    }

    /// What was done about the tail; none when what was deferred is not what the day before has said.
    pub(super) fn deferral(&self, found: &Found, defers: bool) -> Result<Deferral> {
        let Some(tail) = &self.tail else { return Ok(Deferral::default()) };
        if defers {
            // Nothing is outstanding: the parts are as of today, too.
            let parts = if tail.deferred + found.deferred > 0 { tail.parts } else { 0 };
            return Ok(Deferral { parts, deferred: found.deferred, late: 0, came: found.came });
        }
        if found.late != tail.deferred {
            return Err(Error::operator(format!(
                "{} for {}: {} changes of its historic tail were deferred, but its change files hold {}; the day is not published",
                self.shapes.now().name,
                self.ds,
                tail.deferred,
                found.late
            ))
            .mend("Change files since the tail's cut were altered or removed. Bring them back, or copy the table again with `tidemark backfill`."));
        }
        Ok(Deferral { late: found.late, ..Deferral::default() })
    }
}

impl Route {
    /// Of a file from before yesterday's cut, what it takes another order to tell.
    pub(super) fn told(&self, file: &bytes::Bytes, of: &MergeFile, late: bool) -> Result<Told> {
        let Self::Whole { bound, before: Some(reader) } = self else { return Ok(None) };
        if !late {
            return Ok(None);
        }
        let mut told = Vec::new();
        reader.read(file.clone(), of, false, &mut Found::default(), |batch, _| {
            told.extend(above(&batch, bound).map(|above| !above));
            Ok(())
        })?;
        Ok(Some(told.into_iter()))
    }

    /// The rows of a batch that count. `first` says for each whether it is the first one of its record.
    pub(super) fn taken(
        &self,
        batch: RecordBatch,
        first: &[bool],
        (late, told): (bool, &mut Told),
        found: &mut Found,
    ) -> Result<RecordBatch> {
        let taken: Vec<bool> = match (self, told) {
            (Self::Defers(bound), _) => above(&batch, bound).collect(),
            (Self::Whole { .. }, Some(told)) if late => told.by_ref().take(batch.num_rows()).collect(),
            (Self::Whole { bound, .. }, _) if late => above(&batch, bound).map(|above| !above).collect(),
            _ => return Ok(batch),
        };
        if !late {
            for (row, taken) in taken.iter().enumerate() {
                let came = op_and_unchanged(&batch, row).0 == Some(Op::Create);
                found.came.0 += u64::from(came && *taken);
                found.came.1 += u64::from(came && !*taken);
            }
        }
        let records = taken.iter().zip(first).filter(|(taken, first)| **taken == late && **first).count();
        if late {
            found.late += records as u64;
        } else {
            found.deferred += records as u64;
        }
        filter_record_batch(&batch, &BooleanArray::from(taken)).map_err(arrow_error)
    }
}

/// By row of a sorted batch, whether its key is above the bound.
fn above(batch: &RecordBatch, bound: &[u8]) -> impl Iterator<Item = bool> {
    let sort = sort_column(batch);
    (0..batch.num_rows()).map(move |row| Seq::split(sort.value(row)).0 > bound)
}
