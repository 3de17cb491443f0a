//! Column types: how a Postgres type is represented from the envelope to the lake.
//!
//! To add a Postgres type, add a line to [`ColumnType::from_builtin`] (or to the catalog's
//! classification of enums and arrays) that names an existing representation. Only a type which none of
//! the representations can hold needs a new variant; the compiler then lists the codecs to extend
//! (`envelope::json`, `envelope::avro`, `envelope::connect` and `batch::arrow`).

use serde::{Deserialize, Serialize};

/// The representation of a column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ColumnType {
    /// `bool`.
    Bool,
    /// `int2`.
    Int16,
    /// `int4`.
    Int32,
    /// `int8`, `oid`.
    Int64,
    /// `float4`.
    Float32,
    /// `float8`.
    Float64,
    /// `numeric(precision, scale)`.
    Decimal {
        /// Digits in all, 1 to 1000.
        precision: u16,
        /// Digits after the point, -1000 to 1000 (Postgres 15+ allows negative ones).
        scale: i16,
    },
    /// `numeric` without precision.
    Numeric,
    /// Text, and every type that travels as its text.
    Text {
        /// What the text is.
        text: TextKind,
    },
    /// `bytea`.
    Bytes,
    /// `bit(length)`; at rest its digits.
    Bits {
        /// Number of bits. One is a boolean in envelopes.
        length: u32,
    },
    /// `date`: days since 1970-01-01.
    Date,
    /// `time`, with at most this many digits after the seconds.
    Time {
        /// 0 to 6.
        precision: u8,
    },
    /// `timestamp`, with at most this many digits after the seconds.
    Timestamp {
        /// 0 to 6.
        precision: u8,
    },
    /// `timestamptz`: an instant, always in UTC downstream.
    TimestampTz {
        /// 0 to 6: so many digits are written after the seconds, zeros too.
        #[serde(default)]
        precision: u8,
    },
    /// `timetz`, as text.
    TimeTz,
    /// `interval`, as ISO 8601 text: months, days and microseconds do not convert into each other.
    Interval,
    /// An array of the element, of whatever dimensions and bounds: Postgres's types do not say.
    Array {
        /// The element's representation; never itself an array (Postgres has no array-of-array types).
        element: Box<ColumnType>,
    },
}

/// What a [`ColumnType::Text`] holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextKind {
    /// `text`, `varchar`, `char(n)`, `name`, `citext`.
    Plain,
    /// `uuid`.
    Uuid,
    /// `json`, `jsonb`.
    Json,
    /// `xml`.
    Xml,
    /// `tsvector`.
    Tsvector,
    /// `ltree` of the extension.
    Ltree,
    /// An enum, with its labels in order at the time the schema was read.
    Enum(Vec<String>),
    /// Any other type, in its text form.
    Other,
}

impl ColumnType {
    /// Plain text.
    pub const TEXT: Self = Self::Text { text: TextKind::Plain };

    /// The representation of a type of the system catalog, by its fixed OID; `None` when the OID is not
    /// one of them (an enum, a domain, an extension's type: the catalog has to be asked).
    ///
    /// OIDs: `src/include/catalog/pg_type.dat`. Modifiers: `numerictypmodin`, `anytimestamp_typmodin`.
    pub fn from_builtin(oid: u32, modifier: i32) -> Option<Self> {
        let text = |text| Self::Text { text };
        Some(match oid {
            16 => Self::Bool,
            21 => Self::Int16,
            23 => Self::Int32,
            20 | 26 => Self::Int64,
            700 => Self::Float32,
            701 => Self::Float64,
            1700 => Self::numeric(modifier),
            18 | 19 | 25 | 1042 | 1043 => Self::TEXT,
            2950 => text(TextKind::Uuid),
            114 | 3802 => text(TextKind::Json),
            142 => text(TextKind::Xml),
            3614 => text(TextKind::Tsvector),
            17 => Self::Bytes,
            1560 => match u32::try_from(modifier) {
                Ok(length) => Self::Bits { length },
                Err(_) => text(TextKind::Other),
            },
            1082 => Self::Date,
            1083 => Self::Time { precision: seconds_precision(modifier) },
            1114 => Self::Timestamp { precision: seconds_precision(modifier) },
            1184 => Self::TimestampTz { precision: seconds_precision(modifier) },
            1266 => Self::TimeTz,
            1186 => Self::Interval,
            _ => {
                return Self::element_of_builtin_array(oid).map(|element| {
                    let element = Self::from_builtin(element, modifier).unwrap_or(text(TextKind::Other));
                    Self::Array { element: Box::new(element) }
                });
            }
        })
    }

