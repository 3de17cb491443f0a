//! Tables made from a seed: types, keys, identities, names, partitions.

use std::collections::HashMap;
use std::fmt::Write as _;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::types::{TYPES, Type, WIDE};
use crate::oracle::source::Kind;

/// Quotes a name for SQL.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text for SQL.
pub fn literal(text: &str) -> String {
    let text = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", text.replace('\\', "\\\\")) } else { format!("'{text}'") }
}

/// A column as it is now.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub of: Type,
    /// In SQL, with the schema's name.
    pub sql: String,
}

/// How a table's rows are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A primary key.
    Primary,
    /// A primary key, and whole rows before each change.
    PrimaryFull,
    /// No key, and whole rows.
    Full,
    /// A unique index.
    Index,
}

/// A table as it is now.
#[derive(Clone, Debug)]
pub struct Table {
    pub schema: String,
    pub name: String,
    pub columns: Vec<Column>,
    /// Names of the key's columns; empty without a key.
    pub key: Vec<String>,
    pub identity: Identity,
    /// Names of its partitions.
    pub partitions: Vec<String>,
    /// Every column that it ever had: kind and type.
    pub kinds: HashMap<String, (Kind, String)>,
    /// A table of the same shape that is filled from this one once changes are captured.
    pub twin: String,
    /// Names given out.
    names: usize,
}

/// Names that have been trouble elsewhere; `{n}` keeps them apart.
const NAMES: &[&str] = &[
    "c{n}",
    "Mixed{n}",
    "with space {n}",
    "ünï {n}",
    "dot.ted{n}",
    "ds{n}",
    "op{n}",
    "__x{n}",
    "quo\"te{n}",
    "select{n}",
    "日本{n}",
    "n_{n}_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "semi;{n}",
    "apo's{n}",
    "-{n}",
];
/// The same, once a table.
const PLAIN: &[&str] = &["ds", "op", "hour", "before", "after", "source", "user", "id", "ctid2"];

