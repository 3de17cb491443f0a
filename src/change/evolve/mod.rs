//! How a shape grows: what the source has now, laid over what is known.
//!
//! ```text
//!   known ──┐                          same number and name    goes on, its type only widens
//!           ├─ match by number, ──────> same number, new name  RENAME: a new column, holding what the old one held
//!   source ─┘  else by name            same name, new number   DROP + ADD: the same place, empty or the default
//!                                      not at the source       DROP: stays, null from then on
//! ```
//!
//! Nothing is ever taken away, so every row that was written can be read by every later shape: a column of a type that
//! does not hold the former one's values becomes another column, `name__v2`. What rows from before hold in a column that
//! came later is written down with it ([`Existing`]), in terms of the cells of those rows as they were written: whoever
//! reads an old row needs the newest shape alone.

use super::schema::{
    ActionKind, Column, Existing, Holds, SchemaAction, SchemaVersion, TableName, TableSchema,
};
use super::types::{ColumnType, TextKind};

/// The next shape, and what led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evolved {
    /// The shape.
    pub after: TableSchema,
    /// What happened.
    pub actions: Vec<SchemaAction>,
    /// Why rows from before may hold what nobody has told, as far as the shapes show it.
    pub untold: Vec<String>,
    /// Where Postgres' own casts have written rows anew, they are what they were; see [`ColumnType::keeps_values_as`].
    pub keeps_values: bool,
}

impl TableSchema {
    /// The first shape of a table that the source has so.
    pub fn first(source: &Self) -> Evolved {
        let mut after = Self { version: SchemaVersion(1), dropped: false, ..source.clone() };
        for column in &mut after.columns {
            (column.missing, column.existing) = (None, Vec::new());
        }
        let seen = action(ActionKind::FirstSeen, None, true, "seen for the first time");
        Evolved { after, actions: vec![seen], untold: Vec::new(), keeps_values: true }
    }

    /// The next version: `self` grown by what `source`, the table's shape at the source now, adds. `None` when nothing
    /// changes.
    ///
    /// Columns are matched by number, or by name where either number is not known or the table is another one. Key,
    /// identity and comments follow the source. A column of the source whose number is not known was described without
    /// the catalog: what is known of its declaration stays.
    pub fn evolve(&self, source: &Self) -> Option<Evolved> {
        let mut growth = Growth::new(self, source);
        growth.columns();
        growth.table();
        let Growth { mut next, actions, untold, keeps_values, .. } = growth;
        (next != *self).then(|| {
            next.version = SchemaVersion(self.version.0 + 1);
            Evolved { after: next, actions, untold, keeps_values }
        })
    }

    /// The table is gone at the source, or goes on under another name there. `None` if that is known.
    pub fn ended(&self, renamed_to: Option<&TableName>) -> Option<Evolved> {
        if self.dropped {
            return None;
        }
        let after = Self { version: SchemaVersion(self.version.0 + 1), dropped: true, ..self.clone() };
        let told = match renamed_to {
            None => action(ActionKind::DropTable, None, false, "the days until then keep it"),
            Some(name) => {
                let detail = format!(
                    "it is {name} now, a table of its own; the days until then keep it as {}",
                    self.name
                );
                action(ActionKind::RenameTable, None, false, detail)
            }
        };
        Some(Evolved { after, actions: vec![told], untold: Vec::new(), keeps_values: true })
    }
}

fn action(kind: ActionKind, column: Option<&str>, applied: bool, detail: impl Into<String>) -> SchemaAction {
    SchemaAction { kind, column: column.map(str::to_owned), applied, detail: detail.into() }
}

/// What becomes of a column of the source.
enum Place {
    /// It is this one.
    Known(usize),
    /// It was this one, under another name.
    Renamed(usize),
    /// It took the name of this one, which is gone.
    Instead(usize),
    /// It is new.
    New,
}

struct Growth<'a> {
    before: &'a TableSchema,
    source: &'a TableSchema,
    /// Whether the table is another one, of the same name.
    recreated: bool,
    version: SchemaVersion,
    next: TableSchema,
    actions: Vec<SchemaAction>,
    untold: Vec<String>,
    keeps_values: bool,
}

impl<'a> Growth<'a> {
    fn new(before: &'a TableSchema, source: &'a TableSchema) -> Self {
        let recreated = before.oid != source.oid || before.dropped;
        let version = SchemaVersion(before.version.0 + 1);
        let (next, mut actions, mut untold) = (before.clone(), Vec::new(), Vec::new());
        if recreated {
            let detail = "another table of this name: what the former one held is gone, and its days stay";
            actions.push(action(ActionKind::RecreateTable, None, true, detail));
            untold.push("rows that it had before it was streamed".to_owned());
        }
        Self { before, source, recreated, version, next, actions, untold, keeps_values: true }
    }

