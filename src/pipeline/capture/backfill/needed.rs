//! Why a table needs a new copy that nobody asked for: what it holds at the source has changed, and the stream did not
//! tell, or told it in terms which the lake cannot follow.
//!
//! Until the copy is whole the table is missing from the days that are cut: what the lake has would be wrong.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::change::{Lsn, TableName};
use crate::envelope::routing;
use crate::ops::{Lacking, Ops};
use crate::runtime::Error;

use super::super::appender::Appender;
use super::super::state::BackfillState;
use super::super::tables::{Table, Tables};
use super::asked::Backfills;

/// What happened to the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its changes are captured from the first one seen on; rows from before are nowhere.
    FirstSeen,
    /// It is in the publication, and was not when the first copy was made.
    Added,
    /// It was not captured for a while, for that reason.
    Returned(String),
    /// It was dropped and made again, or another one got its name.
    MadeAgain,
    /// A table with rows was made a partition of it.
    Attached(u32),
    /// A partition of it was detached or dropped.
    Detached(u32),
    /// A partition of it was truncated or rewritten.
    Emptied(u32),
    /// The publication has another row filter for it.
    Filter,
    /// The publication sends more of its columns than before.
    Columns,
    /// Its rows are identified by other columns.
    Key {
        /// Names of the columns before.
        before: Vec<String>,
        /// Names of the columns now.
        after: Vec<String>,
    },
    /// These rows hold what nobody has told.
    Untold(String),
    /// An UPDATE carried a row into its row filter, and the server did not send all of the row.
    Partial,
    /// A range of changes was given up.
    Gap(String),
}

impl Reason {
    /// Whether the lake has nothing of the table that a copy without rows would take away.
    const fn is_a_beginning(&self) -> bool {
        matches!(self, Self::FirstSeen | Self::Added | Self::MadeAgain)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = |columns: &[String]| {
            if columns.is_empty() { "no key".to_owned() } else { format!("the key ({})", columns.join(", ")) }
        };
        match self {
            Self::FirstSeen => f.write_str("it was first seen in the stream, without the rows from before"),
            Self::Added => {
                f.write_str("it was added to the publication, and its rows from before were not copied")
            }
            Self::Returned(reason) => write!(f, "it is captured again, and changes are missing: {reason}"),
            Self::MadeAgain => f.write_str("it is another table than before under its name"),
            Self::Attached(part) => write!(
                f,
                "a table with rows (oid {part}) was attached to it, without a change of rows in the stream"
            ),
            Self::Detached(part) => {
                write!(
                    f,
                    "a partition (oid {part}) was detached or dropped, without a change of rows in the stream"
                )
            }
            Self::Emptied(part) => {
                write!(
                    f,
                    "a partition (oid {part}) was truncated or rewritten, without a change of rows in the stream"
                )
            }
            Self::Filter => f.write_str("the publication has another row filter for it"),
            Self::Columns => f.write_str("the publication has more of its columns than before"),
            Self::Key { before, after } => write!(f, "it had {}, and has {} now", key(before), key(after)),
            Self::Partial => f.write_str(
                "an UPDATE carried a row into the publication's row filter without its large values (TOAST), which the \
                 server sends only with REPLICA IDENTITY FULL",
            ),
            Self::Gap(range) => f.write_str(range),
            Self::Untold(rows) => write!(f, "what these rows hold now is not in the stream: {rows}"),
        }
    }
}

/// Why a table is not captured any more, so that it cannot be copied either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Absence {
    /// It is not in the publication.
    Unpublished,
    /// The configuration leaves it out.
    Excluded,
    /// There is no table of its name.
    Dropped,
}

impl Absence {
    /// In words.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unpublished => "it is not in the publication any more, and its changes are not sent",
            Self::Excluded => "it was excluded by the configuration",
            Self::Dropped => "it was dropped or renamed at the source",
        }
    }

    /// Whether days go on to name it, as missing: it may have been taken out by mistake.
    pub const fn is_in_days(self) -> bool {
        matches!(self, Self::Unpublished)
    }
}

impl Backfills {
    /// Asks for a copy of a table for a reason of the product's own: what happened to it, no later than `at`. A copy that
    /// stands beyond that is the one. True: sets state with the next append.
    pub fn needed(&mut self, reason: &Reason, table: &TableName, at: Lsn, appender: &mut Appender) -> bool {
        // Without the first copy there is nothing that a later one would complete.
        if !self.settings.backfill {
            return false;
        }
        let topic: Arc<str> = routing::topic_name(&self.settings.name, table).into();
        if self.is_never_copied(table) && !reason.is_a_beginning() {
            return self.left_to_its_owner(reason, table, &topic, appender);
        }
        let state =
            self.states.entry(Arc::clone(&topic)).or_insert_with(|| BackfillState::new(table.clone()));
        if !state.wanted && state.done.as_ref().is_some_and(|done| done.position.commit_lsn >= at) {
            return false;
        }
        let point = state.point();
        let covered = point.is_none_or(|point| point > at) && !self.may_have_a_point(&topic);
        let state =
            self.states.entry(Arc::clone(&topic)).or_insert_with(|| BackfillState::new(table.clone()));
        if state.wanted && covered && state.lacking.is_some() {
            return false;
        }
        if !covered {
            self.leave(&topic);
        }
        let state =
            self.states.entry(Arc::clone(&topic)).or_insert_with(|| BackfillState::new(table.clone()));
        (state.wanted, state.absent) = (true, None);
        let text = reason.to_string();
        tracing::warn!(%table, reason = text, "the table needs a new copy: it is missing from the days until that is whole");
        state.lacking = Some(text);
        appender.set(state.entry(&topic));
        show(&self.ops, state);
        true
    }

