//! A JSON document read value by value, each of which knows where it stands in the text.
//!
//! `file` walks it. A value is a slice of the text as `serde_json` delimits it, so its position is where the
//! slice begins. Faults gather in the document and reading goes on: a reader that returns `None` has recorded
//! why, and one run reports everything there is to mend. What the keys mean is not known here.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::environment;
use super::error::{Error, Excerpt, Fault};
use super::include::{File, Files};
use super::value::{self, quote};
use super::written::{Written, fill};

/// Names the other files.
const INCLUDE: &str = "include";
/// Lists of the root that several files may have a part of.
const JOINED: [&str; 2] = [INCLUDE, "routes"];

/// A document that was read, and what there is to say about it.
pub struct Reading<T> {
    pub value: T,
    /// What is no fault and hardly meant.
    pub warnings: Vec<Fault>,
    /// The document with every default filled in; `Null` unless it was asked for.
    pub effective: Value,
}

/// Reads the top-level object with `read`; any fault anywhere is an error.
pub(super) fn read<T>(
    bytes: &[u8],
    file: &Path,
    effective: bool,
    read: impl FnOnce(&mut Object<'_>) -> Option<T>,
) -> Result<Reading<T>, Error> {
    let Files { text, files, .. } = Files::of(file, bytes);
    let document = Document {
        text: &text,
        files: &files,
        faults: RefCell::default(),
        warnings: RefCell::default(),
        defaults: effective.then(RefCell::default),
    };
    let result = document.root().map(|mut root| {
        let value = read(&mut root);
        root.finish();
        value
    });
    let result = result.flatten();
    match result {
        Some(value) if document.faults.borrow().is_empty() => {
            let warnings = document.placed(&document.warnings);
            Ok(Reading { value, warnings, effective: document.effective() })
        }
        _ => Err(Error::Invalid { faults: document.placed(&document.faults) }),
    }
}

struct Document<'a> {
    /// Of all files.
    text: &'a str,
    files: &'a [File],
    faults: RefCell<Vec<Remark>>,
    warnings: RefCell<Vec<Remark>>,
    /// Where it is wanted: each key that is not there, and what holds instead.
    defaults: Option<RefCell<Vec<(String, Value)>>>,
}

/// Byte offset, key, message.
type Remark = (usize, String, String);

impl<'a> Document<'a> {
    /// The keys of all files together; lists of routes are joined.
    fn root(&self) -> Option<Object<'_>> {
        let mut root = None;
        for file in self.files {
            let text = &self.text[file.part.clone()];
            if file.garbled {
                self.fault(file.part.end, "", "not UTF-8 text: save the file as UTF-8");
                continue;
            }
            match serde_json::from_str::<&RawValue>(text) {
                Ok(raw) => {
                    let node = Node { document: self, raw: raw.get(), key: String::new(), more: Vec::new() };
                    if !node.raw.starts_with('{') {
                        node.mistyped::<()>("an object");
                        continue;
                    }
                    node.gather(root.get_or_insert_with(|| node.empty()))?;
                }
                Err(error) => self.syntax(file, &error),
            }
        }
        root
    }

    fn syntax(&self, file: &File, error: &serde_json::Error) {
        let (start, text) = (file.part.start, &self.text[file.part.clone()]);
        if text.trim().is_empty() {
            return self.fault(start, "", "the file is empty: it needs at least { \"routes\": [ ... ] }");
        }
        let line_start: usize =
            text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
        // serde_json counts bytes, and stands before the first of them at the end of the text.
        let mut offset = (line_start + error.column().saturating_sub(1)).min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let whole = error.to_string();
        let what = whole.split(" at line ").next().unwrap_or(&whole);
        let advice = match text[offset..].chars().next() {
            _ if error.is_eof() => ": something that was opened is never closed",
            Some('/' | '#') => ": JSON has no comments, remove it",
            Some('}' | ']') if text[..offset].trim_end().ends_with(',') => ": remove the comma before it",
            Some('\'') => ": strings and keys stand in double quotes",
            Some(_) | None => "",
        };
        self.fault(start + offset, "", format!("not valid JSON: {what}{advice}"));
    }

    fn fault(&self, offset: usize, key: &str, message: impl Into<String>) {
        self.faults.borrow_mut().push((offset, key.to_owned(), message.into()));
    }

    fn placed(&self, remarks: &RefCell<Vec<Remark>>) -> Vec<Fault> {
        let mut faults = remarks.borrow().clone();
        faults.sort_by_key(|&(offset, ..)| offset);
        // Each is counted on from the one before it, so that many faults cost one pass over the text.
        let (mut counted, mut line, mut column) = (0, 1, 1);
        let positioned = faults.into_iter().map(|(offset, key, message)| {
            let file = self.file(offset);
            if counted < file.part.start {
                (counted, line, column) = (file.part.start, 1, 1);
            }
            let between = &self.text[counted..offset];
            if let Some(newline) = between.rfind('\n') {
                line += between.matches('\n').count();
                column = between[newline..].chars().count();
            } else {
                column += between.chars().count();
            }
            counted = offset;
            let excerpt = Excerpt::of(&self.text[file.part.clone()], offset - file.part.start);
            let file = file.path.clone();
            Fault { file, line, column, key, message, excerpt }
        });
        positioned.collect()
    }

    fn effective(&self) -> Value {
        let Some(defaults) = &self.defaults else { return Value::Null };
        let mut effective = serde_json::json!({});
        for file in self.files {
            let part: Value = serde_json::from_str(&self.text[file.part.clone()]).unwrap_or_default();
            for (key, value) in part.as_object().into_iter().flatten().filter(|(key, _)| *key != INCLUDE) {
                match (&mut effective[key], value) {
                    (Value::Array(all), Value::Array(more)) => all.extend(more.iter().cloned()),
                    (place, value) => *place = value.clone(),
                }
            }
        }
        // What was said last holds.
        for (path, value) in defaults.borrow_mut().drain(..).rev() {
            fill(&mut effective, &path, value);
        }
        effective
    }

    fn file(&self, offset: usize) -> &'a File {
        &self.files[self.files.partition_point(|file| file.part.start <= offset).saturating_sub(1)]
    }

    /// Where `offset` is, for a message that is about `seen`: with the file's name if that is another.
    fn place(&self, offset: usize, seen: usize) -> String {
        let file = self.file(offset);
        let before = &self.text[file.part.start..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        // Columns are characters.
        let (line, column) = (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1);
        match file.part == self.file(seen).part {
            true => format!("line {line}, column {column}"),
            false => format!("{}:{line}:{column}", file.path.display()),
        }
    }

    fn offset(&self, slice: &str) -> usize {
        slice.as_ptr().addr() - self.text.as_ptr().addr()
    }
}