    /// Whether rows can be told apart by the type's text (true for all but types without equality).
    pub const fn is_array(&self) -> bool {
        matches!(self, Self::Array { .. })
    }

    /// Whether a column of this type can become one of the other and keep all its values, as they stand in the log and
    /// at rest.
    pub fn widens_to(&self, other: &Self) -> bool {
        let whole = |precision: u16, scale: i16| i32::from(precision) - i32::from(scale);
        match (self, other) {
            (Self::Int16, Self::Int32 | Self::Int64)
            | (Self::Int32, Self::Int64)
            | (Self::Float32, Self::Float64)
            // At rest all of these are text.
            | (Self::Int16 | Self::Int32 | Self::Int64 | Self::Decimal { .. }, Self::Numeric | Self::Text { .. })
            | (Self::Text { .. } | Self::Numeric | Self::TimeTz | Self::Interval, Self::Text { .. })
            | (Self::Bits { .. }, Self::Bits { .. } | Self::Text { .. }) => true,
            (Self::Int16, Self::Decimal { precision, scale }) => whole(*precision, *scale) >= 5 && *scale >= 0,
            (Self::Int32, Self::Decimal { precision, scale }) => whole(*precision, *scale) >= 10 && *scale >= 0,
            (Self::Int64, Self::Decimal { precision, scale }) => whole(*precision, *scale) >= 19 && *scale >= 0,
            (Self::Decimal { precision: p, scale: s }, Self::Decimal { precision, scale }) => {
                scale >= s && whole(*precision, *scale) >= whole(*p, *s)
            }
            (Self::Time { precision: p }, Self::Time { precision })
            | (Self::Timestamp { precision: p }, Self::Timestamp { precision })
            | (Self::TimestampTz { precision: p }, Self::TimestampTz { precision }) => precision >= p,
            (Self::Array { element }, Self::Array { element: other }) => element.widens_to(other),
            (one, other) => one == other,
        }
    }

