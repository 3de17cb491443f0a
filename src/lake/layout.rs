//! Where everything stands in the lake. Pure: names in, object paths out, and back.
//!
//! ```text
//!   snapshots/<name>/<schema>.<table>/ds=D/part-00000.parquet …  _manifest.json  _SUCCESS
//!   changes/<name>/<schema>.<table>/ds=D/hour=HH/<log partition>-<first>-<last>.parquet
//!   changes/<name>/_log                                                                (which log fills it)
//!   changes/<name>/_sequence/<schema>.<table>/<log partition>-<first>.json             (where a change file ends)
//!   changes/<name>/_sequence/<schema>.<table>/<log partition>-begin.json               (where a replay began)
//!   changes/<name>/_pieces/<schema>.<table>/<log partition>-<first>-<last>-….parquet   (of a change file that is open)
//!   dead_letters/<name>/<schema>.<table>/ds=D/<log partition>-<first>-<last>.jsonl   (while staging)
//!   dead_letters/<name>/<schema>.<table>/ds=D/snapshot-00000.jsonl                   (while merging)
//!   cuts/<name>/ds=D.json
//!   notices/<name>/<endpoint>/_begin.json  ds=D.json                                    (what was told of days)
//!   expired/<name>/ds=D/<schema>.<table>.json                                          (days that a rule has removed)
//! ```
//!
//! Names follow from content alone (table, day, log partition, offset range, part number), so that a step
//! which is done twice meets its own object instead of making a second one.

use object_store::path::Path;

use crate::change::{Calendar, Ds, TableName};

const HOUR_US: i64 = 3_600_000_000;

/// Paths of one connector's objects.
#[derive(Clone, Debug)]
pub struct Layout {
    name: String,
}

/// What the name of a change file says: it covers every offset `first <= offset <= last` of a log partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeRange {
    /// Log partition of the table's topic.
    pub partition: u32,
    /// First offset covered.
    pub first: u64,
    /// Last offset covered.
    pub last: u64,
}

impl ChangeRange {
    /// First offset after the range.
    pub const fn next(&self) -> u64 {
        self.last + 1
    }
}

impl Layout {
    /// The layout of the connector of that name.
    pub fn new(name: &str) -> Self {
        Self { name: escape(name) }
    }

    fn table_dir(&self, area: &str, table: &TableName) -> String {
        format!("{area}/{}/{}.{}", self.name, escape(&table.schema), escape(&table.table))
    }

    /// The folder above the `ds=` folders of a table's snapshots: an external table's location.
    pub fn snapshots(&self, table: &TableName) -> Path {
        path(self.table_dir("snapshots", table))
    }

    /// The folder of one day of a table.
    pub fn snapshot(&self, table: &TableName, ds: Ds) -> Path {
        path(format!("{}/ds={ds}", self.table_dir("snapshots", table)))
    }

    /// An object of a table's day: `part-00000.parquet`, `_manifest.json`.
    pub fn snapshot_object(&self, table: &TableName, ds: Ds, object: &str) -> Path {
        path(format!("{}/ds={ds}/{object}", self.table_dir("snapshots", table)))
    }

    /// The manifest which makes a table's day visible.
    pub fn manifest(&self, table: &TableName, ds: Ds) -> Path {
        self.snapshot_object(table, ds, "_manifest.json")
    }

    /// The marker which Hadoop's tools look for.
    pub fn success(&self, table: &TableName, ds: Ds) -> Path {
        self.snapshot_object(table, ds, "_SUCCESS")
    }

    /// The folder above the `ds=` folders of a table's change files.
    pub fn changes(&self, table: &TableName) -> Path {
        path(self.table_dir("changes", table))
    }

    /// The folder of a day's change files.
    pub fn changes_of_day(&self, table: &TableName, ds: Ds) -> Path {
        path(format!("{}/ds={ds}", self.table_dir("changes", table)))
    }

