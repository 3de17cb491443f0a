//! Tables made from a seed: types, keys, identities, names, partitions, what of them is published.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::draw::{Draw, Published};
use super::types::{TYPES, Type, Values, WIDE};
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
    /// The column that it is generated from.
    pub from: Option<String>,
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
    /// In no way, any more: rows are inserted only.
    Nothing,
}

/// What a table's records hang on, from one [`super::decoded::MARK`] to the next.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Names of the key's columns; empty without a key.
    pub key: Vec<String>,
    /// Whether whole old rows are logged.
    pub full: bool,
    /// Whether it is another table than the one before it.
    pub anew: bool,
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
    /// Those of them that are detached, with the columns' types that they were left with.
    pub detached: Vec<(String, BTreeMap<String, String>)>,
    /// Names of all partitions that it ever had.
    pub leaves: Vec<String>,
    /// Every column that it ever had: kind and type.
    pub kinds: HashMap<String, (Kind, String)>,
    /// A table of the same shape that is filled from this one once changes are captured.
    pub twin: String,
    /// The shapes that it had, the last one being that of now.
    pub shapes: Vec<Shape>,
    /// Names of the columns that are published; none: all.
    pub listed: Option<Vec<String>>,
    /// The column of the key by which rows are published: even numbers, and texts of an even length.
    pub filter: Option<String>,
    /// Whether the publication has its generated columns, and which it ever had.
    sends_generated: bool,
    /// Whether the server refuses changes of whole rows that have generated columns which are not sent.
    whole_needs_generated: bool,
    /// Whether keys are in Avro, where no NaN can stand.
    avro: bool,
    pub generated: HashSet<String>,
    /// Why a day may lack it until it is copied again.
    pub may_lack: Option<&'static str>,
    number: usize,
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
    "n_{n}_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "semi;{n}",
    "apo's{n}",
    "-{n}",
];
/// The same, once a table: every other one for each of two.
const PLAIN: &[&str] = &["ds", "op", "hour", "before", "after", "source", "user", "id", "ctid2", "__exact2"];

impl Table {
    /// `"schema"."table"`.
    pub fn quoted(&self) -> String {
        self.in_schema(&self.name)
    }

    /// The same of its twin.
    pub fn quoted_twin(&self) -> String {
        self.in_schema(&self.twin)
    }

