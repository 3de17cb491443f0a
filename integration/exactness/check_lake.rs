//! The lake beside the oracle: each published day is the state at its cut, and never changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tidemark::change::{Cut, LogEnd};

use super::check_log::CheckedLog;
use super::connector::{Connector, NAME};
use crate::oracle::reader::Reader;
use crate::oracle::source::{PARTS, TABLES, Table};
use crate::oracle::values::sha256;
use crate::oracle::{History, Row, State};
use crate::support::clock::Clock;

/// Compares every cut and every published day with the oracle. Panics at the first difference.
pub fn check(connector: &Connector, history: &History, log: &CheckedLog, clock: &Clock) {
    check_cuts(history, log, clock);
    let states = history.states_at(&log.cuts.iter().map(|cut| cut.lsn).collect::<Vec<_>>());
    let mut reader = Reader::start();
    let mut before: Option<&Cut> = None;
    for (cut, state) in log.cuts.iter().zip(&states) {
        let path = connector.lake().join(format!("cuts/{NAME}/ds={}.json", cut.ds));
        let day = read_json(&path);
        assert_eq!(
            day["cut"],
            serde_json::to_value(cut).unwrap(),
            "ds={}: the day's manifest has another cut",
            cut.ds
        );
        let missing: Vec<_> =
            day["missing"].as_array().into_iter().flatten().map(|m| &m["table"]["table"]).collect();
        let tables = day["tables"].as_array().unwrap().len() + missing.len();
        assert_eq!(tables, TABLES.len(), "ds={}: tables", cut.ds);
        for table in TABLES {
            if missing.iter().any(|missing| *missing == table.name) {
                // Only while its first copy, which was broken off, goes on, or the one after a leaf came or went.
                let lacking = &cut.tables[&topic(table)].lacking;
                let may = |reason: &String| reason.contains("first copy") || table.name == PARTS;
                assert!(lacking.as_ref().is_some_and(may), "{}: {lacking:?}", table.name);
                continue;
            }
            check_sums(connector, log, table, before, cut);
            check_rows(&mut reader, connector, table, cut, state);
        }
        let (right, said) = connector.run(&["verify", "--ds", &cut.ds.to_string()]);
        assert!(right == missing.is_empty(), "tidemark verify --ds {}: {said}", cut.ds);
        before = Some(cut);
    }
    // Beside them may lie what a process left that was killed while it tried the store, or wrote a manifest.
    let entries = fs::read_dir(connector.lake().join(format!("cuts/{NAME}"))).unwrap();
    let days: Vec<_> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| !is_half_done(path)).collect();
    assert_eq!(days.len(), log.cuts.len(), "days in the lake and cuts in the log: {days:?}");
}

/// Where the cuts lie, by the server's own commit times.
fn check_cuts(history: &History, log: &CheckedLog, clock: &Clock) {
    let mut done = history.count_below(log.whole_from);
    let mut before: Option<&Cut> = None;
    for cut in &log.cuts {
        let follows = before.is_none_or(|b| b.ds.tomorrow().unwrap() == cut.ds && b.lsn <= cut.lsn);
        assert!(follows, "the cut of {} does not follow that of {:?}", cut.ds, before.map(|cut| cut.ds));
        let end_us = clock.end_of(cut.ds).as_microsecond();
        let until = history.count_below(cut.lsn);
        for transaction in &history.transactions[done.min(until)..until] {
            // A transaction that shows nothing to the publication is not seen.
            assert!(
                !transaction.is_sent() || transaction.commit_us < end_us,
                "ds={}: past midnight, and in: {transaction:?}",
                cut.ds
            );
        }
        match cut.reason.as_str() {
            "midnight" => {
                let next = history.at_commit(cut.lsn);
                assert!(next.commit_us >= end_us, "ds={}: before midnight, and not in: {next:?}", cut.ds);
                assert_eq!(cut.at, clock.end_of(cut.ds), "ds={}", cut.ds);
            }
            "request" => {
                let marker = &history.transactions[until - 1];
                assert_eq!(marker.end_lsn, cut.lsn, "ds={}: the cut does not end at a marker", cut.ds);
                let asked = marker.marker.as_ref().expect("a cut asked for by something else than a marker");
                assert!(asked.contains(&cut.ds.to_string()), "ds={}: the marker asks for {asked}", cut.ds);
                assert_eq!(cut.at.as_microsecond(), marker.commit_us, "ds={}", cut.ds);
            }
            other => panic!("a cut made by {other}"),
        }
        done = until;
        before = Some(cut);
    }
}