/// One value of the document.
pub(super) struct Node<'a> {
    document: &'a Document<'a>,
    raw: &'a str,
    key: String,
    /// Lists of other files that this one goes on with.
    more: Vec<&'a str>,
}

impl<'a> Node<'a> {
    /// Records that this value is wrong; returns what a reader that failed returns.
    pub(super) fn fault<T>(&self, message: impl Into<String>) -> Option<T> {
        self.document.fault(self.document.offset(self.raw), &self.key, message);
        None
    }

    fn mistyped<T>(&self, expected: &str) -> Option<T> {
        self.fault(format!("must be {expected}, is {}", describe(self.raw)))
    }

    /// A string that `parse` accepts; its error is the fault's message.
    pub(super) fn string<T>(
        &self,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if !self.raw.starts_with('"') {
            return self.mistyped(expected);
        }
        match serde_json::from_str::<String>(self.raw) {
            Ok(text) => environment::expand(&text, |name| std::env::var(name).ok())
                .and_then(|text| parse(&text))
                .map_or_else(|refused| self.fault(refused), Some),
            Err(_) => self.fault("is no valid string: a \\u escape stands for half a character"),
        }
    }

    /// A word of `known`; `what` is what such words are called.
    pub(super) fn choice<T: Clone>(&self, what: &str, known: &[(&str, T)]) -> Option<T> {
        let names: Vec<_> = known.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        self.string(&format!("one of {}", names.join(", ")), |text| value::one_of(text, what, known))
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        serde_json::from_str(self.raw).ok().or_else(|| self.mistyped("true or false"))
    }