    /// Whether Postgres writes each row anew when a column's type becomes the other, so that an expression may have
    /// changed the values (`ATColumnChangeRequiresRewrite` in `tablecmds.c`).
    pub fn is_rewritten_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text { text: TextKind::Enum(_) }, Self::Text { text: TextKind::Enum(_) })
            | (Self::Decimal { .. }, Self::Numeric) => false,
            (Self::Array { element }, Self::Array { element: other }) => element.is_rewritten_as(other),
            (Self::Decimal { scale: s, .. }, Self::Decimal { scale, .. }) => s != scale,
            (Self::Time { precision: p }, Self::Time { precision })
            | (Self::Timestamp { precision: p }, Self::Timestamp { precision })
            | (Self::TimestampTz { precision: p }, Self::TimestampTz { precision }) => precision < p,
            (one, other) => one != other,
        }
    }

    /// Whether Postgres' own cast to another type, which this one widens to, writes each value as it is read here once it
    /// is of that type. An interval as text is not the ISO 8601 of before, an `inet` has a mask that it did not show.
    pub fn keeps_values_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Interval | Self::Text { text: TextKind::Other }, Self::Text { .. }) => self == other,
            (Self::Array { element }, Self::Array { element: other }) => element.keeps_values_as(other),
            _ => true,
        }
    }

    /// Whether it is an enum with labels that the other has not, or not in that order: only a rename makes that of the same
    /// type, and a value of before is another one then without having been written.
    pub fn is_relabelled_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text { text: TextKind::Enum(before) }, Self::Text { text: TextKind::Enum(now) }) => {
                let mut now = now.iter();
                !before.iter().all(|label| now.any(|other| other == label))
            }
            (Self::Array { element }, Self::Array { element: other }) => element.is_relabelled_as(other),
            _ => false,
        }
    }

    fn numeric(modifier: i32) -> Self {
        if modifier < 4 {
            return Self::Numeric;
        }
        let packed = modifier - 4;
        // Scale is an 11-bit signed number since Postgres 15; older servers only store 0..=1000.
        let scale = ((packed & 0x7FF) ^ 1024) - 1024;
        Self::Decimal { precision: ((packed >> 16) & 0xFFFF) as u16, scale: scale as i16 }
    }

    /// Arrays whose elements a comma divides: `box[]` (1020) is not one of them.
    const fn element_of_builtin_array(oid: u32) -> Option<u32> {
        Some(match oid {
            1000 => 16,
            1001 => 17,
            1002 => 18,
            1003 => 19,
            1005 => 21,
            1007 => 23,
            1016 => 20,
            1028 => 26,
            1009 => 25,
            1014 => 1042,
            1015 => 1043,
            1021 => 700,
            1022 => 701,
            1231 => 1700,
            2951 => 2950,
            199 => 114,
            3807 => 3802,
            143 => 142,
            1182 => 1082,
            1183 => 1083,
            1115 => 1114,
            1185 => 1184,
            1270 => 1266,
            1187 => 1186,
            1561 => 1560,
            // Types that travel as text: money, varbit; inet, cidr, macaddr, macaddr8.
            791 => 790,
            1563 => 1562,
            1041 => 869,
            651 => 650,
            1040 => 829,
            775 => 774,
            // point, line, lseg, path, polygon, circle.
            1017 => 600,
            629 => 628,
            1018 => 601,
            1019 => 602,
            1027 => 604,
            719 => 718,
            // tsvector, tsquery, jsonpath, pg_lsn.
            3643 => 3614,
            3645 => 3615,
            4073 => 4072,
            3221 => 3220,
            // int4range, numrange, tsrange, tstzrange, daterange, int8range, and their multiranges.
            3905 => 3904,
            3907 => 3906,
            3909 => 3908,
            3911 => 3910,
            3913 => 3912,
            3927 => 3926,
            6150 => 4451,
            6151 => 4532,
            6152 => 4533,
            6153 => 4534,
            6155 => 4535,
            6157 => 4536,
            _ => return None,
        })
    }
}

fn seconds_precision(modifier: i32) -> u8 {
    u8::try_from(modifier).ok().filter(|p| *p <= 6).unwrap_or(6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numeric_modifiers_give_precision_and_signed_scale() {
        let of = |p: i32, s: i32| ColumnType::from_builtin(1700, ((p << 16) | (s & 0x7FF)) + 4).unwrap();
        assert_eq!(of(12, 2), ColumnType::Decimal { precision: 12, scale: 2 });
        assert_eq!(of(3, -3), ColumnType::Decimal { precision: 3, scale: -3 });
        assert_eq!(of(1000, 1000), ColumnType::Decimal { precision: 1000, scale: 1000 });
        assert_eq!(ColumnType::from_builtin(1700, -1), Some(ColumnType::Numeric));
    }

    #[test]
    fn labels_are_added_without_a_rewrite_in_arrays_too() {
        let array = |element| ColumnType::Array { element: Box::new(element) };
        let mood = |labels: &[&str]| ColumnType::Text {
            text: TextKind::Enum(labels.iter().map(|label| (*label).to_owned()).collect()),
        };
        let (old, new) = (mood(&["a"]), mood(&["a", "b"]));
        assert!(!old.is_rewritten_as(&new) && !array(old.clone()).is_rewritten_as(&array(new)));
        assert!(array(old).is_rewritten_as(&array(ColumnType::TEXT)));
    }

    #[test]
    fn arrays_know_their_element() {
        let element = Box::new(ColumnType::Timestamp { precision: 3 });
        assert_eq!(ColumnType::from_builtin(1115, 3), Some(ColumnType::Array { element }));
        let text = Box::new(ColumnType::Text { text: TextKind::Other });
        assert_eq!(ColumnType::from_builtin(1041, -1), Some(ColumnType::Array { element: text }), "inet[]");
        assert_eq!(ColumnType::from_builtin(600, -1), None, "a point");
        assert_eq!(ColumnType::from_builtin(1020, -1), None, "box[]");
    }
}
