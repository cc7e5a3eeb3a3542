//! The policy as a table: heads in, verdict out, each row with the RFC's section.

use super::*;
use http::HeaderValue;

fn headers(lines: &str) -> HeaderMap {
    let pair = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    let mut map = HeaderMap::new();
    for (name, value) in lines.lines().map(pair) {
        map.append(name, value);
    }
    map
}

const NOW: u64 = 1_700_000_000;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

/// `seconds` from now as a date.
fn at(seconds: i64) -> String {
    let when = NOW.checked_add_signed(seconds).unwrap();
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(when))
}

fn terms(status: u16, lines: &str, rules: &Rules) -> Terms {
    let headers = headers(lines);
    let status = StatusCode::from_u16(status).unwrap();
    Terms::of(status, &headers, &Control::of(&headers), rules, now(), Duration::ZERO)
}

#[test]
fn what_may_be_stored() {
    let nobody = Asker::default();
    let bearer = Asker { authorization: true, ..nobody };
    let cookie = Asker { cookie: true, ..nobody };
    let secret = Asker { no_store: true, ..nobody };
    use Refusal::*;
    for (asker, status, lines, want, section) in [
        (nobody, 200, "cache-control: max-age=60", None, "3"),
        (nobody, 200, "", None, "3"),
        (nobody, 599, "cache-control: max-age=60", None, "3"),
        (nobody, 206, "cache-control: max-age=60", Some(Status), "3.3, parts are not kept"),
        (nobody, 304, "cache-control: max-age=60", Some(Status), "3"),
        (nobody, 599, "cache-control: max-age=60, must-understand", Some(Status), "5.2.2.3"),
        (nobody, 200, "cache-control: max-age=60, must-understand, no-store", None, "5.2.2.3"),
        (nobody, 200, "cache-control: no-store, max-age=60", Some(NoStore), "5.2.2.5"),
        (nobody, 200, "cache-control: No-StOrE", Some(NoStore), "5.2.2.5"),
        (secret, 200, "cache-control: max-age=60", Some(NoStore), "5.2.1.5"),
        (nobody, 200, "cache-control: private, max-age=60", Some(Private), "5.2.2.7"),
        (nobody, 200, "cache-control: private=\"x\", max-age=60", None, "5.2.2.7"),
        (nobody, 200, "cache-control: no-cache", None, "5.2.2.4"),
        (nobody, 200, "vary: *", Some(VaryAny), "4.1"),
        (nobody, 200, "vary: foo, *", Some(VaryAny), "4.1"),
        (nobody, 200, "vary: foo\nvary: *", Some(VaryAny), "4.1"),
        (nobody, 200, "vary: foo", None, "4.1"),
        (nobody, 200, "set-cookie: a=b\ncache-control: max-age=60", Some(SetCookie), "7.3"),
        (bearer, 200, "cache-control: max-age=60", Some(Credentials), "3.5"),
        (bearer, 200, "cache-control: max-age=60, public", None, "3.5"),
        (bearer, 200, "cache-control: s-maxage=60", None, "3.5"),
        (bearer, 200, "cache-control: max-age=60, must-revalidate", None, "3.5"),
        (bearer, 200, "cache-control: max-age=60\nvary: authorization", Some(Credentials), "3.5"),
        (cookie, 200, "cache-control: max-age=60", Some(Credentials), "7.3"),
        (cookie, 200, "cache-control: max-age=60, public", None, "7.3"),
        (cookie, 200, "cache-control: max-age=60\nvary: Cookie", None, "4.1"),
        (
            nobody,
            200,
            "cdn-cache-control: no-store\ncache-control: max-age=60",
            Some(NoStore),
            "RFC 9213 2.2",
        ),
        (nobody, 200, "cdn-cache-control: max-age=60\ncache-control: no-store", None, "RFC 9213 2.2"),
        (
            nobody,
            200,
            "cdn-cache-control: max-age=6, &&&\ncache-control: no-store",
            Some(NoStore),
            "RFC 9213 2.1",
        ),
        (
            nobody,
            200,
            "cdn-cache-control: max-age=\"6\"\ncache-control: no-store",
            Some(NoStore),
            "RFC 9213 2.1",
        ),
    ] {
        let headers = headers(lines);
        let status = StatusCode::from_u16(status).unwrap();
        let found = storable(asker, status, &headers, &Control::of(&headers), &Rules::default());
        assert_eq!(found.err(), want, "{status} {lines:?} {asker:?} §{section}");
    }
}

