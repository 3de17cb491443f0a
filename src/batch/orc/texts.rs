//! Texts and bytes: by number in a dictionary as long as that is worth it, else one after the other.
//!
//! Whether it is worth it shows at the end of the stripe at the latest: until then only numbers are held. When it is
//! not, the rows so far are written out as they stand in the dictionary, with the marks of their row groups.

use std::collections::HashMap;

use super::bloom::Bloom;
use super::column::{Encoding, StreamKind};
use super::ints::Ints;
use super::stats::{Kind, widen_text};
use super::stream::Stream;
use crate::batch::format::OrcCompression as Codec;
use crate::runtime::{Error, Result};

/// Bytes of all texts of a dictionary.
const DICTIONARY_BYTES_MAX: usize = 4 << 20;
/// Different texts in a thousand rows.
const DIFFERENT_PER_MILLE: usize = 800;
/// A dictionary is not given up for too many different texts before so many rows.
const ROWS_MIN: usize = 10_000;

/// Texts of a stripe.
#[derive(Debug)]
pub(super) struct Texts {
    codec: Codec,
    dictionaries: bool,
    dictionary: Option<Dictionary>,
    out: Stream,
    lengths: Ints,
    lengths_out: Stream,
    /// Marks of the row groups that were written out of a dictionary, and of those since.
    marks: Vec<Vec<u64>>,
}

#[derive(Debug, Default)]
struct Dictionary {
    numbers: HashMap<Box<[u8]>, u32>,
    bytes: usize,
    /// By row.
    rows: Vec<u32>,
    /// Rows before each row group.
    groups: Vec<usize>,
}

impl Texts {
    /// With dictionaries, or never.
    pub(super) fn new(codec: Codec, dictionaries: bool) -> Self {
        Self {
            codec,
            dictionaries,
            dictionary: dictionaries.then(Dictionary::default),
            out: Stream::new(codec),
            lengths: Ints::new(false),
            lengths_out: Stream::new(codec),
            marks: Vec::new(),
        }
    }

    fn push(&mut self, text: &[u8]) -> Result<()> {
        let Some(dictionary) = &mut self.dictionary else { return self.direct(text) };
        dictionary.push(text);
        if dictionary.is_worth_it() { Ok(()) } else { self.give_up() }
    }

    fn direct(&mut self, text: &[u8]) -> Result<()> {
        self.out.write(text)?;
        self.lengths.push(text.len() as i64, &mut self.lengths_out)
    }

    /// Notes where a row group begins.
    pub(super) fn mark(&mut self) -> Result<()> {
        if let Some(dictionary) = &mut self.dictionary {
            dictionary.groups.push(dictionary.rows.len());
            return Ok(());
        }
        let mut mark = Vec::new();
        self.out.position(&mut mark);
        self.lengths.mark(&mut self.lengths_out, &mut mark)?;
        self.marks.push(mark);
        Ok(())
    }

    /// Writes all rows out as they are.
    fn give_up(&mut self) -> Result<()> {
        let Some(dictionary) = self.dictionary.take() else { return Ok(()) };
        let mut texts: Vec<&[u8]> = vec![&[]; dictionary.numbers.len()];
        for (text, number) in &dictionary.numbers {
            texts[*number as usize] = text;
        }
        let mut groups = dictionary.groups.iter().peekable();
        for (row, number) in dictionary.rows.iter().enumerate() {
            while groups.next_if(|group| **group == row).is_some() {
                self.mark()?;
            }
            self.direct(texts[*number as usize])?;
        }
        groups.try_for_each(|_| self.mark())
    }