impl Table {
    /// `"schema"."table"`.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// The same of its twin.
    pub fn quoted_twin(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.twin))
    }

    /// Whether whole old rows are logged.
    pub const fn is_full(&self) -> bool {
        matches!(self.identity, Identity::Full | Identity::PrimaryFull)
    }

    /// A name for a column that it never had.
    pub fn new_name(&mut self, random: &mut StdRng) -> String {
        self.names += 1;
        let plain = *PLAIN.choose(random).unwrap();
        if random.random_bool(0.2) && !self.kinds.contains_key(plain) {
            return plain.to_owned();
        }
        NAMES.choose(random).unwrap().replace("{n}", &self.names.to_string())
    }

    /// Adds a column to what is known of the table.
    pub fn add(&mut self, name: String, of: Type) -> &Column {
        let sql = of.sql.replace("{s}", &quoted(&self.schema));
        self.kinds.insert(name.clone(), (of.kind, sql.clone()));
        self.columns.push(Column { name, of, sql });
        self.columns.last().unwrap()
    }

    /// A table of this number, not made yet.
    pub fn random(schema: &str, number: usize, random: &mut StdRng) -> Self {
        let name = ["t{n}", "T {n}", "täble{n}", "a.b{n}", "t__{n}", "sel\"ect{n}"].choose(random).unwrap();
        let identity = match random.random_range(0..10) {
            0..5 => Identity::Primary,
            5..7 => Identity::PrimaryFull,
            7..8 => Identity::Full,
            _ => Identity::Index,
        };
        let mut table = Self {
            schema: schema.to_owned(),
            name: name.replace("{n}", &number.to_string()),
            columns: Vec::new(),
            key: Vec::new(),
            identity,
            partitions: Vec::new(),
            kinds: HashMap::new(),
            twin: format!("twin{number}"),
            names: 0,
        };
        let keys = if identity == Identity::Full { 0 } else { random.random_range(1..=3) };
        let keyed: Vec<&Type> = TYPES.iter().filter(|of| of.keyed).collect();
        let mut chosen: Vec<(Type, bool)> =
            (0..keys).map(|_| (**keyed.choose(random).unwrap(), true)).collect();
        for _ in 0..random.random_range(1..9) {
            chosen.push((*TYPES.choose(random).unwrap(), false));
        }
        if random.random_bool(0.7) {
            chosen.push((WIDE, false));
        }
        chosen.shuffle(random);
        for (of, is_key) in chosen {
            let name = table.new_name(random);
            table.add(name.clone(), of);
            if is_key {
                table.key.push(name);
            }
        }
        table.key.shuffle(random);
        if random.random_bool(0.25) && !table.key.is_empty() && identity != Identity::Index {
            table.partitions = (0..2).map(|leaf| format!("leaf{number}_{leaf}")).collect();
        }
        table
    }

    /// SQL which makes it, and its twin.
    pub fn sql(&self, random: &mut StdRng) -> String {
        let mut sql = String::new();
        let columns: Vec<_> = self.columns.iter().map(|column| self.column_sql(column)).collect();
        let key: Vec<_> = self.key.iter().map(|name| quoted(name)).collect();
        let (name, twin, key) = (self.quoted(), self.quoted_twin(), key.join(", "));
        let whole = |sql: &mut String, table: &str| {
            if self.is_full() {
                write!(sql, "ALTER TABLE {table} REPLICA IDENTITY FULL;").unwrap();
            }
        };
        let by =
            if self.partitions.is_empty() { String::new() } else { format!("PARTITION BY HASH ({key})") };
        write!(sql, "CREATE TABLE {name} ({}) {by};", columns.join(", ")).unwrap();
        for (at, leaf) in self.partitions.iter().enumerate() {
            let leaf = format!("{}.{}", quoted(&self.schema), quoted(leaf));
            let mut shuffled = columns.clone();
            shuffled.shuffle(random);
            write!(
                sql,
                "CREATE TABLE {leaf} ({}); ALTER TABLE {name} ATTACH PARTITION {leaf} FOR VALUES WITH (MODULUS 2, REMAINDER {at});",
                shuffled.join(", ")
            )
            .unwrap();
            whole(&mut sql, &leaf);
        }
        match self.identity {
            Identity::Primary | Identity::PrimaryFull => {
                write!(sql, "ALTER TABLE {name} ADD PRIMARY KEY ({key});").unwrap();
            }
            Identity::Index => {
                let index = format!("index {}", self.name);
                write!(
                    sql,
                    "CREATE UNIQUE INDEX {0} ON {name} ({key}); ALTER TABLE {name} REPLICA IDENTITY USING INDEX {0};",
                    quoted(&index)
                )
                .unwrap();
            }
            Identity::Full => {}
        }
        whole(&mut sql, &name);
        for column in self.columns.iter().filter(|column| column.of.kind == Kind::Wide) {
            for table in self.partitions.iter().chain([&self.name]) {
                let (schema, table, column) = (quoted(&self.schema), quoted(table), quoted(&column.name));
                write!(sql, "ALTER TABLE {schema}.{table} ALTER {column} SET STORAGE EXTERNAL;").unwrap();
            }
        }
        write!(sql, "CREATE TABLE {twin} (LIKE {name} INCLUDING STORAGE);").unwrap();
        if self.key.is_empty() {
            write!(sql, "ALTER TABLE {twin} REPLICA IDENTITY FULL;").unwrap();
        } else {
            write!(sql, "ALTER TABLE {twin} ADD PRIMARY KEY ({key});").unwrap();
        }
        sql
    }

    fn column_sql(&self, column: &Column) -> String {
        let not_null = if self.key.contains(&column.name) { " NOT NULL" } else { "" };
        format!("{} {}{not_null}", quoted(&column.name), column.sql)
    }

    /// A row of new values: name and text; none for null.
    pub fn row(&self, random: &mut StdRng) -> Vec<Option<String>> {
        let value = |column: &Column| {
            let may_be_null = !self.key.contains(&column.name);
            (!may_be_null || random.random_bool(0.85)).then(|| column.of.values.pick(random))
        };
        self.columns.iter().map(value).collect()
    }

    /// Names of the columns, for SQL.
    pub fn column_list(&self) -> String {
        self.columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
    }
}
