//! Variables of the environment in the file's strings: `${NAME}`, and `${NAME:-default}`; `$${` is a plain `${`.
//!
//! Part of `document`, which calls it for every string value. Keys, numbers and what a variable holds are taken as they are.

use std::borrow::Cow;

/// `text` with what `variable` gives for each name; the error is what to tell the operator. It repeats no value.
pub(super) fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Cow<'_, str>, String> {
    if !text.contains("${") {
        return Ok(text.into());
    }
    let (mut expanded, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        let inner = &from[2..];
        if let Some(before) = before.strip_suffix('$') {
            expanded.extend([before, "${"]);
            rest = inner;
            continue;
        }
        expanded.push_str(before);
        let Some((inside, after)) = inner.split_once('}') else {
            return Err("has a ${ that no } ends: write ${NAME}, or $${ for the characters themselves".into());
        };
        let (name, default) = inside.split_once(":-").map_or((inside, None), |(name, or)| (name, Some(or)));
        if !is_name(name) {
            return Err(format!(
                "{name:?} is no name of a variable: write ${{NAME}}, or $${{ for the characters themselves"
            ));
        }
        // As in a shell, a default also stands in for a variable that is empty.
        let value = variable(name).filter(|value| default.is_none() || !value.is_empty());
        match (&value, default) {
            (Some(value), _) => expanded.push_str(value),
            (None, Some(default)) => expanded.push_str(default),
            (None, None) => {
                return Err(format!("the environment has no {name}: set it, or write ${{{name}:-default}}"));
            }
        }
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded.into())
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !text.starts_with(|c: char| c.is_ascii_digit()) && !text.is_empty() && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let variable = |name: &str| match name {
            "HOST" => Some("api.example".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${HOST}".to_owned()),
            _ => None,
        };
        expand(text, variable).map(Cow::into_owned)
    }

    #[test]
    fn variables_defaults_and_escapes() {
        for (text, want) in [
            ("plain", "plain"),
            ("$HOST, $, {}", "$HOST, $, {}"),
            ("http://${HOST}:80", "http://api.example:80"),
            ("${HOST}${HOST}", "api.exampleapi.example"),
            ("${HOST:-x}", "api.example"),
            ("${NONE:-x}y", "xy"),
            ("${NONE:-}", ""),
            ("${NONE:-a:-b}", "a:-b"),
            ("${EMPTY}", ""),
            ("${EMPTY:-x}", "x"),
            // What a variable holds is not looked into again.
            ("${NESTED}", "${HOST}"),
            ("$${HOST}", "${HOST}"),
            ("$$${HOST}", "$${HOST}"),
            ("${HOST}$${", "api.example${"),
            ("ü${HOST}ü", "üapi.exampleü"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(want), "{text}");
        }
        for text in ["${NONE}", "${", "${HOST", "${}", "${:-x}", "${1A}", "${A-B}", "${HO ST}", "${ü}"] {
            assert!(expanded(text).is_err(), "{text}");
        }
    }
}
