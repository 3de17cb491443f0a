//! Integers through runs and back: what the other tests of files do not reach.

use bytes::Bytes;
use proptest::prelude::*;

use super::bits::Bits;
use super::decode::{BitsReader, Chunks, IntsReader};
use super::ints::Ints;
use super::stream::{CHUNK_BYTES, Stream};
use crate::batch::format::OrcCompression;

const CODECS: [OrcCompression; 4] =
    [OrcCompression::None, OrcCompression::Zlib, OrcCompression::Snappy, OrcCompression::Zstd(1)];

fn chunks(codec: OrcCompression, mut stream: Stream) -> Chunks {
    Chunks::new(codec, CHUNK_BYTES, Bytes::from(stream.finish().unwrap()))
}

/// The values as they are read, and the encodings of the runs' headers.
fn through(values: &[i64], signed: bool) -> Vec<i64> {
    let mut stream = Stream::new(OrcCompression::None);
    let mut ints = Ints::new(signed);
    for value in values {
        ints.push(*value, &mut stream).unwrap();
    }
    ints.finish(&mut stream).unwrap();
    let mut reader = IntsReader::new(chunks(OrcCompression::None, stream), signed);
    values.iter().map(|_| reader.next().unwrap()).collect()
}

/// Stretches of the shapes for which there are encodings.
fn stretch() -> impl Strategy<Value = Vec<i64>> {
    let any_width = (0..64_u32, any::<i64>()).prop_map(|(shift, value)| value >> shift);
    prop_oneof![
        prop::collection::vec(any_width.clone(), 1..600),
        (any_width.clone(), 1..700_usize).prop_map(|(value, times)| vec![value; times]),
        (any_width.clone(), -1000..1000_i64, 1..700_usize)
            .prop_map(|(from, step, times)| (0..times as i64).map(|n| from.wrapping_add(n * step)).collect()),
        (any_width.clone(), prop::collection::vec(0..100_i64, 1..600)).prop_map(|(from, steps)| {
            steps
                .iter()
                .scan(from, |at, step| {
                    *at = at.wrapping_add(*step);
                    Some(*at)
                })
                .collect()
        }),
        (prop::collection::vec(-50..50_i64, 300..600), any_width, prop::collection::vec(0..300_usize, 1..20))
            .prop_map(|(mut values, far, places)| {
                for at in places {
                    values[at] = far;
                }
                values
            }),
    ]
}

proptest! {
    #[test]
    fn integers_of_all_shapes_read_back(stretches in prop::collection::vec(stretch(), 1..6)) {
        let values = stretches.concat();
        prop_assert_eq!(through(&values, true), values.clone());
        let above: Vec<i64> = values.iter().map(|value| value & i64::MAX).collect();
        prop_assert_eq!(through(&above, false), above);
    }

    #[test]
    fn bits_read_back(stretches in prop::collection::vec((any::<bool>(), 1..2000_usize), 1..20), mix in any::<u64>()) {
        let bits: Vec<bool> = stretches.iter().flat_map(|(bit, times)| (0..*times).map(move |n| *bit ^ (mix >> (n % 64) & 1 == 1 && times % 2 == 0))).collect();
        for codec in CODECS {
            let mut stream = Stream::new(codec);
            let mut writer = Bits::default();
            for bit in &bits {
                writer.push(*bit, &mut stream).unwrap();
            }
            writer.finish(&mut stream).unwrap();
            let mut reader = BitsReader::new(chunks(codec, stream));
            let read: Vec<bool> = bits.iter().map(|_| reader.bit().unwrap()).collect();
            prop_assert_eq!(&read, &bits);
        }
    }
}

#[test]
fn chunks_of_any_length_read_back() {
    for codec in CODECS {
        for bytes in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let written: Vec<u8> = (0..bytes).map(|n| (n * n / 7) as u8).collect();
            let mut stream = Stream::new(codec);
            written.chunks(1000).for_each(|piece| stream.write(piece).unwrap());
            assert!(chunks(codec, stream).all().unwrap() == written, "{codec:?}, {bytes} bytes");
        }
    }
}
