//! A TOML document that is read key by key and remembers which keys were asked for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::expand::expand;
use super::{Environment, Problem, Secret};

type Value<'d> = Spanned<DeValue<'d>>;

/// Sections and the keys that were asked for; `table` stands for each `[[table]]`.
pub(super) type Keys = BTreeMap<&'static str, Vec<&'static str>>;

pub(super) struct Document<'d> {
    text: &'d str,
    root: DeTable<'d>,
    env: Environment<'d>,
    asked: RefCell<Keys>,
    /// Sections whose keys are not ours to know.
    free: RefCell<Vec<&'static str>>,
    problems: RefCell<Vec<Problem>>,
}

impl<'d> Document<'d> {
    /// Parses the text. The parser's own messages are used without its excerpt, which could show a secret.
    pub(super) fn parse(text: &'d str, env: Environment<'d>) -> Result<Self, Vec<Problem>> {
        let (root, errors) = DeTable::parse_recoverable(text);
        let document = Self {
            text,
            root: root.into_inner(),
            env,
            asked: RefCell::default(),
            free: RefCell::default(),
            problems: RefCell::default(),
        };
        for error in &errors {
            document.note(error.span(), String::new(), format!("not valid TOML: {}", error.message()));
        }
        if errors.is_empty() { Ok(document) } else { Err(document.problems.into_inner()) }
    }

    /// A section by its dotted name; an absent one is empty.
    pub(super) fn section(&self, name: &'static str) -> Section<'_, 'd> {
        self.asked.borrow_mut().entry(name).or_default();
        let mut table = Some(&self.root);
        let mut path = String::new();
        for part in name.split('.') {
            path = if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
            let Some(value) = table.and_then(|table| get(table, part)) else {
                table = None;
                continue;
            };
            table = value.get_ref().as_table();
            if table.is_none() {
                let text = format!("found {}; expected a section, [{path}]", article(value.get_ref()));
                self.note(Some(value.span()), path.clone(), text);
                break;
            }
        }
        Section { document: self, name, heading: format!("[{name}]"), table }
    }

    /// The `[[name]]` sections, in order.
    pub(super) fn list(&self, name: &'static str) -> Vec<Section<'_, 'd>> {
        self.asked.borrow_mut().entry(name).or_default();
        let Some(value) = get(&self.root, name) else { return Vec::new() };
        let tables = value.get_ref().as_array().map(|array| array.iter().map(|v| v.get_ref().as_table()));
        let tables: Option<Vec<_>> = tables.and_then(Iterator::collect);
        let Some(tables) = tables else {
            let text = format!("found {}; expected [[{name}]] sections", article(value.get_ref()));
            self.note(Some(value.span()), name.to_owned(), text);
            return Vec::new();
        };
        let heading = format!("[[{name}]]");
        let section = |table| Section { document: self, name, heading: heading.clone(), table: Some(table) };
        tables.into_iter().map(section).collect()
    }

    /// All keys of a section whose keys are somebody else's. Dotted keys may stand with or without quotes.
    pub(super) fn free(&self, name: &'static str) -> Vec<Free<'_, 'd>> {
        let section = self.section(name);
        self.free.borrow_mut().push(name);
        let mut found = Vec::new();
        let mut tables: Vec<(String, &DeTable<'d>)> =
            section.table.map(|table| (String::new(), table)).into_iter().collect();
        while let Some((before, table)) = tables.pop() {
            for (key, value) in table {
                let key = format!("{before}{}", key.get_ref());
                match value.get_ref().as_table() {
                    Some(inner) => tables.push((format!("{key}."), inner)),
                    None => found.push(Free { document: self, section: name, name: key, value }),
                }
            }
        }
        found
    }

    /// Ends the reading: notes what nobody asked for, and gives all problems with the keys asked for.
    pub(super) fn finish(self) -> (Vec<Problem>, Keys) {
        self.note_unknown("", &self.root);
        (self.problems.into_inner(), self.asked.into_inner())
    }

    fn note_unknown(&self, section: &str, table: &DeTable<'d>) {
        let asked = self.asked.borrow();
        if self.free.borrow().contains(&section) {
            return;
        }
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let path = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
            let is_section = |known: &str| known == path || known.starts_with(&format!("{path}."));
            if asked.get(section).is_some_and(|keys| keys.contains(&name)) {
                continue;
            }
            match (asked.keys().any(|known| is_section(known)), value.get_ref()) {
                (true, DeValue::Table(inner)) => self.note_unknown(&path, inner),
                (true, DeValue::Array(list)) => {
                    for inner in list.iter().filter_map(|v| v.get_ref().as_table()) {
                        self.note_unknown(&path, inner);
                    }
                }
                // Not a table: reading the section has noted it.
                (true, _) => {}
                (false, DeValue::Table(_)) => {
                    let near = nearest(&path, asked.keys().map(|known| (format!("[{known}]"), *known)));
                    self.note(Some(key.span()), format!("[{path}]"), unknown("section", near));
                }
                (false, _) => {
                    let near = nearest_key(section, name, &asked);
                    self.note(Some(key.span()), title(section, name), unknown("key", near));
                }
            }
        }
    }

