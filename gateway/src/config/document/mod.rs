//! A JSON document read value by value, each of which knows where it stands in the text.
//!
//! `file` walks it. A value is a slice of the text as `serde_json` delimits it, so its position is where the
//! slice begins. Faults gather in the document and reading goes on: a reader that returns `None` has recorded
//! why, and one run reports everything there is to mend. What the keys mean is not known here.
//!
//! Readers can also be handed values that are not there: each then says what it would take, which makes the schema.

mod node;
mod object;

use std::cell::RefCell;

use serde_json::Value;
use serde_json::value::RawValue;

use super::error::{Error, Excerpt, Fault};
use super::include::{File, Files};
use super::schema::Outline;
use super::written::fill;
pub(super) use node::Node;
pub(super) use object::Object;

/// Names the other files.
const INCLUDE: &str = "include";
/// Of the schema, for editors.
const SCHEMA: &str = "$schema";
/// Keys of the root that stand in several files.
const SHARED: [&str; 3] = [INCLUDE, "routes", SCHEMA];

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
    files: &Files,
    effective: bool,
    read: impl FnOnce(&mut Object<'_>) -> Option<T>,
) -> Result<Reading<T>, Error> {
    let Files { text, files, .. } = files;
    let document = Document {
        text,
        files,
        faults: RefCell::default(),
        warnings: RefCell::default(),
        defaults: effective.then(RefCell::default),
        outline: None,
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

/// What `read` would take of the top-level object.
pub(super) fn outline<T>(read: impl FnOnce(&mut Object<'_>) -> Option<T>) -> Outline {
    let nowhere = File { path: "".into(), part: 0..0, garbled: false, refused: Vec::new() };
    let document = Document {
        text: "",
        files: &[nowhere],
        faults: RefCell::default(),
        warnings: RefCell::default(),
        defaults: None,
        outline: Some(Outline::default()),
    };
    document.node("", String::new()).object(read);
    document.outline.expect("it has one")
}

struct Document<'a> {
    /// Of all files.
    text: &'a str,
    files: &'a [File],
    faults: RefCell<Vec<Remark>>,
    warnings: RefCell<Vec<Remark>>,
    /// Where it is wanted: each key that is not there, and what holds instead.
    defaults: Option<RefCell<Vec<(String, Value)>>>,
    /// In place of a text: what the readers say they would take.
    outline: Option<Outline>,
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
                    let node = self.node(raw.get(), String::new());
                    if !node.is_object() {
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

    fn node<'d>(&'d self, raw: &'d str, key: String) -> Node<'d> {
        Node { document: self, raw, key, more: Vec::new() }
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
