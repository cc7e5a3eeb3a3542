//! The little languages inside the configuration's strings: addresses, URLs, times, networks, names.
//!
//! `file` hands them to the document's readers. Each takes the text and returns the value, or the sentence
//! that tells the operator what is wrong and what to write instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, Method};
use ipnet::IpNet;

use super::{Account, Backend, KernelMode, ListenAddr};
use crate::path;

pub(super) const SHORTEST: Duration = Duration::from_millis(1);
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const LONGEST_HOST_BYTES: usize = 253;
const LONGEST_LABEL_BYTES: usize = 63;
/// `sun_path` without its terminating NUL.
const LONGEST_SOCKET_PATH_BYTES: usize = 107;
/// `IFNAMSIZ` without its terminating NUL.
const LONGEST_INTERFACE_BYTES: usize = 15;

/// Names of kernel modes as the configuration spells them.
pub(super) const KERNEL_MODES: [(&str, KernelMode); 4] = [
    ("auto", KernelMode::Auto),
    ("driver", KernelMode::Driver),
    ("generic", KernelMode::Generic),
    ("tc", KernelMode::Tc),
];

/// Text of the operator's as a message shows it: quoted, escaped, of bounded length.
pub(super) fn quote(text: &str) -> String {
    const SHOWN_CHARS: usize = 80;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The one of `known` that `word` was probably meant to be.
pub(super) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    const ALIKE: f64 = 0.8;
    let word = word.to_ascii_lowercase().replace('-', "_");
    let scored = known.iter().map(|&candidate| (strsim::jaro_winkler(&word, candidate), candidate));
    let (score, candidate) = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score >= ALIKE).then_some(candidate)
}

/// The value that a word of `known` stands for; `what` is what the words are called.
pub(super) fn one_of<T: Clone>(text: &str, what: &str, known: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, value)) = known.iter().find(|(name, _)| *name == text) {
        return Ok(value.clone());
    }
    let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
    let advice = match closest(text, &names) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("known are {}", names.join(", ")),
    };
    Err(format!("unknown {what} {}: {advice}", quote(text)))
}

/// Seconds as a number, if they are a time that makes sense here: 1 ms to 24 h.
pub(super) fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok().filter(|time| (SHORTEST..=LONGEST).contains(time))
}

/// `"500ms"`, `"30s"`, `"2m"`, `"1h"`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let shape =
        || format!("{} is no time: write a whole number and ms, s, m or h, as in \"30s\"", quote(text));
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(shape()),
    };
    if digits.is_empty() {
        return Err(shape());
    }
    // More digits than a u64 holds are a time past every bound, not a shape of its own.
    let number = digits.parse::<u64>().unwrap_or(u64::MAX);
    let time = Duration::from_millis(number.saturating_mul(millis_per_unit));
    if (SHORTEST..=LONGEST).contains(&time) {
        Ok(time)
    } else {
        Err(format!("{} is out of range: a time is from 1ms to 24h", quote(text)))
    }
}

/// `":8080"`, `"127.0.0.1:8080"`, `"[::1]:8080"`, `"localhost:8080"`.
pub(super) fn listen_addr(text: &str) -> Result<ListenAddr, String> {
    let refuse = |why: &str| Err(format!("{} {why}", quote(text)));
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(ListenAddr::Ip(addr));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return refuse(&format!("has no colon before the port: write \":{text}\""));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return refuse("has no port: write \":8080\" or \"127.0.0.1:8080\"");
    };
    let bare_ipv6 = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    match (host, digits(port)) {
        ("", Ok(port)) => Ok(ListenAddr::Any(port)),
        ("localhost", Ok(port)) => Ok(ListenAddr::Ip((Ipv4Addr::LOCALHOST, port).into())),
        (_, Ok(port)) if bare_ipv6(host) => {
            refuse(&format!("needs brackets around the IPv6 address: write \"[{host}]:{port}\""))
        }
        _ if bare_ipv6(text) => refuse(&format!("is an IPv6 address without port: write \"[{text}]:8080\"")),
        (_, Err(())) => refuse("has no valid port: a port is a number from 0 to 65535"),
        (_, Ok(_)) => refuse(
            "names no address of this host: write an IP address, \"localhost\" or nothing before the colon",
        ),
    }
}

