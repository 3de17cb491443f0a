//! From the server's description of a table to its shape.
//!
//! The wire has names and types of the columns, as they are in the rows that follow; numbers, labels, declarations and
//! the key under `REPLICA IDENTITY FULL` stand elsewhere. What may complete it:
//!
//! 1. what is known, if the description says nothing else. A server describes a table again for many reasons;
//! 2. the last message of the event trigger, which is from the same place of the stream;
//! 3. the catalog, which is asked later, and may be ahead of the stream: it counts only where it has all these columns,
//!    by name and type. It may still be from after a column was dropped and added again with the same type, or two
//!    changed names: without the trigger nobody can tell, so that such a change is followed by a copy.

use crate::change::{Column, ColumnType, ReplicaIdentity, TableName, TableSchema, TextKind};
use crate::postgres::pgoutput::{Relation, RelationColumn};

/// Whether a description says anything that is not known.
pub fn is_news(relation: &Relation, known: &TableSchema) -> bool {
    // Under FULL the key is not on the wire.
    relation.identity == b'f'
        || known.columns.iter().filter(|column| !column.dropped).count() != relation.columns.len()
        || !has_all(relation, known)
}

fn has_all(relation: &Relation, schema: &TableSchema) -> bool {
    relation.columns.iter().all(|column| find(column, schema).is_some())
}

/// What rows may hold of columns that came and went before the catalog was asked: it numbers the columns that are new here,
/// and numbers between them are of none that it has.
pub fn passed_over(source: &TableSchema, known: &TableSchema) -> Option<String> {
    let last = known.columns.iter().map(|column| column.number).max().filter(|last| *last > 0)?;
    let new: Vec<_> = source.columns.iter().map(|column| column.number).filter(|n| *n > last).collect();
    let highest = *new.iter().max().filter(|_| source.oid == known.oid)?;
    let passed = i64::from(highest) - i64::from(last) - new.len() as i64;
    (passed > 0)
        .then(|| format!("columns that had been dropped before the new ones were seen ({passed} of them)"))
}

/// The column of that name and type.
fn find<'s>(column: &RelationColumn, schema: &'s TableSchema) -> Option<&'s Column> {
    schema.columns.iter().find(|known| {
        !known.dropped
            && known.source_name() == column.name
            && (known.type_oid, known.type_modifier) == (column.type_oid, column.type_modifier)
    })
}

/// A column of that type, the one of that name before others.
fn of_type<'s>(column: &RelationColumn, schema: &'s TableSchema) -> Option<&'s Column> {
    let same =
        |known: &&Column| (known.type_oid, known.type_modifier) == (column.type_oid, column.type_modifier);
    find(column, schema).or_else(|| schema.columns.iter().find(same))
}

/// The shape. `told` is what the trigger or the catalog has said.
pub fn shape(relation: &Relation, told: Option<&TableSchema>, known: Option<&TableSchema>) -> TableSchema {
    let types = [told, known];
    let told = match known {
        Some(known) if !is_news(relation, known) => Some(known),
        _ => told.filter(|told| has_all(relation, told)),
    };
    let column = |column: &RelationColumn| complete(column, told.and_then(|told| find(column, told)), types);
    let columns: Vec<Column> = relation.columns.iter().map(column).collect();
    let identity = match relation.identity {
        b'd' => ReplicaIdentity::Default,
        b'i' => ReplicaIdentity::Index,
        b'f' => ReplicaIdentity::Full,
        _ => ReplicaIdentity::Nothing,
    };
    let on_wire: Vec<usize> = (0..columns.len()).filter(|index| relation.columns[*index].identity).collect();
    let told_key: Option<Vec<usize>> = told.or(known).and_then(|told| {
        let place = |key: &Column| columns.iter().position(|column| column.name == key.source_name());
        told.key_columns().map(place).collect()
    });
    let key = match identity {
        // The same columns, in the index's own order.
        ReplicaIdentity::Default | ReplicaIdentity::Index => told_key
            .filter(|key| key.len() == on_wire.len() && key.iter().all(|index| on_wire.contains(index)))
            .unwrap_or(on_wire),
        // Under FULL the wire marks every column.
        ReplicaIdentity::Full => told_key.unwrap_or_default(),
        ReplicaIdentity::Nothing => Vec::new(),
    };
    let name = TableName::new(relation.schema.clone(), relation.table.clone());
    let mut table = TableSchema::new(name, relation.oid, columns, key, identity);
    table.comment = told.or(known).and_then(|told| told.comment.clone());
    table
}

/// `types` are shapes that know types by their OIDs, whatever else they say.
fn complete(wire: &RelationColumn, told: Option<&Column>, types: [Option<&TableSchema>; 2]) -> Column {
    let built_in = ColumnType::from_builtin(wire.type_oid, wire.type_modifier);
    // A type of its own has not become another one, whatever became of the table's columns since.
    let like = told.or_else(|| types.into_iter().flatten().find_map(|schema| of_type(wire, schema)));
    let column_type = built_in
        .or_else(|| like.map(|like| like.column_type.clone()))
        .unwrap_or(ColumnType::Text { text: TextKind::Other });
    let type_name = like.map_or_else(|| format!("oid {}", wire.type_oid), |like| like.type_name.clone());
    let nullable = told.is_none_or(|told| told.nullable);
    let column = Column {
        type_oid: wire.type_oid,
        type_modifier: wire.type_modifier,
        ..Column::new(&wire.name, column_type, type_name, nullable)
    };
    let Some(told) = told else { return column };
    Column {
        number: told.number,
        not_null: told.not_null,
        comment: told.comment.clone(),
        default: told.default.clone(),
        missing: told.missing.clone(),
        ..column
    }
}
