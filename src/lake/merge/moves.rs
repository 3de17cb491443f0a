//! Values that a change of key left behind.
//!
//! When a row's key changes and a TOAST value does not, the server sends the value with neither the delete of
//! the old key nor the create of the new one. It stands in the old key's row as that was just before: in the
//! base, in a change before it, or again in another key's row that moved there.
//!
//! ```text
//!   1. positions of such creates          ──> moved
//!   2. deletes at the same positions      ──> their old keys: wanted
//!   3. base rows of the wanted keys       ──> held(key, column)
//!   4. changes of the wanted keys, in order of position, applied to `held`;
//!      at each moved create, held(old key) ──> completion(sort bytes, column)
//! ```
//!
//! Rows of all other keys are never looked at, and everything stands in a scratch database, so memory is
//! bounded by its cache. Keys are immediate (Postgres refuses a deferrable one as replica identity), so at
//! each position at most one row has a key, and the order of positions is exact.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_row::{RowConverter, SortField};
use arrow_schema::DataType;
use rusqlite::{Connection, OptionalExtension, params};

use crate::change::{Op, Position};
use crate::runtime::Result;

use super::super::scratch::failed_database;
use super::super::sort::{arrow_error, sort_column};
use super::base::BaseCursor;
use super::changes::{SKIP, columns_in, op_and_unchanged};
use super::gather::{CellRef, Row, RowRef};
use super::order::Seq;

