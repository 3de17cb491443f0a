use super::*;
use crate::change::ReplicaIdentity;

fn column(number: i16, name: &str, column_type: ColumnType) -> Column {
    Column { number, ..Column::new(name, column_type, "its type", true) }
}

fn table(columns: Vec<Column>) -> TableSchema {
    TableSchema::new(TableName::new("public", "t"), 1, columns, vec![0], ReplicaIdentity::Default)
}

fn ab() -> TableSchema {
    table(vec![column(1, "a", ColumnType::Int32), column(2, "b", ColumnType::TEXT)])
}

fn names(table: &TableSchema) -> Vec<(&str, bool)> {
    table.columns.iter().map(|column| (column.name.as_str(), column.dropped)).collect()
}

fn kinds(evolved: &Evolved) -> Vec<(ActionKind, bool)> {
    evolved.actions.iter().map(|action| (action.kind, action.applied)).collect()
}

fn of<'t>(table: &'t TableSchema, name: &str) -> &'t Column {
    table.columns.iter().find(|column| column.name == name).unwrap()
}

fn holds(table: &TableSchema, name: &str, version: u32) -> Holds {
    of(table, name).in_rows_of(SchemaVersion(version))
}

fn raw(name: &str) -> Holds {
    Holds::Column(name.into())
}

#[test]
fn a_dropped_column_stays_and_new_ones_go_to_the_end() {
    let source = table(vec![column(3, "z", ColumnType::Bool), column(1, "a", ColumnType::Int64)]);
    let source = TableSchema { key: vec![1], ..source };
    let next = ab().evolve(&source).unwrap();
    assert_eq!(next.after.version, SchemaVersion(2));
    assert_eq!(names(&next.after), [("a", false), ("b", true), ("z", false)]);
    assert_eq!(of(&next.after, "a").column_type, ColumnType::Int64);
    assert_eq!(next.after.key, [0]);
    let expected = [(ActionKind::DropColumn, false), (ActionKind::AddColumn, true)];
    assert!(expected.iter().all(|told| kinds(&next).contains(told)), "{:?}", next.actions);
    assert_eq!(next.after.evolve(&source), None, "the same source adds nothing");
}

#[test]
fn rows_from_before_hold_the_default_that_the_catalog_names() {
    let added = Column { missing: Some("7".into()), ..column(3, "c", ColumnType::Int32) };
    let source = table([ab().columns, vec![added]].concat());
    let next = ab().evolve(&source).unwrap();
    assert_eq!(holds(&next.after, "c", 1), Holds::Value("7".into()));
    assert_eq!(holds(&next.after, "c", 2), raw("c"));
    assert!(next.untold.is_empty());
    assert_eq!(next.after.evolve(&source), None, "the catalog still has the value: nothing is new");
}

#[test]
fn a_default_that_each_row_has_of_its_own_is_untold() {
    let added = Column { default: Some("gen_random_uuid()".into()), ..column(3, "c", ColumnType::TEXT) };
    let next = ab().evolve(&table([ab().columns, vec![added]].concat())).unwrap();
    assert_eq!(next.untold.len(), 1);
}

#[test]
fn a_renamed_column_stands_beside_the_old_one_and_rows_from_before_hold_what_that_held() {
    let renamed = |to: &str| table(vec![ab().columns[0].clone(), column(2, to, ColumnType::TEXT)]);
    let next = ab().evolve(&renamed("c")).unwrap();
    assert_eq!(names(&next.after), [("a", false), ("b", true), ("c", false)]);
    assert_eq!(kinds(&next), [(ActionKind::RenameColumn, false)]);
    assert_eq!(holds(&next.after, "c", 1), raw("b"));
    let third = next.after.evolve(&renamed("d")).unwrap().after;
    assert_eq!((holds(&third, "d", 1), holds(&third, "d", 2)), (raw("b"), raw("c")));
    let back = third.evolve(&renamed("b")).unwrap().after;
    assert_eq!(names(&back), [("a", false), ("b", false), ("c", true), ("d", true)]);
    assert_eq!(
        [1, 2, 3, 4].map(|version| holds(&back, "b", version)),
        [raw("b"), raw("c"), raw("d"), raw("b")]
    );
}