    fn columns(&mut self) {
        let places: Vec<Place> = self.source.columns.iter().map(|column| self.place(column)).collect();
        let kept = |index| places.iter().any(|place| matches!(place, Place::Known(known) if *known == index));
        for index in 0..self.before.columns.len() {
            let column = &mut self.next.columns[index];
            if !column.dropped && !kept(index) {
                (column.dropped, column.nullable) = (true, true);
                let vacated = |place: &Place| match place {
                    Place::Renamed(known) | Place::Instead(known) => *known == index,
                    Place::Known(_) | Place::New => false,
                };
                if !places.iter().any(vacated) {
                    self.dropped(index);
                }
            }
        }
        let mut at = Vec::with_capacity(places.len());
        for (now, place) in self.source.columns.iter().zip(&places) {
            at.push(match place {
                Place::Known(index) => self.goes_on(*index, now),
                Place::Renamed(index) => self.renamed(*index, now),
                Place::Instead(index) => {
                    self.dropped(*index);
                    let rows =
                        format!("{:?} of rows written around its being dropped and added again", now.name);
                    self.untold.push(rows);
                    self.added(now)
                }
                Place::New => self.added(now),
            });
        }
        self.next.key = self.source.key.iter().map(|index| at[*index]).collect();
    }

    fn place(&self, now: &Column) -> Place {
        let live = || self.before.columns.iter().enumerate().filter(|(_, column)| !column.dropped);
        let comparable = |known: &Column| !self.recreated && known.number != 0 && now.number != 0;
        let same = live().find(|(_, known)| comparable(known) && known.number == now.number);
        if let Some((index, known)) = same {
            return if known.source_name() == now.name { Place::Known(index) } else { Place::Renamed(index) };
        }
        match live().find(|(_, known)| known.source_name() == now.name) {
            Some((index, known)) if comparable(known) => Place::Instead(index),
            Some((index, _)) => Place::Known(index),
            None => Place::New,
        }
    }

    fn dropped(&mut self, index: usize) {
        let column = &self.before.columns[index];
        let detail = format!("{:?} stays, null from here on", column.name);
        self.actions.push(action(ActionKind::DropColumn, Some(column.source_name()), false, detail));
    }

    /// A column that is known: where it stands afterwards.
    fn goes_on(&mut self, index: usize, now: &Column) -> usize {
        let known = &self.before.columns[index];
        let (from, to) = (&known.column_type, &now.column_type);
        let column_type = if from == to || from.widens_to(to) {
            to.clone()
        } else if to.widens_to(from) {
            from.clone()
        } else {
            return self.of_another_type(index, now);
        };
        self.retyped(known, now, &column_type);
        let nullable = known.nullable || now.nullable;
        let existing = known.existing.clone();
        let mut column = Column { name: known.name.clone(), column_type, nullable, existing, ..now.clone() };
        column.source_name.clone_from(&known.source_name);
        column.missing = None;
        if column.column_type == known.column_type
            && column.type_name == known.type_name
            && known.type_oid != 0
        {
            // A type that was dropped and made again is the same to whoever reads.
            (column.type_oid, column.type_modifier) = (known.type_oid, known.type_modifier);
        }
        if now.type_name.starts_with("oid ") {
            column.type_name.clone_from(&known.type_name);
        }
        if now.number == 0 {
            column.number = known.number;
            column.not_null = known.not_null;
            column.comment.clone_from(&known.comment);
            column.default.clone_from(&known.default);
        } else {
            self.declared(known, now);
        }
        self.next.columns[index] = column;
        index
    }

