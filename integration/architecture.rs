//! The structure that ARCHITECTURE.md promises: which module may use which, and how source files look.
//!
//! Read from the text of `src/`, comments and strings taken out, tests left aside: a test may wire up what
//! the product must not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file at which it has to be split.
const LINES_MAX: usize = 800;

/// What each module of the crate may use. `None`: everything.
const ALLOWED: &[(&str, Option<&[&str]>)] = &[
    ("change", Some(&[])),
    ("runtime", Some(&[])),
    ("log", Some(&["change", "runtime"])),
    ("coord", Some(&["change", "runtime"])),
    ("batch", Some(&["change", "runtime"])),
    ("config", Some(&["change", "runtime"])),
    ("postgres", Some(&["change", "runtime"])),
    ("ops", Some(&["change", "runtime"])),
    ("registry", Some(&["runtime"])),
    ("notice", Some(&["runtime"])),
    ("envelope", Some(&["change", "runtime", "log"])),
    ("lake", Some(&["change", "runtime", "batch", "coord"])),
    (
        "pipeline",
        Some(&[
            "change", "runtime", "log", "coord", "batch", "config", "postgres", "ops", "registry", "notice",
            "envelope", "lake",
        ]),
    ),
    ("cli", None),
    ("main", None),
];

#[test]
fn modules_use_only_what_the_layering_allows() {
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in rust_files("src") {
        let module = top_module(&file);
        if module == "lib" {
            continue;
        }
        let Some(may_use) = allowed.get(module.as_str()) else {
            wrong.push(format!("{}: module `{module}` is not in ALLOWED; give it a place", file.display()));
            continue;
        };
        let Some(may_use) = may_use else { continue };
        for used in modules_used(&read(&file), depth(&file)) {
            if used != module && allowed.contains_key(used.as_str()) && !may_use.contains(&used.as_str()) {
                wrong.push(format!("{}: `{module}` must not use `{used}`", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn allowed_uses_hold_no_cycle() {
    let mut below: BTreeSet<&str> = BTreeSet::new();
    for (module, may_use) in ALLOWED {
        for used in may_use.unwrap_or_default() {
            assert!(
                below.contains(used),
                "`{module}` uses `{used}`, which does not stand above it in ALLOWED"
            );
        }
        below.insert(module);
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    let headless = |file: &PathBuf| !read(file).trim_start().starts_with("//!");
    let wrong: Vec<_> = rust_files("src").into_iter().filter(headless).collect();
    assert!(wrong.is_empty(), "files without a head (//!): {wrong:?}");
}

#[test]
fn files_stay_short_enough_to_read() {
    for folder in ["src", "integration", "benches", "fuzz/fuzz_targets"] {
        for file in rust_files(folder) {
            let lines = read(&file).lines().count();
            assert!(lines <= LINES_MAX, "{}: {lines} lines, more than {LINES_MAX}", file.display());
        }
    }
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
    for folder in ["src", "integration", "benches", "fuzz/fuzz_targets"] {
        for file in rust_files(folder) {
            let text = read(&file);
            for mark in &marks {
                assert!(!text.contains(mark), "{} holds a {mark}", file.display());
            }
        }
    }
}

#[test]
fn uses_are_found_however_they_are_written() {
    let text = "
        //! [`crate::pipeline`] in a comment does not count, nor does /* crate::ops */
        use crate::change::{Lsn, Op};
        use crate::{
            runtime::{Error, lake},
            log as journal,
        };
        fn f(s: &str) -> super::super::batch::Rows { crate::coord::g(\"crate::cli\", '\"', s) }
        #[cfg(test)]
        use std::fs;
        use crate::postgres as pg;
        #[cfg(test)]
        mod tests { use crate::envelope::json; }
    ";
    let found: Vec<_> = modules_used(text, 2).into_iter().collect();
    assert_eq!(found, ["batch", "change", "coord", "log", "postgres", "runtime"]);
}

/// Names that follow `crate::` (also in a group), or enough `super::` to reach the crate's root from a file
/// `depth` modules below it.
fn modules_used(text: &str, depth: usize) -> BTreeSet<String> {
    let code = without_comments_and_strings(text);
    let code = before_the_tests(&code);
    let mut used = BTreeSet::new();
    for root in ["crate::".to_owned(), "super::".repeat(depth.max(1))] {
        for (at, _) in code.match_indices(&root) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            let within_a_path =
                before.is_alphanumeric() || before == '_' || (before == ':' && root != "crate::");
            if !within_a_path {
                used.extend(first_names(&code[at + root.len()..]));
            }
        }
    }
    used
}

/// The text up to the file's test module.
fn before_the_tests(code: &str) -> &str {
    let mark = "#[cfg(test)]";
    let is_module = |at: &usize| code[at + mark.len()..].trim_start().starts_with("mod ");
    let end = code.match_indices(mark).map(|(at, _)| at).find(is_module);
    &code[..end.unwrap_or(code.len())]
}

/// The first name of a path, or of each path of a `{…}` group.
fn first_names(path: &str) -> Vec<String> {
    let name_of = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![name_of(path)] };
    let mut names = Vec::new();
    let (mut nesting, mut start) = (1, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => nesting += 1,
            '}' => nesting -= 1,
            _ => {}
        }
        if nesting == 0 || (nesting == 1 && c == ',') {
            names.push(name_of(&group[start..at]));
            start = at + 1;
        }
        if nesting == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Source text with comments, string and character literals blanked. Raw strings count as plain ones, which
/// is near enough: what follows one is at worst blanked too.
fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            string_length(rest)
        } else if let Some(length) =
            ["'\"'", "'\\''", "'{'", "'}'"].iter().find_map(|l| rest.starts_with(l).then_some(l.len()))
        {
            length
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Name of the crate's module that a file of `src/` belongs to: its first folder, or its own name.
fn top_module(file: &Path) -> String {
    let inside = file.strip_prefix(root().join("src")).unwrap();
    inside
        .iter()
        .next()
        .and_then(|first| Path::new(first).file_stem())
        .unwrap()
        .to_string_lossy()
        .into_owned()
}

/// How many modules below the crate's root the file's own module is.
fn depth(file: &Path) -> usize {
    let folders = file.strip_prefix(root().join("src")).unwrap().iter().count() - 1;
    if file.ends_with("mod.rs") { folders } else { folders + 1 }
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All `.rs` files below a folder of the repository, sorted, without modules that hold tests only; none when
/// there is no such folder.
fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
