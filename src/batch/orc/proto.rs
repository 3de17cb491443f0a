//! As much of Protocol Buffers as ORC's messages take: fields are written in the order of the calls.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

/// A message being written.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// An unsigned number, or a bool, or an enum.
    pub(super) fn number(&mut self, field: u32, value: u64) {
        self.tag(field, 0);
        varint(&mut self.0, value);
    }

    /// A number of type `sint64` or `sint32`.
    pub(super) fn signed(&mut self, field: u32, value: i64) {
        self.number(field, zigzag(value));
    }

    /// A number of type `int32`.
    pub(super) fn int(&mut self, field: u32, value: i32) {
        self.number(field, i64::from(value) as u64);
    }

    /// A `double`.
    pub(super) fn double(&mut self, field: u32, value: f64) {
        self.tag(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A string, or bytes.
    pub(super) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.tag(field, 2);
        varint(&mut self.0, value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// A message within this one.
    pub(super) fn message(&mut self, field: u32, value: &Self) {
        self.bytes(field, &value.0);
    }

    /// Numbers, packed.
    pub(super) fn numbers(&mut self, field: u32, values: impl IntoIterator<Item = u64>) {
        let mut packed = Vec::new();
        values.into_iter().for_each(|value| varint(&mut packed, value));
        if !packed.is_empty() {
            self.bytes(field, &packed);
        }
    }

    /// What was written.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn tag(&mut self, field: u32, wire: u32) {
        varint(&mut self.0, u64::from(field << 3 | wire));
    }
}

/// Seven bits a byte, the lowest first.
pub(super) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Small for numbers near zero of either sign.
pub(super) const fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}
