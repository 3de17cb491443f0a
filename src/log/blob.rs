//! Runs of frames as they are stored: pieces of about a mebibyte, so that a reader holds no more than that beyond
//! what it asked for; compressed where that helps, with a checksum. Pure. What is packed beforehand, by whoever makes
//! the records, only has to be stored.
//!
//! A record of hundreds of megabytes is a piece of its own, and held once: it is compressed twice, a run at a time, first
//! to learn its length and checksum, then on its way into the file ([`Packer::write`]); and it is read in the same way.

use std::io::{self, Read, Write};

use crate::runtime::{Error, Result};

/// LZ4 looks back 64 KiB; runs of that length compress a fifth faster than a whole blob, for 2% more bytes.
const RUN_BYTES: usize = 64 << 10;

/// A stored run with its length; a little more than LZ4 ever makes of one.
const RUN_STORED_MAX: usize = 4 + RUN_BYTES + RUN_BYTES / 8;

/// SQLite's own limit on a row is 1,000,000,000 bytes.
pub(super) const STORED_BYTES_MAX: usize = 1_000_000_000 - 4096;

/// A piece of more bytes is not packed in memory, and not read as one value.
pub(super) const WHOLE_BYTES_MAX: usize = 8 << 20;

/// Arena kept between appends.
const KEEP_BYTES: usize = 16 << 20;

/// How the bytes of a blob are stored. The numbers are part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// As they are.
    Raw = 0,
    /// Runs of 64 KiB, the last one shorter: length u32 little-endian, and so many bytes in LZ4's block format.
    Lz4 = 1,
}

/// Whole frames that become a blob.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece<'a> {
    /// The frames, and how many they are.
    Frames(&'a [u8], u32),
    /// Packed already.
    Packed(&'a Packed),
}

/// A blob with its stored bytes.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    /// The blob.
    pub blob: Blob,
    /// Its stored bytes.
    pub stored: Vec<u8>,
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
    /// Stored bytes.
    pub bytes: usize,
    /// Where they are in the arena; none when they are made while they are written.
    at: Option<usize>,
}

/// Packs frames into blobs; its buffer is used again.
#[derive(Debug, Default)]
pub(super) struct Packer {
    arena: Vec<u8>,
    used: usize,
    bytes: usize,
    blobs: Vec<Blob>,
}

impl Packer {
    /// Forgets the blobs.
    pub fn clear(&mut self) {
        self.blobs.clear();
        (self.used, self.bytes) = (0, 0);
        if self.arena.len() > KEEP_BYTES {
            self.arena = Vec::new();
        }
    }

    /// Packs the records of one topic and gives the range of their blobs, one a piece.
    pub fn pack<'a>(
        &mut self,
        topic: &str,
        pieces: impl Iterator<Item = Piece<'a>>,
    ) -> Result<std::ops::Range<usize>> {
        let first = self.blobs.len();
        for piece in pieces {
            match piece {
                Piece::Frames(frames, count) => self.push(topic, frames, count)?,
                Piece::Packed(packed) => {
                    self.bytes += packed.blob.bytes;
                    self.blobs.push(packed.blob);
                }
            }
        }
        Ok(first..self.blobs.len())
    }

    /// Packs one piece beforehand; none: it is too large to be held packed.
    pub fn pack_piece(&mut self, frames: &[u8], count: u32) -> Option<Packed> {
        if frames.len() > WHOLE_BYTES_MAX {
            return None;
        }
        self.clear();
        let blob = self.pack_in_memory(frames, count);
        let stored = self.stored(&blob)?.to_vec();
        Some(Packed { blob: Blob { at: None, ..blob }, stored })
    }

    /// A packed blob.
    pub fn blob(&self, index: usize) -> Blob {
        self.blobs[index]
    }

    /// Its stored bytes; none for one that has to be written with [`Packer::write`].
    pub fn stored(&self, blob: &Blob) -> Option<&[u8]> {
        blob.at.map(|at| &self.arena[at..at + blob.bytes])
    }

    /// Writes the stored bytes of a blob that was not packed in memory; `frames` are its piece.
    pub fn write(blob: &Blob, frames: &[u8], out: &mut impl Write) -> io::Result<()> {
        match blob.codec {
            Codec::Raw => out.write_all(frames),
            Codec::Lz4 => runs(frames, |run| out.write_all(run)),
        }
    }

    /// Bytes of all blobs.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, topic: &str, frames: &[u8], count: u32) -> Result<()> {
        let blob = if frames.len() > WHOLE_BYTES_MAX {
            measure(frames, count)
        } else {
            self.pack_in_memory(frames, count)
        };
        if blob.bytes > STORED_BYTES_MAX {
            return Err(Error::operator(format!(
                "a record of topic {topic} has {} bytes ({} stored), while the embedded log holds records of up \
                 to {STORED_BYTES_MAX} bytes; nothing was written",
                frames.len(),
                blob.bytes,
            ))
            .mend("Exclude the column or the table, or make the value smaller"));
        }
        self.bytes += blob.bytes;
        self.blobs.push(blob);
        Ok(())
    }

    fn pack_in_memory(&mut self, frames: &[u8], count: u32) -> Blob {
        let (codec, bytes) = self.pack_whole(frames);
        let at = self.used;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.arena[at..at + bytes]);
        self.used += bytes;
        let crc = checksum(hasher, codec as i64, count, frames.len());
        Blob { count, frames_bytes: frames.len(), codec, crc, bytes, at: Some(at) }
    }

    /// Packs a piece behind those that are in the arena.
    fn pack_whole(&mut self, frames: &[u8]) -> (Codec, usize) {
        let at = self.used;
        let needed = at + frames.len().div_ceil(RUN_BYTES) * RUN_STORED_MAX;
        // Never shrunk in between: filling fresh bytes with zeros costs as much as a tenth of the compression.
        if self.arena.len() < needed {
            self.arena.resize(needed, 0);
        }
        match compress(frames, &mut self.arena[at..]) {
            Some(bytes) if bytes < frames.len() => (Codec::Lz4, bytes),
            _ => {
                self.arena[at..at + frames.len()].copy_from_slice(frames);
                (Codec::Raw, frames.len())
            }
        }
    }
}

