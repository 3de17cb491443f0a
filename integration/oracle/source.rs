//! The tables of the test, and the oracle inside the database: triggers which write every change into a table
//! that nobody captures, and a slot of Postgres's own which says in what order transactions committed.
//!
//! ```text
//!   change ──trigger──> oracle.audit (seq, xid, table, op, old row, new row; every value as a text)
//!   commit ──WAL──────> slot "oracle" (test_decoding): order, end LSN and time of each xid
//! ```

use std::fmt::Write as _;

use tokio_postgres::Client;

/// What a column holds; decides how its values become texts that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Whole numbers.
    Int,
    /// Short text, uuid, enum, jsonb: compared as they are.
    Text,
    /// Any type that travels as its text, of which a cast to text may be another one (`char(n)`).
    Printed,
    /// Long text: compared by its SHA-256.
    Wide,
    /// `numeric(p, s)`: the scale.
    Decimal(usize),
    /// `numeric`.
    Numeric,
    /// `real`: its bits.
    Real,
    /// `double precision`: its bits.
    Double,
    /// `bit(n)`: its digits.
    Bits(usize),
    /// `time(p)`: microseconds since midnight.
    Time(u8),
    /// `timestamp(p)`: microseconds since 1970.
    Local(u8),
    /// `timestamptz`: microseconds since 1970.
    Instant,
    /// `date`: days since 1970.
    Date,
    /// An array: its dimensions, where there are several, and its elements' texts, as JSON; Postgres's text where it does
    /// not begin at 1.
    List(&'static Kind),
    /// `bytea`, hexadecimal.
    Bytes,
    /// `boolean`.
    Bool,
}

impl Kind {
    /// SQL which makes a value a text.
    pub fn text(self, column: &str) -> String {
        match self {
            Self::Int | Self::Text | Self::Decimal(_) | Self::Numeric | Self::Bool | Self::Bits(_) => {
                format!("{column}::text")
            }
            // Not IS NULL, which is true of a composite of nulls.
            Self::Printed => {
                format!("CASE WHEN {column} IS DISTINCT FROM NULL THEN format('%s', {column}) END")
            }
            Self::Wide => format!("encode(sha256(convert_to({column}, 'UTF8')), 'hex')"),
            Self::Real => format!("encode(float4send({column}), 'hex')"),
            Self::Double => format!("encode(float8send({column}), 'hex')"),
            Self::Time(_) => format!("(extract(epoch FROM {column}) * 1000000)::bigint::text"),
            // Not the epoch of the whole, which Postgres rounds in years that are far away.
            Self::Instant | Self::Local(_) => {
                let local = if self == Self::Instant {
                    format!("({column} AT TIME ZONE 'UTC')")
                } else {
                    column.to_owned()
                };
                format!(
                    "CASE WHEN isfinite({column}) THEN trunc(({local}::date - date '1970-01-01')::numeric * 86400000000 \
                     + extract(epoch FROM {local}::time) * 1000000)::text ELSE {column}::text END"
                )
            }
            Self::Date => format!(
                "CASE WHEN isfinite({column}) THEN ({column} - date '1970-01-01')::text ELSE {column}::text END"
            ),
            Self::List(element) => format!(
                "CASE WHEN array_dims({column}) !~ '^(\\[1:\\d+\\])+$' THEN {column}::text WHEN {column} IS NOT NULL THEN \
                 CASE WHEN array_ndims({column}) > 1 THEN array_dims({column}) ELSE '' END || array_to_json(ARRAY(SELECT {} \
                 FROM unnest({column}) WITH ORDINALITY AS list (element, place) ORDER BY place))::text END",
                element.text("element")
            ),
            Self::Bytes => format!("encode({column}, 'hex')"),
        }
    }

    /// The name which `read_lake.py` knows it by.
    pub fn name(self) -> String {
        let name = match self {
            Self::Int => "int",
            Self::Text | Self::Printed | Self::Numeric | Self::Bits(_) => "text",
            Self::Wide => "wide",
            Self::Decimal(scale) => return format!("decimal {scale}"),
            Self::Real => "real",
            Self::Double => "double",
            Self::Time(_) => "time",
            Self::Local(_) => "local",
            Self::Instant => "instant",
            Self::Date => "date",
            Self::Bytes => "bytes",
            Self::Bool => "bool",
            Self::List(element) => return format!("list {}", element.name()),
        };
        name.to_owned()
    }
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    pub sql: &'static str,
    pub kind: Kind,
}

const fn column(name: &'static str, sql: &'static str, kind: Kind) -> Column {
    Column { name, sql, kind }
}

