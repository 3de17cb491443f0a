//! The tables that capture knows: their shape, their topic, their encoder.
//!
//! A table is known from the record in `<name>.ddl` which its first sight left there. On each connection the
//! server describes a table again before its first change; the description is compared with what is known,
//! and a difference becomes the next [`SchemaVersion`], in the log before the rows that have it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::change::{
    Column, Evolved, Lsn, Op, Position, SchemaChange, SchemaVersion, TableName, TableSchema, Timeline, Value,
};
use crate::envelope::avro::{AvroSchemas, SchemaIds};
use crate::envelope::{OldKind, Options, RowChange, SourceInfo, TableEncoder, routing};
use crate::log::Log;
use crate::ops::{Ops, TableStats};
use crate::postgres::pgoutput::Relation;
use crate::runtime::{Error, Result};

use super::super::topics::read_json;
use super::backfill::Moved;
use super::described;
use super::state::TableCount;
use super::told::{Grown, Told, unapplied};

/// Decides which tables are captured.
pub type TableFilter = Arc<dyn Fn(&TableName) -> bool + Send + Sync>;

/// Gives the SQL condition for rows of a table that copies take; none: all.
pub type RowFilter = Arc<dyn Fn(&TableName) -> Option<String> + Send + Sync>;

/// Transactions with a TRUNCATE that are remembered of a table.
const TRUNCATES_MAX: usize = 64;

/// A captured table.
#[derive(Debug)]
pub struct Table {
    /// Its shape now.
    pub schema: TableSchema,
    /// Where its changes go.
    pub topic: Arc<str>,
    /// Changes since the last cut.
    pub count: TableCount,
    /// Changes since this session began, whatever was cut.
    pub total: TableCount,
    /// Where it was first seen: its changes up to here are in its copy, or none of it was captured then.
    pub since: Position,
    /// Transactions of the stream that truncated it, the last few.
    pub truncated_by: Vec<u32>,
    /// Keys that rows came to without all of their values, while a copy has to know.
    pub moves: Option<Moved>,
    /// The commit of the last row that came only in part ([`Table::note_partial`]), until a copy is asked for.
    pub partial_at: Option<Lsn>,
    /// Whether `count` has changed since it was last put into an append.
    pub touched: bool,
    /// For people to watch.
    pub watch: Arc<TableStats>,
    /// The columns of the wire, in order; without them rows come as the schema has them.
    wire: Option<Vec<String>>,
    encoder: TableEncoder,
    /// Under which its schemas are registered.
    ids: Option<SchemaIds>,
    /// The transaction that its shape came with, on this connection.
    shaped_by: Option<u32>,
    /// The commit that made it, or made it anew, if that came on this connection.
    made_at: Option<Lsn>,
    unreported: Unreported,
}

/// What has been captured and not been shown yet.
#[derive(Debug, Default)]
struct Unreported {
    changes: u64,
    position: Position,
    commit_us: i64,
}

impl Table {
    /// The encoder for rows in the order of the wire, and the shape that it writes.
    pub const fn encoder(&mut self) -> (&mut TableEncoder, &TableSchema) {
        (&mut self.encoder, &self.schema)
    }

    /// The transaction that its shape came with, if it did on this connection.
    pub const fn came_with(&self) -> Option<u32> {
        self.shaped_by
    }

    /// The commit that made it, or made it anew, if that came on this connection.
    pub const fn made_at(&self) -> Option<Lsn> {
        self.made_at
    }

    /// Counts the records of a change, or of rows, the last of which stands there.
    pub const fn counted(&mut self, records: u32, position: Position, commit_us: i64) {
        self.count.changes += records as u64;
        self.total.changes += records as u64;
        self.unreported =
            Unreported { changes: self.unreported.changes + records as u64, position, commit_us };
        self.touched = true;
    }

    /// Notes a row that has come to another key and left values alone which the server did not send, if that is wanted.
    pub fn note_move(&mut self, row: &RowChange<'_>) {
        let (Some(moves), Some(new), Some(old)) = (&mut self.moves, row.new, row.old) else { return };
        if row.op != Op::Update || old.kind != OldKind::Key || !new.contains(&Value::Unchanged) {
            return;
        }
        let place = |column: &Column| match &self.wire {
            Some(wire) => wire.iter().position(|name| name == column.source_name()),
            None => None,
        };
        let key = self.schema.key_columns().map(|column| {
            let place = place(column)?;
            let value = new.get(place).filter(|value| **value != Value::Unchanged);
            match value.or_else(|| old.values.get(place))? {
                Value::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
                Value::Null | Value::Unchanged | Value::LeftOut { .. } => None,
            }
        });
        match key.collect::<Option<Vec<_>>>() {
            Some(key) => moves.note(row.position.commit_lsn, key),
            None => moves.lose(row.position.commit_lsn),
        }
    }

