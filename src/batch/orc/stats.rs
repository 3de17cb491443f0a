//! Statistics of a column: of a row group, a stripe, the file. Each is the sum of the ones below it.
//!
//! Source: `ORCv1`, "Column Statistics".

use super::proto::Message;

/// Longer texts are bounds, cut at a character; so other writers have it.
const TEXT_BYTES_MAX: usize = 1024;

/// What kind of values a column has, with what is known of them.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Counts only.
    None,
    Bool {
        trues: u64,
    },
    /// The sum is absent once it overflows.
    Int {
        range: Option<(i64, i64)>,
        sum: Option<i64>,
    },
    Float {
        range: Option<(f64, f64)>,
        sum: f64,
    },
    /// Bytes in all of texts.
    Text {
        range: Option<(Vec<u8>, Vec<u8>)>,
        bytes: i64,
    },
    /// Unscaled.
    Decimal {
        range: Option<(i128, i128)>,
        sum: Option<i128>,
        scale: i8,
    },
    Date {
        range: Option<(i32, i32)>,
    },
    Bytes {
        bytes: i64,
    },
    /// Nanoseconds, which may be beyond 64 bits.
    Timestamp {
        range: Option<(i128, i128)>,
    },
    List {
        range: Option<(u64, u64)>,
        elements: u64,
    },
}

/// Statistics.
#[derive(Clone, Debug)]
pub(super) struct Stats {
    values: u64,
    nulls: bool,
    pub(super) kind: Kind,
}

impl Stats {
    pub(super) const fn new(kind: Kind) -> Self {
        Self { values: 0, nulls: false, kind }
    }

    pub(super) const fn null(&mut self) {
        self.nulls = true;
    }

    /// A value, which `kind` was told of.
    pub(super) const fn value(&mut self) {
        self.values += 1;
    }

    /// Memory of the values, roughly.
    pub(super) fn memory(&self) -> usize {
        let texts = match &self.kind {
            Kind::Text { bytes, .. } | Kind::Bytes { bytes } => *bytes as usize,
            _ => 0,
        };
        texts + self.values as usize * 8
    }

    pub(super) const fn has_nulls(&self) -> bool {
        self.nulls
    }

    /// Takes those of more rows in.
    pub(super) fn add(&mut self, other: &Self) {
        self.values += other.values;
        self.nulls |= other.nulls;
        self.kind.add(&other.kind);
    }

    /// As the file has it.
    pub(super) fn message(&self) -> Message {
        let mut message = Message::default();
        message.number(1, self.values);
        let mut kind = Message::default();
        match &self.kind {
            Kind::None => {}
            Kind::Int { range, sum } => {
                if let Some((low, high)) = range {
                    kind.signed(1, *low);
                    kind.signed(2, *high);
                }
                if let Some(sum) = sum {
                    kind.signed(3, *sum);
                }
                message.message(2, &kind);
            }
            Kind::Float { range, sum } => {
                if let Some((low, high)) = range {
                    // Zeros of either sign are equal to a reader that asks.
                    kind.double(1, if *low == 0.0 { -0.0 } else { *low });
                    kind.double(2, if *high == 0.0 { 0.0 } else { *high });
                }
                kind.double(3, *sum);
                message.message(3, &kind);
            }
            Kind::Text { range, bytes } => {
                if let Some((low, high)) = range {
                    text_bounds(&mut kind, low, high, *bytes);
                }
                message.message(4, &kind);
            }
            Kind::Bool { trues } => {
                kind.numbers(1, [*trues]);
                message.message(5, &kind);
            }
            Kind::Decimal { range, sum, scale } => {
                let text = |value: i128| decimal_text(value, *scale).into_bytes();
                if let Some((low, high)) = range {
                    kind.bytes(1, &text(*low));
                    kind.bytes(2, &text(*high));
                }
                if let Some(sum) = sum {
                    kind.bytes(3, &text(*sum));
                }
                message.message(6, &kind);
            }
            Kind::Date { range } => {
                if let Some((low, high)) = range {
                    kind.signed(1, i64::from(*low));
                    kind.signed(2, i64::from(*high));
                }
                message.message(7, &kind);
            }
            Kind::Bytes { bytes } => {
                kind.signed(1, *bytes);
                message.message(8, &kind);
            }
            Kind::Timestamp { range } => {
                if let Some((low, high)) = range {
                    timestamp_bounds(&mut kind, *low, *high);
                }
                message.message(9, &kind);
            }
            Kind::List { range, elements } => {
                if let Some((low, high)) = range {
                    kind.number(1, *low);
                    kind.number(2, *high);
                }
                kind.number(3, *elements);
                message.message(12, &kind);
            }
        }
        message.number(10, u64::from(self.nulls));
        message
    }
}

