//! Templates: a peer's configuration for every setup in one file.
//!
//! A line that begins with `@name` or `@one|another` is there for those setups only; a line that holds `{I}` stands
//! once for each route; other names in braces are filled in. Pure text.

use super::contender::Setup;

/// The values of a template's names.
pub type Values = Vec<(&'static str, String)>;

/// Renders a template for one setup.
pub fn render(template: &str, setup: Setup, values: &Values) -> String {
    let mut text = String::with_capacity(template.len());
    for line in template.lines().filter_map(|line| kept(line, setup)) {
        let line = fill(line, values);
        if line.contains("{I}") {
            setup.routes().for_each(|number| push(&mut text, &line.replace("{I}", &number.to_string())));
        } else {
            push(&mut text, &line);
        }
    }
    text
}

/// Fills the names in.
pub fn fill(text: &str, values: &Values) -> String {
    let fill = |text: String, (name, value): &(&str, String)| text.replace(&format!("{{{name}}}"), value);
    values.iter().fold(text.to_owned(), fill)
}

fn push(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// The line without its mark, if it is for this setup.
fn kept(line: &str, setup: Setup) -> Option<&str> {
    let Some(marked) = line.strip_prefix('@') else { return Some(line) };
    let (names, rest) = marked.split_once(' ').unwrap_or((marked, ""));
    names.split('|').any(|name| name == setup.marker()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_for_setups() {
        let template = "a {X}\n@limit|refuse b {X}\n@cache c\n@routes d {I} {X}\n@routes e\n";
        let check = |setup, expected| {
            let values = vec![("X", "1".to_owned())];
            assert_eq!(render(template, setup, &values), expected, "{setup:?}");
        };
        check(Setup::Plain, "a 1\n");
        check(Setup::Limit, "a 1\nb 1\n");
        check(Setup::Refuse, "a 1\nb 1\n");
        check(Setup::Cache, "a 1\nc\n");
        check(Setup::Routes(3), "a 1\nd 49999 1\nd 50000 1\ne\n");
    }
}
