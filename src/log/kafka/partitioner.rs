//! Which log partition a record goes to: the one that Kafka's own clients would choose for its key, so that
//! topics which others write with the same keys and the same number of partitions can be joined with ours.
//!
//! A record without a key goes to the first partition, and never to a random one: the order of a table without a
//! key is the order of one partition.

/// The partition of a key among `partitions`, which must not be 0.
pub(super) fn partition_of(key: Option<&[u8]>, partitions: u32) -> u32 {
    match key {
        None => 0,
        Some(key) => (murmur2(key) & 0x7fff_ffff) % partitions,
    }
}

/// Murmur2 as Kafka's Java client has it (`Utils.murmur2`).
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    for (at, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * at);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of `UtilsTest.testMurmur2` in Apache Kafka.
    #[test]
    fn it_hashes_as_kafkas_java_client_does() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn no_key_is_the_first_partition_and_every_partition_is_used() {
        assert_eq!(partition_of(None, 7), 0);
        let used: std::collections::BTreeSet<u32> =
            (0..1000).map(|n: u32| partition_of(Some(n.to_string().as_bytes()), 7)).collect();
        assert_eq!(used.into_iter().collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
    }
}
