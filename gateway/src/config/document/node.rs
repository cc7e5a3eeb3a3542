//! One value of a document: what it is read as, and the fault where it is something else.
//!
//! Where there is no text, each reader says what it would take and returns nothing.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::object::{Entry, Object};
use super::{Document, SHARED};
use crate::config::value::{self, quote};
use crate::config::{environment, schema};

/// One value of the document.
pub(in crate::config) struct Node<'a> {
    pub(super) document: &'a Document<'a>,
    pub(super) raw: &'a str,
    pub(super) key: String,
    /// Lists of other files that this one goes on with.
    pub(super) more: Vec<&'a str>,
}

impl<'a> Node<'a> {
    /// Records that this value is wrong; returns what a reader that failed returns.
    pub(in crate::config) fn fault<T>(&self, message: impl Into<String>) -> Option<T> {
        self.document.fault(self.document.offset(self.raw), &self.key, message);
        None
    }

    pub(super) fn mistyped<T>(&self, expected: &str) -> Option<T> {
        self.fault(format!("must be {expected}, is {}", describe(self.raw)))
    }

    /// Tells what would be taken, where that is all there is to do: `None`.
    fn told(&self, shape: impl FnOnce() -> Value) -> Option<()> {
        let Some(outline) = &self.document.outline else { return Some(()) };
        outline.add(&self.key, shape());
        None
    }

    /// The same of one more property of what was told last.
    fn told_too(&self, property: &str, value: impl Into<Value>) {
        if let Some(outline) = &self.document.outline {
            outline.amend(&self.key, property, value);
        }
    }