/// `http://host[:port][/]`: an origin, nothing more.
pub(super) fn backend(text: &str) -> Result<Backend, String> {
    if text.contains('@') {
        // Not repeated in the message: it may hold a password.
        return Err(
            "the URL has a user name or password, which is not supported: write \"http://host:port\"".into(),
        );
    }
    let refuse = |why: String| Err(format!("{} {why}", quote(text)));
    let Some((scheme, rest)) = text.split_once("://") else {
        return refuse("is no URL: write \"http://host:port\"".into());
    };
    if scheme.eq_ignore_ascii_case("https") {
        return refuse(
            "asks for TLS to the backend, which is not supported: write \"http://host:port\"".into(),
        );
    }
    if !scheme.eq_ignore_ascii_case("http") {
        return refuse("has a scheme that is not supported: write \"http://host:port\"".into());
    }
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if tail.contains('?') || tail.contains('#') {
        return refuse(format!(
            "has a query or fragment, which is not supported: write \"http://{authority}\""
        ));
    }
    if !matches!(tail, "" | "/") {
        return refuse(format!(
            "has a path, which is not supported (requests keep their own): write \"http://{authority}\""
        ));
    }
    match host_and_port(authority, "http", "80") {
        Ok((host, port)) => Ok(Backend { host, port }),
        Err(why) => refuse(why),
    }
}

/// `host[:port]` of a URL, IPv6 in brackets; the error goes on after the quoted text.
pub(super) fn host_and_port(
    authority: &str,
    scheme: &str,
    default_port: &str,
) -> Result<(String, u16), String> {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, after)) => {
            let port = if after.is_empty() { Some(default_port) } else { after.strip_prefix(':') };
            (host.parse::<Ipv6Addr>().map(|addr| addr.to_string()).ok(), port)
        }
        None if authority.parse::<Ipv6Addr>().is_ok() => {
            return Err(format!(
                "needs brackets around the IPv6 address: write \"{scheme}://[{authority}]:{default_port}\""
            ));
        }
        None => {
            let (host, port) = authority.rsplit_once(':').unwrap_or((authority, default_port));
            (host_name(host), Some(port))
        }
    };
    let Some(host) = host else {
        return Err("has no valid host: a name of letters, digits, dots and hyphens, or an IP address".into());
    };
    match port.map(digits) {
        Some(Ok(port @ 1..)) => Ok((host, port)),
        Some(Ok(0) | Err(())) | None => Err("has no valid port: a port is a number from 1 to 65535".into()),
    }
}

/// The `host` of a route: a name or IPv4 address, lower case, without port.
pub(super) fn route_host(text: &str) -> Result<String, String> {
    let refuse = |why: &str| Err(format!("{} {why}", quote(text)));
    if text.starts_with('*') {
        return refuse(
            "is a wildcard, which is not supported: name one host, or leave `host` out to match every one",
        );
    }
    if let Some((name, port)) = text.split_once(':')
        && digits(port).is_ok()
    {
        return refuse(&format!("has a port: write \"{name}\", which matches on every port"));
    }
    match host_name(text.strip_suffix('.').unwrap_or(text)) {
        Some(name) => Ok(name),
        None => refuse("is no host name: write letters, digits, dots and hyphens, as in \"api.example.com\""),
    }
}

