//! `docs/types.md`: how each type is mapped, as the program does it.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value as Json;
use tidemark::batch::{
    Compression, FileWriter, Format, RowBuilder, WriterOptions, arrow_schema, as_text, exact_schema,
    may_exceed,
};
use tidemark::change::{
    Column, ColumnType, Lsn, Op, Position, ReplicaIdentity, SchemaVersion, TableName, TableSchema, Value,
};
use tidemark::envelope::{self, DecimalHandling, Options, RowChange, SourceInfo, TableEncoder};
use tidemark::log::TopicRecords;

use super::cases::CASES;
use super::server::examples;

const HEAD: &str = "\
# Types

How each type of Postgres stands in the log and in the lake. This table is generated: what it says is what the program
does (`cargo test --test integration types::`, which also compares values of each type with Postgres's own text).

Text is Postgres's own, as a session with `DateStyle = ISO`, `IntervalStyle = iso_8601`, `bytea_output = hex` and
`TimeZone = UTC` prints it. Copied and streamed rows are the same in every byte. Nothing is rounded, cut or replaced; there
are no options that lose anything.

* **beyond**: single values that the column's type in a file cannot hold. There the column is null, and the file has one
  more column, `__exact`, an object of JSON: `{\"price\":\"NaN\",\"grid\":[[1,2],[3,4]],\"first\":\"[0:1]={a,b}\"}`. A file
  without such values does not have it; the table's manifest says so, and how many there are (`exact`). In DuckDB:
  `__exact->>'price'`, `(__exact->'grid')::INTEGER[][]`; in Trino: `json_extract_scalar(__exact, '$.price')`,
  `CAST(json_extract(__exact, '$.grid') AS ARRAY(ARRAY(INTEGER)))`.
* In Avro the same values are null, and stand in the header `tidemark.exact`; in a key, where no null can stand, the
  change is a dead letter. JSON has a form for each of them.
* **(text)** in the column of files: they have no type for it. The manifest says why (`as_text`).
* ORC has the types of Parquet, under its own names, but no time of day: that is text. Its timestamps have no time zone:
  instants stand by the clock of UTC. Of timestamps it cannot tell those of the last second of 1969 from the
  ones a second later, whatever the reader: they are **beyond**.
* Columns of other types (composites, ranges made by users, types of extensions) travel as text, their arrays as arrays of
  text. A domain is what it is made of.
* Arrays of any dimension: one of a single dimension that begins at 1 is a list. One of more dimensions is a list of
  lists in JSON, and **beyond** elsewhere. One that begins elsewhere is the string of Postgres's text in JSON, such as
  `\"[0:1]={a,b}\"`, and **beyond** elsewhere. `box[]`, the one type whose elements a semicolon divides, is text.

";

/// One column, as the only one of a table.
fn schema(column: &Column) -> TableSchema {
    let column = Column { name: "v".to_owned(), nullable: true, ..column.clone() };
    TableSchema {
        name: TableName::new("public", "t"),
        oid: 1,
        version: SchemaVersion(1),
        columns: vec![column],
        key: Vec::new(),
        identity: ReplicaIdentity::Full,
        comment: None,
        dropped: false,
    }
}

/// Avro's type of the column, by the schema that is registered.
fn avro(column: &Column) -> String {
    let options = Options { format: envelope::Format::Avro, decimal_handling: DecimalHandling::Precise };
    let schemas = options.to_register("shop", &schema(column)).unwrap();
    let envelope: Json = serde_json::from_str(&schemas.value.schema).unwrap();
    let row = envelope["fields"][0]["type"][1].clone();
    shown(&row["fields"][0]["type"][1])
}

fn shown(avro: &Json) -> String {
    let Json::Object(of) = avro else { return avro.as_str().unwrap().to_owned() };
    let name = |key: &str| of.get(key).and_then(Json::as_str).unwrap_or_default();
    let base = match name("type") {
        "array" => return format!("array of {}", shown(&of["items"][1])),
        "record" => "record".to_owned(),
        base => [base, name("logicalType")]
            .iter()
            .filter(|part| !part.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join(" "),
    };
    let semantic = name("connect.name").rsplit('.').next().unwrap_or_default();
    if semantic.is_empty() { base } else { format!("{base} ({semantic})") }
}

/// Parquet's type of the column: physical and logical.
fn parquet(column_type: &ColumnType) -> String {
    let columns = [Column::new("v", column_type.clone(), "", true)];
    let converted = parquet::arrow::ArrowSchemaConverter::new().convert(&arrow_schema(&columns)).unwrap();
    let leaf = converted.column(0);
    let logical = leaf.logical_type_ref().map(|logical| format!(" {logical:?}")).unwrap_or_default();
    let logical = logical.replace("is_adjusted_to_u_t_c", "UTC").replace(", unit: MICROS", ", µs");
    let list = if leaf.max_rep_level() > 0 { "LIST of " } else { "" };
    format!("{list}{}{logical}", leaf.physical_type())
}

/// The cell of a CSV file, and what stands beside it.
fn csv(column_type: &ColumnType, text: &str) -> (String, String) {
    let columns = [Column::new("v", column_type.clone(), "", true)];
    let datum = Options::default().datum(column_type, text).unwrap();
    let mut builder = RowBuilder::new(&columns);
    builder.push(&[datum]).unwrap();
    let batch = builder.finish();
    let beyond = batch.num_columns() > 1;
    let schema = if beyond { exact_schema(&columns) } else { arrow_schema(&columns) };
    let mut writer = FileWriter::new(&Format::CsvGzip, schema, &WriterOptions::default()).unwrap();
    writer.write(&batch).unwrap();
    let mut file = String::new();
    flate2::read::GzDecoder::new(writer.finish().unwrap().as_slice()).read_to_string(&mut file).unwrap();
    let cell = file.split_once('\n').unwrap().1.trim_end_matches('\n').to_owned();
    if beyond { (String::new(), cell) } else { (cell, String::new()) }
}

/// The JSON of a value, as the envelope has it.
fn json(column: &Column, text: &str) -> String {
    let source = SourceInfo { name: "shop".into(), database: "shop".into(), version: "0".into() };
    let schema = schema(column);
    let mut encoder = TableEncoder::new(&source, &schema, &[Some(0)], Options::default(), None);
    let new = [Value::Text(text.as_bytes())];
    let change = RowChange {
        op: Op::Create,
        position: Position { timeline: 1, commit_lsn: Lsn(1), ordinal: 1 },
        lsn: Lsn(1),
        commit_us: 0,
        now_ms: 0,
        xid: None,
        snapshot: false,
        last_end_lsn: None,
        transaction: None,
        old: None,
        new: Some(&new),
    };
    let mut out = TopicRecords::new(Arc::from("t"));
    encoder.encode(&change, &mut out).unwrap();
    let value = String::from_utf8(out.iter().next().unwrap().value.unwrap().to_vec()).unwrap();
    let after = value.split_once("\"after\":{\"v\":").unwrap().1;
    after.split_once("},\"source\":").unwrap().0.to_owned()
}

fn code(text: &str) -> String {
    let escaped = text.replace('|', "\\|").replace('\n', "\\n").replace('\t', "\\t");
    let short = match escaped.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &escaped[..end]),
        None => escaped,
    };
    match short {
        empty if empty.is_empty() => "nothing".to_owned(),
        text if text.contains('`') => format!("`` {text} ``"),
        text => format!("`{text}`"),
    }
}