const TABLES: &str = "
    PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA temp_store = FILE; PRAGMA cache_size = -8192;
    CREATE TABLE moved(position BLOB PRIMARY KEY, old_key BLOB) WITHOUT ROWID;
    CREATE TABLE wanted(key BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE held(key BLOB, col INTEGER, value BLOB, PRIMARY KEY(key, col)) WITHOUT ROWID;
    CREATE TABLE replay(place BLOB PRIMARY KEY, sort BLOB, op INTEGER, moved INTEGER, unchanged BLOB);
    CREATE TABLE sent(place BLOB, col INTEGER, value BLOB, PRIMARY KEY(place, col));
    CREATE TABLE completion(sort BLOB, col INTEGER, value BLOB, PRIMARY KEY(sort, col)) WITHOUT ROWID;
    BEGIN;";

/// Bits of the filter in front of `wanted`: one look at memory for keys that are not in it.
const FILTER_BITS: usize = 1 << 23;

/// Finds the values; see the module's head for the steps, in their order.
pub(super) struct Moves {
    db: Connection,
    /// Columns that some moved row lacks.
    columns: BTreeSet<usize>,
    converters: Vec<Option<RowConverter>>,
    types: Vec<DataType>,
    filter: Vec<u64>,
}

impl Moves {
    /// With its database at `path`. `types` are those of the table's columns.
    pub(super) fn new(path: &Path, types: Vec<DataType>) -> Result<Self> {
        let db = Connection::open(path).map_err(failed_database)?;
        db.execute_batch(TABLES).map_err(failed_database)?;
        let converters = types.iter().map(|_| None).collect();
        Ok(Self { db, columns: BTreeSet::new(), converters, types, filter: vec![0; FILTER_BITS / 64] })
    }

    /// Step 1, for every batch of changes.
    pub(super) fn note_moved(&mut self, batch: &RecordBatch) -> Result<()> {
        let sort = sort_column(batch);
        let mut insert = self
            .db
            .prepare_cached("INSERT OR IGNORE INTO moved(position) VALUES (?)")
            .map_err(failed_database)?;
        for row in 0..batch.num_rows() {
            if let (_, true, Some(bits)) = op_and_unchanged(batch, row) {
                self.columns.extend(columns_in(bits));
                let (_, seq) = Seq::split(sort.value(row));
                insert.execute([position_bytes(seq.position)]).map_err(failed_database)?;
            }
        }
        Ok(())
    }

    /// Step 2, for every batch of changes.
    pub(super) fn note_old_keys(&mut self, batch: &RecordBatch) -> Result<()> {
        let sort = sort_column(batch);
        let mut update = self
            .db
            .prepare_cached("UPDATE moved SET old_key = ?2 WHERE position = ?1")
            .map_err(failed_database)?;
        let mut want =
            self.db.prepare_cached("INSERT OR IGNORE INTO wanted VALUES (?)").map_err(failed_database)?;
        for row in 0..batch.num_rows() {
            if op_and_unchanged(batch, row).0 == Some(Op::Delete) {
                let (key, seq) = Seq::split(sort.value(row));
                if update.execute(params![position_bytes(seq.position), key]).map_err(failed_database)? > 0 {
                    want.execute([key]).map_err(failed_database)?;
                    let bit = filter_bit(key);
                    self.filter[bit / 64] |= 1 << (bit % 64);
                }
            }
        }
        Ok(())
    }

    /// Step 3.
    pub(super) fn load_base(&mut self, base: &mut BaseCursor) -> Result<()> {
        let columns: Vec<_> = self.columns.iter().copied().collect();
        let mut last: Option<Vec<u8>> = None;
        loop {
            let next = self
                .db
                .prepare_cached("SELECT key FROM wanted WHERE ?1 IS NULL OR key > ?1 ORDER BY key LIMIT 1")
                .and_then(|mut next| next.query_row([&last], |row| row.get::<_, Vec<u8>>(0)).optional())
                .map_err(failed_database)?;
            let Some(key) = next else { return Ok(()) };
            base.skip_below(&key)?;
            if let Some(row) = base.take(&key)? {
                for column in &columns {
                    let value = self.encode(row.batch.column(row.skip + column), *column, row.row)?;
                    self.hold(&key, *column, &value)?;
                }
            }
            last = Some(key);
        }
    }

    /// Step 4, first half, for every batch of changes.
    pub(super) fn note_changes(&mut self, batch: &RecordBatch, truncated: Option<Position>) -> Result<()> {
        let sort = sort_column(batch);
        let columns: Vec<_> = self.columns.iter().copied().collect();
        for row in 0..batch.num_rows() {
            let (key, seq) = Seq::split(sort.value(row));
            let (op, moved, unchanged) = op_and_unchanged(batch, row);
            let Some(op) = op else { continue };
            let gone = truncated.is_some_and(|truncated| seq.position < truncated);
            if gone || !(moved || self.wants(key)?) {
                continue;
            }
            let place = place_bytes(seq, op);
            self.db
                .prepare_cached("INSERT OR IGNORE INTO replay VALUES (?, ?, ?, ?, ?)")
                .and_then(|mut insert| {
                    insert.execute(params![place, sort.value(row), op.letter() as u8, moved, unchanged])
                })
                .map_err(failed_database)?;
            if op == Op::Delete {
                continue;
            }
            let lacks: BTreeSet<_> = unchanged.into_iter().flat_map(columns_in).collect();
            for column in columns.iter().filter(|column| !lacks.contains(column)) {
                let value = self.encode(batch.column(SKIP + column), *column, row)?;
                self.db
                    .prepare_cached("INSERT OR IGNORE INTO sent VALUES (?, ?, ?)")
                    .and_then(|mut insert| insert.execute(params![place, *column as i64, value]))
                    .map_err(failed_database)?;
            }
        }
        Ok(())
    }

    /// Step 4, second half.
    pub(super) fn replay(self) -> Result<Completions> {
        let mut last: Vec<u8> = Vec::new();
        let next_sql =
            "SELECT place, sort, op, moved, unchanged FROM replay WHERE place > ? ORDER BY place LIMIT 1";
        loop {
            let next = self
                .db
                .prepare_cached(next_sql)
                .and_then(|mut next| {
                    let change = |row: &rusqlite::Row<'_>| {
                        Ok(Replayed {
                            place: row.get(0)?,
                            sort: row.get(1)?,
                            op: row.get(2)?,
                            moved: row.get(3)?,
                            unchanged: row.get(4)?,
                        })
                    };
                    next.query_row([&last], change).optional()
                })
                .map_err(failed_database)?;
            let Some(change) = next else { break };
            self.apply(&change).map_err(failed_database)?;
            last = change.place;
        }
        self.db.execute_batch("COMMIT").map_err(failed_database)?;
        Ok(Completions { db: self.db, converters: self.converters })
    }

    fn apply(&self, change: &Replayed) -> rusqlite::Result<()> {
        let (key, seq) = Seq::split(&change.sort);
        if change.moved {
            // `held` of the old key is still as it was: its delete comes right after, at the same position.
            for column in change.unchanged.iter().flat_map(|bits| columns_in(bits)) {
                self.db
                    .prepare_cached(
                        "INSERT OR REPLACE INTO completion SELECT ?1, held.col, held.value FROM moved \
                         JOIN held ON held.key = moved.old_key WHERE moved.position = ?2 AND held.col = ?3",
                    )?
                    .execute(params![change.sort, position_bytes(seq.position), column as i64])?;
            }
        }
        if change.op != Op::Update.letter() as u8 {
            self.db.prepare_cached("DELETE FROM held WHERE key = ?")?.execute([key])?;
        }
        if change.op == Op::Delete.letter() as u8 {
            return Ok(());
        }
        self.db
            .prepare_cached("INSERT OR REPLACE INTO held SELECT ?1, col, value FROM sent WHERE place = ?2")?
            .execute(params![key, change.place])?;
        if change.moved {
            self.db
                .prepare_cached(
                    "INSERT OR REPLACE INTO held SELECT ?1, col, value FROM completion WHERE sort = ?2",
                )?
                .execute(params![key, change.sort])?;
        }
        Ok(())
    }

    fn wants(&self, key: &[u8]) -> Result<bool> {
        let bit = filter_bit(key);
        if self.filter[bit / 64] & (1 << (bit % 64)) == 0 {
            return Ok(false);
        }
        self.db
            .prepare_cached("SELECT 1 FROM wanted WHERE key = ?")
            .and_then(|mut find| find.exists([key]))
            .map_err(failed_database)
    }

    fn hold(&self, key: &[u8], column: usize, value: &[u8]) -> Result<()> {
        self.db
            .prepare_cached("INSERT OR REPLACE INTO held VALUES (?, ?, ?)")
            .and_then(|mut insert| insert.execute(params![key, column as i64, value]))
            .map_err(failed_database)?;
        Ok(())
    }

    fn encode(&mut self, array: &ArrayRef, column: usize, row: usize) -> Result<Vec<u8>> {
        let converter = match self.converters[column].take() {
            Some(converter) => converter,
            None => {
                RowConverter::new(vec![SortField::new(self.types[column].clone())]).map_err(arrow_error)?
            }
        };
        let rows = converter.convert_columns(&[array.slice(row, 1)]).map_err(arrow_error)?;
        self.converters[column] = Some(converter);
        Ok(rows.row(0).data().to_vec())
    }
}