#[test]
fn what_a_route_may_store_besides() {
    let rules =
        Rules { store_set_cookie: true, authorization_keyed: true, cookies_keyed: true, ..Rules::default() };
    let asker = Asker { authorization: true, cookie: true, no_store: false };
    let headers = headers("set-cookie: a=b\ncache-control: max-age=60");
    assert_eq!(storable(asker, StatusCode::OK, &headers, &Control::of(&headers), &rules), Ok(()));
}

#[test]
fn how_long_it_is_fresh() {
    let dated = |lines: &str| format!("date: {}\n{lines}", at(0));
    for (status, lines, want, section) in [
        (200, "cache-control: max-age=60".to_owned(), 60, "4.2.1"),
        (200, "cache-control: max-age=3600, s-maxage=1".into(), 1, "5.2.2.10"),
        (200, "cache-control: s-maxage=3600\ncache-control: max-age=0".into(), 3600, "5.2.2.10"),
        (200, dated(&format!("cache-control: max-age=60\nexpires: {}", at(-100))), 60, "5.3"),
        (200, dated(&format!("cache-control: max-age=0\nexpires: {}", at(100))), 0, "5.3"),
        (200, dated(&format!("expires: {}", at(100))), 100, "4.2.1"),
        (200, dated(&format!("expires: {}", at(-100))), 0, "4.2.1"),
        (200, dated(&format!("expires: {}", at(100).to_uppercase())), 100, "4.2, in any case"),
        (200, dated(&format!("expires: {}", at(100).to_lowercase())), 100, "4.2, in any case"),
        (200, dated(&format!("expires: {}", at(0))), 0, "4.2.1"),
        (200, dated("expires: 0"), 0, "5.3"),
        (200, dated("cache-control: max-age=60\nexpires: 0"), 60, "5.3"),
        (200, format!("date: then\nexpires: {}", at(100)), 100, "4.2.1, a date that is none"),
        (200, format!("date: {}\nexpires: {}", at(-1000), at(-900)), 100, "4.2.1, a slow clock"),
        (200, dated(&format!("last-modified: {}", at(-1000))), 100, "4.2.2"),
        (200, dated(&format!("last-modified: {}", at(-100_000_000))), 86_400, "4.2.2, capped"),
        (200, dated(&format!("last-modified: {}", at(1000))), 0, "4.2.2"),
        (201, dated(&format!("last-modified: {}", at(-1000))), 0, "4.2.2"),
        (403, dated(&format!("last-modified: {}", at(-1000))), 0, "4.2.2"),
        (599, dated(&format!("last-modified: {}", at(-1000))), 0, "4.2.2"),
        (599, dated(&format!("cache-control: public\nlast-modified: {}", at(-1000))), 100, "4.2.2"),
        (404, dated(&format!("last-modified: {}", at(-1000))), 100, "4.2.2"),
        (200, String::new(), 0, "4.2"),
        (200, "cdn-cache-control: max-age=60\ncache-control: max-age=1".into(), 60, "RFC 9213 2.2"),
        (200, "cdn-cache-control: max-age=1\ncache-control: max-age=60".into(), 1, "RFC 9213 2.2"),
        (200, "cdn-cache-control: max-age =60\ncache-control: max-age=1".into(), 1, "RFC 9213 2.1"),
        (200, "cdn-cache-control: \ncache-control: max-age=1".into(), 1, "RFC 9213 2.1"),
        (200, format!("cdn-cache-control: public\nexpires: {}", at(100)), 0, "RFC 9213 2.2"),
    ] {
        let found = terms(status, &lines, &Rules::default()).lifetime;
        assert_eq!(found, Duration::from_secs(want), "{status} {lines:?} §{section}");
    }
    let rules = Rules { ttl: Some(Duration::from_secs(7)), ..Rules::default() };
    assert_eq!(terms(200, "cache-control: max-age=60", &rules).lifetime, Duration::from_secs(7));
    for (status, holds) in
        [(204, true), (301, true), (404, true), (410, true), (400, false), (431, false), (500, false)]
    {
        assert_eq!(terms(status, "", &rules).given, holds, "{status}");
        let own = terms(status, "cache-control: max-age=60", &rules).lifetime.as_secs();
        assert_eq!(own, if holds { 7 } else { 60 }, "{status}");
    }
    let slow = format!("date: {}\nage: 5", at(-3_600));
    assert_eq!(terms(200, &slow, &rules).initial_age, Duration::from_secs(5), "a slow clock");
}