    /// Notes a TRUNCATE of the whole table.
    pub fn truncated_by(&mut self, xid: u32) {
        if self.truncated_by.len() == TRUNCATES_MAX {
            self.truncated_by.remove(0);
        }
        self.truncated_by.push(xid);
    }

    /// Counts changes that became dead letters.
    pub fn dead_lettered(&mut self, changes: u32) {
        let changes = u64::from(changes);
        self.count.dead_letters += changes;
        self.total.dead_letters += changes;
        self.touched = true;
        self.watch.dead_lettered(changes);
    }

    /// Notes a new row of which the stream has only a part: an UPDATE that carries it into the row filter is sent as an
    /// INSERT, without the TOAST values that it leaves alone (`pgoutput_row_filter` in
    /// `src/backend/replication/pgoutput/pgoutput.c` completes it from the old row, as far as that was logged).
    pub fn note_partial(&mut self, row: &RowChange<'_>) {
        if row.op == Op::Create && row.new.is_some_and(|new| new.contains(&Value::Unchanged)) {
            self.partial_at = Some(row.position.commit_lsn);
        }
    }

    /// Shows what has been captured since the last call.
    pub fn report(&mut self) {
        let Unreported { changes, position, commit_us } = std::mem::take(&mut self.unreported);
        if changes > 0 {
            self.watch.captured(changes, changes, position, commit_us / 1000);
        }
    }
}

/// All of them.
pub struct Tables {
    name: String,
    source: SourceInfo,
    options: Options,
    filter: TableFilter,
    ops: Ops,
    all: Vec<Table>,
    by_topic: HashMap<Arc<str>, usize>,
    /// Described on this connection; `None`: not captured.
    by_oid: HashMap<u32, (Relation, Option<usize>)>,
    /// By OID, also of tables that are gone or others now.
    known_oids: HashMap<u32, usize>,
    /// By OID, as statements have told on this connection.
    described: HashMap<u32, TableSchema>,
    /// Topics of tables whose [`Table::moves`] are noted.
    moves_watched: HashSet<Arc<str>>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables")
            .field("name", &self.name)
            .field("tables", &self.all.len())
            .finish_non_exhaustive()
    }
}

fn is_named(schema: &TableSchema, relation: &Relation) -> bool {
    schema.name.schema == relation.schema && schema.name.table == relation.table
}

impl Tables {
    /// No tables yet, for a source of that name.
    pub fn new(source: SourceInfo, options: Options, filter: TableFilter, ops: Ops) -> Self {
        let name = source.name.clone();
        let (all, by_topic, by_oid) = (Vec::new(), HashMap::new(), HashMap::new());
        let (known_oids, described) = (HashMap::new(), HashMap::new());
        let moves_watched = HashSet::new();
        Self {
            name,
            source,
            options,
            filter,
            ops,
            all,
            by_topic,
            by_oid,
            known_oids,
            described,
            moves_watched,
        }
    }

    /// Takes in the shapes in the topic `<name>.ddl`, and the counts of the state.
    pub async fn restore(&mut self, log: &dyn Log, counts: &HashMap<String, TableCount>) -> Result<()> {
        for change in
            read_json::<SchemaChange>(log, &routing::ddl_topic(&self.name), &mut HashMap::new()).await?
        {
            let index = self.put(change.after, change.position);
            if let Some(count) = counts.get(&change.topic) {
                self.all[index].count = *count;
            }
        }
        Ok(())
    }

    /// The tables, in the order of their first sight.
    pub fn iter(&self) -> impl Iterator<Item = &Table> {
        self.all.iter()
    }