struct Replayed {
    place: Vec<u8>,
    sort: Vec<u8>,
    op: u8,
    moved: bool,
    unchanged: Option<Vec<u8>>,
}

/// The values found.
pub(super) struct Completions {
    db: Connection,
    converters: Vec<Option<RowConverter>>,
}

impl Completions {
    /// The moved row with its values; `None` when one of them was nowhere held.
    pub(super) fn complete(&mut self, sort: &[u8], whole: &RowRef, bits: &[u8]) -> Result<Option<Row>> {
        let mut patches = Vec::new();
        for column in columns_in(bits) {
            let value = self
                .db
                .prepare_cached("SELECT value FROM completion WHERE sort = ? AND col = ?")
                .and_then(|mut find| {
                    find.query_row(params![sort, column as i64], |row| row.get::<_, Vec<u8>>(0)).optional()
                })
                .map_err(failed_database)?;
            let (Some(value), Some(converter)) = (value, &self.converters[column]) else { return Ok(None) };
            let parser = converter.parser();
            let arrays = converter.convert_rows([parser.parse(&value)]).map_err(arrow_error)?;
            patches.push((column, CellRef { array: Arc::clone(&arrays[0]), row: 0 }));
        }
        Ok(Some(Row { whole: whole.clone(), patches }))
    }
}

fn position_bytes(position: Position) -> Vec<u8> {
    Seq { position, ..Seq::default() }.bytes()[..20].to_vec()
}

/// Place in the replay: by position, and at the same position deletes last, so that a moved row finds what
/// its old key held.
fn place_bytes(seq: Seq, op: Op) -> Vec<u8> {
    let bytes = seq.bytes();
    let mut place = bytes[..20].to_vec();
    place.push(u8::from(op == Op::Delete));
    place.extend_from_slice(&bytes[20..]);
    place
}

fn filter_bit(key: &[u8]) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish() as usize % FILTER_BITS
}
