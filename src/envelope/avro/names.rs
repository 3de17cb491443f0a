//! Names that Avro takes: letters, digits and `_`, not beginning with a digit.
//!
//! Like Debezium's adjustment mode `avro`, whatever else becomes `_`, and `_` goes before a digit that comes first.
//! Where two columns of a table would come out the same, which Debezium refuses, the later one is numbered. Columns
//! only ever come at the end of a table's shape, so that a column keeps its name from version to version.

use crate::change::TableSchema;

/// A name of one part.
pub(super) fn legal(name: &str) -> String {
    let digit_first = name.starts_with(|c: char| c.is_ascii_digit());
    let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let legal = digit_first.then_some('_').into_iter().chain(name.chars().map(legal)).collect::<String>();
    if legal.is_empty() { "_".to_owned() } else { legal }
}

/// A name of several parts, between dots.
pub(super) fn legal_full(name: &str) -> String {
    name.split('.').map(legal).collect::<Vec<_>>().join(".")
}

/// The names of a table's columns as fields, in order.
pub(super) fn fields(table: &TableSchema) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(table.columns.len());
    for column in &table.columns {
        let plain = legal(&column.name);
        let numbered = (2..).map(|number| format!("{plain}_{number}"));
        let free = std::iter::once(plain.clone()).chain(numbered).find(|name| !names.contains(name));
        names.push(free.unwrap_or(plain));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Column, ColumnType, ReplicaIdentity, SchemaVersion, TableName};

    #[test]
    fn whatever_avro_does_not_take_becomes_an_underscore() {
        assert_eq!(legal("Größe"), "Gr__e");
        assert_eq!(legal("2nd"), "_2nd");
        assert_eq!(legal(""), "_");
        assert_eq!(legal_full("my-shop.public.2nd.Value"), "my_shop.public._2nd.Value");
    }

    #[test]
    fn two_columns_never_share_a_name() {
        let column = |name: &&str| Column::new(*name, ColumnType::Bool, "", true);
        let table = TableSchema {
            name: TableName::new("public", "t"),
            oid: 1,
            version: SchemaVersion(1),
            columns: ["a b", "a-b", "a_b", "a_b_2", "c"].iter().map(column).collect(),
            key: vec![],
            identity: ReplicaIdentity::Default,
            comment: None,
            dropped: false,
        };
        assert_eq!(fields(&table), ["a_b", "a_b_2", "a_b_3", "a_b_2_2", "c"]);
    }
}