/// A table.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    pub name: &'static str,
    pub columns: &'static [Column],
    /// Names of the key's columns; empty without one.
    pub key: &'static [&'static str],
    /// At the end of CREATE TABLE.
    pub partitioned: &'static str,
    /// After CREATE TABLE.
    pub identity: &'static str,
    /// Whether an update carries the whole row before it.
    pub full: bool,
}

impl Table {
    /// Where the key's columns stand.
    pub fn key_columns(&self) -> Vec<usize> {
        let place = |name: &&str| self.columns.iter().position(|column| column.name == *name).unwrap();
        self.key.iter().map(place).collect()
    }

    /// SQL which gives its rows, each as an array of texts.
    pub fn rows_sql(&self) -> String {
        format!("SELECT {} FROM {} AS whole_row", self.image("whole_row"), self.name)
    }

    /// SQL which makes a row an array of texts.
    fn image(&self, row: &str) -> String {
        let texts = self.columns.iter().map(|c| c.kind.text(&format!("{row}.\"{}\"", c.name)));
        format!("ARRAY[{}]", texts.collect::<Vec<_>>().join(", "))
    }
}

const NUMBER: Column = column("price", "numeric(12,2)", Kind::Decimal(2));
const AT: Column = column("at", "timestamptz", Kind::Instant);
const BODY: Column = column("body", "text", Kind::Wide);

/// The partitioned one.
pub const PARTS: &str = "parts";

/// All of them. `body` is stored out of line, and so are long values of `code`.
pub const TABLES: &[Table] = &[
    Table {
        name: "items",
        columns: &[
            column("id", "int NOT NULL PRIMARY KEY", Kind::Int),
            NUMBER,
            AT,
            column("doc", "jsonb", Kind::Text),
            column("tags", "int[]", Kind::List(&Kind::Int)),
            column("mood", "mood", Kind::Text),
            column("raw", "bytea", Kind::Bytes),
            BODY,
        ],
        key: &["id"],
        partitioned: "",
        identity: "",
        full: false,
    },
    Table {
        name: "pairs",
        columns: &[
            BODY,
            column("num", "int NOT NULL", Kind::Int),
            column("code", "text NOT NULL", Kind::Wide),
            column("any", "numeric", Kind::Numeric),
            column("on_day", "date", Kind::Date),
        ],
        key: &["code", "num"],
        partitioned: "",
        identity: "ALTER TABLE pairs ADD PRIMARY KEY (code, num)",
        full: false,
    },
    Table {
        name: "tokens",
        columns: &[
            column("id", "uuid NOT NULL PRIMARY KEY", Kind::Text),
            column("live", "boolean NOT NULL", Kind::Bool),
            AT,
            BODY,
            column("hits", "bigint", Kind::Int),
        ],
        key: &["id"],
        partitioned: "",
        identity: "",
        full: false,
    },
    Table {
        name: "bag",
        columns: &[column("a", "int", Kind::Int), column("b", "text", Kind::Text), NUMBER, BODY],
        key: &[],
        partitioned: "",
        identity: "ALTER TABLE bag REPLICA IDENTITY FULL",
        full: true,
    },
    Table {
        name: "whole",
        columns: &[
            column("id", "int NOT NULL PRIMARY KEY", Kind::Int),
            column("note", "text", Kind::Text),
            BODY,
        ],
        key: &["id"],
        partitioned: "",
        identity: "ALTER TABLE whole REPLICA IDENTITY FULL",
        full: true,
    },
    Table {
        name: "indexed",
        columns: &[
            column("pad", "text", Kind::Text),
            column("k2", "bigint NOT NULL", Kind::Int),
            column("k1", "bigint NOT NULL", Kind::Int),
            BODY,
        ],
        key: &["k1", "k2"],
        partitioned: "",
        identity: "CREATE UNIQUE INDEX indexed_key ON indexed (k1, k2); \
                   ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_key",
        full: false,
    },
    Table {
        name: "journal",
        columns: &[
            column("line", "bigint NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY", Kind::Int),
            AT,
            column("text", "text", Kind::Text),
        ],
        key: &["line"],
        partitioned: "",
        identity: "",
        full: false,
    },
    // Rows go from one leaf to another, and leaves come and go; one has its columns in another order.
    Table {
        name: PARTS,
        columns: &[
            column("id", "int NOT NULL", Kind::Int),
            column("region", "int NOT NULL", Kind::Int),
            AT,
            BODY,
            column("note", "text", Kind::Text),
        ],
        key: &["id", "region"],
        partitioned: "PARTITION BY LIST (region)",
        identity: "ALTER TABLE parts ADD PRIMARY KEY (id, region);
                   CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0);
                   CREATE TABLE parts_1 (note text, body text, region int NOT NULL, at timestamptz, gone int, id int NOT NULL);
                   ALTER TABLE parts_1 DROP gone; ALTER TABLE parts ATTACH PARTITION parts_1 FOR VALUES IN (1);
                   CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2) PARTITION BY RANGE (id);
                   CREATE TABLE parts_2_low PARTITION OF parts_2 FOR VALUES FROM (MINVALUE) TO (30);
                   CREATE TABLE parts_2_high PARTITION OF parts_2 FOR VALUES FROM (30) TO (MAXVALUE);
                   CREATE TABLE parts_3 PARTITION OF parts FOR VALUES IN (3)",
        full: false,
    },
    Table {
        name: "quiet",
        columns: &[column("id", "int NOT NULL PRIMARY KEY", Kind::Int), BODY],
        key: &["id"],
        partitioned: "",
        identity: "",
        full: false,
    },
];

