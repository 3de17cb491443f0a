//! The source is another server, or not what it was: a standby is promoted, a backup is restored, a slot is gone. What
//! can go on goes on exactly; of the rest the very range is told, nothing is passed over, and one command leads on.
//! Through the real binary, against primaries and standbys of PostgreSQL 17 and 18. The oracle is Postgres itself.

mod gap;
mod pair;
mod promotion;
mod troubles;

/// Names of tests in `docs/troubles.md` are long words between backquotes.
#[test]
fn every_test_that_the_table_of_troubles_names_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("docs/troubles.md")).unwrap();
    let mut sources = String::new();
    let mut folders = vec![root.join("integration")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "rs" => sources += &std::fs::read_to_string(path).unwrap(),
                _ => {}
            }
        }
    }
    let words = table.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 4);
    let missing: Vec<_> = words.filter(|word| !sources.contains(&format!("fn {word}("))).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
