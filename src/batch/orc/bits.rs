//! Runs of bytes and of bits.
//!
//! A control byte from 0 to 127 is followed by one byte that stands 3 to 130 times; one from -1 to -128 by as many
//! bytes as they are. Bits fill bytes from the highest one down.
//!
//! Source: `ORCv1`, "Byte Run Length Encoding", "Boolean Run Length Encoding".

use super::stream::Stream;
use crate::runtime::Result;

/// Shortest run that is worth it.
const RUN_MIN: usize = 3;
const RUN_MAX: usize = 130;
const LITERALS_MAX: usize = 128;
/// Bytes held before runs are written.
const HELD_MAX: usize = 4096;

/// Bits on their way into runs of bytes.
#[derive(Debug, Default)]
pub(super) struct Bits {
    bytes: Vec<u8>,
    open: u8,
    filled: u8,
}

impl Bits {
    pub(super) fn push(&mut self, bit: bool, out: &mut Stream) -> Result<()> {
        self.open |= u8::from(bit) << (7 - self.filled);
        self.filled += 1;
        if self.filled < 8 {
            return Ok(());
        }
        self.bytes.push(self.open);
        (self.open, self.filled) = (0, 0);
        if self.bytes.len() < HELD_MAX { Ok(()) } else { self.end_run(out) }
    }

    /// Ends the run, notes where the next one begins, and the bits that stand in its first byte already.
    pub(super) fn mark(&mut self, out: &mut Stream, positions: &mut Vec<u64>) -> Result<()> {
        self.end_run(out)?;
        out.position(positions);
        positions.extend([0, u64::from(self.filled)]);
        Ok(())
    }

    /// Ends the last run; what is left of the last byte is zero.
    pub(super) fn finish(&mut self, out: &mut Stream) -> Result<()> {
        if self.filled > 0 {
            self.bytes.push(self.open);
            (self.open, self.filled) = (0, 0);
        }
        self.end_run(out)
    }

    fn end_run(&mut self, out: &mut Stream) -> Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        let mut literals = 0;
        let mut at = 0;
        while at < bytes.len() {
            let same = bytes[at..].iter().take(RUN_MAX).take_while(|byte| **byte == bytes[at]).count();
            if same >= RUN_MIN {
                write_literals(&bytes[literals..at], out)?;
                out.write(&[(same - RUN_MIN) as u8, bytes[at]])?;
                literals = at + same;
            }
            at += same;
        }
        write_literals(&bytes[literals..], out)?;
        self.bytes = bytes;
        self.bytes.clear();
        Ok(())
    }
}

fn write_literals(bytes: &[u8], out: &mut Stream) -> Result<()> {
    for piece in bytes.chunks(LITERALS_MAX) {
        out.write(&[(piece.len() as u8).wrapping_neg()])?;
        out.write(piece)?;
    }
    Ok(())
}
