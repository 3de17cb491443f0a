//! Rows and keys of one table as JSON objects.

use super::string::quoted;
use super::{Options, value};
use crate::change::{ColumnType, TableSchema, Value};
use crate::envelope::encode::{EncodeError, Held, OldKind, OldRow};
use crate::envelope::text::Malformed;

/// A column, and where its values are.
#[derive(Clone, Debug)]
pub(in crate::envelope) struct ColumnWriter {
    name: String,
    type_name: String,
    /// `,"name":`
    field: Vec<u8>,
    pub column_type: ColumnType,
    wire: Option<usize>,
    in_key: bool,
}

/// Writes rows and keys of one table.
#[derive(Clone, Debug)]
pub(in crate::envelope) struct RowWriter {
    pub columns: Vec<ColumnWriter>,
    pub key: Vec<usize>,
    options: Options,
    scratch: Vec<u8>,
}

impl RowWriter {
    pub(in crate::envelope) fn new(schema: &TableSchema, layout: &[Option<usize>], options: Options) -> Self {
        let column = |(index, column): (usize, &crate::change::Column)| ColumnWriter {
            name: column.name.clone(),
            type_name: column.type_name.clone(),
            field: format!(",{}:", quoted(&column.name)).into_bytes(),
            column_type: column.column_type.clone(),
            wire: layout.get(index).copied().flatten(),
            in_key: schema.key.contains(&index),
        };
        Self {
            columns: schema.columns.iter().enumerate().map(column).collect(),
            key: schema.key.clone(),
            options,
            scratch: Vec::new(),
        }
    }

    /// Whether rows of the table have a key.
    pub(in crate::envelope) const fn keyed(&self) -> bool {
        !self.key.is_empty()
    }

    /// Writes an old row as an object. The server sends old values in full, whatever their size.
    pub(in crate::envelope) fn write_before(
        &mut self,
        values: &[Value<'_>],
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        for column in &self.columns {
            column.refuse_unchanged(column.value(values)?)?;
        }
        self.write_after(values, None, out)
    }

    /// Writes a new row as an object. A value which stays unchanged after completion is left out.
    pub(in crate::envelope) fn write_after(
        &mut self,
        values: &[Value<'_>],
        held: Held<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        out.push(b'{');
        // The comma before the first field is left away.
        let mut skip = 1;
        for column in &self.columns {
            let value = column.completed(values, held)?;
            if value == Value::Unchanged {
                column.refuse_unchanged_key()?;
                continue;
            }
            out.extend_from_slice(&column.field[skip..]);
            skip = 0;
            column.write(value, self.options, &mut self.scratch, out)?;
        }
        out.push(b'}');
        Ok(())
    }

    /// Writes a key as an object of the key's columns, in key order.
    pub(in crate::envelope) fn write_key(
        &mut self,
        values: &[Value<'_>],
        held: Held<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        out.push(b'{');
        let mut skip = 1;
        for column in self.key.iter().filter_map(|index| self.columns.get(*index)) {
            let value = column.completed(values, held)?;
            if value == Value::Null {
                return Err(column.error("a null in the key"));
            }
            column.refuse_unchanged(value)?;
            out.extend_from_slice(&column.field[skip..]);
            skip = 0;
            column.write(value, self.options, &mut self.scratch, out)?;
        }
        out.push(b'}');
        Ok(())
    }

    /// Whether an update moved its row to another key.
    ///
    /// That an old key was sent does not say so: Postgres also sends it when the key is stored out of line
    /// (`ExtractReplicaIdentity` in `heapam.c`).
    pub(in crate::envelope) fn key_moved(
        &self,
        old: OldRow<'_>,
        new: &[Value<'_>],
    ) -> Result<bool, EncodeError> {
        for column in self.key.iter().filter_map(|index| self.columns.get(*index)) {
            let value = column.value(new)?;
            if value != Value::Unchanged && value != column.value(old.values)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl ColumnWriter {
    #[inline]
    pub(in crate::envelope) fn value<'v>(&self, values: &[Value<'v>]) -> Result<Value<'v>, EncodeError> {
        match self.wire {
            None => Ok(Value::Null),
            Some(at) => values.get(at).copied().ok_or_else(|| self.error("missing from the row sent")),
        }
    }

    /// The value, or that of the old row where it was sent too: a full one has all columns, a key its own.
    #[inline]
    pub(in crate::envelope) fn completed<'v>(
        &self,
        values: &[Value<'v>],
        held: Held<'v>,
    ) -> Result<Value<'v>, EncodeError> {
        match (self.value(values)?, held) {
            (Value::Unchanged, Some(old)) if old.kind == OldKind::Full || self.in_key => {
                self.value(old.values)
            }
            (value, _) => Ok(value),
        }
    }

    fn write(
        &self,
        value: Value<'_>,
        options: Options,
        scratch: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        match value {
            Value::Null => out.extend_from_slice(b"null"),
            Value::Text(text) => value::write(&self.column_type, options, text, scratch, out)
                .map_err(|Malformed(reason)| self.error(reason))?,
            Value::Unchanged => self.refuse_unchanged(value)?,
            Value::LeftOut { bytes, .. } => return Err(self.left_out(bytes)),
        }
        Ok(())
    }

    /// Appends the column's field, to an object of fields that each begin with a comma.
    pub(in crate::envelope) fn write_field(
        &self,
        text: &[u8],
        options: Options,
        scratch: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        out.extend_from_slice(&self.field);
        self.write(Value::Text(text), options, scratch, out)
    }

    /// `,"name"`.
    pub(in crate::envelope) fn quoted_name(&self) -> &[u8] {
        self.field.strip_suffix(b":").unwrap_or(&self.field)
    }

    pub(in crate::envelope) fn refuse_unchanged(&self, value: Value<'_>) -> Result<(), EncodeError> {
        if value == Value::Unchanged {
            Err(self.error("an unchanged value that was not sent"))
        } else {
            Ok(())
        }
    }

    pub(in crate::envelope) fn refuse_unchanged_key(&self) -> Result<(), EncodeError> {
        if self.in_key { Err(self.error("an unchanged value in the key that was not sent")) } else { Ok(()) }
    }

    pub(in crate::envelope) fn left_out(&self, bytes: u64) -> EncodeError {
        EncodeError::LeftOut { column: self.name.clone(), type_name: self.type_name.clone(), bytes }
    }

    pub(in crate::envelope) fn error(&self, reason: &'static str) -> EncodeError {
        EncodeError::Column { column: self.name.clone(), type_name: self.type_name.clone(), reason }
    }
}