    /// The tables, to be counted.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Table> {
        self.all.iter_mut()
    }

    /// The table which the wire calls `oid`: `Some(None)` when it is not captured, `None` when the server has
    /// not described it on this connection.
    pub fn by_oid(&mut self, oid: u32) -> Option<Option<&mut Table>> {
        let (_, index) = self.by_oid.get(&oid)?;
        Some(index.map(|index| &mut self.all[index]))
    }

    /// The name of the table which the wire calls `oid`, where the server has described it.
    pub fn name_of(&self, oid: u32) -> Option<String> {
        self.by_oid.get(&oid).map(|(relation, _)| format!("{}.{}", relation.schema, relation.table))
    }

    /// Whether this very description has been taken in on this connection, and rows of the table still come by it: its name
    /// may have been another one's for a while.
    pub fn knows(&self, relation: &Relation) -> bool {
        let is_laid_out = |index: usize| {
            let table = &self.all[index];
            let names = relation.columns.iter().map(|column| &column.name);
            table.schema.oid == relation.oid && table.wire.as_ref().is_some_and(|wire| wire.iter().eq(names))
        };
        // Under FULL every column is marked, and a key that came or went cannot be seen: the catalog is asked.
        relation.identity != b'f'
            && self
                .by_oid
                .get(&relation.oid)
                .is_some_and(|(known, index)| known == relation && index.is_none_or(is_laid_out))
    }

    /// From here on a table's moves are noted, also if it is only seen later.
    pub fn watch_moves(&mut self, topic: &Arc<str>) {
        self.moves_watched.insert(Arc::clone(topic));
        if let Some(index) = self.by_topic.get(topic) {
            self.all[*index].moves = Some(Moved::default());
        }
    }

    /// They are of no interest any more.
    pub fn forget_moves(&mut self, topic: &Arc<str>) {
        self.moves_watched.remove(topic);
        if let Some(index) = self.by_topic.get(topic) {
            self.all[*index].moves = None;
        }
    }

    /// What was noted since the last call.
    pub fn take_moves(&mut self, topic: &Arc<str>) -> Moved {
        let index = self.by_topic.get(topic);
        index.and_then(|index| self.all[*index].moves.as_mut()).map(std::mem::take).unwrap_or_default()
    }

    /// Tables whose changes come, by OID.
    pub fn oids(&self) -> Vec<u32> {
        let goes_on = |table: &&Table| !table.schema.dropped && self.wants(&table.schema.name);
        self.all.iter().filter(goes_on).map(|table| table.schema.oid).collect()
    }

    /// A table's shape came with that transaction, which commits there.
    pub fn shaped_by(&mut self, change: &SchemaChange, xid: Option<u32>, commit_lsn: Lsn) {
        let Some(table) = self.by_name(&change.after.name) else { return };
        table.shaped_by = xid;
        let goes_on = |before: &TableSchema| before.oid == change.after.oid && !before.dropped;
        if !change.before.as_ref().is_some_and(goes_on) {
            table.made_at = Some(commit_lsn);
        }
    }

    /// Whether the table is wanted.
    pub fn wants(&self, name: &TableName) -> bool {
        (self.filter)(name)
    }

    /// Whether the catalog has to be asked about a description from the wire: see [`described`].
    pub fn is_news(&self, relation: &Relation) -> bool {
        let known = self.of_oid(relation.oid).filter(|known| is_named(&known.schema, relation));
        known.is_none_or(|known| described::is_news(relation, &known.schema))
    }

    /// Takes in a description from the wire, completed by what the catalog says of the table, where it was asked.
    /// Gives the change of schema to be appended before the rows that follow, if there is one.
    pub fn adopt(
        &mut self,
        relation: Relation,
        catalog: Option<&TableSchema>,
        position: Position,
    ) -> Option<Grown> {
        let name = TableName::new(relation.schema.clone(), relation.table.clone());
        if !self.wants(&name) {
            self.by_oid.insert(relation.oid, (relation, None));
            return None;
        }
        let known = self.of_oid(relation.oid).filter(|known| known.schema.name == name);
        let source = described::shape(&relation, catalog, known.map(|known| &known.schema));
        let passed_over = known.and_then(|known| described::passed_over(&source, &known.schema));
        let layout: Vec<String> = relation.columns.iter().map(|c| c.name.clone()).collect();
        let change = match self.evolve(source, position, Told::default()) {
            Ok(change) => change.map(|mut grown| {
                grown.untold.extend(passed_over);
                grown
            }),
            Err(error) => {
                self.isolate(&name, &error);
                self.by_oid.insert(relation.oid, (relation, None));
                return None;
            }
        };
        let topic: Arc<str> = routing::topic_name(&self.name, &name).into();
        let index = self.by_topic[&topic];
        let table = &mut self.all[index];
        table.encoder = encoder(&self.source, self.options, &table.schema, Some(&layout), None);
        table.wire = Some(layout);
        self.by_oid.insert(relation.oid, (relation, Some(index)));
        change
    }

    /// The table's topic, unless it belongs to another one.
    pub fn own_topic(&self, name: &TableName) -> Result<Arc<str>> {
        let topic: Arc<str> = routing::topic_name(&self.name, name).into();
        match self.by_topic.get(&topic).map(|index| &self.all[*index].schema.name) {
            Some(known) if known != name => Err(Error::operator(format!(
                "tables {known} and {name} would share the topic {topic}, since characters that topics do not allow become '_'"
            ))
            .mend("Exclude one of them under [source] exclude, or rename it.")),
            _ => Ok(topic),
        }
    }

    /// A table that cannot be carried is left out, and shown as failed; the others go on.
    pub fn isolate(&self, name: &TableName, error: &Error) {
        tracing::error!(table = %name, %error, "the table is not captured");
        self.ops.table(name).failed(error);
    }

    /// Takes in the shape of a table as the source has it now; its rows come in the order of `source.columns`.
    /// Fails when the table cannot be carried beside those that are known.
    pub fn evolve(
        &mut self,
        mut source: TableSchema,
        position: Position,
        told: Told,
    ) -> Result<Option<Grown>> {
        // Whether a column may be null is not on the wire, and DROP NOT NULL goes unseen: only keys never are.
        for (index, column) in source.columns.iter_mut().enumerate() {
            column.nullable = !source.key.contains(&index);
        }
        let topic = self.own_topic(&source.name)?;
        let before = self.by_topic.get(&topic).map(|index| self.all[*index].schema.clone());
        let evolved = match &before {
            None => Some(TableSchema::first(&source)),
            Some(known) => known.evolve(&source),
        };
        let evolved = match (evolved, &before) {
            (Some(evolved), _) => told.of(evolved),
            (None, Some(known)) if told.rewritten => {
                let (actions, untold) = (Vec::new(), Vec::new());
                told.of(Evolved { after: known.clone(), actions, untold, keeps_values: true })
            }
            (None, _) => return Ok(None),
        };
        Ok(Some(self.grow(evolved, before, position, told.statement)))
    }

    /// A table is gone at the source, or goes on under another name. None if it is not known, or known to be gone.
    pub fn end(
        &mut self,
        oid: u32,
        renamed_to: Option<&TableName>,
        position: Position,
        statement: Option<String>,
    ) -> Option<Grown> {
        let known = &self.of_oid(oid)?.schema;
        let (evolved, before) = (known.ended(renamed_to)?, known.clone());
        Some(self.grow(evolved, Some(before), position, statement))
    }

    /// A table that the wire calls by another name than the one that is known.
    pub fn end_if_renamed(&mut self, oid: u32, name: &TableName, position: Position) -> Option<Grown> {
        let is_other = self.of_oid(oid)?.schema.name != *name;
        if is_other { self.end(oid, Some(name), position, None) } else { None }
    }

    /// A table that was first seen in this transaction has been created by it: nothing of it is missing.
    pub fn was_created(
        &mut self,
        name: &TableName,
        xid: Option<u32>,
        position: Position,
        statement: Option<String>,
    ) -> Option<Grown> {
        let table = self.by_name(name).filter(|table| table.schema.version == SchemaVersion(1))?;
        if xid.is_none() || table.shaped_by != xid {
            return None;
        }
        let known = table.schema.clone();
        let told = Told { created: true, statement: statement.clone(), rewritten: false };
        let evolved = told.of(TableSchema::first(&known));
        Some(self.grow(evolved, Some(known), position, statement))
    }

    fn grow(
        &mut self,
        evolved: Evolved,
        before: Option<TableSchema>,
        position: Position,
        statement: Option<String>,
    ) -> Grown {
        let Evolved { after, actions, untold, .. } = evolved;
        let topic = routing::topic_name(&self.name, &after.name);
        let index = if before.as_ref() == Some(&after) {
            self.by_topic[topic.as_str()]
        } else {
            self.put(after.clone(), position)
        };
        let table = &self.all[index];
        // A table that was copied later than the others may be described as it was before.
        let position = position.max(table.since);
        let applied = actions.iter().all(|action| action.applied);
        table.watch.schema_changed(unapplied(&actions));
        Grown { change: SchemaChange { position, topic, statement, applied, actions, before, after }, untold }
    }

    /// The table that has this OID at the source.
    pub fn of_oid(&self, oid: u32) -> Option<&Table> {
        let table = &self.all[*self.known_oids.get(&oid)?];
        Some(table).filter(|table| table.schema.oid == oid && !table.schema.dropped)
    }

    /// The shape of a table at this place of the stream, as a statement left it.
    pub fn describe(&mut self, source: TableSchema) {
        self.described.insert(source.oid, source);
    }

    /// The last such shape of this connection.
    pub fn described(&self, oid: u32) -> Option<&TableSchema> {
        self.described.get(&oid)
    }

    /// The table of a name.
    pub fn by_name(&mut self, name: &TableName) -> Option<&mut Table> {
        let topic: Arc<str> = routing::topic_name(&self.name, name).into();
        let index = *self.by_topic.get(&topic)?;
        Some(&mut self.all[index])
    }

    /// The table of a topic.
    pub fn of_topic(&self, topic: &str) -> Option<&Table> {
        self.by_topic.get(topic).map(|index| &self.all[*index])
    }

    /// The schemas which have to be registered before a table's changes are encoded; none where none have to be, or
    /// the table is not captured.
    pub fn schemas(&mut self, name: &TableName) -> Option<(Arc<str>, AvroSchemas)> {
        let (options, source) = (self.options, self.name.clone());
        // A name may lead to the topic of another table, which this one would have to share.
        let table = self.by_name(name).filter(|table| table.schema.name == *name)?;
        Some((Arc::clone(&table.topic), options.to_register(&source, &table.schema)?))
    }

    /// A table's schemas are registered: its changes can be encoded.
    pub fn registered(&mut self, name: &TableName, ids: SchemaIds) {
        let (options, source) = (self.options, self.source.clone());
        let Some(table) = self.by_name(name) else { return };
        table.encoder = encoder(&source, options, &table.schema, table.wire.as_deref(), Some(ids));
        table.ids = Some(ids);
        table.watch.refused(None);
    }

    /// An encoder of its own for rows whose columns come in that order, of a table that is known and registered.
    pub fn encoder_of(&mut self, name: &TableName, columns: &[String]) -> Option<TableEncoder> {
        let (options, source) = (self.options, self.source.clone());
        let table = self.by_name(name)?;
        Some(match &table.encoder {
            TableEncoder::Refused(reason) => TableEncoder::Refused(reason.clone()),
            _ => encoder(&source, options, &table.schema, Some(columns), table.ids),
        })
    }

    /// A table's schemas are refused: its changes become dead letters, and the other tables go on.
    pub fn refused(&mut self, name: &TableName, error: &Error) {
        let Some(table) = self.by_name(name) else { return };
        table.encoder = TableEncoder::Refused(error.message().into());
        table.watch.refused(Some(error));
    }

    /// From where on that timeline all tables are whole: below it some are still what they were before their copy.
    pub fn whole_from(&self, timeline: Timeline) -> Lsn {
        let since = self.all.iter().map(|table| table.since).filter(|since| since.timeline == timeline);
        since.map(|since| since.commit_lsn).max().unwrap_or_default()
    }

    /// Takes in a shape, for a table that is not known yet as first seen at `position`.
    fn put(&mut self, schema: TableSchema, position: Position) -> usize {
        let topic: Arc<str> = routing::topic_name(&self.name, &schema.name).into();
        let oid = schema.oid;
        if let Some(index) = self.by_topic.get(&topic) {
            self.known_oids.insert(oid, *index);
            let table = &mut self.all[*index];
            // The server describes a table again only if rows come otherwise: until then they come as before.
            table.encoder = encoder(&self.source, self.options, &schema, table.wire.as_deref(), None);
            (table.schema, table.ids) = (schema, None);
            return *index;
        }
        let encoder = encoder(&self.source, self.options, &schema, None, None);
        self.known_oids.insert(oid, self.all.len());
        let watch = self.ops.table(&schema.name);
        let (count, total, unreported) = Default::default();
        self.by_topic.insert(Arc::clone(&topic), self.all.len());
        let since = position;
        let (wire, ids, touched) = (None, None, false);
        let moves = self.moves_watched.contains(&topic).then(Moved::default);
        self.all.push(Table {
            schema,
            topic,
            count,
            total,
            since,
            truncated_by: Vec::new(),
            moves,
            partial_at: None,
            touched,
            watch,
            wire,
            encoder,
            ids,
            shaped_by: None,
            made_at: None,
            unreported,
        });
        self.all.len() - 1
    }
}

/// An encoder for rows whose columns come in the order of `wire`, or of the schema's own columns without the dropped.
fn encoder(
    source: &SourceInfo,
    options: Options,
    schema: &TableSchema,
    wire: Option<&[String]>,
    ids: Option<SchemaIds>,
) -> TableEncoder {
    let mut live = 0;
    let layout: Vec<Option<usize>> = schema
        .columns
        .iter()
        .map(|column| match wire {
            _ if column.dropped => None,
            Some(wire) => wire.iter().position(|name| name == column.source_name()),
            None => {
                live += 1;
                Some(live - 1)
            }
        })
        .collect();
    TableEncoder::new(source, schema, &layout, options, ids)
}
