//! The path a route is matched on, and the one sent upstream.
//!
//! Called for each request and for each path in the configuration. It knows nothing of queries,
//! hosts or routes. Rules: RFC 3986 §6.2.2 (unreserved characters decoded, hex digits upper case)
//! and §5.2.4 (dot segments); `%2F` stays as it is and is no segment border.

use std::borrow::Cow;

/// Why a path cannot be used; answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the path does not start with '/'")]
    NotAbsolute,
    #[error("the path holds a NUL character")]
    Nul,
    #[error("the path holds a backslash; write %5C if one is meant")]
    Backslash,
    #[error("the path holds '%' without two hexadecimal digits behind it")]
    Escape,
}

/// The normal form of `path`; borrowed when it already is in normal form, as nearly every path is.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, Invalid> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(Invalid::NotAbsolute);
    }
    if is_normal(bytes) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path)?;
    Ok(Cow::Owned(remove_dot_segments(&decoded)))
}

/// The segments a route is matched on: empty ones, as in `//`, do not count.
pub fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

fn is_normal(bytes: &[u8]) -> bool {
    // Most paths hold none of these.
    if !bytes.iter().fold(false, |any, &byte| any | IS_SUSPECT[usize::from(byte)]) {
        return true;
    }
    let mut previous = 0;
    for &byte in bytes {
        match byte {
            b'%' | b'\\' | 0 => return false,
            b'.' if previous == b'/' => return false,
            _ => previous = byte,
        }
    }
    true
}

/// What a path may have to be rewritten for.
static IS_SUSPECT: [bool; 256] = {
    let mut is = [false; 256];
    is[b'%' as usize] = true;
    is[b'\\' as usize] = true;
    is[b'.' as usize] = true;
    is[0] = true;
    is
};

fn decode_unreserved(path: &str) -> Result<String, Invalid> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\', '\0']) {
        out.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'\\' => return Err(Invalid::Backslash),
            0 => return Err(Invalid::Nul),
            _ => {}
        }
        let digits = rest.get(at + 1..at + 3).ok_or(Invalid::Escape)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Invalid::Escape);
        }
        match u8::from_str_radix(digits, 16).map_err(|_| Invalid::Escape)? {
            0 => return Err(Invalid::Nul),
            byte @ (b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~') => {
                out.push(char::from(byte));
            }
            _ => {
                out.push('%');
                out.push_str(&digits.to_ascii_uppercase());
            }
        }
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    Ok(out)
}

fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms() {
        for (raw, want) in [
            ("/", Ok("/")),
            ("/api/users", Ok("/api/users")),
            ("/api/users/", Ok("/api/users/")),
            ("/api/%75sers", Ok("/api/users")),
            ("/api/%7Euser", Ok("/api/~user")),
            ("/a%2fb", Ok("/a%2Fb")),
            ("/a%2Fb", Ok("/a%2Fb")),
            ("/a/./b", Ok("/a/b")),
            ("/a/../b", Ok("/b")),
            ("/a/%2e%2e/b", Ok("/b")),
            ("/a/.%2E/b", Ok("/b")),
            ("/a/..", Ok("/")),
            ("/a/b/..", Ok("/a/")),
            ("/a/b/.", Ok("/a/b/")),
            ("/../../etc", Ok("/etc")),
            ("/..", Ok("/")),
            ("/.", Ok("/")),
            ("/a//b", Ok("/a//b")),
            ("/a//../b", Ok("/a/b")),
            ("/.hidden", Ok("/.hidden")),
            ("/a...b/...", Ok("/a...b/...")),
            ("/%E4%b8%ad", Ok("/%E4%B8%AD")),
            ("api", Err(Invalid::NotAbsolute)),
            ("", Err(Invalid::NotAbsolute)),
            ("/a\\b", Err(Invalid::Backslash)),
            ("/a%00b", Err(Invalid::Nul)),
            ("/a%", Err(Invalid::Escape)),
            ("/a%4", Err(Invalid::Escape)),
            ("/a%zz", Err(Invalid::Escape)),
            ("/a%+1", Err(Invalid::Escape)),
            ("/a%é", Err(Invalid::Escape)),
        ] {
            assert_eq!(normalise(raw).as_deref(), want.as_ref().map(|s| *s), "{raw}");
        }
    }

    #[test]
    fn a_normal_form_is_its_own() {
        for raw in ["/a/%2e%2e/b//c/./%7e%2F", "/%25%32%65", "/.%2e/.%2e/x"] {
            let once = normalise(raw).unwrap().into_owned();
            // `%252e` decodes to nothing shorter: `%25` is not unreserved.
            assert_eq!(normalise(&once).unwrap(), once, "{raw}");
        }
    }

    #[test]
    fn segments_ignore_doubled_slashes() {
        assert_eq!(segments("//api///users/").collect::<Vec<_>>(), ["api", "users"]);
    }
}