/// What a piece will be when it is stored.
fn measure(frames: &[u8], count: u32) -> Blob {
    let (mut bytes, mut packed) = (0, crc32fast::Hasher::new());
    let measured = runs(frames, |run| {
        bytes += run.len();
        packed.update(run);
        // It goes as it is.
        if bytes < frames.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    });
    let (codec, bytes, hasher) = if measured.is_ok() {
        (Codec::Lz4, bytes, packed)
    } else {
        let mut raw = crc32fast::Hasher::new();
        raw.update(frames);
        (Codec::Raw, frames.len(), raw)
    };
    let crc = checksum(hasher, codec as i64, count, frames.len());
    Blob { count, frames_bytes: frames.len(), codec, crc, bytes, at: None }
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

/// Checks and unpacks a stored blob of so many bytes to the end of `frames`. The error says what is wrong with it;
/// `frames` is then unspecified from its old end on.
pub(super) fn unpack(
    frames: &mut Vec<u8>,
    stored: &mut impl Read,
    stored_bytes: usize,
    head: &Head,
) -> Result<(), String> {
    let at = frames.len();
    let mut stored = Hashing { stored, left: stored_bytes, hasher: crc32fast::Hasher::new() };
    let unpacked = if head.codec == Codec::Raw as i64 {
        frames.resize(at + stored_bytes.min(head.frames_bytes), 0);
        frames[at..].chunks_mut(RUN_BYTES).try_for_each(|run| stored.take(run))
    } else if head.codec == Codec::Lz4 as i64 {
        frames.resize(at + head.frames_bytes, 0);
        decompress(&mut stored, &mut frames[at..]).map(|bytes| frames.truncate(at + bytes))
    } else {
        Err(format!("its codec {} is unknown", head.codec))
    };
    // What is damaged need not be understood.
    let found = checksum(stored.finish()?, head.codec, head.count, head.frames_bytes);
    if found != head.crc {
        return Err(format!("its checksum is {found:08x} instead of {:08x}", head.crc));
    }
    unpacked?;
    match frames.len() - at {
        bytes if bytes == head.frames_bytes => Ok(()),
        bytes => Err(format!("it holds {bytes} bytes instead of {}", head.frames_bytes)),
    }
}

/// Stored bytes, checked as they are read.
struct Hashing<'a, R> {
    stored: &'a mut R,
    left: usize,
    hasher: crc32fast::Hasher,
}

impl<R: Read> Hashing<'_, R> {
    fn take(&mut self, into: &mut [u8]) -> Result<(), String> {
        self.left = self.left.checked_sub(into.len()).ok_or("it is cut off")?;
        self.stored.read_exact(into).map_err(|error| error.to_string())?;
        self.hasher.update(into);
        Ok(())
    }

    /// Reads what is left, and gives what all of it comes to.
    fn finish(mut self) -> Result<crc32fast::Hasher, String> {
        let mut rest = [0; 4096];
        while self.left > 0 {
            let part = self.left.min(rest.len());
            self.take(&mut rest[..part])?;
        }
        Ok(self.hasher)
    }
}

/// Gives the runs of frames, each with its length before it.
fn runs(frames: &[u8], mut give: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut run = vec![0; RUN_STORED_MAX];
    for part in frames.chunks(RUN_BYTES) {
        let bytes = compress(part, &mut run).ok_or(io::ErrorKind::WriteZero)?;
        give(&run[..bytes])?;
    }
    Ok(())
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

fn decompress(stored: &mut Hashing<'_, impl Read>, out: &mut [u8]) -> Result<usize, String> {
    let (mut at, mut run) = (0, vec![0; RUN_STORED_MAX]);
    while stored.left > 0 {
        let mut length = [0; 4];
        stored.take(&mut length)?;
        let run = run.get_mut(..u32::from_le_bytes(length) as usize).ok_or("a run is too long")?;
        stored.take(run)?;
        at += lz4_flex::block::decompress_into(run, &mut out[at..]).map_err(|e| e.to_string())?;
    }
    Ok(at)
}

/// CRC-32 of the stored bytes and of what the head says about them.
fn checksum(mut hasher: crc32fast::Hasher, codec: i64, count: u32, frames_bytes: usize) -> u32 {
    hasher.update(&codec.to_le_bytes());
    hasher.update(&count.to_le_bytes());
    hasher.update(&(frames_bytes as u64).to_le_bytes());
    hasher.finalize()
}
