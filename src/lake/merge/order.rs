//! What decides the order of rows: the bytes of their key, then their place among all changes.
//!
//! ```text
//!   __sort = key bytes (arrow-row, each column self-delimiting) | Seq (33 bytes, big-endian)
//! ```
//!
//! With a key, these are the key's columns. Without one, rows are a multiset, and the "key" is all columns
//! that the source still has: a column dropped there no longer comes with the old row of a delete.

use std::sync::Arc;

use arrow_array::builder::BinaryBuilder;
use arrow_array::{ArrayRef, BinaryArray, RecordBatch};
use arrow_row::{RowConverter, Rows, SortField};
use arrow_schema::DataType;

use crate::batch::{Origin, data_type, name_at_rest};
use crate::change::{ColumnType, Lsn, Position, TableSchema};
use crate::runtime::Result;

use super::super::sort::arrow_error;
use super::shape::Shape;

/// Version of the key bytes, which manifests hold as the bounds of parts. Bounds of another one are not compared: raised
/// whenever the same key gets other bytes. A table with an outstanding historic tail would need a whole day by the version
/// before ([`super::super::tail`]).
pub(in crate::lake) const KEY_ORDER: u32 = 1;

/// Place of a row among all changes of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seq {
    pub(super) position: Position,
    pub(super) offset: u64,
    pub(super) partition: u32,
    /// 0 for the old half of an update that became two rows, else 1.
    pub(super) half: u8,
}

impl Seq {
    pub(super) const BYTES: usize = 33;

    pub(super) fn bytes(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..4].copy_from_slice(&self.position.timeline.to_be_bytes());
        out[4..12].copy_from_slice(&self.position.commit_lsn.0.to_be_bytes());
        out[12..20].copy_from_slice(&self.position.ordinal.to_be_bytes());
        out[20..28].copy_from_slice(&self.offset.to_be_bytes());
        out[28..32].copy_from_slice(&self.partition.to_be_bytes());
        out[32] = self.half;
        out
    }

    /// Splits sort bytes into the key's and the place.
    pub(super) fn split(sort: &[u8]) -> (&[u8], Self) {
        let (key, seq) = sort.split_at(sort.len() - Self::BYTES);
        let u64_at = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&seq[at..at + 8]);
            u64::from_be_bytes(bytes)
        };
        let u32_at = |at: usize| (u64_at(at) >> 32) as u32;
        let position = Position { timeline: u32_at(0), commit_lsn: Lsn(u64_at(4)), ordinal: u64_at(12) };
        // The partition's four bytes lie before the last one.
        let partition = (u64_at(25) >> 8) as u32;
        (key, Self { position, offset: u64_at(20), partition, half: seq[32] })
    }
}

/// The columns by which a table's rows are told apart, and their bytes.
#[derive(Debug)]
pub(super) struct KeyOrder {
    columns: Vec<usize>,
    converter: RowConverter,
}

impl KeyOrder {
    pub(super) fn new(shape: &Shape) -> Result<Self> {
        let (columns, types) = (key_columns(&shape.table), shape.types());
        let fields = columns.iter().map(|index| SortField::new(types[*index].clone()));
        let converter = RowConverter::new(fields.collect()).map_err(arrow_error)?;
        Ok(Self { columns, converter })
    }

    /// The key bytes of some rows of a batch whose table columns begin at `skip`.
    pub(super) fn rows(&self, batch: &RecordBatch, skip: usize, start: usize, rows: usize) -> Result<Rows> {
        let column = |index: &usize| batch.column(skip + index).slice(start, rows);
        let columns: Vec<ArrayRef> = self.columns.iter().map(column).collect();
        if columns.is_empty() {
            // A table without columns: all rows are equal. One constant stands for them.
            let constant = RowConverter::new(vec![SortField::new(DataType::Boolean)]).map_err(arrow_error)?;
            let same: ArrayRef = Arc::new(arrow_array::BooleanArray::from(vec![true; rows]));
            return constant.convert_columns(&[same]).map_err(arrow_error);
        }
        self.converter.convert_columns(&columns).map_err(arrow_error)
    }

    /// The sort column of a batch of rows at those places.
    pub(super) fn sort_column(
        &self,
        batch: &RecordBatch,
        skip: usize,
        seqs: impl ExactSizeIterator<Item = Seq>,
    ) -> Result<BinaryArray> {
        let rows = self.rows(batch, skip, 0, batch.num_rows())?;
        let mut out =
            BinaryBuilder::with_capacity(rows.num_rows(), rows.size() + rows.num_rows() * Seq::BYTES);
        let mut sort = Vec::new();
        for (row, seq) in rows.iter().zip(seqs) {
            sort.clear();
            sort.extend_from_slice(row.data());
            sort.extend_from_slice(&seq.bytes());
            out.append_value(&sort);
        }
        Ok(out.finish())
    }
}

