//! JSON with Connect's schema in each key and value: `{"schema":…,"payload":…}`, as Debezium writes it with
//! `schemas.enable=true`. The schema is the same for all records of a version of a table: its text is made once.

use super::DecimalHandling;
use crate::change::TableSchema;
use crate::envelope::connect;
use crate::envelope::source::SourceInfo;

/// What precedes a payload; a closing brace follows it.
#[derive(Clone, Debug)]
pub(super) struct Schemas {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

impl Schemas {
    pub(super) fn new(source: &SourceInfo, table: &TableSchema, decimals: DecimalHandling) -> Self {
        let key = connect::key(&source.name, table, decimals);
        Self {
            key: key.as_ref().map(connect::Schema::before_payload).unwrap_or_default(),
            value: connect::envelope(&source.name, table, decimals).before_payload(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value as Json, json};

    use crate::change::{
        Column, ColumnType, Datum, Lsn, Op, Position, ReplicaIdentity, SchemaVersion, TableName, TableSchema,
        TextKind, Value,
    };
    use crate::envelope::json::{
        OldKind, OldRow, Options, RowChange, SourceInfo, TableDecoder, TableEncoder,
    };
    use crate::log::TopicRecords;

    fn table() -> TableSchema {
        let column = |name: &str, column_type, nullable| Column::new(name, column_type, "", nullable);
        let labels = TextKind::Enum(vec!["new".into(), "paid".into()]);
        TableSchema {
            name: TableName::new("public", "orders"),
            oid: 1,
            version: SchemaVersion(1),
            columns: vec![
                column("id", ColumnType::Int64, false),
                column("total", ColumnType::Decimal { precision: 12, scale: 2 }, true),
                column("status", ColumnType::Text { text: labels }, true),
                column("rates", ColumnType::Array { element: Box::new(ColumnType::Float32) }, true),
                column("free", ColumnType::Numeric, true),
            ],
            key: vec![0],
            identity: ReplicaIdentity::Full,
            comment: None,
            dropped: false,
        }
    }

    /// The same changes with and without schemas.
    fn both() -> [TopicRecords; 2] {
        let source = SourceInfo { name: "shop".into(), database: "db".into(), version: "1".into() };
        let layout = [0, 1, 2, 3, 4].map(Some);
        let old = [b"1", b"1", &b"new"[..], b"{1}", b"2"].map(Value::Text);
        let new = [Value::Text(b"2"), Value::Null, Value::Unchanged, Value::Text(b"{}"), Value::Null];
        let old = OldRow { kind: OldKind::Full, values: &old };
        let change = |op, old, new| RowChange {
            op,
            position: Position { timeline: 1, commit_lsn: Lsn(7), ordinal: 1 },
            lsn: Lsn(6),
            commit_us: 1,
            now_ms: 2,
            xid: Some(3),
            snapshot: false,
            last_end_lsn: None,
            transaction: None,
            old,
            new,
        };
        let changes = [
            change(Op::Create, None, Some(&new[..])),
            change(Op::Update, Some(old), Some(&new[..])),
            change(Op::Delete, Some(old), None),
        ];
        let plain = TableEncoder::new(&source, &table(), &layout, Options::default());
        let typed = TableEncoder::with_schemas(&source, &table(), &layout, Options::default());
        [plain, typed].map(|mut encoder| {
            let mut out = TopicRecords::new(Arc::from("t"));
            for change in &changes {
                encoder.encode(change, &mut out).unwrap();
            }
            out
        })
    }

    fn parsed(bytes: &[u8]) -> Json {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn payloads_headers_and_rows_are_those_without_schemas() {
        let [plain, typed] = both();
        assert!(plain.count() > 5 && plain.count() == typed.count());
        let decoder = TableDecoder::new(&table(), Options::default());
        for (plain, typed) in plain.iter().zip(typed.iter()) {
            assert!(plain.headers().eq(typed.headers()));
            for (plain, typed) in [(plain.key, typed.key), (plain.value, typed.value)] {
                assert_eq!(plain.map(parsed), typed.map(|typed| parsed(typed)["payload"].take()));
            }
            let (mut expected, mut row): (Vec<Datum<'_>>, Vec<Datum<'_>>) = (Vec::new(), Vec::new());
            let decoded = decoder.decode(&plain, &mut expected).unwrap();
            assert_eq!(decoder.decode(&typed, &mut row).unwrap(), decoded);
            assert_eq!(row, expected);
        }
    }

    #[test]
    fn schemas_are_as_connects_converter_writes_them() {
        let [_, typed] = both();
        let record = typed.iter().next().unwrap();
        assert_eq!(
            String::from_utf8_lossy(record.key.unwrap()),
            concat!(
                r#"{"schema":{"type":"struct","fields":[{"type":"int64","optional":false,"field":"id"}],"#,
                r#""optional":false,"name":"shop.public.orders.Key"},"payload":{"id":2}}"#
            )
        );
        let schema = parsed(record.value.unwrap())["schema"].take();
        assert_eq!(
            (&schema["name"], &schema["version"], &schema["optional"]),
            (&json!("shop.public.orders.Envelope"), &json!(2), &json!(false))
        );
        let fields: Vec<_> =
            schema["fields"].as_array().unwrap().iter().map(|f| f["field"].clone()).collect();
        assert_eq!(
            json!(fields),
            json!(["before", "after", "source", "transaction", "op", "ts_ms", "ts_us", "ts_ns"])
        );
        let row = &schema["fields"][1];
        assert_eq!((&row["name"], &row["optional"]), (&json!("shop.public.orders.Value"), &json!(true)));
        assert_eq!(
            row["fields"][1].to_string(),
            concat!(
                r#"{"type":"bytes","optional":true,"name":"org.apache.kafka.connect.data.Decimal","version":1,"#,
                r#""parameters":{"scale":"2","connect.decimal.precision":"12"},"field":"total"}"#
            )
        );
        assert_eq!(
            row["fields"][2].to_string(),
            concat!(
                r#"{"type":"string","optional":true,"name":"io.debezium.data.Enum","version":1,"#,
                r#""parameters":{"allowed":"new,paid"},"field":"status"}"#
            )
        );
        assert_eq!(
            row["fields"][3].to_string(),
            r#"{"type":"array","items":{"type":"float","optional":true},"optional":true,"field":"rates"}"#
        );
        assert_eq!(row["fields"][4]["doc"], "Variable scaled decimal");
        let snapshot = &schema["fields"][2]["fields"][4];
        assert_eq!((&snapshot["default"], &snapshot["field"]), (&json!("false"), &json!("snapshot")));
    }
}
