//! Timestamps that ORC cannot tell, and lists with one: in memory they are cells of their text, as in
//! [`EXACT`](super::EXACT).
//!
//! Readers of ORC subtract a second where the seconds that stand in the file are below zero and the nanoseconds beside
//! them above 999,999. In the last second of 1969 zero stands there, and nothing tells such a time from the one a second
//! later. All merging of rows that are cells has them so, whatever the files' format: a key is the same in both.
//!
//! Source: ORC-763, ORC-771 (`TreeReaderFactory.TimestampTreeReader`).

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{Array, ArrayRef, ListArray, PrimitiveArray, RecordBatch, StringArray, StructArray};
use arrow_buffer::{BooleanBuffer, NullBuffer};
use arrow_schema::{DataType, TimeUnit};

use super::csv::calendar::write_timestamp;

/// Whether it is one, in microseconds since 1970.
const fn is_untold(micros: i64) -> bool {
    micros < 0 && micros >= -999_000
}

/// Whether rows, in memory or at rest, have one where no text stands for it.
pub fn has_untold(batch: &RecordBatch) -> bool {
    batch.columns().iter().any(|array| !untold_rows(array).is_empty())
}

/// A cell of a value and its text, with the text in place of a value that is untold.
pub(super) fn told(cell: &StructArray) -> StructArray {
    let (value, exact) = (cell.column(0), cell.column(1).as_string::<i32>());
    let rows = untold_rows(value);
    if rows.is_empty() {
        return cell.clone();
    }
    let mut texts: Vec<Option<String>> = exact.iter().map(|text| text.map(str::to_owned)).collect();
    for row in &rows {
        texts[*row] = Some(json(value, *row));
    }
    let told = BooleanBuffer::collect_bool(value.len(), |row| rows.binary_search(&row).is_err());
    let nulls = NullBuffer::union(value.nulls(), Some(&NullBuffer::new(told)));
    let value: ArrayRef = match value.data_type() {
        DataType::List(field) => {
            let list = value.as_list::<i32>();
            Arc::new(ListArray::new(
                Arc::clone(field),
                list.offsets().clone(),
                Arc::clone(list.values()),
                nulls,
            ))
        }
        data_type => {
            let values = value.as_primitive::<TimestampMicrosecondType>().values().clone();
            let array = PrimitiveArray::<TimestampMicrosecondType>::new(values, nulls);
            Arc::new(array.with_data_type(data_type.clone()))
        }
    };
    let texts: StringArray = texts.into_iter().collect();
    StructArray::new(cell.fields().clone(), vec![value, Arc::new(texts)], cell.nulls().cloned())
}

/// Rows with one, ascending.
pub(super) fn untold_rows(array: &ArrayRef) -> Vec<usize> {
    let valid = |row: &usize| array.is_valid(*row);
    match array.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let values = array.as_primitive::<TimestampMicrosecondType>().values();
            (0..array.len()).filter(|row| is_untold(values[*row])).filter(valid).collect()
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let elements = untold_rows(list.values());
            let offsets = list.value_offsets();
            let has = |row: &usize| {
                let (from, to) = (offsets[*row] as usize, offsets[*row + 1] as usize);
                elements.get(elements.partition_point(|at| *at < from)).is_some_and(|at| *at < to)
            };
            if elements.is_empty() { elements } else { (0..array.len()).filter(has).filter(valid).collect() }
        }
        DataType::Struct(_) => array.as_struct().columns().first().map(untold_rows).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// A value as it stands in `EXACT`.
fn json(array: &ArrayRef, row: usize) -> String {
    let mut out = Vec::new();
    if let DataType::List(_) = array.data_type() {
        let items = array.as_list::<i32>().value(row);
        out.push(b'[');
        for item in 0..items.len() {
            out.extend_from_slice(if item == 0 { b"" } else { b"," });
            put(&items, item, &mut out);
        }
        out.push(b']');
    } else {
        put(array, row, &mut out);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn put(array: &ArrayRef, row: usize, out: &mut Vec<u8>) {
    if array.is_null(row) {
        return out.extend_from_slice(b"null");
    }
    let utc = matches!(array.data_type(), DataType::Timestamp(_, Some(_)));
    out.push(b'"');
    write_timestamp(array.as_primitive::<TimestampMicrosecondType>().value(row), utc, out);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_of_the_last_second_before_1970_which_readers_take_for_later_ones_are_untold() {
        for (micros, untold) in [
            (-1_000_000, false),
            (-999_001, false),
            (-999_000, true),
            (-1, true),
            (0, false),
            (i64::MIN, false),
        ] {
            assert_eq!(is_untold(micros), untold, "{micros}");
        }
    }

    #[test]
    fn a_cell_has_the_text_of_what_is_untold_and_all_else_as_it_was() {
        let items = PrimitiveArray::<TimestampMicrosecondType>::from(vec![Some(5), None, Some(-1), Some(7)]);
        let field = Arc::new(arrow_schema::Field::new_list_field(items.data_type().clone(), true));
        let offsets = arrow_buffer::OffsetBuffer::from_lengths([1, 2, 1]);
        let lists: ArrayRef = Arc::new(ListArray::new(field, offsets, Arc::new(items), None));
        let plain =
            PrimitiveArray::<TimestampMicrosecondType>::from(vec![-2, 3, -2_000_000]).with_timezone("UTC");
        for (value, expected) in [
            (lists, [None, Some("[null,\"1969-12-31 23:59:59.999999\"]"), None]),
            (Arc::new(plain) as ArrayRef, [Some("\"1969-12-31 23:59:59.999998+00\""), None, None]),
        ] {
            let exact: ArrayRef = Arc::new(StringArray::new_null(3));
            let cell = StructArray::from(vec![
                (
                    Arc::new(arrow_schema::Field::new("value", value.data_type().clone(), true)),
                    Arc::clone(&value),
                ),
                (Arc::new(arrow_schema::Field::new("exact", DataType::Utf8, true)), exact),
            ]);
            let told = told(&cell);
            assert_eq!(told.column(1).as_string::<i32>().iter().collect::<Vec<_>>(), expected);
            for (row, text) in expected.iter().enumerate() {
                assert_eq!(told.column(0).is_null(row), text.is_some());
            }
            assert!(untold_rows(told.column(0)).is_empty());
        }
    }
}