#[test]
fn how_old_it_is() {
    for (lines, want, section) in [
        ("age: 30".to_owned(), 30, "4.2.3"),
        (format!("date: {}", at(-30)), 30, "4.2.3, apparent age"),
        (format!("date: {}\nage: 40", at(-30)), 40, "4.2.3"),
        (format!("date: {}\nage: 20", at(-30)), 30, "4.2.3"),
        (format!("date: {}\nage: 20", at(30)), 20, "4.2.3, a fast clock"),
        ("date: then".into(), 0, "4.2.3"),
        ("age: abc".into(), 0, "5.1, invalid is ignored"),
        ("age: -7200".into(), 0, "5.1, invalid is ignored"),
        ("age: 7200.0".into(), 0, "5.1, invalid is ignored"),
        ("age: 7200, 0".into(), 7200, "5.1, the first member"),
        ("age: 0, 7200".into(), 0, "5.1, the first member"),
        ("age: 7200\nage: 0".into(), 7200, "5.1, the first member"),
        ("age: 2147483649".into(), 1 << 31, "1.2.2"),
    ] {
        let found = terms(200, &lines, &Rules::default()).initial_age;
        assert_eq!(found, Duration::from_secs(want), "{lines:?} §{section}");
    }
    let headers = headers("age: 30");
    let delay = Duration::from_secs(5);
    let delayed =
        Terms::of(StatusCode::OK, &headers, &Control::of(&headers), &Rules::default(), now(), delay);
    assert_eq!(delayed.initial_age, Duration::from_secs(35), "§4.2.3, response_delay");
}

#[test]
fn whether_it_may_be_used() {
    use Use::*;
    for (response, age, request, want, section) in [
        ("max-age=60", 59, "", Fresh, "4.2"),
        ("max-age=60", 60, "", Validate, "4.2"),
        ("max-age=60, no-cache", 0, "", Validate, "5.2.2.4"),
        ("max-age=60, No-CaChE", 0, "", Validate, "5.2.2.4"),
        ("max-age=60, no-cache=\"x\"", 0, "", Fresh, "5.2.2.4"),
        ("max-age=60, must-revalidate", 59, "", Fresh, "5.2.2.2"),
        ("max-age=60", 10, "cache-control: no-cache", Validate, "5.2.1.4"),
        ("max-age=60", 10, "pragma: no-cache", Validate, "5.4"),
        ("max-age=60", 10, "pragma: no-cache\ncache-control: foo", Fresh, "5.4"),
        ("max-age=60", 10, "pragma: foo", Fresh, "5.4"),
        ("max-age=60", 1, "cache-control: max-age=0", Validate, "5.2.1.1"),
        ("max-age=60", 10, "cache-control: max-age=9", Validate, "5.2.1.1"),
        ("max-age=60", 10, "cache-control: max-age=10", Fresh, "5.2.1.1"),
        ("max-age=60", 10, "cache-control: min-fresh=50", Validate, "5.2.1.3"),
        ("max-age=60", 10, "cache-control: min-fresh=49", Fresh, "5.2.1.3"),
        ("max-age=60", 70, "cache-control: max-stale=11", Stale, "5.2.1.2"),
        ("max-age=60", 71, "cache-control: max-stale=11", Validate, "5.2.1.2"),
        ("max-age=60", 9999, "cache-control: max-stale", Stale, "5.2.1.2"),
        ("max-age=60, must-revalidate", 61, "cache-control: max-stale", Validate, "5.2.2.2"),
        ("max-age=60, proxy-revalidate", 61, "cache-control: max-stale", Validate, "5.2.2.8"),
        ("s-maxage=60", 61, "cache-control: max-stale", Validate, "5.2.2.10"),
        ("max-age=60, stale-while-revalidate=9", 68, "", WhileRevalidate, "RFC 5861 3"),
        ("max-age=60, stale-while-revalidate=9", 69, "", Validate, "RFC 5861 3"),
        ("s-maxage=60, stale-while-revalidate=9", 68, "", WhileRevalidate, "RFC 5861 3"),
        ("max-age=60, stale-while-revalidate=9, must-revalidate", 61, "", Validate, "5.2.2.2"),
        ("max-age=60, stale-while-revalidate=9, proxy-revalidate", 61, "", Validate, "5.2.2.8"),
        ("max-age=60, stale-while-revalidate=9, no-cache", 61, "", Validate, "5.2.2.4"),
    ] {
        let terms = terms(200, &format!("cache-control: {response}"), &Rules::default());
        let found = usable(&terms, Duration::from_secs(age), &Wish::of(&headers(request)));
        assert_eq!(found, want, "{response:?} {age} {request:?} §{section}");
    }
}

