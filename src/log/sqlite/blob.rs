//! Runs of frames as they are stored: pieces of about a mebibyte, so that a reader holds no more than that beyond
//! what it asked for; compressed where that helps, with a checksum. Pure.

use super::super::TopicRecords;
use crate::runtime::{Error, Result};

/// LZ4 looks back 64 KiB; runs of that length compress a fifth faster than a whole blob, for 2% more bytes.
const RUN_BYTES: usize = 64 << 10;

/// SQLite's own limit on a row is 1,000,000,000 bytes.
pub(super) const STORED_BYTES_MAX: usize = 1_000_000_000 - 4096;

/// Arena kept between appends; one that a giant record has grown is given back.
const KEEP_BYTES: usize = 16 << 20;

/// How the bytes of a blob are stored. The numbers are part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// As they are.
    Raw = 0,
    /// Runs of 64 KiB, the last one shorter: length u32 little-endian, and so many bytes in LZ4's block format.
    Lz4 = 1,
}

/// A blob ready to be stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blob {
    /// Number of frames.
    pub count: u32,
    /// Bytes of the frames.
    pub frames_bytes: usize,
    /// How it is stored.
    pub codec: Codec,
    /// The checksum.
    pub crc: u32,
    at: usize,
    bytes: usize,
}

/// Packs frames into blobs; its buffer is used again.
#[derive(Debug, Default)]
pub(super) struct Packer {
    arena: Vec<u8>,
    used: usize,
    blobs: Vec<Blob>,
}

impl Packer {
    /// Forgets the blobs.
    pub fn clear(&mut self) {
        self.blobs.clear();
        self.used = 0;
        if self.arena.len() > KEEP_BYTES {
            self.arena = Vec::new();
        }
    }

    /// Packs the records of one topic and gives the range of their blobs.
    pub fn pack(&mut self, records: &TopicRecords) -> Result<std::ops::Range<usize>> {
        let first = self.blobs.len();
        for (frames, count) in records.pieces() {
            self.push(records, frames, count)?;
        }
        Ok(first..self.blobs.len())
    }

    /// A packed blob.
    pub fn blob(&self, index: usize) -> Blob {
        self.blobs[index]
    }

    /// Its stored bytes.
    pub fn stored(&self, blob: &Blob) -> &[u8] {
        &self.arena[blob.at..blob.at + blob.bytes]
    }

    /// Bytes of all blobs.
    pub fn bytes(&self) -> usize {
        self.used
    }

    fn push(&mut self, records: &TopicRecords, frames: &[u8], count: u32) -> Result<()> {
        let at = self.used;
        let runs = frames.len().div_ceil(RUN_BYTES);
        let needed = at + runs * (4 + lz4_flex::block::get_maximum_output_size(RUN_BYTES));
        // Never shrunk in between: filling fresh bytes with zeros costs as much as a tenth of the compression.
        if self.arena.len() < needed {
            self.arena.resize(needed, 0);
        }
        let (codec, bytes) = match compress(frames, &mut self.arena[at..]) {
            Some(bytes) if bytes < frames.len() => (Codec::Lz4, bytes),
            _ => {
                self.arena[at..at + frames.len()].copy_from_slice(frames);
                (Codec::Raw, frames.len())
            }
        };
        if bytes > STORED_BYTES_MAX {
            return Err(Error::operator(format!(
                "a record of topic {} has {} bytes ({bytes} stored), while the embedded log holds records of up \
                 to {STORED_BYTES_MAX} bytes; nothing was written",
                records.topic(),
                frames.len(),
            ))
            .mend("Exclude the column or the table, or make the value smaller"));
        }
        self.used += bytes;
        let crc = checksum(&self.arena[at..at + bytes], codec as i64, count, frames.len());
        self.blobs.push(Blob { count, frames_bytes: frames.len(), codec, crc, at, bytes });
        Ok(())
    }
}

/// The head of a stored blob.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// Number of frames.
    pub count: u32,
    /// Bytes of the frames.
    pub frames_bytes: usize,
    /// The codec's number.
    pub codec: i64,
    /// The checksum.
    pub crc: u32,
}

/// Checks and unpacks a stored blob to the end of `frames`. The error says what is wrong with it; `frames` is
/// then unspecified from its old end on.
pub(super) fn unpack(frames: &mut Vec<u8>, stored: &[u8], head: &Head) -> Result<(), String> {
    let found = checksum(stored, head.codec, head.count, head.frames_bytes);
    if found != head.crc {
        return Err(format!("its checksum is {found:08x} instead of {:08x}", head.crc));
    }
    let at = frames.len();
    if head.codec == Codec::Raw as i64 {
        frames.extend_from_slice(stored);
    } else if head.codec == Codec::Lz4 as i64 {
        frames.resize(at + head.frames_bytes, 0);
        let bytes = decompress(stored, &mut frames[at..])?;
        frames.truncate(at + bytes);
    } else {
        return Err(format!("its codec {} is unknown", head.codec));
    }
    match frames.len() - at {
        bytes if bytes == head.frames_bytes => Ok(()),
        bytes => Err(format!("it holds {bytes} bytes instead of {}", head.frames_bytes)),
    }
}

/// `None`: `out` is too short.
fn compress(frames: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut at = 0;
    for run in frames.chunks(RUN_BYTES) {
        let bytes = lz4_flex::block::compress_into(run, out.get_mut(at + 4..)?).ok()?;
        out[at..at + 4].copy_from_slice(&(bytes as u32).to_le_bytes());
        at += 4 + bytes;
    }
    Some(at)
}

fn decompress(mut stored: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let mut at = 0;
    while let Some((length, rest)) = stored.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (run, rest) = rest.split_at_checked(length).ok_or("it is cut off")?;
        at += lz4_flex::block::decompress_into(run, &mut out[at..]).map_err(|e| e.to_string())?;
        stored = rest;
    }
    if stored.is_empty() { Ok(at) } else { Err("it has bytes left over".into()) }
}

/// CRC-32 of the stored bytes and of what the head says about them.
fn checksum(stored: &[u8], codec: i64, count: u32, frames_bytes: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(stored);
    hasher.update(&codec.to_le_bytes());
    hasher.update(&count.to_le_bytes());
    hasher.update(&(frames_bytes as u64).to_le_bytes());
    hasher.finalize()
}
