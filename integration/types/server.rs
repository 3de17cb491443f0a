//! Every value through the program: copied and streamed, into the log and into the lake, beside Postgres's own text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};
use tidemark::change::{Column, ColumnType};
use tidemark::lake::Manifest;
use tidemark::postgres::catalog;
use tidemark::postgres::wire::{self, ConnectOptions, Session, quote_literal};
use tokio_postgres::Client;

use super::cases::{CASES, Case, SETUP};
use crate::support::lake::{Rows, duckdb, postgres, value};
use crate::support::{Connector, Postgres};

/// Added to the ids of rows that are streamed.
const STREAMED: i64 = 1000;

/// Tables `c0`, `c1`, …, one for each case: a value, and an array.
pub async fn make_tables(client: &Client) {
    client.batch_execute(SETUP).await.unwrap();
    for (number, case) in CASES.iter().enumerate() {
        let sql = format!("CREATE TABLE c{number} (id int PRIMARY KEY, v {0}, a {0}[])", case.name);
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

/// Puts all values of a case in: each with an array of one dimension, an empty one, one of two dimensions, and one which
/// begins at 0.
async fn insert(client: &Client, number: usize, case: &Case, first: i64) {
    for (index, expression) in case.values.iter().enumerate() {
        let arrays = if case.array {
            format!(
                "CASE s WHEN 0 THEN ARRAY[v, NULL] WHEN 1 THEN '{{}}' WHEN 2 THEN ARRAY[ARRAY[v, v], ARRAY[v, v]] \
                 ELSE ('[0:0]=' || ARRAY[v]::text)::{}[] END",
                case.name
            )
        } else {
            "NULL".to_owned()
        };
        let sql = format!(
            "INSERT INTO c{number} SELECT {} + s, v, {arrays} FROM (SELECT ({expression})::{} AS v) x, \
             generate_series(0, 3) s",
            first + 4 * index as i64,
            case.name
        );
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_arrives_as_it_is_whether_copied_or_streamed() {
    let server = Postgres::start().await;
    let client = server.connect().await;
    client
        .batch_execute(
            "SET timezone = 'UTC'; SET intervalstyle = 'iso_8601'; SET extra_float_digits = 3; \
             CREATE PUBLICATION tidemark_shop FOR ALL TABLES",
        )
        .await
        .unwrap();
    make_tables(&client).await;
    for (number, case) in CASES.iter().enumerate() {
        insert(&client, number, case, 0).await;
    }
    let connector = Connector::new(&server.url());
    let running = connector.start_ready("run").await;
    for (number, case) in CASES.iter().enumerate() {
        insert(&client, number, case, STREAMED).await;
    }
    for (number, case) in CASES.iter().enumerate() {
        let rows = 4 * case.values.len();
        connector.wait_for_records(&format!("c{number}"), 2 * rows as u64).await;
        same_in_the_log(&connector, number, case).await;
    }
    let ds = value(&client, "SELECT (now() AT TIME ZONE 'UTC')::date").await;
    running.cut(&ds);
    connector.wait_published(&ds).await;
    let manifests: Vec<Manifest> = (0..CASES.len())
        .map(|number| {
            let path = connector.snapshot(&format!("c{number}"), &ds).join("_manifest.json");
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        })
        .collect();
    let (found, expected) = (in_duckdb(&connector, &ds, &manifests), in_postgres(&client, &manifests).await);
    assert_eq!(found.len(), expected.len(), "rows");
    for (found, expected) in found.iter().zip(&expected) {
        let number: usize = expected[0].as_ref().unwrap().parse().unwrap();
        assert_eq!(manifests[number].changes.dead_letters, 0, "{}", CASES[number].name);
        same_in_the_lake(&client, number, &manifests[number], found, expected).await;
    }
}

/// A streamed row and a copied one hold the same JSON.
async fn same_in_the_log(connector: &Connector, number: usize, case: &Case) {
    let mut rows = BTreeMap::new();
    for record in connector.table_records(&format!("c{number}")).await {
        let mut after = record.value["after"].as_object().expect("a row").clone();
        let id = after.shift_remove("id").unwrap().as_i64().unwrap();
        rows.insert(id, (record.value["op"].clone(), after));
    }
    for id in 0..4 * case.values.len() as i64 {
        let [(read, copied), (created, streamed)] = [&rows[&id], &rows[&(id + STREAMED)]];
        assert_eq!((read, created), (&Json::from("r"), &Json::from("c")));
        assert_eq!(copied, streamed, "{} {}", case.name, case.values[id as usize / 4]);
    }
    assert_eq!(rows.len(), 8 * case.values.len(), "{}", case.name);
}

/// A value as Postgres prints it: a cast to text takes the blanks off a `character(n)`.
fn printed(x: &str) -> String {
    format!("CASE WHEN num_nonnulls({x}) = 1 THEN format('%s', {x}) END")
}

/// A value as a text that both print alike.
fn alike(column_type: &ColumnType, x: &str, in_postgres: bool) -> String {
    let text = if in_postgres { printed(x) } else { format!("CAST({x} AS VARCHAR)") };
    let finite = |number: String| {
        let number =
            if in_postgres { format!("({number})::text") } else { format!("CAST({number} AS VARCHAR)") };
        format!("CASE WHEN isfinite({x}) THEN {number} ELSE {text} END")
    };
    match column_type {
        ColumnType::Bool => format!("CASE WHEN {x} THEN 'true' WHEN NOT {x} THEN 'false' END"),
        ColumnType::Bytes if in_postgres => format!("upper(encode({x}, 'hex'))"),
        ColumnType::Bytes => format!("hex({x})"),
        ColumnType::Date => finite(format!("{x} - DATE '1970-01-01'")),
        ColumnType::Timestamp { .. } | ColumnType::TimestampTz { .. } if in_postgres => {
            finite(format!("trunc(extract(epoch FROM {x}) * 1000000)"))
        }
        ColumnType::Timestamp { .. } | ColumnType::TimestampTz { .. } => finite(format!("epoch_us({x})")),
        _ => text,
    }
}

/// A column as a text that both print alike; a list as JSON of such texts.
fn cell(column_type: &ColumnType, name: &str, in_postgres: bool) -> String {
    match column_type {
        ColumnType::Array { element } if in_postgres => {
            let item = alike(element, "x", true);
            format!(
                "CASE WHEN {name} IS NOT NULL THEN (SELECT coalesce(json_agg({item} ORDER BY o), '[]')::text \
                 FROM (SELECT o, {name}[o] AS x FROM generate_subscripts({name}, 1) o) u) END"
            )
        }
        ColumnType::Array { element } => {
            let item = alike(element, "x", false);
            format!("CAST(to_json(list_transform({name}, lambda x: {item})) AS VARCHAR)")
        }
        other => alike(other, name, in_postgres),
    }
}

/// Number of the table, id, value and array in a form that both print alike, text of both, texts beside them.
fn query(number: usize, manifest: &Manifest, in_postgres: bool) -> String {
    let types = |name: &str| {
        let column = manifest.schema.columns.iter().find(|column| column.name == name).unwrap();
        column.column_type.clone()
    };
    let [v, a] = ["v", "a"].map(|name| cell(&types(name), name, in_postgres));
    let rest = match (in_postgres, &manifest.exact) {
        (true, _) => format!("format('%s', v), {} FROM c{number}", printed("a")),
        (false, Some(_)) => format!("__exact, NULL FROM {{c{number}}}"),
        (false, None) => format!("NULL, NULL FROM {{c{number}}}"),
    };
    format!("SELECT {number} AS number, id, {v}, {a}, {rest}")
}

fn in_duckdb(connector: &Connector, ds: &str, manifests: &[Manifest]) -> Rows {
    let mut sql = String::new();
    for (number, manifest) in manifests.iter().enumerate() {
        let union = if number > 0 { " UNION ALL " } else { "" };
        write!(sql, "{union}{}", query(number, manifest, false)).unwrap();
    }
    duckdb(connector, ds, &format!("SELECT * FROM ({sql}) ORDER BY number, id"))
}

async fn in_postgres(client: &Client, manifests: &[Manifest]) -> Rows {
    let mut rows = Vec::new();
    for (number, manifest) in manifests.iter().enumerate() {
        rows.extend(postgres(client, &format!("{} ORDER BY id", query(number, manifest, true))).await);
    }
    rows
}

/// A text of a float as its bits; others as they are.
fn bits(column_type: &ColumnType, text: Option<&str>) -> Option<String> {
    let text = text?;
    let number = match column_type {
        ColumnType::Float32 => text.parse::<f32>().ok().map(f64::from),
        ColumnType::Float64 => text.parse::<f64>().ok(),
        _ => None,
    };
    Some(number.map_or_else(|| text.to_owned(), |number| format!("{:x}", number.to_bits() & !(1 << 51))))
}

/// The items of a list.
fn items(element: &ColumnType, list: Option<&String>) -> Option<Vec<Option<String>>> {
    let list: Vec<Option<String>> = serde_json::from_str(list?).unwrap();
    Some(list.iter().map(|item| bits(element, item.as_deref())).collect())
}

async fn same_in_the_lake(
    client: &Client,
    number: usize,
    manifest: &Manifest,
    found: &[Option<String>],
    expected: &[Option<String>],
) {
    let what = format!("{} id {}", CASES[number].name, expected[1].as_ref().unwrap());
    let column =
        |name: &str| manifest.schema.columns.iter().find(|c| c.name == name).unwrap().column_type.clone();
    let beside: Map<String, Json> =
        found[4].as_ref().map(|text| serde_json::from_str(text).unwrap()).unwrap_or_default();
    let (v_text, a_text) = (expected[4].as_deref().unwrap(), expected[5].as_deref());
    match (beside.get("v"), column("v")) {
        (Some(Json::Array(list)), _) => {
            assert_eq!((json!(list), v_text), (json!([["a"], ["b"]]), "{{a},{b}}"), "the one case of it");
        }
        (Some(text), ColumnType::Array { .. }) => assert_eq!(text, v_text, "{what}"),
        (Some(text), _) => {
            assert_eq!(found[2], None, "{what} stands beside its text");
            // Files always have six digits after the seconds.
            let taken = taken_back(client, number, text.as_str().unwrap()).await;
            assert_eq!(taken, v_text, "{what}: {text}");
        }
        (None, ColumnType::Array { element }) => {
            assert_eq!(items(&element, found[2].as_ref()), items(&element, expected[2].as_ref()), "{what}");
        }
        (None, plain) => {
            assert_eq!(bits(&plain, found[2].as_deref()), bits(&plain, expected[2].as_deref()), "{what}");
        }
    }
    let ColumnType::Array { element } = column("a") else {
        assert_eq!(found[3], expected[3], "array of {what}");
        return;
    };
    let Some(text) = beside.get("a") else {
        assert!(
            !a_text.unwrap_or_default().starts_with(['[']) && !a_text.unwrap_or_default().starts_with("{{")
        );
        return assert_eq!(
            items(&element, found[3].as_ref()),
            items(&element, expected[3].as_ref()),
            "array of {what}"
        );
    };
    assert_eq!(found[3], None, "the array of {what} stands beside its text");
    match text {
        // With its bounds.
        Json::String(text) => assert_eq!(Some(text.as_str()), a_text, "array of {what}"),
        list => {
            // Each value is one of Postgres's, which takes it back: 1 BC is year 0 to ISO 8601, but not to Postgres.
            for item in list.as_array().unwrap().iter().flat_map(|row| match row {
                Json::Array(row) => row.clone(),
                one => vec![one.clone()],
            }) {
                let item = match item {
                    Json::Null => continue,
                    Json::String(text) => text,
                    other => other.to_string(),
                };
                if v_text.ends_with(" BC") {
                    continue;
                }
                let taken = taken_back(client, number, &item).await;
                assert_eq!(taken, v_text, "array of {what}: {item}");
            }
            let nested = list.as_array().unwrap().iter().filter(|row| row.is_array()).count();
            let two_dimensions = a_text.unwrap().starts_with("{{");
            assert_eq!(nested, if two_dimensions { 2 } else { 0 }, "array of {what}");
        }
    }
}

/// What Postgres prints of a text of the type.
async fn taken_back(client: &Client, number: usize, text: &str) -> String {
    let sql = format!("SELECT format('%s', ({})::{})", quote_literal(text), CASES[number].name);
    value(client, &sql).await
}

/// A case as the server and the catalog tell it.
pub struct Example {
    /// The column of the type.
    pub value: Column,
    /// The first value's text.
    pub text: String,
    /// The column of arrays.
    pub array: Column,
    /// The text of an array of the first value and null.
    pub array_text: String,
    /// The texts of the other values.
    pub others: Vec<String>,
}

/// What the table in the documents is made of.
pub async fn examples() -> Vec<Example> {
    let server = Postgres::start().await;
    let client = server.connect().await;
    make_tables(&client).await;
    let options = ConnectOptions::parse(&server.url(), &|_| None).unwrap();
    let mut session = wire::Client::connect(&options, Session::Sql).await.unwrap();
    session.query("SET search_path = public, pg_catalog").await.unwrap();
    let mut examples = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let oid = value(&client, &format!("SELECT 'c{number}'::regclass::oid")).await.parse().unwrap();
        let schema = catalog::load_table(&mut session, oid).await.unwrap().unwrap();
        let mut texts = Vec::new();
        for expression in case.values {
            let sql = format!("SELECT ({expression})::{}", case.name);
            texts.push(session.query_one(&sql).await.unwrap().get(0).unwrap().to_owned());
        }
        let array_text = if case.array {
            let sql = format!("SELECT ARRAY[({})::{}, NULL]", case.values[0], case.name);
            session.query_one(&sql).await.unwrap().get(0).unwrap().to_owned()
        } else {
            String::new()
        };
        let text = texts.remove(0);
        let [_, value, array] = <[Column; 3]>::try_from(schema.columns).unwrap();
        examples.push(Example { value, text, array, array_text, others: texts });
    }
    examples
}
