//! Values of many megabytes. A Parquet writer copies each into the dictionary, and twice into the statistics: three times
//! its memory for what no reader can use. So columns with such a value are written without both.

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;

/// A value of more bytes is a large one.
const LARGE_BYTES: usize = 8 << 20;

/// Indexes of the columns with a large value, ascending. It depends on the rows alone.
pub fn large_columns(batch: &RecordBatch) -> Vec<usize> {
    let columns = batch.columns().iter().enumerate();
    columns.filter(|(_, column)| has_large(column.as_ref())).map(|(index, _)| index).collect()
}

fn has_large(array: &dyn Array) -> bool {
    match array.data_type() {
        DataType::Utf8 => is_any_large(array.as_string::<i32>().value_offsets()),
        DataType::Binary => is_any_large(array.as_binary::<i32>().value_offsets()),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let (from, to) = (list.value_offsets()[0], list.value_offsets()[list.len()]);
            has_large(list.values().slice(from as usize, (to - from) as usize).as_ref())
        }
        DataType::Struct(_) => array.as_struct().columns().iter().any(|cells| has_large(cells.as_ref())),
        _ => false,
    }
}

fn is_any_large(offsets: &[i32]) -> bool {
    let bytes = |from: i32, to: i32| (to - from) as usize;
    // All together, in nearly every batch.
    match (offsets.first(), offsets.last()) {
        (Some(first), Some(last)) if bytes(*first, *last) > LARGE_BYTES => {
            offsets.windows(2).any(|pair| bytes(pair[0], pair[1]) > LARGE_BYTES)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int32Array, ListArray, StringArray};
    use arrow_schema::Field;

    use super::*;

    #[test]
    fn only_a_single_large_value_counts_not_many_small_ones() {
        let (small, large) = ("x".repeat(LARGE_BYTES / 2), "x".repeat(LARGE_BYTES + 1));
        let texts = |values: &[&str]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
        let list = |values: &[&str]| {
            let field = Arc::new(Field::new_list_field(DataType::Utf8, true));
            let offsets = arrow_buffer::OffsetBuffer::from_lengths([values.len(), 0, 0]);
            Arc::new(ListArray::new(field, offsets, texts(values), None)) as ArrayRef
        };
        let columns: [(&str, ArrayRef); 5] = [
            ("n", Arc::new(Int32Array::from(vec![1, 2, 3]))),
            ("small", texts(&[&small, &small, &small])),
            ("large", texts(&["", &large, ""])),
            ("smalls", list(&[&small, &small, &small])),
            ("larges", list(&[&large])),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        assert_eq!(large_columns(&batch), [2, 4]);
        assert_eq!(large_columns(&batch.slice(0, 1)), [4]);
    }
}