#[test]
fn columns_that_change_names_with_each_other_change_values_with_each_other() {
    let ab = table(vec![
        column(1, "id", ColumnType::Int32),
        column(2, "a", ColumnType::TEXT),
        column(3, "b", ColumnType::TEXT),
    ]);
    let swapped = table(vec![
        column(1, "id", ColumnType::Int32),
        column(2, "b", ColumnType::TEXT),
        column(3, "a", ColumnType::TEXT),
    ]);
    let next = ab.evolve(&swapped).unwrap().after;
    assert_eq!(names(&next), [("id", false), ("a", false), ("b", false)]);
    assert_eq!((holds(&next, "a", 1), holds(&next, "b", 1)), (raw("b"), raw("a")));
}

#[test]
fn a_column_dropped_and_added_again_is_empty_in_rows_from_before() {
    let source = table(vec![ab().columns[0].clone(), column(3, "b", ColumnType::TEXT)]);
    let next = ab().evolve(&source).unwrap();
    assert_eq!(names(&next.after), [("a", false), ("b", false)]);
    assert_eq!(holds(&next.after, "b", 1), Holds::Null);
    assert_eq!(kinds(&next), [(ActionKind::DropColumn, false), (ActionKind::AddColumn, true)]);
}

#[test]
fn a_type_that_does_not_hold_the_values_of_before_becomes_a_column_of_its_own() {
    let source = table(vec![ab().columns[0].clone(), column(2, "b", ColumnType::Bytes)]);
    let next = ab().evolve(&source).unwrap();
    assert_eq!(names(&next.after), [("a", false), ("b", true), ("b__v2", false)]);
    assert_eq!(of(&next.after, "b__v2").source_name(), "b");
    assert_eq!((kinds(&next), next.untold.len()), (vec![(ActionKind::ChangeType, false)], 1));
    assert_eq!(next.after.evolve(&source), None);
    let again = table(vec![ab().columns[0].clone(), column(2, "b", ColumnType::Date)]);
    let third = next.after.evolve(&again).unwrap().after;
    assert_eq!(names(&third), [("a", false), ("b", true), ("b__v2", true), ("b__v3", false)]);
    let taken = [again.columns, vec![column(9, "b__v3", ColumnType::Bool)]].concat();
    let fourth = third.evolve(&table(taken.clone())).unwrap().after;
    assert_eq!((of(&fourth, "b__v3").number, of(&fourth, "b__v3__v2").number), (2, 9));
    assert_eq!(fourth.evolve(&table(taken)), None);
}

#[test]
fn a_narrower_type_is_told_once_and_the_column_stays_as_wide() {
    let wide = table(vec![column(1, "a", ColumnType::Int64)]);
    let source = table(vec![Column { type_name: "integer".into(), ..column(1, "a", ColumnType::Int32) }]);
    let next = wide.evolve(&source).unwrap();
    assert_eq!(next.after.columns[0].column_type, ColumnType::Int64);
    assert_eq!(kinds(&next), [(ActionKind::NarrowType, false)]);
    assert_eq!(next.after.evolve(&source), None);
}

#[test]
fn another_table_of_the_name_goes_by_names_and_one_that_ended_comes_back() {
    let other = TableSchema {
        oid: 2,
        ..table(vec![column(1, "b", ColumnType::TEXT), column(2, "a", ColumnType::Int32)])
    };
    let next = ab().evolve(&other).unwrap();
    assert_eq!(names(&next.after), [("a", false), ("b", false)]);
    assert_eq!(next.actions[0].kind, ActionKind::RecreateTable);
    let ended = ab().ended(None).unwrap().after;
    assert!(ended.dropped && ended.ended(None).is_none());
    let back = ended.evolve(&ab()).unwrap();
    assert!(!back.after.dropped && back.actions[0].kind == ActionKind::RecreateTable);
}