    /// Tells that a column has another type which it can have here, too.
    fn retyped(&mut self, known: &Column, now: &Column, column_type: &ColumnType) {
        let (from, to) = (&known.column_type, &now.column_type);
        let padded = is_padded_anew(known, now);
        let shorter = !known.type_name.starts_with("oid ") && is_shorter(&known.type_name, &now.type_name);
        let relabelled = from.is_relabelled_as(to);
        let other = is_another_type(known, now);
        self.keeps_values &= from.keeps_values_as(to) && !other;
        if from.is_rewritten_as(to) || padded || relabelled || other || (from == to && shorter) {
            self.untold.push(format!("{:?} of rows that were there when its type changed", known.name));
        }
        let renamed = known.type_name != now.type_name && !now.type_name.starts_with("oid ");
        if from == column_type && !renamed {
            return;
        }
        let name = Some(now.name.as_str());
        let said = format!("{} is {} now", known.type_name, now.type_name);
        if relabelled {
            let detail = "labels were renamed, and rows from before hold the former ones, without events";
            self.actions.push(action(ActionKind::Rewrite, name, false, detail));
        } else if column_type != to || (from == to && shorter) {
            let detail = format!("{said}; the column keeps room for all it has held");
            self.actions.push(action(ActionKind::NarrowType, name, false, detail));
        } else if is_enum(from) && is_enum(to) {
            self.actions.push(action(ActionKind::AddLabels, name, true, said));
        } else {
            self.actions.push(action(ActionKind::WidenType, name, true, said));
        }
        if padded {
            let detail = "the blanks at the end of its values are others in rows from before, without events";
            self.actions.push(action(ActionKind::Rewrite, name, false, detail));
        }
    }

    /// Tells what else is declared of a column, now.
    fn declared(&mut self, known: &Column, now: &Column) {
        let name = Some(now.name.as_str());
        // A shape of which the catalog was never asked has nothing to compare with.
        if known.number == 0 {
            return;
        }
        match (known.not_null, now.not_null) {
            (true, false) => {
                self.actions.push(action(ActionKind::DropNotNull, name, true, "it takes nulls from here on"));
            }
            (false, true) => {
                let detail = "it takes no nulls at the source from here on; rows from before may hold some";
                self.actions.push(action(ActionKind::SetNotNull, name, true, detail));
            }
            _ => {}
        }
        if known.comment != now.comment {
            self.actions.push(action(
                ActionKind::Comment,
                name,
                true,
                now.comment.as_deref().unwrap_or_default(),
            ));
        }
        if known.default != now.default {
            let detail = now.default.as_deref().unwrap_or("none");
            self.actions.push(action(ActionKind::ChangeDefault, name, true, detail));
        }
    }

    /// A column whose values do not fit into what it has been: a new one goes on.
    fn of_another_type(&mut self, index: usize, now: &Column) -> usize {
        let known = &self.before.columns[index];
        let old = &mut self.next.columns[index];
        (old.dropped, old.nullable) = (true, true);
        let at = self.place_as(now, Holds::Null, &[]);
        let detail = format!(
            "{} is {} now, which does not hold the values of before: they stay in {:?}, null from here on, and the column goes on as {:?}",
            known.type_name, now.type_name, known.name, self.next.columns[at].name
        );
        self.actions.push(action(ActionKind::ChangeType, Some(&now.name), false, detail));
        self.untold
            .push(format!("{:?} of rows that were there when its type changed", self.next.columns[at].name));
        at
    }

    fn renamed(&mut self, index: usize, now: &Column) -> usize {
        let known = &self.before.columns[index];
        let taken = |other: &Column| !other.dropped && other.source_name() == now.name;
        if self.before.columns.iter().any(taken) {
            // Rows written by these names on either side cannot be told apart.
            self.untold.push(format!("{:?} of rows written around columns changing their names", now.name));
        }
        let at = self.place_as(now, Holds::Column(known.name.clone()), &known.existing);
        let detail = format!(
            "{:?} stays, null from here on; {:?} stands beside it, with the values of before",
            known.name, self.next.columns[at].name
        );
        self.actions.push(action(ActionKind::RenameColumn, Some(known.source_name()), false, detail));
        at
    }

    fn added(&mut self, now: &Column) -> usize {
        let holds = now.missing.clone().map_or(Holds::Null, Holds::Value);
        // Without the catalog nobody says whether it had another name before, or a default that those rows hold.
        let unheard = now.number == 0 && self.before.columns.iter().any(|known| known.number != 0);
        // A default that rows from before do not hold as a constant was either written into each, or came later.
        if unheard || (holds == Holds::Null && (now.default.is_some() || now.not_null)) {
            self.untold.push(format!("{:?} of rows that were there before it", now.name));
        }
        let detail = match &holds {
            Holds::Value(value) => format!("{}, {value} in rows from before", now.type_name),
            _ => format!("{}, null in rows from before", now.type_name),
        };
        self.actions.push(action(ActionKind::AddColumn, Some(&now.name), true, detail));
        self.place_as(now, holds, &[])
    }