    fn note(&self, span: Option<Range<usize>>, key: String, text: String) {
        let before = span.and_then(|span| self.text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        self.problems.borrow_mut().push(Problem { line, key, text });
    }
}

/// A key of a section whose keys are somebody else's.
pub(super) struct Free<'a, 'd> {
    document: &'a Document<'d>,
    section: &'static str,
    /// The key.
    pub(super) name: String,
    value: &'a Value<'d>,
}

impl Free<'_, '_> {
    /// The value, as a text; numbers and booleans as they are written.
    pub(super) fn text(&self, secret: bool) -> Option<String> {
        match self.value.get_ref() {
            DeValue::String(text) => {
                expand(text, self.document.env).map_err(|problem| self.note(problem)).ok()
            }
            DeValue::Integer(digits) => Some(digits.to_string()),
            DeValue::Float(digits) => Some(digits.to_string()),
            DeValue::Boolean(value) => Some(value.to_string()),
            other => {
                let hidden = if secret { "; the value is not shown" } else { "" };
                self.note(format!(
                    "found {}; expected a string, a number or a boolean{hidden}",
                    article(other)
                ));
                None
            }
        }
    }

    /// Name and value, where a name that ends in `_file` stands for what the file holds.
    pub(super) fn secret(&self) -> (String, Option<String>) {
        let Some(name) = self.name.strip_suffix("_file") else { return (self.name.clone(), self.text(true)) };
        let held = self.text(false).and_then(|path| match std::fs::read_to_string(Path::new(&path)) {
            Ok(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => {
                self.note(format!("{path} cannot be read: {error}; expected a file that holds the {name}"));
                None
            }
        });
        (name.to_owned(), held)
    }

    /// Notes a problem with the key.
    pub(super) fn note(&self, text: String) {
        self.document.note(Some(self.value.span()), title(self.section, &self.name), text);
    }
}

fn title(section: &str, key: &str) -> String {
    match section {
        "" => key.to_owned(),
        "table" => format!("[[table]] {key}"),
        _ => format!("[{section}] {key}"),
    }
}

fn unknown(what: &str, near: Option<String>) -> String {
    match near {
        Some(near) => format!("unknown {what}; did you mean {near}?"),
        None => format!("unknown {what}"),
    }
}

/// One section of the file. Each reader takes a key, notes what is wrong with it, and gives what is right.
pub(super) struct Section<'a, 'd> {
    document: &'a Document<'d>,
    name: &'static str,
    heading: String,
    table: Option<&'a DeTable<'d>>,
}

impl<'a, 'd> Section<'a, 'd> {
    /// A string, checked: `check` says what was expected.
    pub(super) fn text<T>(
        &self,
        key: &'static str,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.get(key)?;
        let text = self.expanded(key, value, false)?;
        let note = |expected| {
            let raw = value.get_ref().as_str().unwrap_or_default();
            self.note(key, format!("found {raw:?}; expected {expected}"));
        };
        check(&text).map_err(note).ok()
    }

    /// A secret, from the key itself or from the file which `key_file` names; never quoted.
    pub(super) fn secret(&self, key: &'static str, key_file: &'static str) -> Option<Secret> {
        match (self.get(key), self.get(key_file)) {
            (None, None) => None,
            (Some(_), Some(_)) => {
                self.note(key_file, format!("given beside {key}; expected only one of them"));
                None
            }
            (Some(value), None) => self.expanded(key, value, true).map(Secret::new),
            (None, Some(value)) => {
                let path = self.expanded(key_file, value, false)?;
                match std::fs::read_to_string(Path::new(&path)) {
                    Ok(text) => Some(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned())),
                    Err(error) => {
                        self.note(
                            key_file,
                            format!("{path} cannot be read: {error}; expected a file that holds the {key}"),
                        );
                        None
                    }
                }
            }
        }
    }

