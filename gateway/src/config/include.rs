//! The files that a configuration is made of: the one named, and those that `include` adds.
//!
//! They become one text, each with its place in it, so that a value's position says its file too. What is wrong with an
//! element of `include` is kept for `document`, which tells it where the element stands. Also what there is to watch.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::{io, str};

use serde::Deserialize;

use super::environment;
use super::value::quote;

pub(super) const MAX_FILES: usize = 1_000;

/// All files, the first being the one named.
pub struct Files {
    pub(super) text: String,
    pub(super) files: Vec<File>,
    /// Those that files are in, and those that globs look into.
    pub(super) folders: BTreeSet<PathBuf>,
}

pub(super) struct File {
    pub path: PathBuf,
    /// Its part of the text.
    pub part: Range<usize>,
    /// What follows is not UTF-8.
    pub garbled: bool,
    /// Elements of its `include` that cannot be followed, and why.
    pub refused: Vec<(usize, String)>,
}

/// Of a file, for finding the others; `document` says what is wrong with it.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    include: Vec<String>,
}

impl Files {
    pub(super) fn of(path: &Path, bytes: &[u8]) -> Self {
        let mut files = Self { text: String::new(), files: Vec::new(), folders: BTreeSet::new() };
        let mut known = BTreeSet::from_iter(path.canonicalize());
        files.add(path, bytes);
        let mut next = 0;
        while next < files.files.len() {
            let head: Option<Head> = serde_json::from_str(&files.text[files.files[next].part.clone()]).ok();
            let including = files.files[next].path.clone();
            for (element, pattern) in head.map_or_else(Vec::new, |head| head.include).iter().enumerate() {
                // One that names a variable that is not there is told where it stands.
                let Ok(pattern) = environment::expand(pattern, |name| std::env::var(name).ok()) else {
                    continue;
                };
                if let Err(why) = files.follow(&including, &pattern, &mut known) {
                    files.files[next].refused.push((element, why));
                }
            }
            next += 1;
        }
        files
    }

    fn follow(
        &mut self,
        including: &Path,
        pattern: &str,
        known: &mut BTreeSet<PathBuf>,
    ) -> Result<(), String> {
        let whole = including.parent().unwrap_or(Path::new("")).join(pattern);
        let paths = match whole.file_name().and_then(|name| name.to_str()) {
            Some(name) if name.contains('*') => self.matching(folder(&whole), name)?,
            Some(_) | None => vec![whole],
        };
        for path in paths {
            self.folders.insert(folder(&path).to_owned());
            let refuse =
                |error: io::Error| format!("{} cannot be read: {error}", quote(&path.to_string_lossy()));
            let bytes = fs::read(&path).map_err(refuse)?;
            if !known.insert(path.canonicalize().map_err(refuse)?) {
                let path = quote(&path.to_string_lossy());
                return Err(format!("{path} is part of this configuration already: include it once"));
            }
            if self.files.len() == MAX_FILES {
                return Err(format!("makes more than {MAX_FILES} files, which is the most: join some"));
            }
            self.add(&path, &bytes);
        }
        Ok(())
    }

    fn matching(&mut self, folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
        self.folders.insert(folder.to_owned());
        let refuse = |error| format!("{} cannot be read: {error}", quote(&folder.to_string_lossy()));
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(refuse)? {
            let path = entry.map_err(refuse)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            // Hidden ones are not meant: editors' copies, what a ConfigMap is mounted by.
            if name.is_some_and(|name| !name.starts_with('.') && matches(name, pattern)) && path.is_file() {
                paths.push(path);
            }
        }
        paths.sort_unstable();
        Ok(paths)
    }

    fn add(&mut self, path: &Path, bytes: &[u8]) {
        let text = str::from_utf8(bytes);
        let valid = text.unwrap_or_else(|e| {
            str::from_utf8(&bytes[..e.valid_up_to()]).expect("valid up to there, says the first pass")
        });
        self.folders.insert(folder(path).to_owned());
        let start = self.text.len();
        // Some editors on Windows begin a file with a byte order mark.
        self.text.push_str(valid.strip_prefix('\u{feff}').unwrap_or(valid));
        let part = start..self.text.len();
        // The end of one file is not the beginning of the next.
        self.text.push('\n');
        let refused = Vec::new();
        self.files.push(File { path: path.to_owned(), part, garbled: text.is_err(), refused });
    }
}

/// What changes when any file of the configuration at `path` does, and the folders to watch for that.
pub fn watched(path: &Path) -> (Vec<u8>, BTreeSet<PathBuf>) {
    // Unreadable counts as empty.
    let bytes = fs::read(path).unwrap_or_default();
    let files = Files::of(path, &bytes);
    let mut content = bytes;
    for file in &files.files[1..] {
        content.extend(file.path.as_os_str().as_encoded_bytes());
        content.extend(files.text[file.part.clone()].bytes());
    }
    (content, files.folders)
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Each `*` of `pattern` stands for any characters.
fn matches(name: &str, pattern: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return name == pattern };
    let Some(name) = name.strip_prefix(first) else { return false };
    let mut ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
    ends.any(|at| matches(&name[at..], rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (name, pattern, want) in [
            ("a.json", "*.json", true),
            (".json", "*.json", true),
            ("a.json~", "*.json", false),
            ("a.json", "*", true),
            ("", "*", true),
            ("10-a.json", "1*-*.json", true),
            ("10a.json", "1*-*.json", false),
            ("ü.json", "*.json", true),
            ("a.json", "a.json", true),
        ] {
            assert_eq!(matches(name, pattern), want, "{name} {pattern}");
        }
    }
}
