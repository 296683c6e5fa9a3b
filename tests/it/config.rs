//! `spokes.toml`: every file of one folder is accepted, and every file of the other is refused with exactly the
//! expected messages.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use spokesync::config::environment::Variables;
use spokesync::config::{self, Config, Invalid, LogFormat};

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    files.sort();
    files
}

fn load(path: &Path) -> Result<Config, Invalid> {
    config::load(Some(path), &Variables::from([("SPOKESYNC_TEST_USER", "operator")]))
}

#[test]
fn valid_files_are_accepted() {
    for path in files("tests/config/valid") {
        load(&path).unwrap_or_else(|invalid| panic!("{}:\n{invalid}", path.display()));
    }
}

#[test]
fn every_problem_of_an_invalid_file_is_named_with_its_line() {
    for path in files("tests/config/invalid") {
        let shown = load(&path).err().unwrap_or_else(|| panic!("{} was accepted", path.display())).to_string();
        let mut expected = String::new();
        for line in std::fs::read_to_string(path.with_extension("txt")).unwrap().lines() {
            writeln!(expected, "{}:{line}", path.display()).unwrap();
        }
        assert_eq!(shown.trim(), expected.trim(), "\n--- found\n{shown}\n--- expected\n{expected}");
        assert!(!shown.contains("s3cret"));
    }
}

#[test]
fn what_a_file_does_not_say_has_its_default() {
    let config = load(Path::new("tests/config/valid/least.toml")).unwrap();
    assert_eq!(config.sync, config::Synced::default());
    assert_eq!(config.sync.namespaces[0].to_string(), "messages.messages");
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8080");
    assert!(config.http.token.is_none() && config.log.directory.is_none());
    assert!(config.spokes[0].watch.is_empty());
}

#[test]
fn what_a_file_says_is_read() {
    let config = load(Path::new("tests/config/valid/everything.toml")).unwrap();
    assert_eq!(config.hub.hosts(), "hub.example");
    assert_eq!(config.sync.namespaces[1].collection, "vehicles.current");
    assert_eq!((config.sync.partition_key.as_str(), config.sync.metadata_database.as_str()), ("zone", "spokesync"));
    assert_eq!((config.log.format, config.log.level.to_string().as_str()), (LogFormat::Json, "debug"));
    assert_eq!(config.log.directory.as_deref(), Some(Path::new("tests/config/valid/logs")));
    assert_eq!(config.spokes[0].uri.expose(), "mongodb://dfw.example/?appName=edge");
    assert_eq!(config.spokes[0].watch[1].as_str(), "the yard");
    assert_eq!(config.spokes[1].uri.hosts(), "hou1.example:27017,hou2.example:27018");
    assert!(config.spokes[1].uri.expose().contains("operator:${not a variable@"));
    assert_eq!(config.verify, config::Verify { every_hours: 24, documents_per_second: 5_000, secondary: true });
    let lease = std::time::Duration::from_secs(30);
    assert_eq!(config.cluster, config::Cluster { lease, expected_members: Some(3) });
    let shown = format!("{config:?}");
    assert!(!shown.contains("operator") && !shown.contains("a token"), "{shown}");
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let folder = tempfile::TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
    for name in ["ZONENAME", "WATCHZONES", "CONSTREDGE", "CONSTRFAR"] {
        command.env_remove(name);
    }
    command.args(arguments).envs(variables.iter().copied()).current_dir(folder.path()).output().unwrap()
}

#[test]
fn a_wrong_configuration_ends_with_2_and_says_why() {
    let output = run(&["run"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let shown = String::from_utf8(output.stderr).unwrap();
    assert!(shown.contains("spokes.toml: there is no such file") && shown.contains("ZONENAME"), "{shown}");

    let output = run(&["run", "--config", "missing.toml"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("missing.toml: cannot be read"));

    let output = run(&["run"], &[("ZONENAME", "DFW"), ("CONSTREDGE", "mongodb://me:s3cret@edge:port")]);
    assert_eq!(output.status.code(), Some(2));
    let shown = String::from_utf8(output.stderr).unwrap();
    assert!(shown.contains("CONSTREDGE: the hosts cannot be read") && shown.contains("CONSTRFAR: not set"), "{shown}");
    assert!(!shown.contains("s3cret"), "{shown}");

    assert_eq!(run(&["walk"], &[]).status.code(), Some(2));
}

#[test]
fn a_log_directory_that_cannot_be_used_is_a_configuration_error() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("spokes.toml");
    for directory in ["/proc/nope", "spokes.toml/logs", "/dev/null"] {
        let servers =
            "[hub]\nuri = \"mongodb://127.0.0.1:9\"\n[[spoke]]\nzone = \"DFW\"\nuri = \"mongodb://127.0.0.1:8\"";
        std::fs::write(&file, format!("{servers}\n[log]\ndirectory = \"{directory}\"")).unwrap();
        for command in ["check", "run"] {
            let output = run(&[command, "--config", file.to_str().unwrap()], &[]);
            let shown = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command} with {directory}: {shown}");
            assert!(shown.contains("[log] directory: ") && !shown.contains("panicked"), "{shown}");
        }
    }
}

#[test]
fn the_repositorys_own_file_is_valid() {
    assert_eq!(load(Path::new("spokes.toml")).unwrap().spokes.len(), 3);
}