impl Kind {
    /// The same kind, of no values.
    pub(super) const fn empty(&self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Bool { .. } => Self::Bool { trues: 0 },
            Self::Int { .. } => Self::Int { range: None, sum: Some(0) },
            Self::Float { .. } => Self::Float { range: None, sum: 0.0 },
            Self::Text { .. } => Self::Text { range: None, bytes: 0 },
            Self::Decimal { scale, .. } => Self::Decimal { range: None, sum: Some(0), scale: *scale },
            Self::Date { .. } => Self::Date { range: None },
            Self::Bytes { .. } => Self::Bytes { bytes: 0 },
            Self::Timestamp { .. } => Self::Timestamp { range: None },
            Self::List { .. } => Self::List { range: None, elements: 0 },
        }
    }

    fn add(&mut self, other: &Self) {
        match (self, other) {
            (Self::Bool { trues }, Self::Bool { trues: more }) => *trues += more,
            (Self::Int { range, sum }, Self::Int { range: other, sum: more }) => {
                widen_all(range, *other);
                *sum = sum.zip(*more).and_then(|(sum, more)| sum.checked_add(more));
            }
            (Self::Float { range, sum }, Self::Float { range: other, sum: more }) => {
                if let Some((low, high)) = other {
                    widen(range, *low);
                    widen(range, *high);
                }
                *sum += more;
            }
            (Self::Text { range, bytes }, Self::Text { range: other, bytes: more }) => {
                if let Some((low, high)) = other {
                    widen_text(range, low);
                    widen_text(range, high);
                }
                *bytes += more;
            }
            (Self::Decimal { range, sum, .. }, Self::Decimal { range: other, sum: more, .. }) => {
                widen_all(range, *other);
                *sum = sum.zip(*more).and_then(|(sum, more)| sum.checked_add(more));
            }
            (Self::Date { range }, Self::Date { range: other }) => widen_all(range, *other),
            (Self::Bytes { bytes }, Self::Bytes { bytes: more }) => *bytes += more,
            (Self::Timestamp { range }, Self::Timestamp { range: other }) => widen_all(range, *other),
            (Self::List { range, elements }, Self::List { range: other, elements: more }) => {
                widen_all(range, *other);
                *elements += more;
            }
            // A column has one kind.
            _ => {}
        }
    }
}

/// Takes a value in. One that is not ordered, NaN, leaves the range as it is.
pub(super) fn widen<T: PartialOrd + Copy>(range: &mut Option<(T, T)>, value: T) {
    match range {
        None if value.partial_cmp(&value).is_some() => *range = Some((value, value)),
        Some((low, _)) if value < *low => *low = value,
        Some((_, high)) if value > *high => *high = value,
        _ => {}
    }
}

/// Takes a text in. No more of it is kept than tells that it is too long for a bound: a value may have many megabytes.
pub(super) fn widen_text(range: &mut Option<(Vec<u8>, Vec<u8>)>, value: &[u8]) {
    let value = &value[..value.len().min(TEXT_BYTES_MAX + 1)];
    let set = |bound: &mut Vec<u8>| {
        bound.clear();
        bound.extend_from_slice(value);
    };
    match range {
        None => *range = Some((value.to_vec(), value.to_vec())),
        Some((low, _)) if value < low.as_slice() => set(low),
        Some((_, high)) if value > high.as_slice() => set(high),
        Some(_) => {}
    }
}

fn widen_all<T: PartialOrd + Copy>(range: &mut Option<(T, T)>, other: Option<(T, T)>) {
    if let Some((low, high)) = other {
        widen(range, low);
        widen(range, high);
    }
}

fn text_bounds(message: &mut Message, low: &[u8], high: &[u8], bytes: i64) {
    if low.len() <= TEXT_BYTES_MAX {
        message.bytes(1, low);
    }
    if high.len() <= TEXT_BYTES_MAX {
        message.bytes(2, high);
    }
    message.signed(3, bytes);
    if low.len() > TEXT_BYTES_MAX {
        message.bytes(4, cut(low));
    }
    if high.len() > TEXT_BYTES_MAX
        && let Some(bound) = next_text(cut(high))
    {
        message.bytes(5, bound.as_bytes());
    }
}

/// Its first characters.
fn cut(text: &[u8]) -> &[u8] {
    let mut end = TEXT_BYTES_MAX.min(text.len());
    while end > 0 && end < text.len() && text[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &text[..end]
}

/// A text above all which begin with this one: its last character that has a next one is that.
fn next_text(text: &[u8]) -> Option<String> {
    let mut characters: Vec<char> = std::str::from_utf8(text).ok()?.chars().collect();
    while let Some(last) = characters.pop() {
        let next = if last == '\u{d7ff}' { '\u{e000}' as u32 } else { last as u32 + 1 };
        if let Some(next) = char::from_u32(next) {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}

/// Milliseconds, and what is below them in the upper bound, plus one so that zero can be told from nothing.
///
/// The lower bound is a millisecond too low: Spark (to 4.1) cuts what it compares with to milliseconds, so that by an exact
/// one it passes over rows, in files of its own, too.
fn timestamp_bounds(message: &mut Message, low: i128, high: i128) {
    let millis = |nanos: i128| {
        i64::try_from(nanos.div_euclid(1_000_000)).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
    };
    let low = millis(low).saturating_sub(1);
    message.signed(1, low);
    message.signed(2, millis(high));
    message.signed(3, low);
    message.signed(4, millis(high));
    message.int(6, high.rem_euclid(1_000_000) as i32 + 1);
}

fn decimal_text(value: i128, scale: i8) -> String {
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale as usize + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale as usize);
    let sign = if value < 0 { "-" } else { "" };
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}