    /// A whole number of `range`, all of which `T` must be able to hold.
    pub(super) fn integer<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        let number = serde_json::from_str(self.raw).ok().filter(|number| range.contains(number));
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        number.and_then(|n| T::try_from(n).ok()).or_else(|| self.mistyped(&expected()))
    }

    /// A number strictly between 0 and 1.
    pub(super) fn fraction(&self) -> Option<f64> {
        let number: Option<f64> = serde_json::from_str(self.raw).ok();
        let inside = number.filter(|&number| number > 0.0 && number < 1.0);
        inside.or_else(|| self.mistyped("a number between 0 and 1, neither of them"))
    }

    /// Seconds as a number, or a string with its unit.
    pub(super) fn duration(&self) -> Option<Duration> {
        const EXPECTED: &str = "a time such as 30 (seconds), \"30s\" or \"500ms\"";
        match serde_json::from_str::<f64>(self.raw) {
            Ok(seconds) => value::seconds(seconds).or_else(|| self.mistyped("a time from 1ms to 24h")),
            Err(_) => self.string(EXPECTED, value::duration),
        }
    }

    /// The same, where something else would do as well.
    pub(super) fn boolean_or(&self, other: &str) -> Option<bool> {
        let expected = format!("true, false or {other}");
        serde_json::from_str(self.raw).ok().or_else(|| self.mistyped(&expected))
    }

    /// Whether this is an object, for a key that takes one in place of a plain value.
    pub(super) fn is_object(&self) -> bool {
        self.raw.starts_with('{')
    }

    /// Whether this is a list, for a key that takes one value or several.
    pub(super) fn is_list(&self) -> bool {
        self.raw.starts_with('[')
    }

    /// The elements of a list.
    pub(super) fn list(&self, expected: &str) -> Option<Vec<Node<'a>>> {
        let mut elements = Vec::new();
        for raw in [self.raw].iter().chain(&self.more) {
            let Ok(list) = serde_json::from_str::<Vec<&'a RawValue>>(raw) else {
                let (document, key) = (self.document, self.key.clone());
                return Node { document, raw, key, more: Vec::new() }.mistyped(expected);
            };
            elements.extend(list);
        }
        let nodes = elements.into_iter().enumerate().map(|(index, raw)| Node {
            document: self.document,
            raw: raw.get(),
            key: format!("{}[{index}]", self.key),
            more: Vec::new(),
        });
        Some(nodes.collect())
    }

    /// An object; keys that `read` did not ask for are faults.
    pub(super) fn object<T>(&self, read: impl FnOnce(&mut Object<'a>) -> T) -> Option<T> {
        if !self.raw.starts_with('{') {
            return self.mistyped("an object");
        }
        let mut object = self.empty();
        self.gather(&mut object)?;
        let result = read(&mut object);
        object.finish();
        Some(result)
    }

    fn empty(&self) -> Object<'a> {
        Object {
            document: self.document,
            start: self.document.offset(self.raw),
            key: self.key.clone(),
            entries: HashMap::new(),
            asked: Vec::new(),
        }
    }

    /// Puts the keys of this object beside those that `object` has.
    fn gather(&self, object: &mut Object<'a>) -> Option<()> {
        let Ok(Entries(entries)) = serde_json::from_str::<Entries<'a>>(self.raw) else {
            return self.fault("has a key that is no valid string");
        };
        object.entries.reserve(entries.len());
        for (raw_key, raw) in entries {
            let Ok(name) = serde_json::from_str::<String>(raw_key.get()) else {
                return self.fault("has a key that is no valid string");
            };
            let (document, key, more) = (self.document, object.path(&name), Vec::new());
            let node = Node { document, raw: raw.get(), key, more };
            let key_offset = document.offset(raw_key.get());
            if let Some(first) = object.entries.get_mut(&name) {
                let same_file = document.file(first.last_offset).part == document.file(key_offset).part;
                if JOINED.contains(&name.as_str()) && self.key.is_empty() && !same_file {
                    first.node.more.push(node.raw);
                    first.last_offset = key_offset;
                    continue;
                }
                let place = document.place(first.last_offset, key_offset);
                let message = format!("this key already stands at {place}: remove one of the two");
                document.fault(key_offset, &node.key, message);
            } else {
                object.entries.insert(name, Entry { key_offset, last_offset: key_offset, node });
            }
        }
        Some(())
    }
}

/// The keys of one object, asked for one by one.
pub(super) struct Object<'a> {
    document: &'a Document<'a>,
    start: usize,
    key: String,
    entries: HashMap<String, Entry<'a>>,
    asked: Vec<&'static str>,
}

struct Entry<'a> {
    key_offset: usize,
    /// Where it stands in the last of several files.
    last_offset: usize,
    node: Node<'a>,
}

impl<'a> Object<'a> {
    fn ask(&mut self, key: &'static str) -> Option<&Node<'a>> {
        self.asked.push(key);
        self.entries.get(key).map(|entry| &entry.node)
    }

    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Node<'a>) -> Option<T>,
    ) -> Option<T> {
        self.ask(key).and_then(read)
    }

