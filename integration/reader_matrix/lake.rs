//! One database, delivered in each format, and what Postgres itself has in it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use futures::SinkExt as _;
use serde_json::{Map, Value, json};
use tidemark::change::ColumnType;
use tidemark::lake::Manifest;
use tokio_postgres::Client;

use super::known::KNOWN;
use crate::support::days::{days, use_rule};
use crate::support::lake::{postgres, python};
use crate::support::{Connector, Postgres};
use crate::types::cases::{CASES, SETUP};

#[path = "filters.rs"]
mod filters;

pub const FORMATS: [&str; 3] = ["parquet", "orc", "csv"];
/// Values with line breaks have a table of their own: some readers of CSV take the lines apart.
pub const TABLES: [&str; 2] = ["every_value", "lines"];

/// A column: what is in it, and its texts in Postgres.
struct Expected {
    /// Type and expression, as `numeric(12,2) 'NaN'`; arrays end with `[]`.
    what: String,
    values: Vec<Value>,
}

pub struct Lakes {
    server: Postgres,
    connectors: Vec<Connector>,
    ds: String,
    /// By table and column.
    expected: BTreeMap<&'static str, BTreeMap<String, Expected>>,
    manifests: BTreeMap<(&'static str, &'static str), Manifest>,
    /// Ids that filters find.
    filtered: Value,
}

fn run(mut command: Command, input: &str) -> Vec<u8> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let _ = writing.join();
    let errors = String::from_utf8_lossy(&output.stderr);
    let last: String = errors.chars().skip(errors.chars().count().saturating_sub(3000)).collect();
    assert!(output.status.success(), "{command:?}: {last}");
    output.stdout
}

/// What `read.py` prints.
pub fn seen_by(arguments: &[&str], request: &Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/reader_matrix/read.py");
    let mut command = Command::new(python());
    command.arg(script).args(arguments);
    serde_json::from_slice(&run(command, &request.to_string())).unwrap()
}

/// What Spark sees of each request.
pub fn spark(requests: &[Value]) -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let libs = root.join(".spark/libs");
    assert!(libs.exists(), "{} is missing: run `scripts/fetch-spark` (or `make spark`)", libs.display());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), Value::from(requests).to_string()).unwrap();
    let mut command = Command::new("java");
    command.args([
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-Xmx1500m",
        "-XX:+IgnoreUnrecognizedVMOptions",
    ]);
    for package in [
        "java.lang",
        "java.lang.invoke",
        "java.lang.reflect",
        "java.io",
        "java.net",
        "java.nio",
        "java.util",
        "java.util.concurrent",
        "java.util.concurrent.atomic",
        "sun.nio.ch",
        "sun.nio.cs",
        "sun.security.action",
        "sun.util.calendar",
    ] {
        command.arg(format!("--add-opens=java.base/{package}=ALL-UNNAMED"));
    }
    command
        .arg("-cp")
        .arg(libs.join("*"))
        .arg(root.join("integration/reader_matrix/Spark.java"))
        .arg(file.path());
    let output = String::from_utf8(run(command, "")).unwrap();
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Makes the tables. Gives what is in each column.
async fn make_tables(client: &Client) -> BTreeMap<String, String> {
    let mut columns: BTreeMap<&'static str, Vec<(String, String)>> = BTreeMap::new();
    let mut whats = BTreeMap::new();
    for (number, case) in CASES.iter().enumerate() {
        for (index, expression) in case.values.iter().enumerate() {
            let table = TABLES[usize::from(expression.contains("\\n"))];
            let list = columns.entry(table).or_default();
            whats.insert(format!("v{number}_{index}"), format!("{} {expression}", case.name));
            list.push((format!("v{number}_{index} {}", case.name), format!("({expression})::{}", case.name)));
            if case.array {
                whats.insert(format!("a{number}_{index}"), format!("{} {expression} []", case.name));
                list.push((
                    format!("a{number}_{index} {}[]", case.name),
                    format!("ARRAY[({expression})::{}, NULL]", case.name),
                ));
            }
        }
    }
    for (index, text) in ["E'a\\r\\nb'", "E'\\n'", "E'\"\\n\"'", "E'x,\"\\n'"].iter().enumerate() {
        let list = columns.entry("lines").or_default();
        whats.insert(format!("t{index}"), format!("text {text}"));
        list.push((format!("t{index} text"), (*text).to_owned()));
    }
    for (table, list) in &columns {
        let (fields, values): (Vec<_>, Vec<_>) = list.iter().cloned().unzip();
        client
            .batch_execute(&format!("CREATE TABLE {table} (id int PRIMARY KEY, {})", fields.join(", ")))
            .await
            .unwrap();
        // A row of values, one of nulls and empty lists, one of values again.
        let nothing: Vec<_> = fields
            .iter()
            .zip(&values)
            .map(|(field, value)| match field {
                field if field.ends_with("[]") => "'{}'",
                field if field.ends_with("net_price") => value,
                _ => "NULL",
            })
            .collect();
        for (id, values) in [(1, values.join(", ")), (2, nothing.join(", ")), (10, values.join(", "))] {
            client.batch_execute(&format!("INSERT INTO {table} VALUES ({id}, {values})")).await.unwrap();
        }
    }
    whats
}