    /// A string that `parse` accepts; its error is the fault's message.
    pub(in crate::config) fn string<T>(
        &self,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.told(|| schema::string(expected))?;
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
    pub(in crate::config) fn choice<T: Clone>(&self, what: &str, known: &[(&str, T)]) -> Option<T> {
        self.told(|| schema::words(known.iter().map(|(name, _)| *name)))?;
        let names: Vec<_> = known.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        self.string(&format!("one of {}", names.join(", ")), |text| value::one_of(text, what, known))
    }

    pub(in crate::config) fn boolean(&self) -> Option<bool> {
        self.told(|| json!({ "type": "boolean" }))?;
        serde_json::from_str(self.raw).ok().or_else(|| self.mistyped("true or false"))
    }

    /// A whole number of `range`, all of which `T` must be able to hold.
    pub(in crate::config) fn integer<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        self.told(|| json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() }))?;
        let number = serde_json::from_str(self.raw).ok().filter(|number| range.contains(number));
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        number.and_then(|n| T::try_from(n).ok()).or_else(|| self.mistyped(&expected()))
    }

    /// A power of two, up to `most`.
    pub(in crate::config) fn power_of_two(&self, most: usize) -> Option<usize> {
        let powers = || (0..usize::BITS).map(|bit| 1_usize << bit).take_while(|power| *power <= most);
        self.told(|| json!({ "enum": powers().collect::<Vec<_>>() }))?;
        let number: usize = self.integer(1..=most as u64)?;
        if number.is_power_of_two() {
            return Some(number);
        }
        let (above, below) = (number.next_power_of_two(), number.next_power_of_two() / 2);
        self.fault(format!("must be a power of two, is {number}: write {below} or {above}"))
    }

    /// A number strictly between 0 and 1.
    pub(in crate::config) fn fraction(&self) -> Option<f64> {
        self.told(|| json!({ "type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1 }))?;
        let number: Option<f64> = serde_json::from_str(self.raw).ok();
        let inside = number.filter(|&number| number > 0.0 && number < 1.0);
        inside.or_else(|| self.mistyped("a number between 0 and 1, neither of them"))
    }

    /// Seconds as a number, or a string with its unit.
    pub(in crate::config) fn duration(&self) -> Option<Duration> {
        const EXPECTED: &str = "a time such as 30 (seconds), \"30s\" or \"500ms\"";
        self.told(schema::time)?;
        match serde_json::from_str::<f64>(self.raw) {
            Ok(seconds) => value::seconds(seconds).or_else(|| self.mistyped("a time from 1ms to 24h")),
            Err(_) => self.string(EXPECTED, value::duration),
        }
    }

    /// The same within `bounds`; `refusal` is what is said of any other.
    pub(in crate::config) fn duration_in(
        &self,
        bounds: RangeInclusive<Duration>,
        refusal: &str,
    ) -> Option<Duration> {
        let time = self.duration();
        self.told_too("minimum", bounds.start().as_secs_f64());
        self.told_too("maximum", bounds.end().as_secs_f64());
        time.and_then(|time| if bounds.contains(&time) { Some(time) } else { self.fault(refusal) })
    }

    /// The same, where something else would do as well.
    pub(in crate::config) fn boolean_or(&self, other: &str) -> Option<bool> {
        self.told(|| json!({ "type": "boolean" }))?;
        let expected = format!("true, false or {other}");
        serde_json::from_str(self.raw).ok().or_else(|| self.mistyped(&expected))
    }

    pub(super) fn is_object(&self) -> bool {
        self.raw.starts_with('{')
    }

    /// An object that `read` takes, or what `other` does.
    pub(in crate::config) fn object_or<T>(
        &self,
        read: impl FnOnce(&mut Object<'a>) -> Option<T>,
        other: impl FnOnce(&Self) -> Option<T>,
    ) -> Option<T> {
        self.either(self.is_object(), |node| node.object(read).flatten(), other)
    }

    /// A list that `several` takes, or what `one` does.
    pub(in crate::config) fn list_or<T>(
        &self,
        several: impl FnOnce(&Self) -> Option<T>,
        one: impl FnOnce(&Self) -> Option<T>,
    ) -> Option<T> {
        self.either(self.raw.starts_with('['), several, one)
    }

    fn either<T>(
        &self,
        is_this: bool,
        this: impl FnOnce(&Self) -> Option<T>,
        that: impl FnOnce(&Self) -> Option<T>,
    ) -> Option<T> {
        if self.document.outline.is_some() {
            this(self);
            return that(self);
        }
        if is_this { this(self) } else { that(self) }
    }

    /// The elements of a list.
    pub(in crate::config) fn list(&self, expected: &str) -> Option<Vec<Node<'a>>> {
        if self.told(|| json!({ "type": "array" })).is_none() {
            return Some(vec![self.document.node(self.raw, schema::element(&self.key))]);
        }
        let mut elements = Vec::new();
        for raw in [self.raw].iter().chain(&self.more) {
            let Ok(list) = serde_json::from_str::<Vec<&'a RawValue>>(raw) else {
                return self.document.node(raw, self.key.clone()).mistyped(expected);
            };
            elements.extend(list);
        }
        let numbered = elements.into_iter().enumerate();
        Some(numbered.map(|(n, raw)| self.document.node(raw.get(), format!("{}[{n}]", self.key))).collect())
    }

    /// Those of a list that may not be empty; `advice` is what is said of one that is.
    pub(in crate::config) fn filled_list(&self, expected: &str, advice: &str) -> Option<Vec<Node<'a>>> {
        let elements = self.list(expected)?;
        self.told_too("minItems", 1);
        if elements.is_empty() {
            return self.fault(format!("is empty: {advice}"));
        }
        Some(elements)
    }

    /// `elements` of this list, if there are no more than `most`; `what` they are, and what to do about more.
    pub(in crate::config) fn at_most(
        &self,
        most: usize,
        elements: Vec<Node<'a>>,
        what: &str,
        advice: &str,
    ) -> Option<Vec<Node<'a>>> {
        self.told_too("maxItems", most);
        if elements.len() > most {
            return self.fault(format!("has {} {what}, and {most} is the most: {advice}", elements.len()));
        }
        Some(elements)
    }

    /// What `read` makes of `elements` of this list, in which none may be repeated.
    pub(in crate::config) fn distinct<T: PartialEq>(
        &self,
        elements: &[Node<'a>],
        read: impl Fn(&Node<'a>) -> Option<T>,
    ) -> Vec<T> {
        self.told_too("uniqueItems", true);
        let mut values = Vec::with_capacity(elements.len());
        for node in elements {
            match read(node) {
                Some(value) if values.contains(&value) => {
                    node.fault::<()>("stands in this list already: remove it");
                }
                value => values.extend(value),
            }
        }
        values
    }

    /// An object; keys that `read` did not ask for are faults.
    pub(in crate::config) fn object<T>(&self, read: impl FnOnce(&mut Object<'a>) -> T) -> Option<T> {
        let mut object = self.empty();
        if self.document.outline.is_none() {
            if !self.is_object() {
                return self.mistyped("an object");
            }
            self.gather(&mut object)?;
        }
        let result = read(&mut object);
        object.finish();
        Some(result)
    }

    pub(super) fn empty(&self) -> Object<'a> {
        Object::empty(self.document, self.document.offset(self.raw), self.key.clone())
    }

    /// Puts the keys of this object beside those that `object` has.
    pub(super) fn gather(&self, object: &mut Object<'a>) -> Option<()> {
        let Ok(Entries(entries)) = serde_json::from_str::<Entries<'a>>(self.raw) else {
            return self.fault("has a key that is no valid string");
        };
        object.entries.reserve(entries.len());
        for (raw_key, raw) in entries {
            let Ok(name) = serde_json::from_str::<String>(raw_key.get()) else {
                return self.fault("has a key that is no valid string");
            };
            let document = self.document;
            let node = document.node(raw.get(), object.path(&name));
            let key_offset = document.offset(raw_key.get());
            if let Some(first) = object.entries.get_mut(&name) {
                let same_file = document.file(first.last_offset).part == document.file(key_offset).part;
                if SHARED.contains(&name.as_str()) && self.key.is_empty() && !same_file {
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