#[test]
fn what_was_described_without_the_catalog_takes_nothing_away() {
    let known = Column { comment: Some("of b".into()), not_null: true, ..column(2, "b", ColumnType::TEXT) };
    let known = TableSchema { comment: Some("of t".into()), ..table(vec![ab().columns[0].clone(), known]) };
    let bare = |name: &str, column_type| Column::new(name, column_type, "oid 25", true);
    let wire = table(vec![bare("a", ColumnType::Int32), bare("b", ColumnType::TEXT)]);
    assert_eq!(known.evolve(&wire), None);
    let told = TableSchema { comment: None, ..known.clone() };
    let next = known.evolve(&told).unwrap();
    assert_eq!(kinds(&next), [(ActionKind::Comment, true)]);
}

#[test]
fn values_that_are_padded_anew_or_not_any_more_are_untold_and_longer_texts_are_the_same() {
    let of = |type_oid, type_modifier, type_name: &str| {
        let id = Column { type_oid, type_modifier, ..column(1, "id", ColumnType::TEXT) };
        table(vec![Column { type_name: type_name.into(), ..id }])
    };
    let untold = |before: &TableSchema, now: &TableSchema| before.evolve(now).map(|next| next.untold.len());
    let (three, five) = (of(1042, 7, "character(3)"), of(1042, 9, "character(5)"));
    let (text, varchar) = (of(25, -1, "text"), of(1043, 14, "character varying(10)"));
    for (before, now) in
        [(&three, &five), (&five, &three), (&three, &text), (&text, &three), (&varchar, &three)]
    {
        assert_eq!(untold(before, now), Some(1), "{before:?} {now:?}");
    }
    assert_eq!(untold(&varchar, &text), Some(0));
    assert_eq!(untold(&varchar, &of(1043, 9, "character varying(5)")), Some(1), "blanks at the end go");
    assert_eq!(untold(&three, &three), None);
    // Described without the catalog, and then with it.
    let wire = three.evolve(&of(1042, 9, "oid 1042"));
    assert!(wire.is_none_or(|next| next.untold.len() == 1));
}

#[test]
fn another_type_of_the_same_form_is_untold_and_a_renamed_one_is_not() {
    let other = || ColumnType::Text { text: TextKind::Other };
    let of = |type_oid, type_name: &str| {
        let id = Column { type_oid, ..column(1, "id", other()) };
        table(vec![Column { type_name: type_name.into(), ..id }])
    };
    let (mac, mac8) = (of(829, "macaddr"), of(774, "macaddr8"));
    let next = mac.evolve(&mac8).unwrap();
    assert_eq!((next.untold.len(), next.keeps_values), (1, false));
    assert_eq!(mac.evolve(&of(774, "oid 774")).map(|next| next.untold.len()), Some(1), "told by the stream");
    let renamed = of(16_400, "point3").evolve(&of(16_400, "point4")).unwrap();
    assert_eq!((renamed.untold.len(), renamed.keeps_values), (0, true));
}

#[test]
fn labels_that_were_renamed_are_untold_and_new_ones_are_not() {
    let of = |labels: &[&str]| {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let mood = ColumnType::Text { text: TextKind::Enum(labels) };
        let moods = ColumnType::Array { element: Box::new(mood.clone()) };
        table(vec![column(1, "m", mood), column(2, "ms", moods)])
    };
    let known = of(&["bad", "ok"]);
    let added = known.evolve(&of(&["awful", "bad", "so so", "ok"])).unwrap();
    assert_eq!(added.untold, [""; 0]);
    for renamed in [&["bad", "well"][..], &["ok", "bad"]] {
        let next = known.evolve(&of(renamed)).unwrap();
        assert_eq!(next.untold.len(), 2, "{renamed:?}");
        assert_eq!(kinds(&next), [(ActionKind::Rewrite, false); 2], "{renamed:?}");
    }
}
