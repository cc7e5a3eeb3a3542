//! The house rules that no compiler checks: which way dependencies point, who knows what, sizes.
//!
//! It reads the sources as text; a rule that is broken names file and line.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by floor: one may use those on floors below, and itself. Neighbours on a floor do not
/// know each other.
const FLOORS: &[&[&str]] = &[
    &["path", "pipe", "socket", "text", "timer", "metrics", "logging"],
    &["config", "lines"],
    &["access", "route", "upstream", "cache", "limit", "overload", "datapath", "lists"],
    &["snapshot"],
    &["proxy"],
    &["downstream"],
    &["worker", "admin", "reload", "guard", "privileges"],
    &["kernel", "upkeep"],
    &["control"],
    &["handover"],
    &["server", "cli"],
    &["lib", "main"],
];

/// What only some files may name, and why.
const CONFINED: &[(&str, &[&str], &str)] = &[
    (
        "serde_json",
        &["config/", "admin/", "control/", "handover/", "cli/", "lists.rs"],
        "the configuration's format is known in one place, so are the other documents",
    ),
    (
        "hyper::server::conn",
        &["downstream/connection.rs", "admin/", "control/"],
        "one owner of the client's connection",
    ),
    ("aya::", &["datapath/"], "the kernel is behind one door"),
    ("redis::", &["limit/cluster/"], "the store is behind one door"),
    ("pprof::", &["control/profile.rs"], "the process has one signal for it"),
    ("allow(unsafe_code)", &["datapath/sys.rs"], "unsafe code stands in one file"),
];

const MAX_LINES: usize = 600;

struct Source {
    /// Relative to the workspace.
    path: PathBuf,
    text: String,
}

/// Every Rust file under `folder` of the workspace, build output aside.
fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is around this package");
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                let name = path.file_name().expect("entries have names");
                if name != "target" && !name.to_string_lossy().starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("sources are text");
                found.push(Source { path: path.strip_prefix(root).expect("it is inside").to_owned(), text });
            }
        }
    }
    assert!(!found.is_empty(), "{folder} holds no sources");
    found
}

fn gateway() -> Vec<Source> {
    sources("gateway/src")
}

fn workspace() -> Vec<Source> {
    sources(".")
}

/// The lines of `source` for which `breaks` holds, as `file:line: text`.
fn lines_that(source: &Source, breaks: impl Fn(&str) -> bool) -> Vec<String> {
    let numbered = source.text.lines().enumerate().filter(|(_, line)| breaks(line));
    numbered.map(|(n, line)| format!("{}:{}: {}", source.path.display(), n + 1, line.trim())).collect()
}

#[track_caller]
fn check(broken: Vec<String>, rule: &str) {
    assert!(broken.is_empty(), "{rule}\n{}", broken.join("\n"));
}

/// `gateway/src/proxy/body.rs` → `proxy`.
fn module(source: &Source) -> String {
    let inner = source.path.strip_prefix("gateway/src").expect("it is the gateway's");
    let first = inner.components().next().expect("it has a name").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn floor(module: &str) -> usize {
    let floor = FLOORS.iter().position(|floor| floor.contains(&module));
    floor.unwrap_or_else(|| panic!("module {module} stands on no floor: give it one in FLOORS"))
}

/// The top-level modules that a line names: `crate::a`, `crate::{a, b::c}`, `gateway::a`.
fn named(line: &str) -> Vec<&str> {
    let code = line.split("//").next().unwrap_or_default();
    let mut names = Vec::new();
    for (at, prefix) in ["crate::", "gateway::"].iter().flat_map(|prefix| code.match_indices(prefix)) {
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split('}').next().unwrap_or_default();
                names.extend(list.split(',').map(|item| item.trim().split("::").next().unwrap_or_default()));
            }
            None => names.extend(rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()),
        }
    }
    names.retain(|name| FLOORS.iter().any(|floor| floor.contains(name)));
    names
}

#[test]
fn dependencies_point_one_way() {
    let mut broken = Vec::new();
    for source in gateway() {
        let module = module(&source);
        let own = floor(&module);
        broken.extend(lines_that(&source, |line| {
            named(line).iter().any(|name| *name != module && floor(name) >= own)
        }));
    }
    check(broken, "a module uses only what stands on a floor below its own (FLOORS)");
}

#[test]
fn the_reader_of_dependencies_reads() {
    for (line, want) in [
        ("use crate::proxy::Proxy;", &["proxy"][..]),
        ("use crate::{metrics, config::Config};", &["metrics", "config"]),
        ("    let x = crate::server::start();", &["server"]),
        ("pub(crate) fn x() {}", &[]),
        ("/// See [`crate::server`].", &[]),
        ("use gateway::config::{self, Config};", &["config"]),
    ] {
        assert_eq!(named(line), want, "{line}");
    }
}

#[test]
fn what_few_may_know_nobody_else_names() {
    let mut broken = Vec::new();
    for source in gateway() {
        let inner = source.path.strip_prefix("gateway/src").expect("it is the gateway's").to_string_lossy();
        for (name, places, why) in CONFINED {
            if !places.iter().any(|place| inner.starts_with(place)) {
                let code = |line: &str| line.split("//").next().unwrap_or_default().contains(name);
                broken.extend(lines_that(&source, code).into_iter().map(|line| format!("{line}   ({why})")));
            }
        }
    }
    check(broken, "only the places of CONFINED may name these");
}

#[test]
fn every_file_says_what_it_is() {
    let silent = workspace().into_iter().filter(|source| !source.text.starts_with("//!"));
    check(silent.map(|source| source.path.display().to_string()).collect(), "a file opens with `//!`");
}

#[test]
fn files_stay_readable() {
    let long = workspace().into_iter().filter(|source| source.text.lines().count() > MAX_LINES);
    check(long.map(|source| source.path.display().to_string()).collect(), "no file is longer than MAX_LINES");
}

#[test]
fn no_test_is_skipped() {
    // Put together, so that this file does not name it.
    let ignore = ["#[", "ignore"].concat();
    let broken =
        workspace().iter().flat_map(|source| lines_that(source, |line| line.contains(&ignore))).collect();
    check(broken, "a test runs or does not exist");
}

#[test]
fn no_test_sleeps() {
    let sleep = ["thread::", "sleep"].concat();
    let tests = ["tests/", "gateway/tests/", "bench/tests/"];
    let of_tests =
        workspace().into_iter().filter(|source| tests.iter().any(|folder| source.path.starts_with(folder)));
    let broken = of_tests.flat_map(|source| lines_that(&source, |line| line.contains(&sleep))).collect();
    check(broken, "a test waits for an event");
}