impl Lakes {
    pub async fn of_every_value() -> Self {
        let server = Postgres::start().await;
        let client = server.connect().await;
        client
            .batch_execute(
                "SET timezone = 'UTC'; SET intervalstyle = 'iso_8601'; SET extra_float_digits = 3; \
                 CREATE PUBLICATION every_value FOR ALL TABLES",
            )
            .await
            .unwrap();
        client.batch_execute(SETUP).await.unwrap();
        let whats = make_tables(&client).await;
        client.batch_execute(filters::TABLE).await.unwrap();
        let [ds, ..] = days(&client).await;
        let mut lakes = Self {
            server,
            connectors: Vec::new(),
            ds,
            expected: BTreeMap::new(),
            manifests: BTreeMap::new(),
            filtered: json!({}),
        };
        for format in FORMATS {
            let mut connector = Connector::new(&lakes.server.url())
                .set("source", "slot", format!("tidemark_{format}"))
                .set("source", "publication", "every_value")
                .set("lake", "format", format);
            use_rule(&mut connector, 0);
            let mut running = connector.start_ready("run").await;
            running.cut(&lakes.ds);
            connector.wait_published(&lakes.ds).await;
            assert!(running.terminate().await.success(), "{}", running.output());
            for table in TABLES.into_iter().chain(["filtered"]) {
                let path = connector.snapshot(table, &lakes.ds).join("_manifest.json");
                let manifest = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
                lakes.manifests.insert((format, table), manifest);
            }
            lakes.connectors.push(connector);
        }
        lakes.ask(&client, &whats).await;
        lakes
    }

    /// What Postgres has in the tables, and finds by the filters.
    async fn ask(&mut self, client: &Client, whats: &BTreeMap<String, String>) {
        for table in TABLES {
            let mut expected = BTreeMap::new();
            let manifest = &self.manifests[&("parquet", table)];
            let columns = &manifest.schema.columns;
            let texts: Vec<_> = columns.iter().map(|c| in_postgres(&c.column_type, &c.name)).collect();
            let rows =
                postgres(client, &format!("SELECT {} FROM {table} ORDER BY id", texts.join(", "))).await;
            for (index, column) in columns.iter().enumerate() {
                let array = matches!(column.column_type, ColumnType::Array { .. });
                let shown = |text: &Option<String>| match text {
                    Some(text) if array => serde_json::from_str(text).unwrap(),
                    Some(text) => json!(text),
                    None => Value::Null,
                };
                let values = rows.iter().map(|row| shown(&row[index])).collect();
                let what = whats.get(&column.name).cloned().unwrap_or_else(|| "integer id".to_owned());
                expected.insert(column.name.clone(), Expected { what, values });
            }
            self.expected.insert(table, expected);
        }
        for filter in filters::FILTERS {
            let rows = postgres(client, &format!("SELECT id FROM filtered WHERE {filter} ORDER BY id")).await;
            assert!((1..10_000).contains(&rows.len()), "{filter}: {} rows", rows.len());
            let ids: Vec<i64> = rows.iter().map(|row| row[0].as_ref().unwrap().parse().unwrap()).collect();
            self.filtered[*filter] = json!(ids);
        }
    }

    fn columns(&self, format: &str, table: &str) -> Vec<Value> {
        let (_, manifest) =
            self.manifests.iter().find(|(key, _)| **key == (format, table)).expect("a manifest");
        let mut columns: Vec<_> =
            manifest.schema.columns.iter().map(|c| json!([c.name, kind(&c.column_type)])).collect();
        if manifest.exact.is_some() {
            columns.push(json!(["__exact", "text"]));
        }
        columns
    }

    /// The folder above a format's lake.
    #[allow(dead_code, reason = "Trino's tables are below it")]
    pub fn root(&self, format: &str) -> &Path {
        self.connectors[FORMATS.iter().position(|one| *one == format).unwrap()].folder()
    }

    /// What a reader is asked for.
    pub fn request(&self, format: &str, table: &str) -> Value {
        let connector = &self.connectors[FORMATS.iter().position(|one| *one == format).unwrap()];
        json!({"format": format, "folder": connector.snapshot(table, &self.ds), "columns": self.columns(format, table)})
    }

    /// What a reader is asked for of the filters.
    pub fn filters(&self, format: &str) -> Value {
        let mut request = self.request(format, "filtered");
        request["filters"] = json!(filters::FILTERS);
        request
    }

