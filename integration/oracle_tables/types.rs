//! Column types, and values of each: ordinary ones and the extremes.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::oracle::source::Kind;

/// A type that a column can have.
#[derive(Clone, Copy, Debug)]
pub struct Type {
    /// In SQL; `{s}` stands for the schema of the seed.
    pub sql: &'static str,
    pub kind: Kind,
    /// Texts which the type takes.
    pub values: Values,
    /// Whether it can be part of a key.
    pub keyed: bool,
}

/// Where a type's values come from.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// One of these.
    Of(&'static [&'static str]),
    /// Whole numbers of so many bytes, signed.
    Whole(u32),
    /// Digits before and after the point.
    Digits(usize, usize),
    /// Text of up to so many characters.
    Text(usize),
    /// Some kilobytes of it, in a column that is stored out of line.
    Wide,
    /// A UUID.
    Uuid,
    /// Hexadecimal bytes.
    Bytes,
    /// Digits of a bit string: at least, at most.
    Bits(usize, usize),
    /// `date`, `timestamp`, `timestamptz` of an ordinary year.
    Moment,
    /// An array of these, with nulls; now and then of two dimensions, or with bounds of its own.
    List(&'static Values),
}

const fn of(sql: &'static str, kind: Kind, values: &'static [&'static str]) -> Type {
    Type { sql, kind, values: Values::Of(values), keyed: false }
}

const fn new(sql: &'static str, kind: Kind, values: Values, keyed: bool) -> Type {
    Type { sql, kind, values, keyed }
}

const fn key(sql: &'static str, kind: Kind, values: &'static [&'static str]) -> Type {
    Type { sql, kind, values: Values::Of(values), keyed: true }
}

const fn list(sql: &'static str, element: &'static Kind, values: &'static Values) -> Type {
    Type { sql, kind: Kind::List(element), values: Values::List(values), keyed: false }
}

/// Long text, stored out of line.
pub const WIDE: Type = new("text", Kind::Wide, Values::Wide, false);

/// All of them.
pub const TYPES: &[Type] = &[
    new("smallint", Kind::Int, Values::Whole(2), true),
    new("integer", Kind::Int, Values::Whole(4), true),
    new("bigint", Kind::Int, Values::Whole(8), true),
    of("oid", Kind::Int, &["0", "4294967295", "17"]),
    of(
        "real",
        Kind::Real,
        &["0", "-0", "1.5", "0.1", "-3.4028235e38", "1e-45", "NaN", "Infinity", "-Infinity"],
    ),
    key(
        "double precision",
        Kind::Double,
        &[
            "0",
            "-0",
            "0.1",
            "1.7976931348623157e308",
            "5e-324",
            "-2.2250738585072014e-308",
            "NaN",
            "-Infinity",
            "1e23",
        ],
    ),
    new("numeric(12,3)", Kind::Decimal(3), Values::Digits(9, 3), true),
    new("numeric(38,10)", Kind::Decimal(10), Values::Digits(28, 10), false),
    new("numeric(45,5)", Kind::Decimal(5), Values::Digits(40, 5), false),
    key(
        "numeric",
        Kind::Numeric,
        &[
            "0",
            "0.000",
            "-1.50",
            "NaN",
            "Infinity",
            "-Infinity",
            "123456789012345678901234567890.0987654321",
            "1e-20",
            "1e30",
            "1.5",
            "7",
        ],
    ),
    key("boolean", Kind::Bool, &["t", "f"]),
    new("text", Kind::Printed, Values::Text(30), true),
    new("varchar(20)", Kind::Printed, Values::Text(20), true),
    new("char(6)", Kind::Printed, Values::Text(6), true),
    key("citext", Kind::Printed, &["a", "A", "b", "B", "\u{e9}", "\u{c9}", ""]),
    of("name", Kind::Printed, &["", "a name", "n\"'"]),
    of("money", Kind::Printed, &["0", "-1.5", "1234567.89", "-92233720368547758.08"]),
    of("hstore", Kind::Printed, &["", "a=>1, \"b \\\"c\"=>NULL", "\u{fc}=>\"\""]),
    of("ltree", Kind::Printed, &["", "top.mid_1.x", "a"]),
    new("uuid", Kind::Printed, Values::Uuid, true),
    of(
        "json",
        Kind::Printed,
        &["null", "{\"a\" : [1,  2.50, \"x\\u00e9\"], \"a\": {}}", "\"\\\\ \\\" /\"", "[]"],
    ),
    of(
        "jsonb",
        Kind::Printed,
        &["null", "{\"b\": 1e3, \"a\": [true, null]}", "\"ü😀\"", "12345678901234567890.5"],
    ),
    of("xml", Kind::Printed, &["<a b=\"1\">x &amp; y</a>", "<?xml version=\"1.0\"?><ü/>", "text"]),
    new("bytea", Kind::Bytes, Values::Bytes, true),
    new("bit(1)", Kind::Bits(1), Values::Bits(1, 1), false),
    new("bit(11)", Kind::Bits(11), Values::Bits(11, 11), false),
    new("varbit(40)", Kind::Printed, Values::Bits(0, 40), false),
    key(
        "date",
        Kind::Date,
        &["infinity", "-infinity", "4713-01-01 BC", "0001-01-01", "2024-02-29", "5874897-12-31"],
    ),
    new("date", Kind::Date, Values::Moment, true),
    key("time", Kind::Time(6), &["00:00", "24:00", "23:59:59.999999", "12:34:56.7"]),
    of("time(3)", Kind::Time(3), &["00:00", "24:00", "23:59:59.999", "12:34:56.7"]),
    of("time(0)", Kind::Time(0), &["00:00", "23:59:59"]),
    of(
        "timestamp",
        Kind::Local(6),
        &[
            "infinity",
            "-infinity",
            "4713-01-01 00:00 BC",
            "1969-12-31 23:59:59.999999",
            "9999-12-31 23:59:59.999999",
            "200000-01-01",
            "294276-12-31 23:59:59.999999",
        ],
    ),
    new("timestamp(3)", Kind::Local(3), Values::Moment, true),
    new("timestamp(0)", Kind::Local(0), Values::Moment, false),
    key(
        "timestamptz",
        Kind::Instant,
        &[
            "infinity",
            "-infinity",
            "4713-01-01 00:00+00 BC",
            "1890-01-01 00:00:00.000001+00:19:32",
            "200000-06-01 12:00+14",
            "294276-12-31 23:59:59.999999+00",
            "2024-03-31 02:30+02",
        ],
    ),
    new("timestamptz", Kind::Instant, Values::Moment, true),
    new("timestamptz(3)", Kind::Instant, Values::Moment, false),
    of("timetz", Kind::Printed, &["00:00+00", "24:00-15:59:59", "12:00:00.5+05:30"]),
    of(
        "interval",
        Kind::Printed,
        &[
            "0",
            "1 year -2 months 3 days -04:05:06.789",
            "-178000000 years",
            "1 microsecond",
            "25:00:00",
            "-1 day +1 second",
        ],
    ),
    of("interval day to second(2)", Kind::Printed, &["1 day 2.345 s", "-0.01 s"]),
    key("inet", Kind::Printed, &["192.168.0.1", "10.1.2.3/8", "::1", "fe80::1/64"]),
    of("cidr", Kind::Printed, &["10.0.0.0/8", "2001:db8::/32"]),
    of("macaddr", Kind::Printed, &["08:00:2b:01:02:03"]),
    of("macaddr8", Kind::Printed, &["08:00:2b:01:02:03:04:05"]),
    of("point", Kind::Printed, &["(0,-0)", "(1.5,NaN)", "(1e300,0.1)"]),
    of("line", Kind::Printed, &["{1,-1,0}"]),
    of("lseg", Kind::Printed, &["[(0,0),(1,1)]"]),
    of("box", Kind::Printed, &["(2,2),(0,0)"]),
    of("path", Kind::Printed, &["[(0,0),(1,1)]", "((0,0),(1,1),(1,0))"]),
    of("polygon", Kind::Printed, &["((0,0),(1,1),(1,0))"]),
    of("circle", Kind::Printed, &["<(0,0),1.5>"]),
    of("int4range", Kind::Printed, &["empty", "[1,10)", "(,5]", "(,)"]),
    of("numrange", Kind::Printed, &["[1.50,2.5]", "(,0)"]),
    of("tstzrange", Kind::Printed, &["[2024-01-01 00:00+02,infinity)", "empty"]),
    of("daterange", Kind::Printed, &["[2024-01-01,2024-02-01)"]),
    of("nummultirange", Kind::Printed, &["{}", "{[1,2),[3.5,)}"]),
    of("tsvector", Kind::Printed, &["a:1A,3 b", "'it''s':2"]),
    of("tsquery", Kind::Printed, &["a & !b", "'x y' <-> z:*"]),
    of("pg_lsn", Kind::Printed, &["0/0", "FFFFFFFF/FFFFFFFF"]),
    of("jsonpath", Kind::Printed, &["$.a[*] ? (@ > 1)"]),
    key("{s}.mood", Kind::Printed, &["sad", "ok", "happy \"day\", it's"]),
    new("{s}.price", Kind::Decimal(2), Values::Digits(6, 2), false),
    new("{s}.label", Kind::Printed, Values::Text(10), false),
    of("{s}.floats", Kind::Printed, &["[0.1,1.5)", "empty"]),
    of("box[]", Kind::Printed, &["{(1,1),(0,0);(2,2),(0,0)}", "{}"]),
    of("{s}.pair", Kind::Printed, &["(1,\"a,b\")", "(,)", "(-5,\"\")"]),
    list("integer[]", &Kind::Int, &Values::Whole(4)),
    list("bigint[]", &Kind::Int, &Values::Whole(8)),
    list("text[]", &Kind::Printed, &Values::Text(12)),
    list("numeric(10,2)[]", &Kind::Decimal(2), &Values::Digits(8, 2)),
    list("boolean[]", &Kind::Bool, &Values::Of(&["t", "f"])),
    list("double precision[]", &Kind::Double, &Values::Of(&["0.1", "NaN", "-Infinity", "1e-300"])),
    list("date[]", &Kind::Date, &Values::Moment),
    list("timestamptz[]", &Kind::Instant, &Values::Moment),
    list("uuid[]", &Kind::Printed, &Values::Uuid),
    list("bytea[]", &Kind::Bytes, &Values::Bytes),
    list("{s}.mood[]", &Kind::Printed, &Values::Of(&["sad", "ok", "happy \"day\", it's"])),
    list(
        "timestamp[]",
        &Kind::Local(6),
        &Values::Of(&["294276-12-31 23:59:59.999999", "infinity", "2020-01-01 00:00"]),
    ),
    list("citext[]", &Kind::Printed, &Values::Text(4)),
    list("int4range[]", &Kind::Printed, &Values::Of(&["empty", "[1,10)"])),
    list("{s}.tags", &Kind::Printed, &Values::Text(5)),
    list("{s}.price[]", &Kind::Decimal(2), &Values::Digits(6, 2)),
];

const CHARACTERS: &[char] = &[
    'a', 'b', 'Z', '0', ' ', ' ', '"', '\'', '\\', ',', '{', '}', '\n', '\r', '\t', '\u{1}', '\u{7f}',
    '\u{fc}', '日', '😀', '%', '\u{2028}', 'N', '/',
];

impl Values {
    /// A value, as its text.
    pub fn pick(self, random: &mut StdRng) -> String {
        match self {
            Self::Of(list) => (*list.choose(random).unwrap()).to_owned(),
            Self::Whole(bytes) => {
                let max = i64::MAX >> (64 - 8 * bytes);
                match random.random_range(0..8) {
                    0 => max.to_string(),
                    1 => (-max - 1).to_string(),
                    _ => random.random_range(-50..50).to_string(),
                }
            }
            Self::Digits(..) if random.random_bool(0.05) => "NaN".to_owned(),
            Self::Digits(whole, fraction) => {
                let whole = random.random_range(1..=whole);
                let digits = |random: &mut StdRng, count| -> String {
                    (0..count).map(|_| char::from(b'0' + random.random_range(0..10))).collect()
                };
                let sign = if random.random_bool(0.4) { "-" } else { "" };
                format!("{sign}{}.{}", digits(random, whole), digits(random, fraction))
            }
            Self::Text(length) => {
                let length = random.random_range(0..=length);
                (0..length).map(|_| *CHARACTERS.choose(random).unwrap()).collect()
            }
            Self::Wide => {
                let part: String = (0..40).map(|_| *CHARACTERS.choose(random).unwrap()).collect();
                part.repeat(random.random_range(60..90))
            }
            Self::Uuid => {
                let bytes = format!("{:032x}", random.random::<u128>());
                format!(
                    "{}-{}-{}-{}-{}",
                    &bytes[..8],
                    &bytes[8..12],
                    &bytes[12..16],
                    &bytes[16..20],
                    &bytes[20..]
                )
            }
            Self::Bytes => {
                let length = random.random_range(0..12);
                (0..length).fold("\\x".to_owned(), |text, _| format!("{text}{:02x}", random.random::<u8>()))
            }
            Self::Bits(least, most) => {
                let length = random.random_range(least..=most);
                (0..length).map(|_| if random.random() { '1' } else { '0' }).collect()
            }
            Self::Moment => format!(
                "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}",
                random.random_range(1..3000),
                random.random_range(1..=12),
                random.random_range(1..=28),
                random.random_range(0..24),
                random.random_range(0..60),
                random.random_range(0..60),
                random.random_range(0..1_000_000)
            ),
            Self::List(element) => {
                let (count, form) = (random.random_range(0..4), random.random_range(0..12));
                let mut list = || {
                    let elements = (0..count).map(|_| {
                        if random.random_bool(0.2) {
                            return "NULL".to_owned();
                        }
                        format!("\"{}\"", element.pick(random).replace('\\', "\\\\").replace('"', "\\\""))
                    });
                    format!("{{{}}}", elements.collect::<Vec<_>>().join(","))
                };
                match form {
                    0 if count > 0 => format!("{{{},{}}}", list(), list()),
                    1 if count > 0 => format!("[-1:{}]={}", count - 2, list()),
                    2 if count > 0 => format!("[1:1][0:{}]={{{}}}", count - 1, list()),
                    _ => list(),
                }
            }
        }
    }
}