    /// Gives a column that is new here a place: that of a former one of its name whose values fit, or the end.
    fn place_as(&mut self, now: &Column, holds: Holds, older: &[Existing]) -> usize {
        let existing = older.iter().cloned().chain([Existing { below: self.version, holds }]).collect();
        let mut column = Column { nullable: true, missing: None, existing, ..now.clone() };
        let former = self.next.columns.iter().position(|other| other.name == now.name);
        if let Some(index) = former.filter(|index| self.next.columns[*index].dropped) {
            let was = &self.next.columns[index].column_type;
            if was.widens_to(&now.column_type) || now.column_type.widens_to(was) {
                if !was.widens_to(&now.column_type) {
                    column.column_type = was.clone();
                }
                self.next.columns[index] = column;
                return index;
            }
        }
        if former.is_some() {
            column.source_name = Some(now.name.clone());
            column.name = self.free_name(&now.name);
        }
        self.next.columns.push(column);
        self.next.columns.len() - 1
    }

    fn free_name(&self, name: &str) -> String {
        let taken = |name: &str| {
            let at_source = self.source.columns.iter().any(|column| column.name == name);
            at_source || self.next.columns.iter().any(|column| column.name == name)
        };
        let mut number = 2_u32;
        loop {
            let candidate = format!("{name}__v{number}");
            if !taken(&candidate) {
                return candidate;
            }
            number += 1;
        }
    }

    fn table(&mut self) {
        let names = |table: &TableSchema| -> Vec<String> {
            table.key_columns().map(|column| column.name.clone()).collect()
        };
        let (before, after) = (names(self.before), names(&self.next));
        if before != after {
            let detail = format!("({}) is ({}) now", before.join(", "), after.join(", "));
            self.actions.push(action(ActionKind::ChangeKey, None, true, detail));
        }
        if self.before.identity != self.source.identity {
            let detail =
                format!("{:?} is {:?} now", self.before.identity, self.source.identity).to_lowercase();
            self.actions.push(action(ActionKind::ChangeIdentity, None, true, detail));
        }
        // A table without a numbered column was described without the catalog.
        if self.source.columns.iter().any(|column| column.number != 0) {
            if self.before.comment != self.source.comment {
                let detail = self.source.comment.as_deref().unwrap_or_default();
                self.actions.push(action(ActionKind::Comment, None, true, detail));
            }
            self.next.comment.clone_from(&self.source.comment);
        }
        self.next.identity = self.source.identity;
        self.next.oid = self.source.oid;
        self.next.dropped = false;
    }
}

const fn is_enum(column_type: &ColumnType) -> bool {
    matches!(column_type, ColumnType::Text { text: TextKind::Enum(_) })
}

/// Whether the type is another one that reads as the former did, though its values need not: `macaddr8` after `macaddr`,
/// `cidr` after `inet`, a domain over `char(20)` after one over `char(10)`. Plain texts stay as they are.
fn is_another_type(known: &Column, now: &Column) -> bool {
    const TEXTS: [u32; 6] = [25, 1043, 19, 1009, 1015, 1003];
    let plain = |column: &Column| {
        TEXTS.contains(&column.type_oid) || column.type_name.trim_end_matches("[]").ends_with("citext")
    };
    let (from, to) = (&known.column_type, &now.column_type);
    // Whoever has no number of the type has the name alone, which a renamed type changes, too.
    known.type_oid != 0
        && now.type_oid != 0
        && (known.type_oid, known.type_modifier) != (now.type_oid, now.type_modifier)
        && known.type_name != now.type_name
        && (from == to || (is_enum(from) && is_enum(to)))
        && !(plain(known) && plain(now))
}

/// Whether values are padded with blanks to another length, or not any more: `char(n)` and its arrays.
fn is_padded_anew(known: &Column, now: &Column) -> bool {
    const BPCHAR: [u32; 2] = [1042, 1014];
    let types = [(known.type_oid, known.type_modifier), (now.type_oid, now.type_modifier)];
    known.type_oid != 0 && types[0] != types[1] && types.iter().any(|(oid, _)| BPCHAR.contains(oid))
}

/// Whether the length in the type's brackets went down, or came up: `varchar(20)` after `varchar(30)` or `varchar`.
fn is_shorter(before: &str, now: &str) -> bool {
    let length =
        |name: &str| -> Option<u32> { name.split_once('(')?.1.split([')', ',']).next()?.parse().ok() };
    match (length(before), length(now)) {
        (Some(before), Some(now)) => now < before,
        (None, Some(_)) => true,
        (_, None) => false,
    }
}

#[cfg(test)]
mod tests;