    /// What a reader finds by the filters is what Postgres does.
    pub fn assert_filtered(&self, reader: &str, format: &str, found: &Value) {
        let wrong = self.filtered.as_object().unwrap().iter().filter(|(filter, right)| {
            let found = &found[filter.as_str()];
            // Not everything can be said in pyarrow's filters.
            found != *right && !(reader == "pyarrow" && found.is_null())
        });
        let wrong: Vec<_> =
            wrong.map(|(filter, right)| format!("{filter}: {}, not {right}", found[filter])).collect();
        assert!(wrong.is_empty(), "{reader}, {format}: {}", wrong.join("\n"));
    }

    /// Postgres takes a table's file of CSV for the rows that it was made of.
    #[allow(dead_code, reason = "asked in one of the two")]
    pub async fn assert_copied_back(&self, table: &str) {
        let client = self.server.connect().await;
        client.batch_execute("SET timezone = 'UTC'; SET intervalstyle = 'iso_8601'").await.unwrap();
        let manifest = &self.manifests[&("csv", table)];
        let types = format!(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute \
             WHERE attrelid = '{table}'::regclass AND attnum > 0"
        );
        let types: BTreeMap<String, String> = postgres(&client, &types)
            .await
            .into_iter()
            .map(|row| (row[0].clone().unwrap(), row[1].clone().unwrap()))
            .collect();
        // A list is JSON, and years before 1 are numbered as ISO 8601 has it.
        let is_text = |name: &str| self.expected[table][name].what.contains(" BC'");
        let mut fields = Vec::new();
        for column in &manifest.schema.columns {
            let list = matches!(column.column_type, ColumnType::Array { .. });
            let plain = list || is_text(&column.name);
            // What its type cannot hold is null in the file.
            let of_type = match types[&column.name].as_str() {
                "net_price" => "price",
                other => other,
            };
            fields.push(format!("{} {}", column.name, if plain { "text" } else { of_type }));
        }
        fields.extend(manifest.exact.is_some().then(|| "__exact json".to_owned()));
        client.batch_execute(&format!("CREATE TABLE back_{table} ({})", fields.join(", "))).await.unwrap();
        let day = self.connectors[2].snapshot(table, &self.ds);
        let mut copied = 0;
        for file in std::fs::read_dir(day).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_none_or(|end| end != "gz") {
                continue;
            }
            let mut text = String::new();
            flate2::read::MultiGzDecoder::new(std::fs::File::open(file).unwrap())
                .read_to_string(&mut text)
                .unwrap();
            let sink = client
                .copy_in::<_, Bytes>(&format!("COPY back_{table} FROM STDIN (FORMAT csv, HEADER)"))
                .await;
            let mut sink = std::pin::pin!(sink.unwrap());
            sink.send(Bytes::from(text)).await.unwrap();
            copied += sink.finish().await.unwrap();
        }
        assert_eq!(copied, 3, "{table}");
        for column in manifest.schema.columns.iter().filter(|column| !is_text(&column.name)) {
            let (name, of_type) = (&column.name, &types[&column.name]);
            let back = match column.column_type {
                ColumnType::Array { .. } => format!(
                    "CASE WHEN b.{name} IS NOT NULL THEN (SELECT coalesce(array_agg(x ORDER BY o), '{{}}') \
                     FROM json_array_elements_text(b.{name}::json) WITH ORDINALITY t(x, o))::text[]::{of_type} END"
                ),
                _ => format!("b.{name}"),
            };
            let beside = if manifest.exact.is_some() {
                format!("b.__exact->'{name}' IS NULL AND")
            } else {
                String::new()
            };
            let sql = format!(
                "SELECT e.id, e.{name}::text, b.{name}::text FROM {table} e JOIN back_{table} b USING (id) WHERE {beside} \
                 (num_nonnulls(e.{name}) <> num_nonnulls(b.{name}) OR format('%s', e.{name}) <> format('%s', {back}))"
            );
            let differ = postgres(&client, &sql).await;
            assert!(differ.is_empty(), "{}: {differ:?}", self.expected[table][name].what);
        }
    }

    /// Texts of CSV as values.
    fn of_texts(&self, table: &str, seen: &Value) -> Value {
        seen_by(&["texts"], &json!({"columns": self.columns("csv", table), "texts": seen}))
    }

    /// A reader sees in a table what Postgres has in it, but for what is known of it. Gives what of that was met.
    pub fn compare(&self, reader: &str, format: &str, table: &str, seen: &Value) -> Vec<&'static str> {
        let ours: Vec<_> =
            KNOWN.iter().filter(|known| known.reader == reader && known.format == format).collect();
        let seen = if format == "csv" { self.of_texts(table, seen) } else { seen.clone() };
        let mut met = Vec::new();
        for (what, found, right) in self.differences(table, &seen) {
            let known = ours.iter().find(|known| (known.is)(&what, &found, &right));
            let known =
                known.unwrap_or_else(|| panic!("{reader} sees in {format}, {what}: {found}, not {right}"));
            met.push(known.told);
        }
        met
    }

    /// Columns whose values are not Postgres's: what they hold, what was seen and what is right.
    fn differences(&self, table: &str, seen: &Value) -> Vec<(String, Value, Value)> {
        if seen["error"].is_string() {
            return vec![("everything".to_owned(), seen.clone(), Value::Null)];
        }
        // Values that a column's type does not have are null in it, and stand in another column.
        let beside: Vec<Map<String, Value>> = seen["__exact"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|text| text.as_str().map(|text| serde_json::from_str(text).unwrap()).unwrap_or_default())
            .collect();
        let mut differences = Vec::new();
        for (name, Expected { what, values }) in &self.expected[table] {
            let is_beside = |row: usize| beside.get(row).is_some_and(|values| values.contains_key(name));
            let rows = values.iter().enumerate();
            let right: Value =
                rows.map(|(row, value)| if is_beside(row) { Value::Null } else { value.clone() }).collect();
            if seen[name] != right {
                differences.push((what.clone(), seen[name].clone(), right));
            }
        }
        differences
    }
}