    /// A table that is never copied, and of which the lake has what does not hold any more: to begin it anew with nothing but
    /// later changes is for its owner to say. True: sets state with the next append.
    pub(super) fn left_to_its_owner(
        &mut self,
        reason: &Reason,
        table: &TableName,
        topic: &Arc<str>,
        appender: &mut Appender,
    ) -> bool {
        let state = self.states.entry(Arc::clone(topic)).or_insert_with(|| BackfillState::new(table.clone()));
        if state.lacking.is_some() && state.absent.is_none() {
            return false;
        }
        let text = format!(
            "{reason}; it is not copied ([[table]] backfill = false), so `tidemark backfill {table}` has to begin it anew: with \
             later changes alone, or with its rows once it may be copied"
        );
        tracing::error!(%table, reason = text, "the table is missing from the days until its owner has it begun anew");
        (state.lacking, state.absent) = (Some(text), None);
        appender.set(state.entry(topic));
        show(&self.ops, state);
        true
    }

    /// A range of changes was given up: every table that is captured needs a new copy, whatever was copied before.
    pub fn given_up(&mut self, reason: &str, tables: &Tables, appender: &mut Appender) {
        let captured = |table: &&Table| !table.schema.dropped && tables.wants(&table.schema.name);
        for table in tables.iter().filter(captured) {
            if self.absence(&table.topic).is_none() {
                self.needed(&Reason::Gap(reason.to_owned()), &table.schema.name, Lsn(u64::MAX), appender);
            }
        }
    }

    /// It has turned out that nothing is missing of a table: a copy that was asked for that reason is not made.
    pub fn not_needed(&mut self, reason: &Reason, table: &TableName, appender: &mut Appender) {
        let topic: Arc<str> = routing::topic_name(&self.settings.name, table).into();
        let asked = |state: &BackfillState| state.wanted && state.lacking == Some(reason.to_string());
        if !self.states.get(&topic).is_some_and(asked) {
            return;
        }
        self.leave(&topic);
        let Some(state) = self.states.get_mut(&topic) else { return };
        (state.wanted, state.lacking, state.paused) = (false, None, false);
        appender.set(state.entry(&topic));
        show(&self.ops, state);
    }

    /// A table is captured no more, and cannot be copied. True: sets state with the next append.
    pub fn absent(&mut self, absence: Absence, table: &TableName, appender: &mut Appender) -> bool {
        let topic: Arc<str> = routing::topic_name(&self.settings.name, table).into();
        let state =
            self.states.entry(Arc::clone(&topic)).or_insert_with(|| BackfillState::new(table.clone()));
        if !self.settings.backfill || state.absent == Some(absence) {
            return false;
        }
        self.leave(&topic);
        let state =
            self.states.entry(Arc::clone(&topic)).or_insert_with(|| BackfillState::new(table.clone()));
        let reason = absence.reason();
        tracing::warn!(%table, reason, "the table is not captured any more");
        (state.wanted, state.lacking, state.absent) = (false, Some(reason.to_owned()), Some(absence));
        // A pause was for the copy that it held up.
        state.paused = false;
        appender.set(state.entry(&topic));
        show(&self.ops, state);
        true
    }

    /// A table has ended: nobody waits for a copy that it needed.
    pub fn ended(&mut self, table: &TableName, appender: &mut Appender) {
        let topic = routing::topic_name(&self.settings.name, table);
        if self.states.get(topic.as_str()).is_some_and(|state| state.wanted || state.lacking.is_some()) {
            self.absent(Absence::Dropped, table, appender);
        }
    }

    /// Whether a copy of the table is on its way.
    pub fn is_wanted(&self, topic: &str) -> bool {
        self.states.get(topic).is_some_and(|state| state.wanted)
    }

    /// Why days lack the table, if they do.
    pub fn lacking(&self, topic: &str) -> Option<&str> {
        self.states.get(topic)?.lacking.as_deref()
    }

    /// Why the table is captured no more, if it is not.
    pub fn absence(&self, topic: &str) -> Option<Absence> {
        self.states.get(topic)?.absent
    }
}

/// Shows what a table lacks.
pub(super) fn show(ops: &Ops, state: &BackfillState) {
    let shown = state.absent.is_none_or(Absence::is_in_days);
    let lacking = state.lacking.clone().filter(|_| shown);
    ops.table(&state.table).set_lacking(lacking.map(|reason| Lacking {
        reason,
        copy_asked: state.wanted,
        trouble: None,
    }));
}

/// Shows why the copy of a table has not come about.
pub(super) fn show_trouble(ops: &Ops, state: &BackfillState, error: &Error) {
    let Some(reason) = state.lacking.clone() else { return };
    let trouble = Some(error.to_string());
    ops.table(&state.table).set_lacking(Some(Lacking { reason, copy_asked: state.wanted, trouble }));
}