    /// A change file.
    pub fn change_file(&self, table: &TableName, ds: Ds, hour: i8, range: ChangeRange) -> Path {
        let ChangeRange { partition, first, last } = range;
        let dir = self.table_dir("changes", table);
        path(format!("{dir}/ds={ds}/hour={hour:02}/{partition}-{first}-{last}.parquet"))
    }

    /// The folder of what says where a table's change files end.
    pub fn sequence(&self, table: &TableName) -> Path {
        path(self.sequence_dir(table))
    }

    /// Where the change file ends which begins at an offset of a log partition.
    pub fn link(&self, table: &TableName, partition: u32, first: u64) -> Path {
        path(format!("{}/{partition}-{first}.json", self.sequence_dir(table)))
    }

    fn sequence_dir(&self, table: &TableName) -> String {
        format!("changes/{}/_sequence/{}.{}", self.name, escape(&table.schema), escape(&table.table))
    }

    /// The folder of what is written of a table's change files before they end.
    pub fn pieces(&self, table: &TableName) -> Path {
        path(self.pieces_dir(table))
    }

    /// An object there.
    pub fn piece(&self, table: &TableName, object: &str) -> Path {
        path(format!("{}/{object}", self.pieces_dir(table)))
    }

    fn pieces_dir(&self, table: &TableName) -> String {
        format!("changes/{}/_pieces/{}.{}", self.name, escape(&table.schema), escape(&table.table))
    }

    /// Where the change files of a log partition begin that a replay has made.
    pub fn replay_begin(&self, table: &TableName, partition: u32) -> Path {
        path(format!("{}/{partition}-begin.json", self.sequence_dir(table)))
    }

    /// The folder of a table's dead letters.
    pub fn dead_letters(&self, table: &TableName) -> Path {
        path(self.table_dir("dead_letters", table))
    }

    /// The folder of a table's dead letters of one day.
    pub fn dead_letters_of_day(&self, table: &TableName, ds: Ds) -> Path {
        path(format!("{}/ds={ds}", self.table_dir("dead_letters", table)))
    }

    /// Dead letters of a staged range.
    pub fn staged_dead_letters(&self, table: &TableName, ds: Ds, range: ChangeRange) -> Path {
        let ChangeRange { partition, first, last } = range;
        path(format!("{}/ds={ds}/{partition}-{first}-{last}.jsonl", self.table_dir("dead_letters", table)))
    }

    /// Dead letters of a merge, in numbered files.
    pub fn merge_dead_letters(&self, table: &TableName, ds: Ds, index: usize) -> Path {
        path(format!("{}/ds={ds}/snapshot-{index:05}.jsonl", self.table_dir("dead_letters", table)))
    }

    /// The folder above the tables' dead letters.
    pub fn all_dead_letters(&self) -> Path {
        path(format!("dead_letters/{}", self.name))
    }

    /// What the log began with that the change files came from.
    pub fn log_beginning(&self) -> Path {
        path(format!("changes/{}/_log", self.name))
    }

    /// The folders of everything of this connector.
    pub fn areas(&self) -> [Path; 6] {
        ["snapshots", "changes", "dead_letters", "cuts", "expired", "notices"]
            .map(|area| path(format!("{area}/{}", self.name)))
    }

    /// The database's own manifest of a day.
    pub fn day_manifest(&self, ds: Ds) -> Path {
        path(format!("cuts/{}/ds={ds}.json", self.name))
    }

    /// What says that a table's day was removed by a rule.
    pub fn tombstone(&self, table: &TableName, ds: Ds) -> Path {
        let (schema, name) = (escape(&table.schema), escape(&table.table));
        path(format!("expired/{}/ds={ds}/{schema}.{name}.json", self.name))
    }

    /// The folder of what says so, of a day or of all.
    pub fn tombstones(&self, ds: Option<Ds>) -> Path {
        let all = format!("expired/{}", self.name);
        path(ds.map_or_else(|| all.clone(), |ds| format!("{all}/ds={ds}")))
    }

    /// The last day that is not told to an endpoint because it was complete before.
    pub fn notices_begin(&self, endpoint: &str) -> Path {
        path(format!("notices/{}/{}/_begin.json", self.name, escape(endpoint)))
    }

