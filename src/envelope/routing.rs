//! Names of topics.

use crate::change::TableName;

/// The topic of a table's changes: `<name>.<schema>.<table>`.
///
/// A character that Kafka does not allow in a topic (anything but `[a-zA-Z0-9._-]`) becomes `_`, as
/// Debezium has it. Two tables may therefore come out the same; whoever opens topics has to notice.
pub fn topic_name(source_name: &str, table: &TableName) -> String {
    legal(&format!("{source_name}.{}.{}", table.schema, table.table))
}

/// The topic of a table's later copies: `<name>.backfill-<schema>.<table>`.
pub fn backfill_topic(source_name: &str, table: &TableName) -> String {
    legal(&format!("{source_name}.{BACKFILL}{}.{}", table.schema, table.table))
}

/// What all of those begin with.
pub fn backfill_topics_prefix(source_name: &str) -> String {
    legal(&format!("{source_name}.{BACKFILL}"))
}

/// The topic of schema changes: `<name>.ddl`.
pub fn ddl_topic(source_name: &str) -> String {
    legal(&format!("{source_name}.ddl"))
}

/// The topic of cuts: `<name>.cuts`.
pub fn cuts_topic(source_name: &str) -> String {
    legal(&format!("{source_name}.cuts"))
}

/// The topic of changes that could not be encoded: `<name>.dead-letters`.
pub fn dead_letters_topic(source_name: &str) -> String {
    legal(&format!("{source_name}.dead-letters"))
}

/// The topic of transaction boundaries: `<name>.transaction`.
pub fn transaction_topic(source_name: &str) -> String {
    legal(&format!("{source_name}.transaction"))
}

/// Before the schema's name. No schema is called so unless it was quoted, and then its tables' topics are looked at.
const BACKFILL: &str = "backfill-";

fn legal(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_kafka_refuses_become_underscores() {
        assert_eq!(topic_name("shop", &TableName::new("public", "orders")), "shop.public.orders");
        assert_eq!(topic_name("my shop", &TableName::new("Größe", "a.b$c")), "my_shop.Gr__e.a.b_c");
    }

    #[test]
    fn side_topics_stand_beside_the_tables() {
        let names = [ddl_topic("shop"), cuts_topic("shop"), transaction_topic("shop")];
        assert_eq!(names, ["shop.ddl", "shop.cuts", "shop.transaction"]);
        let copies = backfill_topic("my shop", &TableName::new("public", "orders"));
        assert_eq!(copies, "my_shop.backfill-public.orders");
        assert!(copies.starts_with(&backfill_topics_prefix("my shop")));
    }
}