/// A prefix of paths in the form requests are compared in: normalised, without `//` or a trailing `/`.
pub(super) fn route_path(text: &str) -> Result<String, String> {
    let refuse = |why: &str| Err(format!("{} {why}", quote(text)));
    if !text.starts_with('/') {
        return refuse(&format!("does not begin with a slash: write {}", quote(&format!("/{text}"))));
    }
    if text.contains(['?', '#']) {
        return refuse("has a query or fragment: routes match the path alone");
    }
    if let Some(prefix) = text.strip_suffix("/*").or_else(|| text.strip_suffix("/**")) {
        let prefix = if prefix.is_empty() { "/" } else { prefix };
        return refuse(&format!(
            "has a wildcard, but a path covers what is below it anyway: write {}",
            quote(prefix)
        ));
    }
    if let Some(foreign) = text.chars().find(|c| !c.is_ascii_graphic()) {
        let encoded: String = foreign.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect();
        return refuse(&format!(
            "has a character that must be percent-encoded: write {encoded} for {foreign:?}"
        ));
    }
    let normal = path::normalise(text).map_err(|why| format!("{} cannot be used: {why}", quote(text)))?;
    let path: String = path::segments(&normal).flat_map(|segment| ["/", segment]).collect();
    Ok(if path.is_empty() { "/".to_owned() } else { path })
}

/// A method's name, in which case matters.
pub(super) fn method(text: &str) -> Result<Method, String> {
    const USUAL: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    let upper = text.to_ascii_uppercase();
    if upper != text && USUAL.contains(&upper.as_str()) {
        return Err(format!(
            "{} matches no request, for methods are case-sensitive: write \"{upper}\"",
            quote(text)
        ));
    }
    Method::from_bytes(text.as_bytes())
        .map_err(|_| format!("{} is no method: write a name such as \"GET\"", quote(text)))
}

/// The name of a header field, in any case.
pub(super) fn header(text: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        format!("{} is no name of a header field: letters, digits and hyphens make one", quote(text))
    })
}

/// The name of a cookie or of a query parameter, as it stands in a request.
pub(super) fn parameter(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_graphic() && !"=&;,?#\"".contains(c);
    if !text.is_empty() && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{} cannot be a name in a request: write it as it stands there, percent-encoded",
            quote(text)
        ))
    }
}

/// A network in CIDR form or a single address; IPv4-mapped IPv6 becomes IPv4.
pub fn network(text: &str) -> Result<IpNet, String> {
    let network = match text.contains('/') {
        true => text.parse().ok(),
        false => text.parse::<IpAddr>().ok().map(IpNet::from),
    };
    let Some(network) = network else {
        return Err(format!(
            "{} is no address or CIDR: write one such as \"10.0.0.0/8\", \"192.0.2.7\" or \"2001:db8::/32\"",
            quote(text)
        ));
    };
    if network != network.trunc() {
        let (whole, one) = (network.trunc(), network.addr());
        return Err(format!(
            "{} has bits set behind its prefix length: write \"{whole}\" for all of it or \"{one}\" for one address",
            quote(text)
        ));
    }
    Ok(unmapped(network))
}

/// The name of a network interface as Linux allows it.
pub(super) fn interface(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    if (1..=LONGEST_INTERFACE_BYTES).contains(&text.len())
        && text.chars().all(allowed)
        && !matches!(text, "." | "..")
    {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is no interface name: `ip link` lists them", quote(text)))
    }
}

/// Where a Unix socket can be.
pub(super) fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = file_path(text)?;
    if text.len() > LONGEST_SOCKET_PATH_BYTES {
        return Err(format!(
            "{} is longer than {LONGEST_SOCKET_PATH_BYTES} bytes, which is all that a Unix socket's path may have",
            quote(text)
        ));
    }
    Ok(path)
}

pub(super) fn file_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.ends_with('/') || text.contains('\0') {
        return Err(format!("{} is no path of a file", quote(text)));
    }
    Ok(PathBuf::from(text))
}

/// `"www-data"`, `"www-data:adm"`, `"1000:1000"`.
pub(super) fn account(text: &str) -> Result<Account, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '$');
    let named = |name: &&str| !name.is_empty() && !name.starts_with('-') && name.chars().all(allowed);
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    if [Some(user), group].iter().flatten().all(named) {
        Ok(Account { user: user.to_owned(), group: group.map(str::to_owned) })
    } else {
        Err(format!("{} is no user: write \"name\", \"name:group\" or \"UID:GID\"", quote(text)))
    }
}

