//! No response of one user ever reaches another: random requests, checked by those who sent them.

use gateway_tests::{Gateway, Message, Upstream};
use serde_json::json;

const USERS: u64 = 6;
const ROUNDS: usize = 1_500;

/// Paths, what the backend says of the answer, and what it is made for.
const PAGES: [(&str, &str); 9] = [
    ("/public", "Cache-Control: max-age=1"),
    ("/private", "Cache-Control: private, max-age=60"),
    ("/no-store", "Cache-Control: no-store"),
    ("/sets-cookie", "Cache-Control: max-age=60\r\nSet-Cookie: who=USER"),
    ("/varies", "Cache-Control: max-age=1\r\nVary: Cookie, Authorization"),
    ("/of-bearer", "Cache-Control: max-age=60"),
    ("/unsaid", "X-Nothing: said"),
    ("/validated", "Cache-Control: no-cache\r\nVary: Cookie, Authorization\r\nETag: \"USER\""),
    ("/named", "Cache-Control: max-age=60, private=\"X-User\"\r\nX-User: USER"),
];

/// A small generator, so that a run can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

/// Who sent a request, by its credentials; nobody without.
fn user_of(request: &Message) -> String {
    let of = |name: &str| request.field(name).unwrap_or_default().to_owned();
    let (bearer, cookie) = (of("authorization"), of("cookie"));
    match (bearer.as_str(), cookie.as_str()) {
        ("", "") => "nobody".to_owned(),
        ("", cookie) => cookie.trim_start_matches("who=").to_owned(),
        (bearer, _) => bearer.to_owned(),
    }
}

/// Whether a page shows the user its request came from.
fn is_personal(path: &str) -> bool {
    path != "/public" && path != "/named"
}

#[test]
fn nobody_sees_another_s() {
    let upstream = Upstream::start(|mut conn| {
        while let Some(request) = conn.request() {
            let user = user_of(&request);
            let (path, said) = PAGES.iter().find(|(path, _)| *path == request.target()).expect("a page");
            let head = said.replace("USER", &user);
            // A page that is not marked shows nobody in particular to those without credentials only.
            let body = if is_personal(path) { format!("for {user}") } else { "for all".to_owned() };
            let etag = head.split("ETag: ").nth(1);
            if etag.is_some() && request.field("if-none-match") == etag {
                conn.send(format!("HTTP/1.1 304 Not Modified\r\n{head}\r\n\r\n"));
            } else {
                let length = body.len();
                conn.send(format!("HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}"));
            }
        }
    });
    let gateway = &Gateway::start(json!({
        "routes": [{ "path": "/", "backend": upstream.url(), "enable_cache": true }]
    }));
    let shared: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8u64).map(|seed| scope.spawn(move || wander(gateway, seed))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(shared > 100, "only {shared} answers came from the cache: the test shows nothing");
}

/// Sends random requests as random users; tells how many answers had been made for another request.
fn wander(gateway: &Gateway, seed: u64) -> usize {
    let mut random = Random(seed);
    let mut client = gateway.connect();
    let mut shared = 0;
    for round in 0..ROUNDS {
        let (path, _) = PAGES[random.below(PAGES.len() as u64) as usize];
        let user = format!("u{}", random.below(USERS));
        let (me, fields) = match random.below(3) {
            0 => ("nobody".to_owned(), String::new()),
            1 => (user.clone(), format!("Authorization: {user}\r\n")),
            _ => (user.clone(), format!("Cookie: who={user}\r\n")),
        };
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        let answer = client.response();
        let status = answer.field("cache-status").unwrap_or_default();
        shared += usize::from(status.contains("hit") || status.contains("collapsed"));
        let at = format!("seed {seed} round {round} {path} as {me}: {answer}");
        let body = answer.text();
        let personal = body.strip_prefix("for ").filter(|whom| *whom != "all");
        // What was made for nobody is nobody's secret.
        assert!(personal.is_none_or(|whom| whom == me || whom == "nobody"), "{at}");
        for field in ["set-cookie", "x-user"] {
            let whose = answer.field(field).map(|value| value.trim_start_matches("who=").to_owned());
            assert!(whose.is_none_or(|whose| whose == me), "{at}");
        }
    }
    shared
}
