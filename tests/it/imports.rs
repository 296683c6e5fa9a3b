//! Imports go in one direction: the rules stay free of IO, and the IO free of wiring.

use std::collections::BTreeMap;
use std::path::Path;

/// The folders of `src` that each folder may use, besides itself.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("rules", [].as_slice()),
        ("config", &["rules"]),
        ("observe", &["rules", "config"]),
        ("mongo", &["rules", "config"]),
        ("link", &["rules", "mongo", "observe", "config"]),
        ("verify", &["rules", "mongo", "observe", "config"]),
        ("cluster", &["rules", "mongo", "observe", "config", "link"]),
        ("actors", &["rules", "mongo", "link", "observe", "config", "verify", "cluster"]),
        ("http", &["observe", "config", "actors", "link", "verify"]),
        ("cli", &["rules", "mongo", "link", "observe", "config", "actors", "http", "verify"]),
    ])
}

#[test]
fn imports_go_one_way() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for (folder, allowed) in allowed() {
        for file in files(&source.join(folder)) {
            for used in used(&std::fs::read_to_string(&file).unwrap()) {
                seen += 1;
                let fine = used == folder || allowed.contains(&used.as_str());
                assert!(fine, "{} uses crate::{used}; allowed: {allowed:?}", file.display());
            }
        }
    }
    assert!(seen > 100, "only {seen} imports were found");
}

#[test]
fn only_mongo_talks_to_the_driver() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for folder in allowed().into_keys().filter(|folder| *folder != "mongo") {
        for file in files(&source.join(folder)) {
            let text = std::fs::read_to_string(&file).unwrap();
            // The configuration lets the driver validate connection strings.
            let uri = file.ends_with("config/uri.rs");
            assert!(uri || !text.contains("mongodb::"), "{} uses the driver", file.display());
        }
    }
}

/// The folders that a file names as `crate::…`.
fn used(text: &str) -> Vec<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    text.split("crate::").skip(1).map(name).collect()
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}