#[test]
fn whether_it_may_stand_in_for_an_error() {
    for (response, age, request, want) in [
        ("max-age=60", 61, "", false),
        ("max-age=60, stale-if-error=9", 68, "", true),
        ("max-age=60, stale-if-error=9", 69, "", false),
        ("max-age=60, stale-if-error=9, must-revalidate", 61, "", false),
        ("max-age=60, stale-if-error=9, proxy-revalidate", 61, "", false),
        ("max-age=60, stale-if-error=9, no-cache", 61, "", false),
        ("s-maxage=60, stale-if-error=9", 61, "", true),
        ("max-age=60", 68, "cache-control: stale-if-error=9", true),
        ("max-age=60", 69, "cache-control: stale-if-error=9", false),
        ("s-maxage=60", 61, "cache-control: stale-if-error=9", false),
    ] {
        let terms = terms(200, &format!("cache-control: {response}"), &Rules::default());
        let found = terms.serves_on_error(Duration::from_secs(age), &Wish::of(&headers(request)));
        assert_eq!(found, want, "{response:?} {age} {request:?} (RFC 5861 4)");
    }
}

#[test]
fn who_gets_it_and_whether_it_is_kept() {
    // Status, response, answers those who wait, is kept.
    for (status, lines, waiters, kept) in [
        (200, "cache-control: max-age=60", true, true),
        (200, "", true, false),
        (200, "etag: \"a\"", true, true),
        (200, "cache-control: max-age=0", false, false),
        (200, "cache-control: max-age=0\netag: \"a\"", false, true),
        (200, "cache-control: no-cache\netag: \"a\"", false, true),
        (200, "cache-control: max-age=60, no-cache", false, false),
        (200, "cache-control: max-age=0, stale-while-revalidate=5", true, true),
        (200, "cache-control: max-age=60\nage: 60", false, false),
        (403, "", false, false),
        (500, "etag: \"a\"", false, false),
        (403, "cache-control: max-age=60", true, true),
    ] {
        let terms = terms(status, lines, &Rules::default());
        let found = (terms.serves_waiters(), terms.worth_keeping(&headers(lines)));
        assert_eq!(found, (waiters, kept), "{status} {lines:?} (RFC 9111 3, 4)");
    }
}

#[test]
fn a_304_brings_fields_up_to_date() {
    let mut stored = headers(
        "a: 1\nb: 1\nb: 2\nage: 50\ncontent-length: 5\ncontent-encoding: br\netag: \"x\"\ncontent-type: a/b",
    );
    let update =
        headers("b: 3\ncontent-length: 0\ncontent-encoding: gzip\netag: \"y\"\ncontent-type: c/d\ndate: x");
    freshen(&mut stored, &update);
    let want = headers(
        "a: 1\nb: 3\ncontent-length: 5\ncontent-encoding: br\netag: \"x\"\ncontent-type: c/d\ndate: x",
    );
    assert_eq!(stored, want, "§3.2");
}

#[test]
fn fields_a_shared_cache_does_not_keep() {
    let mut stored = headers(
        "a: 1\nb: 2\nc: 3\nproxy-authenticate: x\nproxy-authentication-info: y\n\
         cache-control: no-cache=\"a\", private=\"b\"",
    );
    let control = Control::of(&stored);
    strip(&mut stored, &control);
    assert_eq!(stored, headers("c: 3\ncache-control: no-cache=\"a\", private=\"b\""), "§3.1");
}

#[test]
fn unsafe_methods_invalidate() {
    for (method, status, want) in [
        ("POST", 200, true),
        ("PUT", 204, true),
        ("DELETE", 303, true),
        ("M-SEARCH", 200, true),
        ("POST", 500, false),
        ("PUT", 404, false),
        ("GET", 200, false),
        ("HEAD", 200, false),
        ("OPTIONS", 200, false),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(invalidates(&method, status), want, "{method} {status} §4.4");
    }
}