/// Path and query of a health check, as they go into its request line.
pub(super) fn check_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!(
            "{} does not begin with a slash: write {}",
            quote(text),
            quote(&format!("/{text}"))
        ));
    }
    match text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        Some(foreign) => Err(format!("{} has {foreign:?} in it, which must be percent-encoded", quote(text))),
        None => Ok(text.to_owned()),
    }
}

/// A port's digits, and nothing that `parse` would also take, such as a sign.
pub(super) fn digits(text: &str) -> Result<u16, ()> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain).ok_or(())
}

/// A DNS name or IPv4 address in lower case. A name that ends in a number must be an IPv4 address: anything
/// else is a mistyped one.
fn host_name(text: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let rooted = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=LONGEST_LABEL_BYTES).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric =
        rooted.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    let valid = rooted.len() <= LONGEST_HOST_BYTES
        && rooted.split('.').all(label)
        && (!numeric || text.parse::<Ipv4Addr>().is_ok());
    valid.then(|| text.to_ascii_lowercase())
}

/// `::ffff:10.0.0.0/104` is a way to write 10.0.0.0/8.
pub fn unmapped(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    match network {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_BITS => v6
            .addr()
            .to_ipv4_mapped()
            .and_then(|v4| IpNet::new(v4.into(), v6.prefix_len() - MAPPED_BITS).ok())
            .unwrap_or(network),
        IpNet::V4(_) | IpNet::V6(_) => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: std::fmt::Debug + PartialEq>(
        parse: impl Fn(&str) -> Result<T, String>,
        accepted: &[(&str, T)],
        refused: &[&str],
    ) {
        for (text, expected) in accepted {
            assert_eq!(parse(text).as_ref(), Ok(expected), "{text:?}");
        }
        for text in refused {
            assert!(parse(text).is_err(), "{text:?} gave {:?}", parse(text));
        }
    }

    #[test]
    fn durations() {
        let ms = Duration::from_millis;
        check(
            duration,
            &[
                ("500ms", ms(500)),
                ("30s", ms(30_000)),
                ("2m", ms(120_000)),
                ("1h", ms(3_600_000)),
                ("24h", LONGEST),
            ],
            &["", "s", "30", "30 s", "-1s", "+1s", "1.5s", "0s", "25h", "30S", "1d", "99999999999999999999h"],
        );
        assert_eq!(seconds(0.25), Some(ms(250)));
        for out in [0.0, -1.0, f64::NAN, f64::INFINITY, 86_400.1, 0.0001] {
            assert_eq!(seconds(out), None, "{out}");
        }
    }

    #[test]
    fn listen_addresses() {
        let ip = |text: &str| ListenAddr::Ip(text.parse().expect("an address"));
        check(
            listen_addr,
            &[
                (":8080", ListenAddr::Any(8080)),
                (":0", ListenAddr::Any(0)),
                ("127.0.0.1:8080", ip("127.0.0.1:8080")),
                ("[::1]:8080", ip("[::1]:8080")),
                ("localhost:8080", ip("127.0.0.1:8080")),
            ],
            &[
                "",
                ":",
                "8080",
                "::1",
                "::1:8080",
                "127.0.0.1",
                "example.com:80",
                ":65536",
                ":+1",
                "*:80",
                "[::1]",
            ],
        );
    }

    #[test]
    fn backends() {
        let to = |host: &str, port| Backend { host: host.to_owned(), port };
        check(
            backend,
            &[
                ("http://localhost:3001", to("localhost", 3001)),
                ("http://localhost", to("localhost", 80)),
                ("HTTP://API.Example.com/", to("api.example.com", 80)),
                ("http://10.0.0.1:81/", to("10.0.0.1", 81)),
                ("http://[::1]:3001", to("::1", 3001)),
                ("http://[2001:DB8::1]", to("2001:db8::1", 80)),
                ("http://under_score.svc.cluster.local.:1", to("under_score.svc.cluster.local.", 1)),
            ],
            &[
                "",
                "localhost:3001",
                "http://",
                "http://:80",
                "http://a:",
                "http://a:0",
                "http://a:65536",
                "http://a:+1",
                "http://[::1",
                "http://[::1]x",
                "http://[1.2.3.4]",
                "http://::1",
                "http://a b",
                "http://256.1.1.1",
                "http://1.2.3",
                "http://-a",
                "http://a..b",
                "https://a",
                "ftp://a",
                "http://a/b",
                "http://a?b",
                "http://a#b",
                "http://u:p@a",
                "http://münchen.de",
            ],
        );
        assert!(!backend("http://u:secret@a").expect_err("refused").contains("secret"));
    }

    #[test]
    fn route_hosts() {
        let to = str::to_owned;
        check(
            route_host,
            &[("API.Example.com", to("api.example.com")), ("a.", to("a")), ("127.0.0.1", to("127.0.0.1"))],
            &["", ".", "a:80", "*.example.com", "*", "http://a", "a/b", "[::1]", "::1", "bücher.de"],
        );
    }

    #[test]
    fn route_paths() {
        let to = str::to_owned;
        check(
            route_path,
            &[
                ("/", to("/")),
                ("//", to("/")),
                ("/api", to("/api")),
                ("/api/", to("/api")),
                ("/api//users/", to("/api/users")),
                ("/a/../%75sers", to("/users")),
            ],
            &["", "api", "/a?b", "/a#b", "/api/*", "/*", "/**", "/ü", "/a b", "/a\\b", "/%00"],
        );
    }

    #[test]
    fn methods() {
        check(method, &[("GET", Method::GET)], &["", "get", "G T", "GET,POST"]);
        assert!(method("purge").is_ok(), "a token nobody has reserved");
    }

    #[test]
    fn networks() {
        let net = |text: &str| text.parse::<IpNet>().expect("a network");
        check(
            network,
            &[
                ("10.0.0.0/8", net("10.0.0.0/8")),
                ("192.0.2.7", net("192.0.2.7/32")),
                ("2001:db8::/32", net("2001:db8::/32")),
                ("::1", net("::1/128")),
                ("::ffff:10.0.0.0/104", net("10.0.0.0/8")),
                ("::ffff:10.1.2.3", net("10.1.2.3/32")),
                ("::/0", net("::/0")),
            ],
            &["", "10.0.0.0/33", "10.0.0.1/8", "10.0.0", "::/129", "localhost", "10.0.0.0/", "10.0.0.0/-1"],
        );
    }

    #[test]
    fn interfaces() {
        let to = str::to_owned;
        check(
            interface,
            &[("lo", to("lo")), ("enp0s31f6", to("enp0s31f6")), ("eth0.100", to("eth0.100"))],
            &["", ".", "..", "a/b", "a b", "eth0:1", "a-very-long-name", "ö"],
        );
    }

    #[test]
    fn accounts() {
        let to = |user: &str, group: Option<&str>| Account {
            user: user.to_owned(),
            group: group.map(str::to_owned),
        };
        check(
            account,
            &[
                ("www-data", to("www-data", None)),
                ("www-data:adm", to("www-data", Some("adm"))),
                ("1000:1000", to("1000", Some("1000"))),
                ("_gateway", to("_gateway", None)),
            ],
            &["", ":", "a:", ":a", "a b", "a:b:c", "-u", "a/b", "ö"],
        );
    }

    #[test]
    fn suggestions() {
        let known =
            ["path", "host", "backend", "methods", "timeout_seconds", "rate_limit_per_minute", "burst_size"];
        for (typed, meant) in [
            ("pth", "path"),
            ("Path", "path"),
            ("method", "methods"),
            ("timeout", "timeout_seconds"),
            ("timeoutSeconds", "timeout_seconds"),
            ("rate-limit-per-min", "rate_limit_per_minute"),
            ("backends", "backend"),
            ("burst", "burst_size"),
        ] {
            assert_eq!(closest(typed, &known), Some(meant), "{typed}");
        }
        assert_eq!(closest("xyzzy", &known), None);
        assert_eq!(closest("", &[]), None);
    }
}
