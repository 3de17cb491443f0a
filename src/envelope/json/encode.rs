//! One change to its records.
//!
//! | change | records (key: value) |
//! |---|---|
//! | insert, backfilled row | key: `c` or `r` |
//! | update | key: `u`, with `before` when the old row was sent whole |
//! | update that moves the key | old key: `d`, old key: tombstone, new key: `c` |
//! | delete | key: `d`, key: tombstone |
//! | truncate | no key: `t` |
//!
//! Without a key there is none, and no tombstone.

use super::Options;
use super::row::{EncodeError, Held, RowWriter};
use super::source::{SourceInfo, Stamp};
use crate::change::{Lsn, Op, Position, TableSchema, Value};
use crate::envelope::headers;
use crate::log::TopicRecords;

/// Bytes of records that one change may make. Lengths in frames are 32 bits, and no log takes more.
const CHANGE_BYTES_MAX: usize = i32::MAX as usize;

/// Which columns an old row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldKind {
    /// Those of the replica identity; the others are sent as nulls, which mean nothing.
    Key,
    /// All, with TOAST values in full.
    Full,
}

/// A row before its change, as the server logged it.
#[derive(Clone, Copy, Debug)]
pub struct OldRow<'a> {
    /// Which columns it holds.
    pub kind: OldKind,
    /// One value a wire column.
    pub values: &'a [Value<'a>],
}

/// One change of a row, with what the envelope says about its transaction.
#[derive(Clone, Copy, Debug)]
pub struct RowChange<'a> {
    /// What happened.
    pub op: Op,
    /// Where the change stands.
    pub position: Position,
    /// LSN of the change itself.
    pub lsn: Lsn,
    /// Commit time, microseconds since 1970.
    pub commit_us: i64,
    /// Time of encoding, milliseconds since 1970.
    pub now_ms: i64,
    /// The transaction's id; none for a backfill.
    pub xid: Option<u32>,
    /// Whether a backfill read the row.
    pub snapshot: bool,
    /// LSN of the commit before this transaction's, where known.
    pub last_commit_lsn: Option<Lsn>,
    /// The row before, as far as it was sent: always for a delete.
    pub old: Option<OldRow<'a>>,
    /// The row after; one value a wire column. For create, read and update.
    pub new: Option<&'a [Value<'a>]>,
}

/// Encodes the changes of one version of one table.
#[derive(Debug)]
pub struct TableEncoder {
    stamp: Stamp,
    rows: RowWriter,
    key: Vec<u8>,
    other_key: Vec<u8>,
}

/// One record to be written: all of it but the change it belongs to.
struct Record<'a> {
    op: Op,
    key: Option<&'a [u8]>,
    before: Option<&'a [Value<'a>]>,
    after: Option<&'a [Value<'a>]>,
    header: Option<(&'static str, &'a [u8])>,
}

impl TableEncoder {
    /// An encoder for a table. `layout` gives, for each column of `schema`, its index in the rows of the
    /// wire; none for one that is not on the wire (dropped at the source), which is written as null.
    pub fn new(
        source: &SourceInfo,
        schema: &TableSchema,
        layout: &[Option<usize>],
        options: Options,
    ) -> Self {
        Self {
            stamp: Stamp::new(source, schema),
            rows: RowWriter::new(schema, layout, options),
            key: Vec::new(),
            other_key: Vec::new(),
        }
    }

    /// Appends the records of a change, with the commit time as their timestamp, and gives the number of
    /// those with a value (tombstones are not counted). On an error `out` is as it was.
    pub fn encode(&mut self, change: &RowChange<'_>, out: &mut TopicRecords) -> Result<u32, EncodeError> {
        let mark = out.mark();
        let start = out.frames().len();
        self.stamp.prepare(change);
        let encoded = self.encode_change(change, out).and_then(|count| {
            let fits = out.frames().len() - start <= CHANGE_BYTES_MAX;
            fits.then_some(count).ok_or(EncodeError::Change("the change is larger than 2 GiB when encoded"))
        });
        if encoded.is_err() {
            out.rewind(mark);
        }
        encoded
    }

    fn encode_change(&mut self, change: &RowChange<'_>, out: &mut TopicRecords) -> Result<u32, EncodeError> {
        const NO_NEW: EncodeError = EncodeError::Change("the change came without its new row");
        match change.op {
            Op::Create | Op::Read => self.encode_create(change, change.new.ok_or(NO_NEW)?, out),
            Op::Update => self.encode_update(change, change.new.ok_or(NO_NEW)?, out),
            Op::Delete => self.encode_delete(change, out),
            Op::Truncate => {
                let record = Record { op: Op::Truncate, key: None, before: None, after: None, header: None };
                write_record(&self.stamp, &mut self.rows, change, &record, out)?;
                Ok(1)
            }
        }
    }

