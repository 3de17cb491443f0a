//! Bytes in compressed chunks.
//!
//! A chunk has a header of three bytes, little-endian: its length twice, plus one when it stands as it is because
//! compression would not have made it smaller. A chunk is closed when the next byte has no place in it, so that a
//! position never lies beyond the end of a stream unless there is nothing there.
//!
//! Source: `ORCv1`, "Compression".

use std::io::Write as _;

use crate::batch::format::OrcCompression as Codec;
use crate::runtime::{Error, Result};

/// Most bytes of a chunk before compression (`compressionBlockSize`).
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// A stream being written.
#[derive(Debug)]
pub(super) struct Stream {
    codec: Codec,
    /// Not compressed yet.
    chunk: Vec<u8>,
    /// Closed chunks.
    out: Vec<u8>,
}

impl Stream {
    pub(super) const fn new(codec: Codec) -> Self {
        Self { codec, chunk: Vec::new(), out: Vec::new() }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.chunk.len() == CHUNK_BYTES {
                self.close()?;
            }
            let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
            self.chunk.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Where the next byte will stand.
    pub(super) fn position(&self, positions: &mut Vec<u64>) {
        if self.codec == Codec::None {
            positions.push((self.out.len() + self.chunk.len()) as u64);
        } else {
            positions.extend([self.out.len() as u64, self.chunk.len() as u64]);
        }
    }

    /// Bytes so far: closed chunks as they are, the open one before compression.
    pub(super) const fn bytes(&self) -> usize {
        self.out.len() + self.chunk.len()
    }

    /// All of it; the stream is empty afterwards.
    pub(super) fn finish(&mut self) -> Result<Vec<u8>> {
        self.close()?;
        Ok(std::mem::take(&mut self.out))
    }

    fn close(&mut self) -> Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        match self.codec.compress(&self.chunk)? {
            None if self.codec == Codec::None => self.out.extend_from_slice(&self.chunk),
            Some(small) if small.len() < self.chunk.len() => {
                self.out.extend_from_slice(&header(small.len(), false));
                self.out.extend_from_slice(&small);
            }
            _ => {
                self.out.extend_from_slice(&header(self.chunk.len(), true));
                self.out.extend_from_slice(&self.chunk);
            }
        }
        self.chunk.clear();
        Ok(())
    }
}

fn header(bytes: usize, original: bool) -> [u8; 3] {
    let [first, second, third, _] = ((bytes as u32) << 1 | u32::from(original)).to_le_bytes();
    [first, second, third]
}

impl Codec {
    fn compress(self, bytes: &[u8]) -> Result<Option<Vec<u8>>> {
        let failed =
            |error: std::io::Error| Error::operator("cannot compress a chunk of an ORC file").cause(error);
        Ok(match self {
            Self::None => None,
            Self::Zlib => {
                let out = Vec::with_capacity(bytes.len() / 2);
                let mut encoder = flate2::write::DeflateEncoder::new(out, flate2::Compression::default());
                encoder.write_all(bytes).map_err(failed)?;
                Some(encoder.finish().map_err(failed)?)
            }
            Self::Snappy => {
                let compressed = snap::raw::Encoder::new().compress_vec(bytes);
                Some(compressed.map_err(|error| failed(std::io::Error::other(error)))?)
            }
            Self::Zstd(level) => Some(zstd::bulk::compress(bytes, level).map_err(failed)?),
        })
    }
}