    /// What says that a day was told to an endpoint.
    pub fn notices_told(&self, endpoint: &str, ds: Ds) -> Path {
        path(format!("notices/{}/{}/ds={ds}.json", self.name, escape(endpoint)))
    }

    /// The folder of what says so.
    pub fn notices(&self, endpoint: &str) -> Path {
        path(format!("notices/{}/{}", self.name, escape(endpoint)))
    }

    /// The folder above the folders of tables' snapshots.
    pub fn all_snapshots(&self) -> Path {
        path(format!("snapshots/{}", self.name))
    }

    /// The folder of the database's manifests.
    pub fn day_manifests(&self) -> Path {
        path(format!("cuts/{}", self.name))
    }
}

/// The range in a change file's path; `None` for any other object.
pub fn parse_change_file(path: &Path) -> Option<ChangeRange> {
    let mut numbers = path.filename()?.strip_suffix(".parquet")?.split('-');
    let partition = numbers.next()?.parse().ok()?;
    let first = numbers.next()?.parse().ok()?;
    let last = numbers.next()?.parse().ok()?;
    (numbers.next().is_none() && first <= last).then_some(ChangeRange { partition, first, last })
}

/// The day in a `ds=YYYY-MM-DD` folder's path; `None` for any other folder.
pub fn parse_ds(path: &Path) -> Option<Ds> {
    path.filename()?.strip_prefix("ds=")?.parse().ok()
}

/// The day in the path of an object in a `ds=YYYY-MM-DD` folder; `None` for any other object.
pub fn parse_object_ds(path: &Path) -> Option<Ds> {
    let (folder, _) = path.as_ref().rsplit_once('/')?;
    folder.rsplit_once('/')?.1.strip_prefix("ds=")?.parse().ok()
}

/// The table in the path of a table's folder; `None` for any other folder.
pub fn parse_table(path: &Path) -> Option<TableName> {
    table_in(path.filename()?)
}

/// The table and the day in the path of a tombstone; `None` for any other object.
pub fn parse_tombstone(path: &Path) -> Option<(TableName, Ds)> {
    Some((table_in(path.filename()?.strip_suffix(".json")?)?, parse_object_ds(path)?))
}

fn table_in(segment: &str) -> Option<TableName> {
    let (schema, table) = segment.split_once('.')?;
    Some(TableName::new(unescape(schema)?, unescape(table)?))
}

/// A name of part `index`, such as `part-00000.parquet`.
pub fn part_name(index: usize, extension: &str) -> String {
    format!("part-{index:05}.{extension}")
}

/// The folder for changes committed in `start_us <= commit_us < end_us` (microseconds since 1970).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The day.
    pub ds: Ds,
    /// The hour, UTC.
    pub hour: i8,
    /// First instant of the bucket.
    pub start_us: i64,
    /// First instant after it.
    pub end_us: i64,
}

impl Bucket {
    /// A folder that was chosen before, for changes of any time.
    pub const fn at(ds: Ds, hour: i8) -> Self {
        Self { ds, hour, start_us: i64::MIN, end_us: i64::MAX }
    }

    /// The folder for changes committed at that instant: a UTC hour, or the part of it that lies in one day.
    pub fn of(calendar: &Calendar, commit_us: i64) -> Self {
        let ds = calendar.day_of_us(commit_us);
        let hour_start = commit_us.div_euclid(HOUR_US).saturating_mul(HOUR_US);
        let day_start = ds.yesterday().map_or(i64::MIN, |day| calendar.end_of(day).as_microsecond());
        let day_end = calendar.end_of(ds).as_microsecond();
        Self {
            ds,
            hour: commit_us.div_euclid(HOUR_US).rem_euclid(24) as i8,
            start_us: hour_start.max(day_start).min(commit_us),
            end_us: hour_start.saturating_add(HOUR_US).min(day_end).max(commit_us.saturating_add(1)),
        }
    }
}