    fn encode_create(
        &mut self,
        change: &RowChange<'_>,
        new: &[Value<'_>],
        out: &mut TopicRecords,
    ) -> Result<u32, EncodeError> {
        let key = fill_key(&mut self.rows, new, None, &mut self.key)?;
        let record = Record { op: change.op, key, before: None, after: Some(new), header: None };
        write_record(&self.stamp, &mut self.rows, change, &record, out)?;
        Ok(1)
    }

    fn encode_update(
        &mut self,
        change: &RowChange<'_>,
        new: &[Value<'_>],
        out: &mut TopicRecords,
    ) -> Result<u32, EncodeError> {
        if let Some(old) = change.old
            && self.rows.key_moved(old, new)?
        {
            return self.encode_move(change, old, new, out);
        }
        let key = fill_key(&mut self.rows, new, change.old, &mut self.key)?;
        let before = change.old.filter(|old| old.kind == OldKind::Full).map(|old| old.values);
        let record = Record { op: Op::Update, key, before, after: Some(new), header: None };
        write_record(&self.stamp, &mut self.rows, change, &record, out)?;
        Ok(1)
    }

    /// An update that moves its row to another key: a delete and a create which name each other's key.
    fn encode_move(
        &mut self,
        change: &RowChange<'_>,
        old: OldRow<'_>,
        new: &[Value<'_>],
        out: &mut TopicRecords,
    ) -> Result<u32, EncodeError> {
        let Self { stamp, rows, key, other_key } = self;
        let old_key = fill_key(rows, old.values, None, other_key)?;
        let new_key = fill_key(rows, new, Some(old), key)?;
        let header = new_key.map(|key| (headers::NEW_KEY, key));
        let delete = Record { op: Op::Delete, key: old_key, before: Some(old.values), after: None, header };
        write_record(stamp, rows, change, &delete, out)?;
        write_tombstone(stamp, change, old_key, out);
        let header = old_key.map(|key| (headers::OLD_KEY, key));
        let create = Record { op: Op::Create, key: new_key, before: None, after: Some(new), header };
        write_record(stamp, rows, change, &create, out)?;
        Ok(2)
    }

    fn encode_delete(&mut self, change: &RowChange<'_>, out: &mut TopicRecords) -> Result<u32, EncodeError> {
        let old = change.old.ok_or(EncodeError::Change("the delete came without its old row"))?;
        let key = fill_key(&mut self.rows, old.values, None, &mut self.key)?;
        let record = Record { op: Op::Delete, key, before: Some(old.values), after: None, header: None };
        write_record(&self.stamp, &mut self.rows, change, &record, out)?;
        write_tombstone(&self.stamp, change, key, out);
        Ok(1)
    }
}

/// Writes a row's key into `buffer`; none for a table without one.
fn fill_key<'k>(
    rows: &mut RowWriter,
    values: &[Value<'_>],
    held: Held<'_>,
    buffer: &'k mut Vec<u8>,
) -> Result<Option<&'k [u8]>, EncodeError> {
    if !rows.keyed() {
        return Ok(None);
    }
    buffer.clear();
    rows.write_key(values, held, buffer)?;
    Ok(Some(buffer))
}

fn write_record(
    stamp: &Stamp,
    rows: &mut RowWriter,
    change: &RowChange<'_>,
    record: &Record<'_>,
    out: &mut TopicRecords,
) -> Result<(), EncodeError> {
    let mut writer = out.begin(change.commit_us.div_euclid(1_000));
    match record.key {
        Some(key) => writer.field(|out| out.extend_from_slice(key)),
        None => writer.null(),
    }
    writer.field(|out| {
        out.extend_from_slice(b"{\"before\":");
        match record.before {
            Some(values) => rows.write_before(values, out)?,
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"after\":");
        match record.after {
            Some(values) => rows.write_after(values, change.old, out)?,
            None => out.extend_from_slice(b"null"),
        }
        stamp.write_end(change.lsn, record.op, out);
        Ok(())
    })?;
    stamp.write_headers(change.position.ordinal, &mut writer);
    if let Some((name, key)) = record.header {
        writer.header(name, |out| out.extend_from_slice(key));
    }
    writer.finish();
    Ok(())
}

fn write_tombstone(stamp: &Stamp, change: &RowChange<'_>, key: Option<&[u8]>, out: &mut TopicRecords) {
    let Some(key) = key else { return };
    let mut writer = out.begin(change.commit_us.div_euclid(1_000));
    writer.field(|out| out.extend_from_slice(key));
    writer.null();
    stamp.write_headers(change.position.ordinal, &mut writer);
    writer.finish();
}
