//! What a consumer has seen that is not ours, as `read_topics.py` leaves it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde::Deserialize;
use tidemark::change::{Cut, Position};
use tidemark::log::{RecordRef, TopicRecords};

use crate::oracle::checker::position;
use crate::support::NAME;
use crate::support::lake::python;

/// How long a transaction may stay open after the last writer has left in good order.
const OPEN_SECONDS: &str = "30";

/// What the consumer says when it fails; no topic has this name.
const ERRORS: &str = "errors";

/// A folder with everything that was read.
pub struct Topics {
    folder: tempfile::TempDir,
    /// By `<topic>/<partition>`.
    pub partitions: BTreeMap<String, Place>,
}

/// What the brokers say of a partition, and how much was read.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Place {
    /// The first offset.
    pub low: i64,
    /// How far readers of what is committed get.
    pub stable: i64,
    /// Where the partition ends.
    pub high: i64,
    /// Records that were seen.
    pub records: u64,
}

/// A topic's records.
pub struct Topic {
    records: TopicRecords,
    places: Vec<(u32, i64)>,
}

/// A record, where it stands, and when it happened.
#[derive(Clone, Copy)]
pub struct Seen<'t> {
    pub partition: u32,
    pub offset: i64,
    pub position: Position,
    /// Records of one change share its position: the end of the old key, its tombstone, the new row.
    pub step: u8,
    pub record: RecordRef<'t>,
}

/// A consumer at work.
pub struct Consumer {
    folder: tempfile::TempDir,
    child: Child,
}

impl Consumer {
    /// Follows all topics whose names begin so, from their first offsets.
    pub fn start(brokers: &[String], prefix: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("tidemark-topics-").tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/kafka_exactness/read_topics.py");
        let errors = fs::File::create(folder.path().join(ERRORS)).unwrap();
        let child = Command::new(python())
            .arg(script)
            .args([&brokers.join(","), prefix])
            .arg(folder.path())
            .arg(OPEN_SECONDS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        Self { folder, child }
    }

    /// Reads to the ends.
    pub fn finish(mut self) -> Topics {
        drop(self.child.stdin.take());
        let mut found = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut found).unwrap();
        let status = self.child.wait().unwrap();
        let told = fs::read_to_string(self.folder.path().join(ERRORS)).unwrap();
        assert!(status.success(), "the consumer failed: {told}");
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Topics { folder, partitions: serde_json::from_str(&found).unwrap() }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of the records of each key, the last; none of a key that was taken away.
fn keep_last(records: &mut Vec<(u32, i64, RecordRef<'_>)>) {
    let mut seen = HashSet::new();
    records.reverse();
    records.retain(|(partition, _, record)| seen.insert((*partition, record.key)));
    records.retain(|(_, _, record)| record.value.is_some());
    records.reverse();
}

impl Topics {
    /// Every transaction has come to its end for readers, and nothing was taken from the topics.
    pub fn assert_whole(&self) {
        let wrong = self.partitions.iter().filter(|(_, place)| place.stable != place.high || place.low != 0);
        let wrong: Vec<_> = wrong.collect();
        assert!(
            wrong.is_empty(),
            "a consumer of committed records is held up, or records were taken: {wrong:?}"
        );
    }

    /// Another consumer has seen the very same.
    pub fn assert_same(&self, other: &Self) {
        let names: BTreeSet<_> =
            self.partitions.keys().map(|place| place.rsplit_once('/').unwrap().0).collect();
        for name in names {
            // Partitions are read in turns of the consumer's own.
            let [ours, theirs] = [self, other].map(|topics| topics.topic(name));
            let [mut ours, mut theirs] = [&ours, &theirs].map(Topic::by_partition);
            if *name == format!("{NAME}.state") {
                // It is compacted: who comes later finds the last of each key, and perhaps some of those before.
                [&mut ours, &mut theirs].into_iter().for_each(keep_last);
            }
            let first = ours.iter().zip(&theirs).find(|(one, other)| one != other);
            assert!(
                first.is_none() && ours.len() == theirs.len(),
                "{name}: {} and {} records, different from {first:?} on",
                ours.len(),
                theirs.len()
            );
        }
    }

    /// A topic's records.
    pub fn topic(&self, name: &str) -> Topic {
        let path: PathBuf = self.folder.path().join(name);
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("topic {name}: {error}"));
        Topic::parse(name, &bytes)
    }

    /// The cuts so far, in order.
    pub fn cuts(&self) -> Vec<Cut> {
        let name = format!("{NAME}.cuts");
        if !self.partitions.contains_key(&format!("{name}/0")) {
            return Vec::new();
        }
        self.topic(&name)
            .entries()
            .map(|(_, value)| serde_json::from_slice(value.unwrap()).unwrap())
            .collect()
    }
}

impl Topic {
    fn parse(name: &str, bytes: &[u8]) -> Self {
        let mut topic = Self { records: TopicRecords::new(Arc::from(name)), places: Vec::new() };
        let mut reader = Reader(bytes);
        while !reader.0.is_empty() {
            let (partition, offset, timestamp_ms) = (reader.i32(), reader.i64(), reader.i64());
            let mut record = topic.records.begin(timestamp_ms);
            for _ in 0..2 {
                match reader.field() {
                    None => record.null(),
                    Some(bytes) => record.field(|out| out.extend_from_slice(bytes)),
                }
            }
            for _ in 0..reader.i32() {
                let name = std::str::from_utf8(reader.field().unwrap()).unwrap();
                let value = reader.field().unwrap_or_else(|| panic!("header {name} is null"));
                record.header(name, |out| out.extend_from_slice(value));
            }
            record.finish();
            topic.places.push((partition as u32, offset));
        }
        topic
    }

    /// The records as they were read: in order within each partition.
    pub fn seen(&self) -> Vec<Seen<'_>> {
        let places = self.places.iter();
        self.records
            .iter()
            .zip(places)
            .map(|(record, (partition, offset))| Seen::new(*partition, *offset, record))
            .collect()
    }

    /// Each partition as it was read, one after the other.
    fn by_partition(&self) -> Vec<(u32, i64, RecordRef<'_>)> {
        let mut all: Vec<_> =
            self.records.iter().zip(&self.places).map(|(r, place)| (place.0, place.1, r)).collect();
        all.sort_by_key(|(partition, ..)| *partition);
        all
    }

    /// Key and value of each record, in the order in which they were read.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.records
            .iter()
            .map(|record| (std::str::from_utf8(record.key.unwrap_or_default()).unwrap(), record.value))
    }
}

impl<'t> Seen<'t> {
    fn new(partition: u32, offset: i64, record: RecordRef<'t>) -> Self {
        let step = match record.value.map(|value| serde_json::from_slice::<Op>(value).unwrap().op) {
            None => 1,
            Some('d') => 0,
            Some(_) => 2,
        };
        Self { partition, offset, position: position(&record), step, record }
    }
}

#[derive(Deserialize)]
struct Op {
    op: char,
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, length: usize) -> &'b [u8] {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn i32(&mut self) -> i32 {
        i32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn field(&mut self) -> Option<&'b [u8]> {
        let length = self.i32();
        usize::try_from(length).ok().map(|length| self.take(length))
    }
}