/// One segment of a path. Letters, digits, `-`, `_` and what is not ASCII stand as they are; everything else,
/// a dot within a name too, becomes `%XX`, so that two names never share a folder and no reader takes a part
/// of a name for a separator or a `key=value` folder.
fn escape(name: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_alphanumeric() || matches!(c, '-' | '_') || (!c.is_ascii() && !c.is_control()) {
            out.push(c);
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                // Writing to a string cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

fn unescape(segment: &str) -> Option<String> {
    percent_encoding::percent_decode_str(segment).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[expect(clippy::expect_used, reason = "segments are escaped, so every one is valid")]
fn path(text: String) -> Path {
    Path::parse(text).expect("segments are escaped")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    use super::*;

    fn us(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    #[test]
    fn paths_are_those_of_the_contract() {
        let layout = Layout::new("shop");
        let table = TableName::new("public", "orders");
        let ds: Ds = "2026-11-20".parse().unwrap();
        let range = ChangeRange { partition: 0, first: 12, last: 99 };
        let text = |path: Path| path.to_string();
        assert_eq!(
            text(layout.snapshot_object(&table, ds, &part_name(0, "parquet"))),
            "snapshots/shop/public.orders/ds=2026-11-20/part-00000.parquet"
        );
        assert_eq!(
            text(layout.change_file(&table, ds, 3, range)),
            "changes/shop/public.orders/ds=2026-11-20/hour=03/0-12-99.parquet"
        );
        assert_eq!(text(layout.day_manifest(ds)), "cuts/shop/ds=2026-11-20.json");
        assert_eq!(parse_change_file(&layout.change_file(&table, ds, 3, range)), Some(range));
        assert_eq!(parse_ds(&layout.snapshot(&table, ds)), Some(ds));
        for table in [table, TableName::new("a.b", "c=d/e")] {
            assert_eq!(parse_tombstone(&layout.tombstone(&table, ds)), Some((table, ds)));
        }
    }

    #[test]
    fn strange_names_never_share_a_folder_nor_leave_it() {
        let layout = Layout::new("shop");
        let odd = [
            ("a.b", "c"),
            ("a", "b.c"),
            ("..", ".."),
            ("a/b", "c"),
            ("é", "x=y"),
            ("a%2Fb", "c"),
            ("_", "#1"),
        ];
        let mut seen: Vec<_> =
            odd.iter().map(|(s, t)| layout.snapshots(&TableName::new(*s, *t)).to_string()).collect();
        assert!(
            seen.iter().all(|p| p.starts_with("snapshots/shop/") && p.matches('/').count() == 2),
            "{seen:?}"
        );
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), odd.len());
    }

    fn calendar(at: &str, zone: &str) -> Calendar {
        Calendar::new(at.parse().unwrap(), TimeZone::get(zone).unwrap())
    }

    #[test]
    fn days_turn_at_the_configured_local_time() {
        let dubai = Bucket::of(&calendar("00:00", "Asia/Dubai"), us("2026-11-20T20:30:00Z"));
        assert_eq!((dubai.ds.to_string().as_str(), dubai.hour), ("2026-11-21", 20));
        let kabul = calendar("06:00", "Asia/Kabul");
        let before = Bucket::of(&kabul, us("2026-11-20T01:20:00Z"));
        let after = Bucket::of(&kabul, us("2026-11-20T01:40:00Z"));
        assert_eq!((before.ds.to_string().as_str(), before.hour), ("2026-11-19", 1));
        assert_eq!((after.ds.to_string().as_str(), after.hour), ("2026-11-20", 1));
        assert_eq!(before.end_us, after.start_us, "the day turns within the hour");
        assert_eq!(before.end_us, us("2026-11-20T01:30:00Z"));
    }

    #[test]
    fn a_bucket_holds_its_instant_at_the_ends_of_time() {
        let utc = calendar("00:00", "UTC");
        for at in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX - 1, us("9999-12-30T22:00:00Z")] {
            let bucket = Bucket::of(&utc, at);
            assert!(bucket.start_us <= at && at < bucket.end_us, "{at}: {bucket:?}");
        }
    }
}