    /// The same of another table of its schema.
    pub fn in_schema(&self, name: &str) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(name))
    }

    /// Whether whole old rows are logged.
    pub const fn is_full(&self) -> bool {
        matches!(self.identity, Identity::Full | Identity::PrimaryFull)
    }

    /// Whether whole old rows may be logged: a published table could not be changed any more otherwise.
    pub fn may_be_full(&self) -> bool {
        self.listed.is_none()
            && !(self.whole_needs_generated && self.columns.iter().any(|column| column.from.is_some()))
    }

    /// The shape of now.
    pub fn shape(&self, anew: bool) -> Shape {
        Shape { key: self.key.clone(), full: self.is_full(), anew }
    }

    /// A name for a column that it never had.
    pub fn new_name(&mut self, random: &mut StdRng) -> String {
        self.names += 1;
        let plain = PLAIN[random.random_range(0..PLAIN.len() / 2) * 2 + self.number % 2];
        if random.random_bool(0.2) && !self.kinds.contains_key(plain) {
            return plain.to_owned();
        }
        NAMES.choose(random).unwrap().replace("{n}", &format!("{}_{}", self.number, self.names))
    }

    /// Adds a column to what is known of the table.
    pub fn add(&mut self, name: String, of: Type) -> &Column {
        let sql = of.sql.replace("{s}", &quoted(&self.schema));
        self.kinds.insert(name.clone(), (of.kind, sql.clone()));
        self.columns.push(Column { name, of, sql, from: None });
        self.columns.last().unwrap()
    }

    fn empty(schema: &str, name: String, number: usize, draw: Draw) -> Self {
        Self {
            schema: schema.to_owned(),
            name,
            columns: Vec::new(),
            key: Vec::new(),
            identity: Identity::Primary,
            partitions: Vec::new(),
            detached: Vec::new(),
            leaves: Vec::new(),
            kinds: HashMap::new(),
            twin: format!("twin{number}"),
            shapes: Vec::new(),
            listed: None,
            filter: None,
            sends_generated: draw.sends_generated(),
            whole_needs_generated: draw.major >= 18 && !draw.sends_generated(),
            avro: draw.avro,
            generated: HashSet::new(),
            may_lack: None,
            number,
            names: 0,
        }
    }

    /// A table of this number, not made yet.
    pub fn random(schema: &str, number: usize, draw: Draw, random: &mut StdRng) -> Self {
        let name = ["t{n}", "T {n}", "täble{n}", "a.b{n}", "t__{n}", "sel\"ect{n}"].choose(random).unwrap();
        let mut table = Self::empty(schema, name.replace("{n}", &number.to_string()), number, draw);
        table.draw(random);
        table.publish(draw, random);
        table
    }

    /// `hub`, or `spoke` with a column that refers to it.
    pub fn of_pair(schema: &str, number: usize, name: &str, draw: Draw) -> Self {
        let mut table = Self::empty(schema, name.to_owned(), number, draw);
        let int = Type { sql: "integer", kind: Kind::Int, values: Values::Whole(4), keyed: true };
        for column in ["id", "hub"].into_iter().take(1 + usize::from(name == "spoke")) {
            table.add(column.to_owned(), int);
        }
        table.key = vec!["id".to_owned()];
        table.shapes.push(table.shape(false));
        table
    }

    /// Draws columns, key, identity and partitions, as if it were another table of its name.
    pub fn draw(&mut self, random: &mut StdRng) {
        self.identity = match random.random_range(0..22) {
            0..10 => Identity::Primary,
            10..14 => Identity::PrimaryFull,
            14..17 => Identity::Full,
            _ => Identity::Index,
        };
        (self.columns, self.key, self.partitions) = (Vec::new(), Vec::new(), Vec::new());
        self.detached.clear();
        let keys = match self.identity {
            Identity::Full => 0,
            _ => random.random_range(1..=3),
        };
        let numeric = |of: &Type| matches!(of.kind, Kind::Decimal(_) | Kind::Numeric);
        let keyed: Vec<&Type> = TYPES.iter().filter(|of| of.keyed && !(self.avro && numeric(of))).collect();
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
            let name = self.new_name(random);
            self.add(name.clone(), of);
            if is_key {
                self.key.push(name);
            }
        }
        self.key.shuffle(random);
        if random.random_bool(0.25) && !(self.is_full() && self.whole_needs_generated) {
            self.add_generated(random);
        }
        if random.random_bool(0.25) && !self.key.is_empty() && self.identity != Identity::Index {
            self.partitions = (0..2).map(|leaf| format!("leaf{}_{leaf}", self.number)).collect();
            self.leaves.clone_from(&self.partitions);
        }
        self.shapes.push(self.shape(!self.shapes.is_empty()));
    }

    /// The length of another column's text, where that is the same whatever the session's settings.
    fn add_generated(&mut self, random: &mut StdRng) {
        const FROM: &[&str] = &["integer", "bigint", "smallint", "text", "varchar(20)", "uuid"];
        let from: Vec<_> =
            self.columns.iter().filter(|c| FROM.contains(&c.of.sql) && c.of.kind != Kind::Wide).collect();
        let Some(from) = from.choose(random).map(|column| column.name.clone()) else { return };
        let name = self.new_name(random);
        self.generated.insert(name.clone());
        self.add(name, Type { sql: "integer", kind: Kind::Int, values: Values::Whole(4), keyed: false });
        self.columns.last_mut().unwrap().from = Some(from);
    }

    /// Draws a row filter and a column list.
    fn publish(&mut self, draw: Draw, random: &mut StdRng) {
        if draw.published != Published::Filtered {
            return;
        }
        if random.random_bool(0.5) {
            let of_key = self.columns.iter().filter(|column| self.key.contains(&column.name));
            let filters = |column: &&Column| ["integer", "bigint", "text"].contains(&column.of.sql);
            self.filter = of_key.filter(filters).map(|column| column.name.clone()).next();
        }
        if random.random_bool(0.4) && !self.is_full() {
            let mut names = |column: &Column| {
                (self.key.contains(&column.name) || random.random_bool(0.6)).then(|| column.name.clone())
            };
            let listed: Vec<_> =
                self.columns.iter().filter(|c| c.from.is_none()).filter_map(&mut names).collect();
            self.listed = Some(listed).filter(|listed| !listed.is_empty());
        }
    }

    /// It and its twin, for `CREATE PUBLICATION … FOR TABLE`.
    pub fn published(&self) -> String {
        let list = self.listed.iter().map(|names| {
            format!(" ({})", names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", "))
        });
        let list: String = list.collect();
        let filter = self.filter_sql().map_or_else(String::new, |filter| format!(" WHERE ({filter})"));
        format!("{}{list}{filter}, {}{list}{filter}", self.quoted(), self.quoted_twin())
    }

    /// The rows that are published.
    pub fn filter_sql(&self) -> Option<String> {
        let name = self.filter.as_ref()?;
        let is_text = self.kinds[name].0 == Kind::Printed;
        Some(if is_text {
            format!("length({}) % 2 = 0", quoted(name))
        } else {
            format!("{} % 2 = 0", quoted(name))
        })
    }

    /// Whether a row with this text in the filter's column is published.
    pub fn passes(&self, text: &str) -> bool {
        let is_text = self.filter.as_ref().is_some_and(|name| self.kinds[name].0 == Kind::Printed);
        if is_text { text.chars().count().is_multiple_of(2) } else { text.parse::<i64>().unwrap() % 2 == 0 }
    }

    /// Whether a column is published.
    pub fn carries(&self, name: &str) -> bool {
        (self.sends_generated || !self.generated.contains(name))
            && self.listed.as_ref().is_none_or(|listed| listed.iter().any(|one| one == name))
    }

    /// SQL which makes it, and its twin.
    pub fn sql(&self, random: &mut StdRng) -> String {
        let mut sql = self.sql_alone(random);
        let (name, twin, key) = (self.quoted(), self.quoted_twin(), self.key_list());
        write!(sql, "CREATE TABLE {twin} (LIKE {name} INCLUDING STORAGE INCLUDING GENERATED);").unwrap();
        if self.key.is_empty() {
            write!(sql, "ALTER TABLE {twin} REPLICA IDENTITY FULL;").unwrap();
        } else {
            write!(sql, "ALTER TABLE {twin} ADD PRIMARY KEY ({key});").unwrap();
        }
        sql
    }

    /// SQL which makes it.
    pub fn sql_alone(&self, random: &mut StdRng) -> String {
        let mut sql = String::new();
        let columns: Vec<_> = self.columns.iter().map(|column| self.column_sql(column)).collect();
        let (name, key) = (self.quoted(), self.key_list());
        let by =
            if self.partitions.is_empty() { String::new() } else { format!("PARTITION BY HASH ({key})") };
        write!(sql, "CREATE TABLE {name} ({}) {by};", columns.join(", ")).unwrap();
        for leaf in &self.partitions {
            let mut shuffled = columns.clone();
            shuffled.shuffle(random);
            let place = self.attach_sql(leaf);
            write!(sql, "CREATE TABLE {} ({}); {place};", self.in_schema(leaf), shuffled.join(", ")).unwrap();
        }
        match self.identity {
            Identity::Primary | Identity::PrimaryFull => {
                write!(sql, "ALTER TABLE {name} ADD PRIMARY KEY ({key});").unwrap();
            }
            Identity::Index => {
                let index = quoted(&format!("index {} {}", self.name, self.shapes.len()));
                write!(
                    sql,
                    "CREATE UNIQUE INDEX {index} ON {name} ({key}); ALTER TABLE {name} REPLICA IDENTITY USING INDEX {index};"
                )
                .unwrap();
            }
            Identity::Full | Identity::Nothing => {}
        }
        if self.is_full() {
            sql += &self.identity_sql();
        }
        for column in self.columns.iter().filter(|column| column.of.kind == Kind::Wide) {
            for table in self.partitions.iter().chain([&self.name]) {
                let column = quoted(&column.name);
                write!(sql, "ALTER TABLE {} ALTER {column} SET STORAGE EXTERNAL;", self.in_schema(table))
                    .unwrap();
            }
        }
        sql
    }

    /// SQL which gives it and its partitions FULL, NOTHING or the default.
    pub fn identity_sql(&self) -> String {
        let identity = match self.identity {
            Identity::Full | Identity::PrimaryFull => "FULL",
            Identity::Nothing => "NOTHING",
            Identity::Primary | Identity::Index => "DEFAULT",
        };
        let all = self.partitions.iter().chain([&self.name]);
        let each =
            |name: &String| format!("ALTER TABLE {} REPLICA IDENTITY {identity};", self.in_schema(name));
        all.map(each).collect::<Vec<_>>().concat()
    }

    /// SQL which makes a table its partition.
    pub fn attach_sql(&self, leaf: &str) -> String {
        let at = self.partitions.iter().position(|name| name == leaf).unwrap();
        format!(
            "ALTER TABLE {} ATTACH PARTITION {} FOR VALUES WITH (MODULUS 2, REMAINDER {at})",
            self.quoted(),
            self.in_schema(leaf)
        )
    }

    fn key_list(&self) -> String {
        self.key.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
    }

    fn column_sql(&self, column: &Column) -> String {
        let not_null = if self.key.contains(&column.name) { " NOT NULL" } else { "" };
        let generated = column.from.as_ref().map_or_else(String::new, |from| {
            format!(" GENERATED ALWAYS AS (length({}::text)) STORED", quoted(from))
        });
        format!("{} {}{not_null}{generated}", quoted(&column.name), column.sql)
    }

    /// The columns that take values.
    pub fn written(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.from.is_none())
    }

    /// A row of new values for these; none for null.
    pub fn row(&self, random: &mut StdRng) -> Vec<Option<String>> {
        let value = |column: &Column| {
            let may_be_null = !self.key.contains(&column.name);
            (!may_be_null || random.random_bool(0.85)).then(|| column.of.values.pick(random))
        };
        self.written().map(value).collect()
    }

    /// Their names, for SQL.
    pub fn column_list(&self) -> String {
        self.written().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
    }
}
