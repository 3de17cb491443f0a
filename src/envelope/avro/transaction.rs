//! The records of `<name>.transaction`.

use super::encode::write_id;
use super::source::{NULL, SOME, write_optional};
use super::value::{write_long, write_string};
use crate::envelope::transaction::Boundary;

pub(in crate::envelope) fn write_key(schema_id: u32, id: &str, out: &mut Vec<u8>) {
    write_id(schema_id, out);
    write_string(id.as_bytes(), out);
}

pub(in crate::envelope) fn write_value(
    schema_id: u32,
    id: &str,
    boundary: &Boundary<'_>,
    ts_ms: i64,
    out: &mut Vec<u8>,
) {
    write_id(schema_id, out);
    let (status, event_count, data_collections) = boundary.fields();
    write_string(status.as_bytes(), out);
    write_string(id.as_bytes(), out);
    write_optional(event_count.map(|count| count as i64), out);
    match data_collections {
        None => out.push(NULL),
        Some(data_collections) => {
            out.push(SOME);
            // One block of items, and the empty one that ends an array.
            if !data_collections.is_empty() {
                write_long(data_collections.len() as i64, out);
            }
            for collection in data_collections {
                out.push(SOME);
                write_string(collection.name.as_bytes(), out);
                write_long(collection.event_count as i64, out);
            }
            write_long(0, out);
        }
    }
    write_long(ts_ms, out);
}
