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
//! Without a key there is none, and no tombstone. How a row, a key and an envelope look is a [`Form`]: JSON or Avro.

use std::sync::Arc;

use super::headers;
use crate::change::{Lsn, Op, Position, Timeline, Value};
use crate::log::{RecordWriter, TopicRecords};

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
    /// LSN just past the commit before this transaction's, where known.
    pub last_end_lsn: Option<Lsn>,
    /// Where the change's first record stands in its transaction; none where that is not told.
    pub transaction: Option<TransactionOrder>,
    /// The row before, as far as it was sent: always for a delete.
    pub old: Option<OldRow<'a>>,
    /// The row after; one value a wire column. For create, read and update.
    pub new: Option<&'a [Value<'a>]>,
}

/// Debezium's count of the records with a value within a transaction, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionOrder {
    /// Among all of the transaction.
    pub total: u64,
    /// Among those of the table.
    pub data_collection: u64,
}

impl TransactionOrder {
    /// The record after it, of the same table.
    const fn next(self) -> Self {
        Self { total: self.total + 1, data_collection: self.data_collection + 1 }
    }
}

/// The row that an unchanged value is completed from.
pub(super) type Held<'a> = Option<OldRow<'a>>;

/// A change that cannot be written as an envelope. Names the column, never the value: it may be private.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A value that does not fit its column.
    #[error("column {column:?} of type {type_name}: {reason}")]
    Column {
        /// The column.
        column: String,
        /// Its type, for people.
        type_name: String,
        /// What is wrong with the value.
        reason: &'static str,
    },
    /// A value that was left out, since the change was too large to be held.
    #[error(
        "column {column:?} of type {type_name} has {bytes} bytes, in a change of more than [source] change_bytes_max: it \
         was not read into memory"
    )]
    LeftOut {
        /// The column.
        column: String,
        /// Its type, for people.
        type_name: String,
        /// Of the value.
        bytes: u64,
    },
    /// A change that lacks what its operation needs.
    #[error("{0}")]
    Change(&'static str),
    /// A record that its topic does not take.
    #[error("a record has {bytes} bytes, and its topic takes {bytes_max} at most")]
    TooLarge {
        /// Of key, value and headers.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A table whose changes are not encoded at all, and why: it is isolated, and has been reported.
    #[error("{0}")]
    Refused(Arc<str>),
}

/// How the records of a table are written. Each method only appends to `out`.
pub trait Form {
    /// Makes what all records of a transaction share fit a change. Called before the others.
    fn prepare(&mut self, change: &RowChange<'_>);
    /// Whether rows have a key.
    fn keyed(&self) -> bool;
    /// Whether an update moved its row to another key.
    fn key_moved(&self, old: OldRow<'_>, new: &[Value<'_>]) -> Result<bool, EncodeError>;
    /// A record's key.
    fn write_key(
        &mut self,
        values: &[Value<'_>],
        held: Held<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError>;
    /// A key as the headers of a key change have it: in JSON.
    fn write_header_key(
        &mut self,
        values: &[Value<'_>],
        held: Held<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError>;
    /// A record's value.
    fn write_value(&mut self, envelope: &Envelope<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError>;
    /// The headers of every record; `of_value`: those, too, that belong to the value just written.
    fn write_headers(&self, ordinal: u64, of_value: bool, record: &mut RecordWriter<'_>);
}

/// What goes into a record's value.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The operation, which for the parts of a key change is not the change's.
    pub op: Op,
    /// LSN of the change.
    pub lsn: Lsn,
    /// Where the record stands in its transaction.
    pub transaction: Option<TransactionOrder>,
    /// The row before, one value a wire column.
    pub before: Option<&'a [Value<'a>]>,
    /// The row after.
    pub after: Option<&'a [Value<'a>]>,
    /// What unchanged values of `after` are completed from.
    pub held: Held<'a>,
}

/// Encodes the changes of one version of one table.
#[derive(Clone, Debug)]
pub struct ChangeEncoder<F> {
    form: F,
    key: Vec<u8>,
    other_key: Vec<u8>,
    header: Vec<u8>,
}

/// One record to be written: all of it but the change it belongs to.
struct Record<'a> {
    op: Op,
    key: Option<&'a [u8]>,
    before: Option<&'a [Value<'a>]>,
    after: Option<&'a [Value<'a>]>,
    header: Option<(&'static str, &'a [u8])>,
    transaction: Option<TransactionOrder>,
}

impl<F: Form> ChangeEncoder<F> {
    /// An encoder of that form.
    pub(super) const fn with_form(form: F) -> Self {
        Self { form, key: Vec::new(), other_key: Vec::new(), header: Vec::new() }
    }

    /// Appends the records of a change, with the commit time as their timestamp, and gives the number of
    /// those with a value (tombstones are not counted). On an error `out` is as it was.
    pub fn encode(&mut self, change: &RowChange<'_>, out: &mut TopicRecords) -> Result<u32, EncodeError> {
        let mark = out.mark();
        self.form.prepare(change);
        let encoded = self.encode_change(change, out).and_then(|count| {
            let fits = out.since(mark).len() <= CHANGE_BYTES_MAX;
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
                let transaction = change.transaction;
                let record = Record {
                    op: Op::Truncate,
                    key: None,
                    before: None,
                    after: None,
                    header: None,
                    transaction,
                };
                write_record(&mut self.form, change, &record, out)?;
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
        let key = fill_key(&mut self.form, new, None, &mut self.key)?;
        let transaction = change.transaction;
        let record = Record { op: change.op, key, before: None, after: Some(new), header: None, transaction };
        write_record(&mut self.form, change, &record, out)?;
        Ok(1)
    }

    fn encode_update(
        &mut self,
        change: &RowChange<'_>,
        new: &[Value<'_>],
        out: &mut TopicRecords,
    ) -> Result<u32, EncodeError> {
        if let Some(old) = change.old
            && self.form.key_moved(old, new)?
        {
            return self.encode_move(change, old, new, out);
        }
        let key = fill_key(&mut self.form, new, change.old, &mut self.key)?;
        let before = change.old.filter(|old| old.kind == OldKind::Full).map(|old| old.values);
        let transaction = change.transaction;
        let record = Record { op: Op::Update, key, before, after: Some(new), header: None, transaction };
        write_record(&mut self.form, change, &record, out)?;
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
        let Self { form, key, other_key, header } = self;
        let old_key = fill_key(form, old.values, None, other_key)?;
        let new_key = fill_key(form, new, Some(old), key)?;
        header.clear();
        form.write_header_key(new, Some(old), header)?;
        let named = new_key.map(|_| (headers::NEW_KEY, &header[..]));
        let (before, after) = (Some(old.values), Some(new));
        let transaction = change.transaction;
        let delete = Record { op: Op::Delete, key: old_key, before, after: None, header: named, transaction };
        write_record(form, change, &delete, out)?;
        write_tombstone(form, change, old_key, named, out);
        header.clear();
        form.write_header_key(old.values, None, header)?;
        let named = old_key.map(|_| (headers::OLD_KEY, &header[..]));
        let transaction = transaction.map(TransactionOrder::next);
        let create = Record { op: Op::Create, key: new_key, before: None, after, header: named, transaction };
        write_record(form, change, &create, out)?;
        Ok(2)
    }

    fn encode_delete(&mut self, change: &RowChange<'_>, out: &mut TopicRecords) -> Result<u32, EncodeError> {
        let old = change.old.ok_or(EncodeError::Change("the delete came without its old row"))?;
        let key = fill_key(&mut self.form, old.values, None, &mut self.key)?;
        let (before, transaction) = (Some(old.values), change.transaction);
        let record = Record { op: Op::Delete, key, before, after: None, header: None, transaction };
        write_record(&mut self.form, change, &record, out)?;
        write_tombstone(&self.form, change, key, None, out);
        Ok(1)
    }
}

/// Writes a row's key into `buffer`; none for a table without one.
fn fill_key<'k>(
    form: &mut impl Form,
    values: &[Value<'_>],
    held: Held<'_>,
    buffer: &'k mut Vec<u8>,
) -> Result<Option<&'k [u8]>, EncodeError> {
    if !form.keyed() {
        return Ok(None);
    }
    buffer.clear();
    form.write_key(values, held, buffer)?;
    Ok(Some(buffer))
}

fn write_record(
    form: &mut impl Form,
    change: &RowChange<'_>,
    record: &Record<'_>,
    out: &mut TopicRecords,
) -> Result<(), EncodeError> {
    let mut writer = out.begin(change.commit_us.div_euclid(1_000));
    match record.key {
        Some(key) => writer.field(|out| out.extend_from_slice(key)),
        None => writer.null(),
    }
    let Record { op, before, after, transaction, .. } = *record;
    let envelope = Envelope { op, lsn: change.lsn, transaction, before, after, held: change.old };
    writer.field(|out| form.write_value(&envelope, out))?;
    form.write_headers(change.position.ordinal, true, &mut writer);
    if let Some((name, key)) = record.header {
        writer.header(name, |out| out.extend_from_slice(key));
    }
    writer.finish();
    Ok(())
}

fn write_tombstone(
    form: &impl Form,
    change: &RowChange<'_>,
    key: Option<&[u8]>,
    header: Option<(&'static str, &[u8])>,
    out: &mut TopicRecords,
) {
    let Some(key) = key else { return };
    let mut writer = out.begin(change.commit_us.div_euclid(1_000));
    writer.field(|out| out.extend_from_slice(key));
    writer.null();
    form.write_headers(change.position.ordinal, false, &mut writer);
    if let Some((name, key)) = header {
        writer.header(name, |out| out.extend_from_slice(key));
    }
    writer.finish();
}

/// What of a change is the same for every record of its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamped {
    pub timeline: Timeline,
    pub commit_lsn: Lsn,
    pub last_end_lsn: Option<Lsn>,
    pub commit_us: i64,
    pub now_ms: i64,
    pub xid: Option<u32>,
    pub snapshot: bool,
}

impl From<&RowChange<'_>> for Stamped {
    fn from(change: &RowChange<'_>) -> Self {
        Self {
            timeline: change.position.timeline,
            commit_lsn: change.position.commit_lsn,
            last_end_lsn: change.last_end_lsn,
            commit_us: change.commit_us,
            now_ms: change.now_ms,
            xid: change.xid,
            snapshot: change.snapshot,
        }
    }
}
