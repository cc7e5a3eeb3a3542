//! The keys of one object, asked for one by one; those that nobody asked for are faults.

use std::collections::HashMap;

use serde_json::json;

use super::{Document, INCLUDE, Node, SCHEMA};
use crate::config::value::{self, quote};
use crate::config::written::Written;

pub(in crate::config) struct Object<'a> {
    pub(super) document: &'a Document<'a>,
    start: usize,
    key: String,
    pub(super) entries: HashMap<String, Entry<'a>>,
    asked: Vec<&'static str>,
}

pub(super) struct Entry<'a> {
    pub(super) key_offset: usize,
    /// Where it stands in the last of several files.
    pub(super) last_offset: usize,
    pub(super) node: Node<'a>,
}

impl<'a> Object<'a> {
    pub(super) fn empty(document: &'a Document<'a>, start: usize, key: String) -> Self {
        Self { document, start, key, entries: HashMap::new(), asked: Vec::new() }
    }

    fn ask(&mut self, key: &'static str) -> Option<&Node<'a>> {
        self.asked.push(key);
        if self.document.outline.is_some() {
            let node = self.document.node(self.document.text, self.path(key));
            self.entries.insert(key.to_owned(), Entry { key_offset: 0, last_offset: 0, node });
        }
        self.entries.get(key).map(|entry| &entry.node)
    }

    pub(in crate::config) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Node<'a>) -> Option<T>,
    ) -> Option<T> {
        self.ask(key).and_then(read)
    }

    pub(in crate::config) fn or<T: Written>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Node<'a>) -> Option<T>,
    ) -> T {
        self.note(key, &default);
        self.optional(key, read).unwrap_or(default)
    }

    /// The same, where `value` follows from what other keys say.
    pub(in crate::config) fn or_following<T: Written>(
        &mut self,
        key: &'static str,
        value: T,
        read: impl FnOnce(&Node<'a>) -> Option<T>,
    ) -> T {
        self.follows(key, &value);
        self.optional(key, read).unwrap_or(value)
    }

    /// A list that is empty where it is absent.
    pub(in crate::config) fn or_empty<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Node<'a>) -> Option<Vec<T>>,
    ) -> Vec<T> {
        self.note(key, &Vec::new());
        self.optional(key, read).unwrap_or_default()
    }

    /// A word of `known`, one of which stands for `default`.
    pub(in crate::config) fn choice<T: Clone + PartialEq>(
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

    /// Says what holds where the key is absent, whatever the others say.
    pub(in crate::config) fn note(&self, key: &str, default: &impl Written) {
        match &self.document.outline {
            Some(outline) => outline.default_of(&self.path(key), default.written()),
            None => self.follows(key, default),
        }
    }

    /// Says what follows for an absent key from what others say; the last word counts.
    pub(in crate::config) fn follows(&self, key: &str, value: &impl Written) {
        if let Some(defaults) = &self.document.defaults {
            defaults.borrow_mut().push((self.path(key), value.written()));
        }
    }

    /// `example` is the JSON value that the fault proposes when the key is missing.
    pub(in crate::config) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&Node<'a>) -> Option<T>,
    ) -> Option<T> {
        self.document.outline.iter().for_each(|outline| outline.require(&self.path(key)));
        if let Some(node) = self.ask(key) {
            return read(node);
        }
        let message = format!("`{key}` is missing: add \"{key}\": {example}");
        self.document.fault(self.start, &self.key, message);
        None
    }

    /// A nested object; absent, it is read as an empty one, which yields the defaults.
    pub(in crate::config) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut Object<'a>) -> T,
    ) -> T {
        self.note(key, &json!({}));
        let present = self.ask(key).and_then(|node| node.object(&read));
        present.unwrap_or_else(|| read(&mut Self::empty(self.document, self.start, self.path(key))))
    }

    /// Accepts the schema's own key, whatever its value, without proposing it to anybody.
    pub(in crate::config) fn ignore_schema(&mut self) {
        if let Some(outline) = &self.document.outline {
            outline.add(SCHEMA, json!({ "description": "for editors: where this schema is" }));
            self.asked.push(SCHEMA);
        }
        self.entries.remove(SCHEMA);
    }

    pub(in crate::config) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Records a fault of the value at `key`, or of the whole object where it is absent.
    pub(in crate::config) fn fault(&self, key: &str, message: impl Into<String>) {
        match self.entries.get(key) {
            Some(entry) => drop(entry.node.fault::<()>(message)),
            None => self.document.fault(self.start, &self.key, message),
        }
    }

    /// Records that the value at `key` is hardly meant, if there is one.
    pub(in crate::config) fn warn(&self, key: &str, message: impl Into<String>) {
        if let Some(Entry { node, .. }) = self.entries.get(key) {
            let offset = self.document.offset(node.raw);
            self.document.warnings.borrow_mut().push((offset, node.key.clone(), message.into()));
        }
    }

    /// The same of the object itself, if it has any key.
    pub(in crate::config) fn warn_all(&self, message: impl Into<String>) {
        if !self.entries.is_empty() {
            self.document.warnings.borrow_mut().push((self.start, self.key.clone(), message.into()));
        }
    }

    /// Where in the text the value at `key` begins, or the whole object where it is absent: cheap to keep.
    pub(in crate::config) fn offset(&self, key: &str) -> usize {
        self.entries.get(key).map_or(self.start, |entry| self.document.offset(entry.node.raw))
    }

    /// `offset` as a message about the value at `key` names it, which takes counting all lines before it.
    pub(in crate::config) fn place(&self, offset: usize, key: &str) -> String {
        self.document.place(offset, self.offset(key))
    }

    /// The files that `Files` has followed already; says where that failed.
    pub(in crate::config) fn includes(&mut self) {
        self.note(INCLUDE, &Vec::new());
        let Some(node) = self.ask(INCLUDE) else { return };
        for raw in [node.raw].iter().chain(&node.more) {
            let document = node.document;
            let list = document.node(raw, node.key.clone());
            let refused = &document.file(document.offset(raw)).refused;
            for (index, element) in list.list("a list of files").into_iter().flatten().enumerate() {
                let why = refused.iter().find(|(at, _)| *at == index).map(|(_, why)| why.clone());
                element.string("a file such as \"routes/*.json\"", |_| why.map_or(Ok(()), Err));
            }
        }
    }

    /// The key as faults name it: an odd one must not break the line they are printed on.
    pub(super) fn path(&self, key: &str) -> String {
        let key = key.escape_debug();
        if self.key.is_empty() { key.to_string() } else { format!("{}.{key}", self.key) }
    }

    pub(super) fn finish(self) {
        if let Some(outline) = &self.document.outline {
            return outline.object(&self.key, &self.asked, |key| self.path(key));
        }
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
