//! What is known of a change of shape beside the two shapes, and what that makes of it.
//!
//! Two shapes alone leave things untold: a column with a default may have been filled in each row, a type may have been
//! changed by an expression, a table that is seen for the first time may have rows from before. Whoever has the
//! statement's own message knows better, and takes these doubts away or adds others.

use crate::change::{ActionKind, Evolved, SchemaAction, SchemaChange};

/// What is known beside the shape.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The statement that made the change.
    pub statement: Option<String>,
    /// The statement has made the table: all its rows are in the stream.
    pub created: bool,
    /// The statement has had the rows written anew, perhaps other than they were.
    pub rewritten: bool,
}

/// A table's new shape.
#[derive(Debug)]
pub struct Grown {
    /// To be written before the rows that follow.
    pub change: SchemaChange,
    /// Why rows from before may hold what nobody has told.
    pub untold: Vec<String>,
}

impl Told {
    /// What it makes of a change of shape.
    pub fn of(&self, mut evolved: Evolved) -> Evolved {
        let Some(statement) = &self.statement else { return evolved };
        // A table that was renamed into the place of another has rows, too.
        let in_doubt = [ActionKind::ChangeType, ActionKind::RecreateTable, ActionKind::Rewrite];
        let is_in_doubt = evolved.actions.iter().any(|action| in_doubt.contains(&action.kind));
        if self.created || !is_in_doubt {
            evolved.untold.clear();
        }
        for action in evolved.actions.iter_mut().filter(|action| action.kind == ActionKind::FirstSeen) {
            if self.created {
                (action.kind, action.detail) = (ActionKind::CreateTable, "created".to_owned());
            }
        }
        if self.rewritten && !keeps_values(statement, &evolved) {
            if evolved.actions.iter().all(|action| action.applied) {
                let detail = "the rows were written anew, perhaps other than they were, without events";
                let (kind, detail) = (ActionKind::Rewrite, detail.to_owned());
                evolved.actions.push(SchemaAction { kind, column: None, applied: false, detail });
            }
            evolved.untold.push("rows that a statement has written anew".to_owned());
        }
        evolved
    }
}

/// Whether a rewrite has only made types wider, by Postgres' own casts, and those keep what is read of a value.
fn keeps_values(statement: &str, evolved: &Evolved) -> bool {
    let statement = statement.to_ascii_uppercase();
    let widened = evolved.actions.iter().all(|action| action.kind == ActionKind::WidenType);
    let says_so = statement.contains("ALTER") && statement.contains("TYPE") && !statement.contains("USING");
    widened && evolved.keeps_values && !evolved.actions.is_empty() && says_so
}

/// What of a change is not applied, in words; none where all of it is.
pub fn unapplied(actions: &[SchemaAction]) -> Option<String> {
    let told: Vec<String> = actions.iter().filter(|action| !action.applied).map(in_words).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

fn in_words(action: &SchemaAction) -> String {
    let what = match action.kind {
        ActionKind::DropColumn => "column dropped",
        ActionKind::RenameColumn => "column renamed",
        ActionKind::NarrowType => "narrower type",
        ActionKind::ChangeType => "another type",
        ActionKind::DropTable => "table dropped",
        ActionKind::RenameTable => "table renamed",
        ActionKind::Rewrite => "rows rewritten",
        _ => "schema change",
    };
    match &action.column {
        Some(column) => format!("{what}: {column:?}: {}", action.detail),
        None => format!("{what}: {}", action.detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Column, ColumnType, ReplicaIdentity, TableName, TableSchema, TextKind};

    fn evolved(from: ColumnType, to: ColumnType) -> Evolved {
        let table = |column_type| {
            let column = Column { number: 1, ..Column::new("a", column_type, "its type", true) };
            TableSchema::new(TableName::new("public", "t"), 1, vec![column], vec![], ReplicaIdentity::Full)
        };
        table(from).evolve(&table(to)).unwrap()
    }

    #[test]
    fn a_rewrite_that_only_widens_keeps_what_rows_hold_and_one_by_an_expression_does_not() {
        let told = |statement: &str| {
            let told = Told { statement: Some(statement.into()), rewritten: true, ..Told::default() };
            told.of(evolved(ColumnType::Int32, ColumnType::Int64)).untold.len()
        };
        assert_eq!(told("alter table t alter a type bigint"), 0);
        assert_eq!(told("ALTER TABLE t ALTER a TYPE bigint USING a * 2"), 1);
        assert_eq!(told("SELECT migrate()"), 1, "what the function did is not known");
        let told = |from, to| {
            let statement = Some("ALTER TABLE t ALTER a TYPE text".to_owned());
            let told = Told { statement, rewritten: true, ..Told::default() };
            told.of(evolved(from, to)).untold.len()
        };
        assert_eq!(
            told(ColumnType::Interval, ColumnType::TEXT),
            1,
            "an interval is other text there than here"
        );
        assert_eq!(told(ColumnType::Int32, ColumnType::TEXT), 0);
    }

    #[test]
    fn a_shape_alone_leaves_in_doubt_what_the_statement_tells() {
        let wider = || evolved(ColumnType::Int32, ColumnType::Int64);
        assert_eq!(Told::default().of(wider()).untold.len(), 1);
        let told = Told { statement: Some("ALTER TABLE t ALTER a TYPE bigint".into()), ..Told::default() };
        assert_eq!(told.of(wider()).untold.len(), 0);
        assert_eq!(told.of(evolved(ColumnType::Int32, ColumnType::Bytes)).untold.len(), 1);
        let of = |label: &str| ColumnType::Text { text: TextKind::Enum(vec![label.to_owned()]) };
        let statement = Some("ALTER TYPE mood RENAME VALUE 'ok' TO 'well'".to_owned());
        let told = Told { statement, ..Told::default() };
        assert_eq!(told.of(evolved(of("ok"), of("well"))).untold.len(), 1, "no row was written for it");
    }

    #[test]
    fn a_table_that_took_the_name_of_another_had_rows_unless_the_statement_made_it() {
        let table =
            |oid| TableSchema::new(TableName::new("public", "t"), oid, vec![], vec![], ReplicaIdentity::Full);
        let taken_over = || table(1).evolve(&table(2)).unwrap();
        let told =
            |statement: &str, created| Told { statement: Some(statement.into()), created, rewritten: false };
        assert_eq!(told("ALTER TABLE s RENAME TO t", false).of(taken_over()).untold.len(), 1);
        assert_eq!(told("CREATE TABLE t ()", true).of(taken_over()).untold.len(), 0);
    }
}