    /// Ends the stripe.
    pub(super) fn finish(
        &mut self,
        streams: &mut Vec<(StreamKind, Vec<u8>)>,
    ) -> Result<(Encoding, Vec<Vec<u64>>)> {
        if self.dictionary.as_ref().is_some_and(|dictionary| !dictionary.has_paid()) {
            self.give_up()?;
        }
        let encoding = match self.dictionary.take() {
            Some(dictionary) => self.numbered(dictionary, streams)?,
            None => {
                streams.push((StreamKind::Data, self.out.finish()?));
                Encoding { kind: 2, dictionary: None }
            }
        };
        self.lengths.finish(&mut self.lengths_out)?;
        let lengths = self.lengths_out.finish()?;
        // A dictionary's own texts come after the rows' numbers.
        let at =
            streams.iter().position(|(kind, _)| *kind == StreamKind::DictionaryData).unwrap_or(streams.len());
        streams.insert(at, (StreamKind::Length, lengths));
        self.dictionary = self.dictionaries.then(Dictionary::default);
        Ok((encoding, std::mem::take(&mut self.marks)))
    }

    /// Writes the texts in their order, and the rows as numbers among them.
    fn numbered(
        &mut self,
        dictionary: Dictionary,
        streams: &mut Vec<(StreamKind, Vec<u8>)>,
    ) -> Result<Encoding> {
        let Dictionary { numbers, rows, groups, .. } = dictionary;
        let mut sorted: Vec<(Box<[u8]>, u32)> = numbers.into_iter().collect();
        sorted.sort_unstable();
        let mut renumbered = vec![0; sorted.len()];
        for (place, (text, number)) in sorted.iter().enumerate() {
            renumbered[*number as usize] = place as i64;
            self.direct(text)?;
        }
        let texts = self.out.finish()?;
        let (mut ints, mut out) = (Ints::new(false), Stream::new(self.codec));
        let mut groups = groups.iter().peekable();
        let mut mark = |ints: &mut Ints, out: &mut Stream| {
            let mut mark = Vec::new();
            ints.mark(out, &mut mark)?;
            self.marks.push(mark);
            Ok::<_, Error>(())
        };
        for (row, number) in rows.iter().enumerate() {
            while groups.next_if(|group| **group == row).is_some() {
                mark(&mut ints, &mut out)?;
            }
            ints.push(renumbered[*number as usize], &mut out)?;
        }
        for _ in groups {
            mark(&mut ints, &mut out)?;
        }
        ints.finish(&mut out)?;
        streams.push((StreamKind::Data, out.finish()?));
        streams.push((StreamKind::DictionaryData, texts));
        Ok(Encoding { kind: 3, dictionary: Some(sorted.len() as u64) })
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> usize {
        let dictionary =
            self.dictionary.as_ref().map_or(0, |dictionary| dictionary.bytes + 2 * dictionary.rows.len());
        dictionary + self.out.bytes() + self.lengths_out.bytes()
    }
}

impl Dictionary {
    fn push(&mut self, text: &[u8]) {
        let number = if let Some(number) = self.numbers.get(text) {
            *number
        } else {
            let number = self.numbers.len() as u32;
            self.bytes += text.len();
            self.numbers.insert(text.into(), number);
            number
        };
        self.rows.push(number);
    }

    fn is_worth_it(&self) -> bool {
        self.bytes <= DICTIONARY_BYTES_MAX && (self.rows.len() < ROWS_MIN || self.has_paid())
    }

    fn has_paid(&self) -> bool {
        self.numbers.len() * 1000 <= self.rows.len() * DIFFERENT_PER_MILLE
    }
}

/// Appends texts, with what is known of them.
pub(super) fn write_texts<'a>(
    values: impl Iterator<Item = &'a [u8]>,
    kind: &mut Kind,
    mut bloom: Option<&mut Bloom>,
    texts: &mut Texts,
) -> Result<()> {
    for value in values {
        match kind {
            Kind::Text { range, bytes } => {
                widen_text(range, value);
                *bytes += value.len() as i64;
            }
            Kind::Bytes { bytes } => *bytes += value.len() as i64,
            _ => {}
        }
        if let Some(bloom) = &mut bloom {
            bloom.add_bytes(value);
        }
        texts.push(value)?;
    }
    Ok(())
}