fn line(name: &str, column: &Column, text: &str) -> String {
    let of = &column.column_type;
    let (cell, beside) = csv(of, text);
    let csv =
        if beside.is_empty() { code(&cell) } else { format!("nothing, and beside it {}", code(&beside)) };
    let text_at_rest = if as_text(of, &Format::Parquet { compression: Compression::None }).is_some() {
        " (text)"
    } else {
        ""
    };
    let beyond = if may_exceed(of) && !of.is_array() { " **beyond**" } else { "" };
    format!(
        "| {} | {} | {} | {} | {}{text_at_rest}{beyond} | {csv} |\n",
        code(name),
        code(text),
        code(&json(column, text)),
        avro(column),
        code(&parquet(of)),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_says_what_the_program_does() {
    let examples = examples().await;
    let mut document = HEAD.to_owned();
    document.push_str("| Postgres | such as | JSON | Avro | Parquet | CSV |\n|---|---|---|---|---|---|\n");
    for (case, example) in CASES.iter().zip(&examples) {
        document.push_str(&line(case.name, &example.value, &example.text));
    }
    document.push_str("\nArrays, with `ARRAY[v, NULL]` as the example:\n\n");
    document.push_str("| Postgres | such as | JSON | Avro | Parquet | CSV |\n|---|---|---|---|---|---|\n");
    for (case, example) in CASES.iter().zip(&examples).filter(|(case, _)| case.array) {
        document.push_str(&line(&format!("{}[]", case.name), &example.array, &example.array_text));
    }
    document.push_str("\nValues at the ends of their types:\n\n| Postgres | value | JSON | Parquet and CSV |\n|---|---|---|---|\n");
    for (case, example) in CASES.iter().zip(&examples) {
        for text in &example.others {
            let (cell, beside) = csv(&example.value.column_type, text);
            let at_rest = if beside.is_empty() {
                code(&cell)
            } else {
                format!("null, and beside it {}", code(&beside))
            };
            let json = code(&json(&example.value, text));
            writeln!(document, "| {} | {} | {json} | {at_rest} |", code(case.name), code(text)).unwrap();
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/types.md");
    if std::env::var_os("TIDEMARK_WRITE_DOCS").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = written.lines().zip(document.lines()).find(|(written, made)| written != made);
    assert!(
        written == document,
        "docs/types.md is not what the program does: {differs:#?}\nTIDEMARK_WRITE_DOCS=1 cargo test --test integration types::"
    );
}
