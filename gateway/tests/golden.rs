//! Wrong configurations as files, and what `gateway check` says about each, to the letter.
//!
//! `golden/NAME.json` is the configuration, `golden/NAME.txt` what is said about it. After a change that is meant,
//! `UPDATE_GOLDEN=1` writes them anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gateway::config;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn check(file: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.current_dir(folder()).arg("check").args(["--config", file]).args(arguments);
    command.env("GATEWAY_GOLDEN_PORT", "70000").env_remove("GATEWAY_GOLDEN_UNSET");
    command.output().expect("the gateway runs")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("it speaks UTF-8")
}

#[test]
fn each_file_is_told_as_recorded() {
    let files = fs::read_dir(folder()).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut checked = 0;
    for file in files.filter(|file| file.extension().is_some_and(|kind| kind == "json")) {
        let name = file.file_name().and_then(|name| name.to_str()).expect("ours are named in ASCII");
        let output = check(name, &[]);
        let code = output.status.code().expect("it exits by itself");
        let said = format!("{}{}exit {code}\n", text(output.stderr), text(output.stdout));
        let recorded = file.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&recorded, &said).expect("written");
        }
        let wanted = fs::read_to_string(&recorded).unwrap_or_default();
        assert_eq!(said, wanted, "{name}");
        checked += 1;
    }
    assert!(checked >= 25, "{checked} configurations");
}

#[test]
fn documentation_shows_what_is_said() {
    let documentation = include_str!("../../docs/configuration.md");
    for name in ["unknown_keys", "warnings", "secrets"] {
        let recorded = fs::read_to_string(folder().join(name).with_extension("txt")).expect("recorded");
        let (said, _) = recorded.rsplit_once("exit").expect("it ends with the code");
        let block = format!("$ gateway check --config {name}.json\n{said}```");
        assert!(documentation.contains(&block), "{name}");
    }
}

/// However it is cut into files.
#[test]
fn files_are_joined() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("it is in the folder")).expect("made");
        fs::write(path, text).expect("written");
    };
    let route = |path: &str| format!(r#"{{ "path": "{path}", "backend": "http://127.0.0.1:3001" }}"#);
    write(
        "main.json",
        &format!(
            r#"{{ "$schema": "a", "include": ["more/*.json", "none/../limits.json"], "routes": [{}] }}"#,
            route("/")
        ),
    );
    write("none/empty", "");
    write(
        "limits.json",
        r#"{ "$schema": "b", "rate_limit": { "default_rate_per_minute": 60 }, "include": ["empty/*.json"] }"#,
    );
    write("empty/.hidden.json", "?");
    write("more/10.json", &format!(r#"{{ "routes": [{}, {}] }}"#, route("/b"), route("/a")));
    write("more/20.json", &format!("\u{feff}{{ \"routes\": [{}], \"workers\": 2 }}", route("/c")));
    write("more/30.json~", "?");
    let read = config::examine(&folder.path().join("main.json")).unwrap_or_else(|error| panic!("{error}"));
    let routes: Vec<_> = read.value.routes.iter().map(|route| route.path.as_str()).collect();
    assert_eq!(routes, ["/", "/b", "/a", "/c"]);
    let printed =
        config::parse(&read.effective.to_string(), "printed.json").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(printed, read.value);
    assert_eq!((printed.workers.map(|n| n.get()), printed.rate_limit.is_some()), (Some(2), true));
}

#[test]
fn as_json_it_says_the_same_places() {
    for (file, code) in [("unknown_keys.json", 1), ("warnings.json", 0), ("missing.json", 2)] {
        let output = check(file, &["--json"]);
        assert_eq!((output.status.code(), text(output.stderr).as_str()), (Some(code), ""), "{file}");
        let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(document["valid"], code == 0, "{file}");
        let Some(entries) = document[if code == 0 { "warnings" } else { "faults" }].as_array() else {
            assert!(document["error"].as_str().is_some_and(|error| error.contains(file)), "{document}");
            continue;
        };
        let recorded = fs::read_to_string(folder().join(file).with_extension("txt")).expect("recorded");
        assert!(!entries.is_empty(), "{file}");
        for entry in entries {
            let place = format!("{file}:{}:{}: ", entry["line"], entry["column"]);
            assert!(recorded.contains(&place), "{file}: {entry}");
            assert!(recorded.contains(entry["message"].as_str().expect("text")), "{file}: {entry}");
        }
    }
}

/// The effective configuration is one, says the same, and has nothing left to fill in.
#[test]
fn what_is_printed_means_the_same() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    for file in [root.join("gateway.json"), root.join("reference.json"), folder().join("warnings.json")] {
        let read = config::examine(&file).unwrap_or_else(|error| panic!("{error}"));
        let printed = read.effective.to_string();
        let again = config::parse(&printed, "printed.json").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again, read.value, "{}", file.display());
        let output = check(file.to_str().expect("ours are in UTF-8"), &["--print"]);
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).expect("JSON"), read.effective);
    }
    let small = config::examine(&root.join("gateway.json")).expect("it is valid").effective;
    assert_eq!(small["timeouts"]["connect"], "3s");
    assert_eq!(small["routes"][0]["cache"]["key_query"]["sort"], false);
    assert_eq!(small["kernel"]["burst"], 500, "as the route's limits have it");
    assert_eq!(small["rate_limit"]["fields"], "near");
}