/// Every known difference of the readers is one that was met, and the documents tell of it.
pub fn assert_all_met(readers: &[&str], met: &[&str]) {
    let text = include_str!("../../docs/readers.md").split_whitespace().collect::<Vec<_>>().join(" ");
    for known in KNOWN.iter().filter(|known| readers.contains(&known.reader)) {
        assert!(
            met.contains(&known.told),
            "was not met: {} of {} in {}",
            known.told,
            known.reader,
            known.format
        );
        assert!(text.contains(known.told), "is not in docs/readers.md: {}", known.told);
    }
}

/// See `read.py`.
fn kind(column_type: &ColumnType) -> String {
    match column_type {
        ColumnType::Bool => "bool".to_owned(),
        ColumnType::Int16 => "int 2".to_owned(),
        ColumnType::Int32 => "int 4".to_owned(),
        ColumnType::Int64 => "int 8".to_owned(),
        ColumnType::Float32 => "real".to_owned(),
        ColumnType::Float64 => "double".to_owned(),
        ColumnType::Decimal { precision, scale } if *precision <= 38 => {
            format!("decimal {precision} {scale}")
        }
        ColumnType::Bytes => "bytes".to_owned(),
        ColumnType::Date => "date".to_owned(),
        ColumnType::Time { .. } => "time".to_owned(),
        ColumnType::Timestamp { .. } => "local".to_owned(),
        ColumnType::TimestampTz { .. } => "instant".to_owned(),
        ColumnType::Array { element } => format!("list {}", kind(element)),
        _ => "text".to_owned(),
    }
}

/// A value of Postgres as `read.py` prints it.
fn in_postgres(column_type: &ColumnType, x: &str) -> String {
    let ends = |number: String, last: i64| {
        format!(
            "CASE WHEN isfinite({x}) THEN ({number})::text WHEN {x} = 'infinity' THEN '{last}' \
             WHEN {x} = '-infinity' THEN '-{last}' END"
        )
    };
    match column_type {
        ColumnType::Bool => format!("CASE WHEN {x} THEN 'true' WHEN NOT {x} THEN 'false' END"),
        ColumnType::Float32 => {
            format!("CASE WHEN {x} = 'NaN' THEN 'nan' ELSE encode(float4send({x}), 'hex') END")
        }
        ColumnType::Float64 => {
            format!("CASE WHEN {x} = 'NaN' THEN 'nan' ELSE encode(float8send({x}), 'hex') END")
        }
        ColumnType::Bytes => format!("encode({x}, 'hex')"),
        ColumnType::Date => ends(format!("{x} - DATE '1970-01-01'"), i64::from(i32::MAX)),
        ColumnType::Time { .. } => format!("trunc(extract(epoch FROM {x}) * 1000000)::text"),
        ColumnType::Timestamp { .. } | ColumnType::TimestampTz { .. } => {
            ends(format!("trunc(extract(epoch FROM {x}) * 1000000)"), i64::MAX)
        }
        ColumnType::Array { element } => format!(
            "CASE WHEN {x} IS NOT NULL THEN (SELECT coalesce(json_agg({} ORDER BY o), '[]')::text \
             FROM (SELECT o, ({x})[o] AS x FROM generate_subscripts({x}, 1) o) u) END",
            in_postgres(element, "x")
        ),
        // A cast to text would take the blanks off a `character(n)`.
        _ => format!("CASE WHEN num_nonnulls({x}) = 1 THEN format('%s', {x}) END"),
    }
}