/// Whether rows in the order of one shape are in the order of a later one, too; `origins` say what they hold in each
/// of its columns.
pub(super) fn same_order(before: &TableSchema, now: &TableSchema, origins: &[Origin]) -> bool {
    let held = key_columns(before).into_iter().map(|index| {
        let column = &before.columns[index];
        (name_at_rest(&column.name), data_type(&column.column_type))
    });
    // Columns in which all rows held are the same (those added since, and those which the file lacks) change no order,
    // wherever they stand.
    let wanted = key_columns(now).into_iter().filter_map(|index| match &origins[index] {
        Origin::Column { name, .. }
            if before.columns.iter().any(|column| name_at_rest(&column.name) == *name) =>
        {
            Some((name.as_str().into(), data_type(&now.columns[index].column_type)))
        }
        _ => None,
    });
    before.key.is_empty() == now.key.is_empty() && held.eq(wanted)
}

/// Whether the key's values, none of which needed a text so far, have the same order as cells of their value and its text.
/// As cells, times of the last second of 1969 are texts ([`crate::batch::has_untold`]) and come first; so do lists with one.
pub(super) fn same_in_cells(schema: &TableSchema) -> bool {
    fn is_time(column_type: &ColumnType) -> bool {
        match column_type {
            ColumnType::Timestamp { .. } | ColumnType::TimestampTz { .. } => true,
            ColumnType::Array { element } => is_time(element),
            _ => false,
        }
    }
    !key_columns(schema).iter().any(|index| is_time(&schema.columns[*index].column_type))
}

/// Whether the bytes of every key are the same in both shapes, where [`same_order`] holds: the key has the same columns, and
/// none of them was of another type in between, by which values may have been written otherwise (`numeric` that is text gets
/// more digits).
pub(super) fn same_bytes(now: &TableSchema, origins: &[Origin]) -> bool {
    let same = |index: &usize| match &origins[*index] {
        Origin::Column { types, .. } => types.iter().all(|of| *of == now.columns[*index].column_type),
        _ => false,
    };
    !now.key.is_empty() && now.key.iter().all(same)
}

fn key_columns(schema: &TableSchema) -> Vec<usize> {
    if schema.key.is_empty() {
        (0..schema.columns.len()).filter(|index| !schema.columns[*index].dropped).collect()
    } else {
        schema.key.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Manifests hold these bytes. Whoever makes them others, such as by a newer arrow-row, has to raise [`KEY_ORDER`].
    #[test]
    fn the_bytes_of_keys_are_those_that_manifests_hold() {
        use arrow_array::{
            Date32Array, Decimal128Array, Float64Array, Int16Array, Int32Array, Int64Array, StringArray,
        };
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(arrow_array::BooleanArray::from(vec![true])),
            Arc::new(Int16Array::from(vec![-2])),
            Arc::new(Int32Array::from(vec![3])),
            Arc::new(Int64Array::from(vec![-4])),
            Arc::new(Float64Array::from(vec![-0.5])),
            Arc::new(Date32Array::from(vec![5])),
            Arc::new(StringArray::from(vec!["kéy"])),
            Arc::new(BinaryArray::from(vec![&b"\x00a"[..]])),
            Arc::new(Decimal128Array::from(vec![-6]).with_precision_and_scale(12, 2).unwrap()),
            Arc::new(StringArray::from(vec![None::<&str>])),
        ];
        let bytes = |array: &ArrayRef| {
            let converter = RowConverter::new(vec![SortField::new(array.data_type().clone())]).unwrap();
            let rows = converter.convert_columns(&[Arc::clone(array)]).unwrap();
            super::super::super::store::hexadecimal(rows.row(0).data())
        };
        assert_eq!(KEY_ORDER, 1);
        assert_eq!(arrays.iter().map(bytes).collect::<Vec<_>>(), GOLDEN);
    }

    const GOLDEN: [&str; 10] = [
        "0101",
        "017ffe",
        "0180000003",
        "017ffffffffffffffc",
        "01401fffffffffffff",
        "0180000005",
        "026bc3a9790000000004",
        "02006100000000000002",
        "017ffffffffffffffffffffffffffffffa",
        "00",
    ];

    #[test]
    fn places_sort_as_their_bytes_and_come_back() {
        let seq = |timeline, lsn, ordinal, offset, partition, half| Seq {
            position: Position { timeline, commit_lsn: Lsn(lsn), ordinal },
            offset,
            partition,
            half,
        };
        let sorted = [
            seq(1, 5, 300, 7, 0, 1),
            seq(1, 256, 1, 8, 0, 0),
            seq(1, 256, 1, 8, 0, 1),
            seq(1, 256, 1, 9, 0x0102_0304, 1),
            seq(2, 1, 1, u64::MAX, 0, 1),
        ];
        assert!(sorted.is_sorted() && sorted.map(|s| s.bytes()).is_sorted());
        for seq in sorted {
            let sort = [&b"key"[..], &seq.bytes()].concat();
            assert_eq!(Seq::split(&sort), (&b"key"[..], seq));
        }
    }
}
