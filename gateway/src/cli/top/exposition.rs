//! Prometheus' text format, as far as the gateway writes it: a line is a name, labels and a number. Pure.

use std::borrow::Cow;

#[derive(Clone, Debug, PartialEq)]
pub struct Line<'a> {
    pub name: &'a str,
    labels: Vec<(&'a str, Cow<'a, str>)>,
    pub value: f64,
}

impl Line<'_> {
    /// The value of a label, empty where there is none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(of, _)| *of == name).map_or("", |(_, value)| value)
    }
}

/// Every line that can be read; comments and nonsense are passed over.
pub fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(line)
}

fn line(text: &str) -> Option<Line<'_>> {
    let end = text.find(['{', ' '])?;
    let (name, mut rest) = text.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, value) = rest.strip_prefix(',').unwrap_or(rest).split_once("=\"")?;
            let close = end_of(value)?;
            labels.push((label, unescaped(&value[..close])));
            rest = &value[close + 1..];
        }
        rest = &rest[1..];
    }
    Some(Line { name, labels, value: rest.trim().parse().ok()? })
}

/// Where the quotation mark is that is not escaped.
fn end_of(value: &str) -> Option<usize> {
    let mut escaped = false;
    value.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return value.into();
    }
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => break,
            },
            other => other,
        });
    }
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_name_labels_and_a_number() {
        for (text, name, labels, value) in [
            ("up 1", "up", &[][..], 1.0),
            ("up{} 1.5e3", "up", &[], 1500.0),
            ("a{route=\"/x\",le=\"+Inf\"} 7", "a", &[("route", "/x"), ("le", "+Inf")], 7.0),
            (r#"a{route="/a\"b\\",q="},"} 7"#, "a", &[("route", r#"/a"b\"#), ("q", "},")], 7.0),
            (r#"a{x="1\n2"} +Inf"#, "a", &[("x", "1\n2")], f64::INFINITY),
        ] {
            let line = line(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((line.name, line.value), (name, value), "{text}");
            let all: Vec<_> = line.labels.iter().map(|(name, value)| (*name, value.as_ref())).collect();
            assert_eq!(all, labels, "{text}");
            assert_eq!(line.label("none"), "");
        }
        for text in
            ["", "up", "up x", "a{", "a{x}", "a{x=\"", "a{x=\"1\"", "a{x=\"1\\\"} 1", "# HELP up Well."]
        {
            assert_eq!(lines(text).next(), None, "{text}");
        }
    }
}
