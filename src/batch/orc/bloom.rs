//! Bloom filters, by which a reader skips row groups that cannot have a key.
//!
//! The hash of texts and bytes is the first half of Murmur3 (128 bits, x64) over 64 bits, of integers that of Thomas
//! Wang. Filters of one column have one size, made for a row group of distinct values.
//!
//! Source: `ORCv1`, "Bloom Filter Index"; `java/core/src/java/org/apache/orc/util/{BloomFilter,Murmur3}.java`.

use super::ROW_GROUP_ROWS;
use super::proto::Message;

/// Bits for a row group's values at 1 % of false answers, in words: `-n ln p / (ln 2)²`.
const WORDS: usize = ROW_GROUP_ROWS * 9586 / 64_000 + 1;
/// Bits set for a value: `m / n ln 2`.
const HASHES: u32 = 7;

/// A row group's filter.
#[derive(Debug)]
pub(super) struct Bloom(Vec<u64>);

impl Bloom {
    pub(super) fn new() -> Self {
        Self(vec![0; WORDS])
    }

    pub(super) fn add_bytes(&mut self, bytes: &[u8]) {
        self.add(murmur3(bytes));
    }

    pub(super) fn add_int(&mut self, value: i64) {
        self.add(wang(value));
    }

    /// As the index has it; empty afterwards.
    pub(super) fn finish(&mut self) -> Message {
        let mut message = Message::default();
        message.number(1, u64::from(HASHES));
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        message.bytes(3, &bytes);
        self.0.fill(0);
        message
    }

    fn add(&mut self, hash: u64) {
        let (first, second) = (hash as i32, (hash >> 32) as i32);
        let bits = (WORDS * 64) as i32;
        for n in 1..=HASHES as i32 {
            let combined = first.wrapping_add(n.wrapping_mul(second));
            let bit = (if combined < 0 { !combined } else { combined }) % bits;
            self.0[bit as usize / 64] |= 1 << (bit % 64);
        }
    }
}

fn wang(value: i64) -> u64 {
    let mut key = (!value).wrapping_add(value << 21);
    key ^= key >> 24;
    key = key.wrapping_add(key << 3).wrapping_add(key << 8);
    key ^= key >> 14;
    key = key.wrapping_add(key << 2).wrapping_add(key << 4);
    key ^= key >> 28;
    key.wrapping_add(key << 31) as u64
}

fn murmur3(bytes: &[u8]) -> u64 {
    let mix = |word: u64| {
        word.wrapping_mul(0x87c3_7b91_1142_53d5).rotate_left(31).wrapping_mul(0x4cf5_ad43_2745_937f)
    };
    let mut hash: u64 = 104_729;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash ^= mix(u64::from_le_bytes(*word));
        hash = hash.rotate_left(27).wrapping_mul(5).wrapping_add(0x52dc_e729);
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash ^= mix(u64::from_le_bytes(last));
    }
    hash ^= bytes.len() as u64;
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}
