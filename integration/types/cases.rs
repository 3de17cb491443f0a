//! The types, and values of each as SQL has them.

/// A type of Postgres.
pub struct Case {
    /// As `format_type` prints it.
    pub name: &'static str,
    /// SQL expressions of the type; the first is the example of the table in the documents.
    pub values: &'static [&'static str],
    /// Whether all columns of arrays of it are tried, too.
    pub array: bool,
}

const fn of(name: &'static str, values: &'static [&'static str]) -> Case {
    Case { name, values, array: true }
}

/// What has to be there before the types are.
pub const SETUP: &str = "
    CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION citext;
    CREATE TYPE mood AS ENUM ('sad', 'it''s, \"ok\"');
    CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN price AS numeric(12,2) CHECK (VALUE <> 0);
    CREATE DOMAIN net_price AS price NOT NULL DEFAULT 1;
    CREATE DOMAIN tags AS text[];
    CREATE TYPE floatrange AS RANGE (subtype = float8);";

/// All of them, in the order of the documents.
pub const CASES: &[Case] = &[
    of("boolean", &["true", "false"]),
    of("smallint", &["-32768", "32767"]),
    of("integer", &["-2147483648", "2147483647"]),
    of("bigint", &["-9223372036854775808", "9223372036854775807"]),
    of("oid", &["4294967295"]),
    of("real", &["0.1", "'NaN'", "'-Infinity'", "'1e-45'", "'3.4028235e38'", "'-0'"]),
    of("double precision", &["0.1", "'NaN'", "'Infinity'", "'5e-324'", "'1.7976931348623157e308'", "'-0'"]),
    of("numeric(12,2)", &["12.50", "'NaN'", "-9999999999.99", "0"]),
    of("numeric(38,10)", &["'-9999999999999999999999999999.9999999999'", "'NaN'"]),
    of("numeric(60,20)", &["1.5", "'NaN'", "-repeat('9', 40)::numeric"]),
    of("numeric(1000,500)", &["(repeat('9', 500) || '.' || repeat('1', 500))::numeric"]),
    of("numeric", &["1.230", "'NaN'", "'Infinity'", "'-Infinity'", "1e130000", "0.00", "'1e-16383'"]),
    of("money", &["'$1,234.50'", "'-92233720368547758.08'"]),
    of("text", &["'té\"xt'", "''", "'NULL'", "E'a\\tb\\nc\\\\d'", "'日本 😀'"]),
    of("character varying(10)", &["'vc'", "' x '"]),
    of("character(5)", &["'ch'"]),
    of("\"char\"", &["'c'"]),
    of("name", &["'a name'"]),
    of("citext", &["'MiXed'"]),
    of("bytea", &["'\\x00ff10'", "''"]),
    of("uuid", &["'0f8fad5b-d9cb-469f-a165-70867728950e'"]),
    of("json", &["'{\"b\" : [1, null], \"a\":\"\\u0041\"}'"]),
    of("jsonb", &["'{\"b\": [1, null], \"a\": 1e400}'"]),
    of("jsonpath", &["'$.\"a\"[*]?(@ > 1)'"]),
    of("xml", &["'<a b=\"1\">é</a>'"]),
    of(
        "date",
        &[
            "'2026-11-20'",
            "'1500-02-28'",
            "'1582-10-10'",
            "'4714-11-24 BC'",
            "'5874897-12-31'",
            "'infinity'",
            "'-infinity'",
        ],
    ),
    of("time(3) without time zone", &["'10:15:30.123'", "'24:00'"]),
    of("time without time zone", &["'10:15:30.123456'", "'24:00'", "'0:00'"]),
    of("time with time zone", &["'10:15:30.5+04'", "'24:00:00-15:59:59'"]),
    of(
        "timestamp(3) without time zone",
        &["'2026-11-20 10:15:30.123'", "'294276-12-31 23:59:59.999'", "'infinity'"],
    ),
    of(
        "timestamp without time zone",
        &[
            "'2026-11-20 10:15:30.123456'",
            "'4714-11-24 00:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'294247-01-10 04:00:25.2'",
            "'1500-02-28 23:59:59.000001'",
            "'1969-12-31 23:59:59.5'",
            "'infinity'",
            "'-infinity'",
        ],
    ),
    of(
        "timestamp with time zone",
        &[
            "'2026-11-20 10:15:30.123456+04'",
            "'4714-11-24 00:00:00+00 BC'",
            "'294276-12-31 23:59:59.999999+00'",
            "'0044-03-15 12:00:00+00:53:28 BC'",
            "'1500-02-28 23:59:59.999999+00'",
            "'infinity'",
            "'-infinity'",
        ],
    ),
    of("interval", &["'1 year 2 mons -3 days 04:05:06.789'", "'-178000000 years'", "'0'"]),
    of("bit(1)", &["B'1'", "B'0'"]),
    of("bit(12)", &["B'000100000010'"]),
    of("bit varying(20)", &["B'0101'", "B''"]),
    of("inet", &["'10.0.0.1/8'", "'::1'"]),
    of("cidr", &["'10.0.0.0/8'"]),
    of("macaddr", &["'08:00:2b:01:02:03'"]),
    of("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    of("point", &["'(1.5,-2)'"]),
    of("line", &["'{1,2,3}'"]),
    of("lseg", &["'[(0,0),(1,1)]'"]),
    Case { name: "box", values: &["'(1,1),(0,0)'"], array: true },
    of("path", &["'((0,0),(1,1))'", "'[(0,0),(1,1)]'"]),
    of("polygon", &["'((0,0),(1,1),(1,0))'"]),
    of("circle", &["'<(0,0),2>'"]),
    of("int4range", &["'[1,5)'", "'empty'", "'(,)'"]),
    of("numrange", &["'[1.50,2.5]'"]),
    of("tsrange", &["'[2026-01-01 00:00,infinity]'"]),
    of("tstzrange", &["'[2026-01-01 00:00+04,)'"]),
    of("int4multirange", &["'{[1,3),[5,7)}'", "'{}'"]),
    of("floatrange", &["'[0.1,1.5)'"]),
    of("tsvector", &["'a fat:2A cat'"]),
    of("tsquery", &["'fat & !rat'"]),
    of("pg_lsn", &["'16/B374D848'"]),
    of("hstore", &["'a=>1, \"b \\\"c\"=>NULL'", "''"]),
    of("ltree", &["'a.b.c'"]),
    of("mood", &["'sad'", "'it''s, \"ok\"'"]),
    of("price", &["12.50", "'NaN'"]),
    Case { name: "net_price", values: &["12.50", "'NaN'"], array: false },
    of("pair", &["'(1,\"a \\\"b\\\"\")'", "'(,)'"]),
    Case { name: "tags", values: &["'{a,NULL}'", "'{{a},{b}}'", "'[0:0]={a}'"], array: false },
];
