//! What deliver knows of the source: the shapes of its tables and its cuts, as capture left them in the log.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use crate::change::{ColumnType, Cut, Ds, SchemaChange, SchemaVersion, TableName, TableSchema};
use crate::envelope::{Options, routing};
use crate::lake::Shapes;
use crate::log::Log;
use crate::runtime::{Error, Result};

use super::super::topics::{Places, read_json};

/// Shapes of one table, by version.
pub type Versions = BTreeMap<SchemaVersion, Arc<TableSchema>>;

/// Reads `<name>.ddl` and `<name>.cuts`, and goes on where it left off.
#[derive(Debug)]
pub struct Journal {
    ddl_topic: String,
    cuts_topic: String,
    places: Places,
    /// Shapes by topic.
    shapes: HashMap<String, Versions>,
    /// Cuts by day.
    cuts: BTreeMap<Ds, Arc<Cut>>,
    /// What the log begins with.
    beginning: Option<String>,
}

impl Journal {
    /// Nothing is read yet.
    pub fn new(name: &str) -> Self {
        Self {
            ddl_topic: routing::ddl_topic(name),
            cuts_topic: routing::cuts_topic(name),
            places: Places::new(),
            shapes: HashMap::new(),
            cuts: BTreeMap::new(),
            beginning: None,
        }
    }

    /// Reads what is new.
    ///
    /// Called after the log's ranges were taken, it knows every cut that divides what they hold: a cut is
    /// appended before any record that lies behind it.
    pub async fn refresh(&mut self, log: &dyn Log) -> Result<()> {
        for change in read_json::<SchemaChange>(log, &self.ddl_topic, &mut self.places).await? {
            self.beginning
                .get_or_insert_with(|| format!("{} {} {}", change.topic, change.after.oid, change.position));
            let versions = self.shapes.entry(change.topic).or_default();
            versions.insert(change.after.version, Arc::new(change.after));
        }
        for cut in read_json::<Cut>(log, &self.cuts_topic, &mut self.places).await? {
            self.cuts.insert(cut.ds, Arc::new(cut));
        }
        Ok(())
    }

    /// The log's first record of a schema, in words: no two logs of a source begin alike. None while there is
    /// no record.
    pub fn beginning(&self) -> Option<&str> {
        self.beginning.as_deref()
    }

    /// The topics of tables with their newest shape.
    pub fn tables(&self) -> impl Iterator<Item = (&str, &TableName)> {
        self.shapes
            .iter()
            .filter_map(|(topic, versions)| Some((topic.as_str(), &versions.last_key_value()?.1.name)))
    }

    /// The version of a table's newest shape.
    pub fn newest(&self, topic: &str) -> Option<SchemaVersion> {
        self.shapes.get(topic).and_then(|versions| versions.last_key_value()).map(|(version, _)| *version)
    }

    /// A shape of a table.
    pub fn shape(&self, topic: &str, version: SchemaVersion) -> Result<&Arc<TableSchema>> {
        self.shapes.get(topic).and_then(|versions| versions.get(&version)).ok_or_else(|| {
            Error::operator(format!(
                "{} holds no version {} of the table of {topic}",
                self.ddl_topic, version.0
            ))
            .mend("The topic was trimmed or damaged; it must be kept whole.")
        })
    }

    /// A table's shape at some version, with all that came before. `options` are those with which records are encoded.
    pub fn shapes(&self, topic: &str, version: SchemaVersion, options: Options) -> Result<Shapes> {
        let now = self.shape(topic, version)?;
        let all = self.shapes.get(topic).into_iter().flat_map(BTreeMap::values);
        let read = move |column_type: &ColumnType, text: &str| options.datum(column_type, text);
        Ok(Shapes::new(Arc::clone(now), all.cloned(), Arc::new(read)))
    }

    /// The cuts after a day, oldest first (all of them without one).
    pub fn cuts_after(&self, ds: Option<Ds>) -> impl Iterator<Item = &Arc<Cut>> {
        let after = ds.map_or(Bound::Unbounded, Bound::Excluded);
        self.cuts.range((after, Bound::Unbounded)).map(|(_, cut)| cut)
    }

    /// The day of the last cut that was read.
    pub fn last_cut(&self) -> Option<Ds> {
        self.cuts.last_key_value().map(|(ds, _)| *ds)
    }
}
