//! Buffers of values that can be taken back, by width. They become arrays.

use std::sync::Arc;

use arrow_array::types::ArrowPrimitiveType;
use arrow_array::{ArrayRef, BinaryArray, BooleanArray, PrimitiveArray, StringArray};
use arrow_buffer::{BooleanBufferBuilder, Buffer, NullBuffer, NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::DataType;

use super::decimal;

/// Room kept from one batch for the next, in values or bytes: not more, lest one large value holds memory.
const KEPT_CAPACITY: usize = 1 << 16;

/// What a value costs beside its own bytes: offset and validity, roughly.
pub(super) const VALUE_OVERHEAD: usize = 4;

/// An offset as arrays have it.
pub(super) fn offset(end: usize) -> Result<i32, String> {
    i32::try_from(end).map_err(|_| "more than 2 GiB in one batch".to_owned())
}

/// Emptied offsets, and what they were.
pub(super) fn take_offsets(offsets: &mut Vec<i32>) -> OffsetBuffer<i32> {
    let mut next = Vec::with_capacity(offsets.len().min(KEPT_CAPACITY));
    next.push(0);
    OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, next)))
}

/// An emptied buffer of about the size it had, and what it held.
fn take<T>(values: &mut Vec<T>) -> Vec<T> {
    let next = Vec::with_capacity(values.len().min(KEPT_CAPACITY));
    std::mem::replace(values, next)
}

/// Values of a fixed width.
pub(super) struct Fixed<T: ArrowPrimitiveType> {
    data_type: DataType,
    values: Vec<T::Native>,
    nulls: NullBufferBuilder,
}

impl<T: ArrowPrimitiveType> Fixed<T> {
    pub(super) fn new(data_type: &DataType) -> Self {
        Self { data_type: data_type.clone(), values: Vec::new(), nulls: NullBufferBuilder::new(0) }
    }

    #[expect(clippy::unnecessary_wraps, reason = "all appends have one shape")]
    pub(super) fn append(&mut self, value: T::Native) -> Result<usize, String> {
        self.values.push(value);
        self.nulls.append_non_null();
        Ok(size_of::<T::Native>())
    }

    pub(super) fn append_int(&mut self, value: i64) -> Result<usize, String>
    where
        T::Native: TryFrom<i64>,
    {
        let narrow = T::Native::try_from(value);
        self.append(narrow.map_err(|_| format!("an integer out of range for {}", self.data_type))?)
    }

    pub(super) fn append_null(&mut self) {
        self.values.push(T::Native::default());
        self.nulls.append_null();
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.nulls.truncate(len);
    }

    pub(super) fn finish(&mut self) -> ArrayRef {
        let values = ScalarBuffer::from(take(&mut self.values));
        let array = PrimitiveArray::<T>::new(values, self.nulls.finish());
        Arc::new(array.with_data_type(self.data_type.clone()))
    }
}

/// Booleans, a bit each.
pub(super) struct Bools {
    values: BooleanBufferBuilder,
    nulls: NullBufferBuilder,
}

impl Bools {
    pub(super) fn new() -> Self {
        Self { values: BooleanBufferBuilder::new(0), nulls: NullBufferBuilder::new(0) }
    }

    #[expect(clippy::unnecessary_wraps, reason = "all appends have one shape")]
    pub(super) fn append(&mut self, value: bool) -> Result<usize, String> {
        self.values.append(value);
        self.nulls.append_non_null();
        Ok(1)
    }

    pub(super) fn append_null(&mut self) {
        self.values.append(false);
        self.nulls.append_null();
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn truncate(&mut self, len: usize) {
        if len < self.values.len() {
            self.values.truncate(len);
        }
        self.nulls.truncate(len);
    }

    pub(super) fn finish(&mut self) -> ArrayRef {
        Arc::new(BooleanArray::new(self.values.finish(), self.nulls.finish()))
    }
}

/// Values of any length, back to back.
pub(super) struct Variable {
    offsets: Vec<i32>,
    values: Vec<u8>,
    nulls: NullBufferBuilder,
}

impl Variable {
    pub(super) fn new() -> Self {
        Self { offsets: vec![0], values: Vec::new(), nulls: NullBufferBuilder::new(0) }
    }

    pub(super) fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    pub(super) fn append(&mut self, value: &[u8]) -> Result<usize, String> {
        let end = offset(self.values.len() + value.len())?;
        self.values.extend_from_slice(value);
        self.offsets.push(end);
        self.nulls.append_non_null();
        Ok(value.len() + VALUE_OVERHEAD)
    }

    pub(super) fn append_decimal(
        &mut self,
        unscaled: &[u8],
        precision: u16,
        scale: i16,
    ) -> Result<usize, String> {
        let start = self.values.len();
        let digits = decimal::write_text(unscaled, scale, &mut self.values);
        if digits > usize::from(precision) {
            self.values.truncate(start);
            return Err(format!("a decimal of more than {precision} digits"));
        }
        self.offsets.push(offset(self.values.len())?);
        self.nulls.append_non_null();
        Ok(self.values.len() - start + VALUE_OVERHEAD)
    }

    pub(super) fn append_null(&mut self) {
        let end = self.offsets.last().copied().unwrap_or_default();
        self.offsets.push(end);
        self.nulls.append_null();
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len + 1);
        self.values.truncate(self.offsets.last().map_or(0, |end| *end as usize));
        self.nulls.truncate(len);
    }

    fn take(&mut self) -> (OffsetBuffer<i32>, Buffer, Option<NullBuffer>) {
        (take_offsets(&mut self.offsets), Buffer::from_vec(take(&mut self.values)), self.nulls.finish())
    }

    pub(super) fn finish_text(&mut self) -> ArrayRef {
        let (offsets, values, nulls) = self.take();
        // Checks UTF-8 once more, at some GB/s: the price of having no unsafe code.
        Arc::new(StringArray::new(offsets, values, nulls))
    }

    pub(super) fn finish_bytes(&mut self) -> ArrayRef {
        let (offsets, values, nulls) = self.take();
        Arc::new(BinaryArray::new(offsets, values, nulls))
    }
}