    /// A whole number within bounds, of `unit`.
    pub(super) fn integer(&self, key: &'static str, unit: &str, min: u64, max: u64, default: u64) -> u64 {
        let Some(value) = self.get(key) else { return default };
        let number = match value.get_ref() {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            _ => None,
        };
        number.filter(|number| (min..=max).contains(number)).unwrap_or_else(|| {
            let found = match value.get_ref() {
                DeValue::Integer(digits) => digits.to_string(),
                DeValue::String(text) => format!("{text:?}"),
                other => article(other),
            };
            self.note(key, format!("found {found}; expected a whole number of {unit} from {min} to {max}"));
            default
        })
    }

    /// True or false.
    pub(super) fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.get(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.note(key, format!("found {}; expected true or false", article(value.get_ref())));
        }
        found
    }

    /// A list of strings, each checked.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        check: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let value = self.get(key)?;
        let Some(array) = value.get_ref().as_array() else {
            let found = article(value.get_ref());
            self.note(key, format!("found {found}; expected a list of strings, such as [\"public.*\"]"));
            return None;
        };
        let item = |value: &Value<'d>| {
            let text = self.expanded(key, value, false)?;
            let raw = value.get_ref().as_str().unwrap_or_default();
            let note = |expected| self.note(key, format!("found {raw:?}; expected {expected}"));
            check(&text).map_err(note).ok()
        };
        Some(array.iter().filter_map(item).collect())
    }

    /// Notes a problem with a key of this section, at its place if it is there.
    pub(super) fn note(&self, key: &'static str, text: String) {
        let span = self.table.and_then(|table| get(table, key)).map(Spanned::span);
        self.document.note(span, format!("{} {key}", self.heading), text);
    }

    /// Whether the file has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| get(table, key).is_some())
    }

    /// Whether the key's value is a list without elements.
    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        let value = self.table.and_then(|table| get(table, key));
        value.and_then(|value| value.get_ref().as_array()).is_some_and(|array| array.is_empty())
    }

    fn get(&self, key: &'static str) -> Option<&'a Value<'d>> {
        let mut asked = self.document.asked.borrow_mut();
        let keys = asked.entry(self.name).or_default();
        if !keys.contains(&key) {
            keys.push(key);
        }
        get(self.table?, key)
    }

    fn expanded(&self, key: &'static str, value: &Value<'d>, secret: bool) -> Option<String> {
        let Some(text) = value.get_ref().as_str() else {
            let what = if secret { "a string; the value is not shown" } else { "a string" };
            self.note(key, format!("found {}; expected {what}", article(value.get_ref())));
            return None;
        };
        expand(text, self.document.env).map_err(|problem| self.note(key, problem)).ok()
    }
}

fn get<'t, 'd>(table: &'t DeTable<'d>, key: &str) -> Option<&'t Value<'d>> {
    table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
}

fn article(value: &DeValue<'_>) -> String {
    match value.type_str() {
        kind @ ("integer" | "array") => format!("an {kind}"),
        kind => format!("a {kind}"),
    }
}

/// The known key that `name` was probably meant to be: in the same section, or the same word in others.
fn nearest_key(section: &str, name: &str, asked: &Keys) -> Option<String> {
    let here = asked.get(section).into_iter().flatten().map(|key| (format!("`{key}`"), *key));
    let elsewhere = || {
        let has = asked.iter().filter(|(_, keys)| keys.contains(&name));
        let titles: Vec<_> = has.map(|(section, _)| format!("`{}`", title(section, name))).collect();
        (!titles.is_empty()).then(|| titles.join(" or "))
    };
    nearest(name, here).or_else(elsewhere)
}

fn nearest<'k>(name: &str, known: impl Iterator<Item = (String, &'k str)>) -> Option<String> {
    let near = known.map(|(shown, key)| (distance(name, key), shown));
    let allowed = (name.chars().count() / 3).clamp(1, 3);
    near.min_by_key(|(distance, _)| *distance).filter(|(distance, _)| *distance <= allowed).map(|(_, s)| s)
}

/// Edit distance with neighbouring letters swapped as one step (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { best.min(rows[i - 2][j - 2] + 1) } else { best }
            };
        }
    }
    rows[a.len()][b.len()]
}