/// The table of that name.
pub fn table(name: &str) -> &'static Table {
    TABLES.iter().find(|table| table.name == name).unwrap()
}

/// Name of the publication and of the slot which the connector is told to use.
pub const PUBLICATION: &str = "exact";

/// SQL which makes everything.
fn schema() -> String {
    let mut sql = String::from(
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy \"day\"');
         CREATE SCHEMA oracle;
         CREATE TABLE oracle.audit (seq bigserial PRIMARY KEY, xid bigint NOT NULL, \"table\" text NOT NULL,
           op text NOT NULL, many text, old_row text[], new_row text[]);
         CREATE FUNCTION wide(seed int) RETURNS text IMMUTABLE LANGUAGE sql
           AS $$ SELECT repeat(md5(seed::text) || E'\\u00fc\"\\\\\\n', 60 + seed % 20) $$;
         CREATE FUNCTION code(seed int) RETURNS text IMMUTABLE LANGUAGE sql
           AS $$ SELECT CASE seed % 10 WHEN 0 THEN repeat(md5(seed::text), 66) ELSE 'code ' || seed END $$;
         CREATE FUNCTION token(seed int) RETURNS uuid IMMUTABLE LANGUAGE sql AS $$ SELECT md5(seed::text)::uuid $$;
         CREATE FUNCTION instant(seed int) RETURNS timestamptz LANGUAGE sql AS $$ SELECT CASE seed % 23
           WHEN 0 THEN 'infinity' WHEN 1 THEN '-infinity' WHEN 2 THEN NULL WHEN 3 THEN '1900-02-03 04:05:06.789'
           ELSE clock_timestamp() + seed * interval '1.000001 s' END::timestamptz $$;
         CREATE FUNCTION noise(bytes int) RETURNS void LANGUAGE sql AS $$
           INSERT INTO oracle.audit (xid, \"table\", op) VALUES (pg_current_xact_id()::text::bigint, '', 'm');
           SELECT pg_logical_emit_message(true, 'noise', repeat('x', bytes)); $$;\n",
    );
    for table in TABLES {
        add_table(&mut sql, table);
    }
    let names: Vec<_> = TABLES.iter().map(|table| table.name).collect();
    writeln!(
        sql,
        "CREATE PUBLICATION {PUBLICATION} FOR TABLE {} WITH (publish_via_partition_root);",
        names.join(", ")
    )
    .unwrap();
    sql
}

fn add_table(sql: &mut String, table: &Table) {
    let Table { name, identity, partitioned, .. } = table;
    let columns: Vec<_> = table.columns.iter().map(|c| format!("\"{}\" {}", c.name, c.sql)).collect();
    writeln!(sql, "CREATE TABLE {name} ({}) {partitioned}; {identity};", columns.join(", ")).unwrap();
    for column in table.columns.iter().filter(|column| column.kind == Kind::Wide) {
        writeln!(sql, "ALTER TABLE {name} ALTER \"{}\" SET STORAGE EXTERNAL;", column.name).unwrap();
    }
    let xid = "pg_current_xact_id()::text::bigint";
    let write = |op: &str, old: &str, new: &str| {
        format!(
            "INSERT INTO oracle.audit (xid, \"table\", op, old_row, new_row) VALUES ({xid}, '{name}', '{op}', {old}, {new})"
        )
    };
    writeln!(
        sql,
        "CREATE FUNCTION oracle.{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF TG_OP = 'INSERT' THEN {};
           ELSIF TG_OP = 'UPDATE' THEN {};
           ELSIF TG_OP = 'DELETE' THEN {};
           ELSE INSERT INTO oracle.audit (xid, \"table\", op, many)
             VALUES ({xid}, '{name}', 't', nullif(current_setting('oracle.many', true), ''));
           END IF; RETURN NULL; END $$;
         CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION oracle.{name}();
         CREATE TRIGGER audit_truncate AFTER TRUNCATE ON {name} EXECUTE FUNCTION oracle.{name}();",
        write("i", "NULL", &table.image("NEW")),
        write("u", &table.image("OLD"), &table.image("NEW")),
        write("d", &table.image("OLD"), "NULL"),
    )
    .unwrap();
}

/// Takes the last leaf of the partitioned table away with its rows, or brings it back with others: no event tells of them.
/// Does nothing where somebody keeps the table for too long.
pub async fn swap_leaf(sql: &Client) {
    let leaf = "SELECT 1 FROM pg_inherits WHERE inhrelid = 'parts_3'::regclass";
    let attached = !sql.query(leaf, &[]).await.unwrap().is_empty();
    let image = table(PARTS).image("leaf");
    let audit = |op, column| {
        format!(
            "INSERT INTO oracle.audit (xid, \"table\", op, {column}) SELECT pg_current_xact_id()::text::bigint, '{PARTS}', \
             '{op}', {image} FROM parts_3 AS leaf"
        )
    };
    // A server before 15 would go on to send its rows as the root's, until the next connection.
    let version = sql.query_one("SELECT current_setting('server_version_num')::int", &[]).await.unwrap();
    let change = "DELETE FROM parts_3 WHERE id % 3 = 0; UPDATE parts_3 SET note = 'while away',
                  id = id + (SELECT max(id) FROM parts_3) WHERE id % 2 = 0 AND id < 1000";
    let away = if version.get::<_, i32>(0) >= 150_000 { change } else { "" };
    let swap = if attached {
        format!("{}; ALTER TABLE parts DETACH PARTITION parts_3; {away}", audit('x', "old_row"))
    } else {
        format!("ALTER TABLE parts ATTACH PARTITION parts_3 FOR VALUES IN (3); {}", audit('y', "new_row"))
    };
    let begin = "BEGIN; SET LOCAL lock_timeout = '2s'; LOCK TABLE parts IN ACCESS EXCLUSIVE MODE";
    let swapped = sql.batch_execute(&format!("{begin}; {swap}; COMMIT")).await;
    if let Err(error) = swapped {
        let code = error.code().map(tokio_postgres::error::SqlState::code);
        assert!(matches!(code, Some("55P03" | "40P01")), "{error:?}");
        sql.batch_execute("ROLLBACK").await.unwrap();
    }
}

/// Makes tables and oracle, and rows that are there before anything is captured.
pub async fn prepare(sql: &Client) {
    sql.batch_execute(&schema()).await.unwrap();
    sql.batch_execute("SELECT pg_create_logical_replication_slot('oracle', 'test_decoding')").await.unwrap();
    sql.batch_execute(
        "INSERT INTO items SELECT g, (g % 977) / 7.0 - 30, instant(g), jsonb_build_object('n', g, 'list', ARRAY[g, NULL]),
           CASE g % 5 WHEN 0 THEN NULL WHEN 1 THEN '{}' ELSE ARRAY[g, NULL, -g] END,
           (ARRAY['sad', 'ok', 'happy \"day\"', NULL])[1 + g % 4]::mood, decode(md5(g::text), 'hex'),
           CASE WHEN g % 3 = 0 THEN wide(g) END FROM generate_series(1, 3000) g;
         INSERT INTO pairs SELECT wide(g), g % 3, code(g), g / 7.0, date '2026-01-01' + g FROM generate_series(1, 900) g;
         INSERT INTO tokens SELECT token(g), g % 2 = 0, instant(g), wide(g), g FROM generate_series(1, 600) g;
         INSERT INTO bag SELECT g % 5, 'b' || g % 3, g % 2, CASE WHEN g % 4 = 0 THEN wide(g % 2) END
           FROM generate_series(1, 400) g;
         INSERT INTO whole SELECT g, 'note', wide(g) FROM generate_series(1, 300) g;
         INSERT INTO indexed SELECT 'pad', g % 7, g, wide(g) FROM generate_series(1, 300) g;
         INSERT INTO parts SELECT g, g % 4, instant(g), CASE WHEN g % 3 > 0 THEN wide(g) END, 'first'
           FROM generate_series(1, 600) g;
         INSERT INTO quiet SELECT g, wide(g) FROM generate_series(1, 10) g;",
    )
    .await
    .unwrap();
}