/// The ends of the log at the cut, and: changes in = applied + dead letters.
fn check_sums(connector: &Connector, log: &CheckedLog, table: &Table, before: Option<&Cut>, cut: &Cut) {
    let topic = topic(table);
    let at = format!("{} ds={}", table.name, cut.ds);
    let own = |ends: &[LogEnd]| ends.iter().find(|end| end.partition == 0).map_or(0, |end| end.end as usize);
    let end = |cut: &Cut| own(&cut.tables[&topic].ends);
    let (from, until) = (before.map_or(0, end), end(cut));
    let entries = &log.records[table.name];
    let is_in = |offset: usize| entries[offset].position.commit_lsn < cut.lsn;
    assert!(
        until == 0 || is_in(until - 1),
        "{at}: offset {} lies behind the cut: {:?}",
        until - 1,
        entries[until - 1]
    );
    assert!(
        until == entries.len() || !is_in(until),
        "{at}: offset {until} lies before the cut: {:?}",
        entries[until]
    );
    let values = entries[from..until].iter().filter(|entry| entry.has_value).count() as u64;
    assert_eq!(cut.tables[&topic].changes, values, "{at}: changes counted by capture");
    let manifest = read_json(&folder(connector, table, cut).join("_manifest.json"));
    let copied = cut.tables[&topic].backfill.as_ref();
    let taken = copied.map_or(values, |copy| {
        let since = &entries[own(&copy.from)..until];
        let changes = since.iter().filter(|entry| entry.has_value).count() as u64;
        assert_eq!(copy.changes, changes, "{at}: changes since the copy began, counted by capture");
        copy.rows + changes
    });
    let expected = json!({"in": taken, "applied": taken, "dead_letters": 0});
    assert_eq!(manifest["changes"], expected, "{at}: sums of the manifest");
    assert_eq!(manifest["cut"]["lsn"], cut.lsn.to_string(), "{at}: cut of the manifest");
}

fn check_rows(reader: &mut Reader, connector: &Connector, table: &Table, cut: &Cut, state: &State) {
    let columns = table.columns.iter().map(|column| (column.name, column.kind));
    let mut found = reader.rows(&folder(connector, table, cut), columns);
    for (row, count) in &state[table.name] {
        *found.entry(row.clone()).or_default() -= count;
    }
    found.retain(|_, count| *count != 0);
    if found.is_empty() {
        return;
    }
    // Rows of one key stand side by side.
    let key = |row: &Row| table.key_columns().iter().map(|at| row[*at].clone()).collect::<Vec<_>>();
    let mut wrong: Vec<_> = found.iter().collect();
    wrong.sort_by_key(|(row, _)| key(row));
    let list: Vec<_> = wrong
        .iter()
        .take(20)
        .map(|(row, count)| {
            format!(
                "  {} {row:?}",
                if **count > 0 {
                    format!("{count} too many in the lake:")
                } else {
                    format!("{} missing in the lake: ", -**count)
                }
            )
        })
        .collect();
    panic!(
        "{} ds={} is not the state at {}: {} rows differ\n{}",
        table.name,
        cut.ds,
        cut.lsn,
        wrong.len(),
        list.join("\n")
    );
}

fn topic(table: &Table) -> String {
    format!("{NAME}.public.{}", table.name)
}

fn folder(connector: &Connector, table: &Table, cut: &Cut) -> PathBuf {
    connector.lake().join(format!("snapshots/{NAME}/public.{}/ds={}", table.name, cut.ds))
}

fn read_json(path: &Path) -> Json {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// Every object below a folder with its SHA-256. What an object store's own half-done uploads are called is not
/// an object, nor is what a process leaves that was killed while it tried the store.
pub fn objects(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut objects = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if !is_half_done(&path) {
                objects.insert(path.clone(), sha256(&fs::read(&path).unwrap()));
            }
        }
    }
    objects
}

/// `object_store` writes to `<name>#<number>` and renames.
fn is_half_done(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name.contains('#') || name.starts_with("_probe-")
}

/// What is published: the days' own manifests and all objects in folders that have a manifest.
pub fn published(lake: &Path) -> BTreeMap<PathBuf, String> {
    let mut published = objects(&lake.join("snapshots"));
    published.retain(|path, _| path.parent().unwrap().join("_manifest.json").exists());
    published.extend(objects(&lake.join("cuts")));
    published
}

/// Panics where something is gone or different.
pub fn assert_unchanged(before: &BTreeMap<PathBuf, String>, now: &BTreeMap<PathBuf, String>, when: &str) {
    for (path, hash) in before {
        match now.get(path) {
            Some(same) if same == hash => {}
            Some(_) => panic!("{when}: {} was changed", path.display()),
            None => panic!("{when}: {} is gone", path.display()),
        }
    }
}