    pub(super) fn or<T: Written>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Node<'a>) -> Option<T>,
    ) -> T {
        self.note(key, &default);
        self.optional(key, read).unwrap_or(default)
    }

    /// A list that is empty where it is absent.
    pub(super) fn or_empty<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Node<'a>) -> Option<Vec<T>>,
    ) -> Vec<T> {
        self.note(key, &Vec::new());
        self.optional(key, read).unwrap_or_default()
    }

    /// A word of `known`, one of which stands for `default`.
    pub(super) fn choice<T: Clone + PartialEq>(
        &mut self,
        key: &'static str,
        default: T,
        what: &str,
        known: &[(&str, T)],
    ) -> T {
        if let Some((name, _)) = known.iter().find(|(_, value)| *value == default) {
            self.note(key, name);
        }
        self.optional(key, |node| node.choice(what, known)).unwrap_or(default)
    }

    /// Says what holds where the key is absent; the last word counts.
    pub(super) fn note(&self, key: &str, default: &impl Written) {
        if let Some(defaults) = &self.document.defaults {
            defaults.borrow_mut().push((self.path(key), default.written()));
        }
    }

    /// `example` is the JSON value that the fault proposes when the key is missing.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&Node<'a>) -> Option<T>,
    ) -> Option<T> {
        if let Some(node) = self.ask(key) {
            return read(node);
        }
        let message = format!("`{key}` is missing: add \"{key}\": {example}");
        self.document.fault(self.start, &self.key, message);
        None
    }

    /// A nested object; absent, it is read as an empty one, which yields the defaults.
    pub(super) fn section<T>(&mut self, key: &'static str, read: impl Fn(&mut Object<'a>) -> T) -> T {
        let present = self.ask(key).and_then(|node| node.object(&read));
        present.unwrap_or_else(|| {
            read(&mut Object {
                document: self.document,
                start: self.start,
                key: self.path(key),
                entries: HashMap::new(),
                asked: Vec::new(),
            })
        })
    }

    /// Accepts the key, whatever its value, without proposing it to anybody.
    pub(super) fn ignore(&mut self, key: &str) {
        self.entries.remove(key);
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Records a fault of the value at `key`, or of the whole object where it is absent.
    pub(super) fn fault(&self, key: &str, message: impl Into<String>) {
        match self.entries.get(key) {
            Some(entry) => drop(entry.node.fault::<()>(message)),
            None => self.document.fault(self.start, &self.key, message),
        }
    }

    /// Records that the value at `key` is hardly meant, if there is one.
    pub(super) fn warn(&self, key: &str, message: impl Into<String>) {
        if let Some(Entry { node, .. }) = self.entries.get(key) {
            let offset = self.document.offset(node.raw);
            self.document.warnings.borrow_mut().push((offset, node.key.clone(), message.into()));
        }
    }

    /// The same of the object itself, if it has any key.
    pub(super) fn warn_all(&self, message: impl Into<String>) {
        if !self.entries.is_empty() {
            self.document.warnings.borrow_mut().push((self.start, self.key.clone(), message.into()));
        }
    }

    /// Where in the text the value at `key` begins, or the whole object where it is absent: cheap to keep.
    pub(super) fn offset(&self, key: &str) -> usize {
        self.entries.get(key).map_or(self.start, |entry| self.document.offset(entry.node.raw))
    }

    /// `offset` as a message about the value at `key` names it, which takes counting all lines before it.
    pub(super) fn place(&self, offset: usize, key: &str) -> String {
        self.document.place(offset, self.offset(key))
    }

    /// The files that `Files` has followed already; says where that failed.
    pub(super) fn includes(&mut self) {
        let Some(node) = self.ask(INCLUDE) else { return };
        for raw in [node.raw].iter().chain(&node.more) {
            let (document, key) = (node.document, node.key.clone());
            let list = Node { document, raw, key, more: Vec::new() };
            let refused = &document.file(document.offset(raw)).refused;
            for (index, element) in list.list("a list of files").into_iter().flatten().enumerate() {
                let why = refused.iter().find(|(at, _)| *at == index).map(|(_, why)| why.clone());
                element.string("a file such as \"routes/*.json\"", |_| why.map_or(Ok(()), Err));
            }
        }
    }

    /// The key as faults name it: an odd one must not break the line they are printed on.
    fn path(&self, key: &str) -> String {
        let key = key.escape_debug();
        if self.key.is_empty() { key.to_string() } else { format!("{}.{key}", self.key) }
    }

    fn finish(self) {
        for (name, entry) in &self.entries {
            if self.asked.contains(&name.as_str()) {
                continue;
            }
            let advice = match value::closest(name, &self.asked) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here are {}", self.asked.join(", ")),
            };
            let message = format!("unknown key {}: {advice}", quote(name));
            self.document.fault(entry.key_offset, &self.key, message);
        }
    }
}

/// An object's keys and values in the order of the text, repeated keys included.
struct Entries<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Vec<(&'de RawValue, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(InOrder).map(Entries)
    }
}

/// A JSON value as a fault names it.
fn describe(raw: &str) -> String {
    match raw.as_bytes().first() {
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "a list".to_owned(),
        Some(b'"') => match serde_json::from_str::<String>(raw) {
            Ok(text) => format!("the string {}", quote(&text)),
            Err(_) => "a string".to_owned(),
        },
        Some(b't' | b'f' | b'n') => raw.to_owned(),
        Some(_) | None => format!("the number {}", raw.chars().take(40).collect::<String>()),
    }
}
