//! RFC 9111 for a shared cache: may a response be stored, how long is it fresh, may it be used now.
//!
//! Pure functions over heads, rules of the route and points in time. The store, the network and the
//! clock are the callers' business.

use std::time::{Duration, SystemTime};

use http::header::{AGE, CONTENT_LENGTH, DATE, ETAG, EXPIRES, LAST_MODIFIED, PRAGMA, SET_COOKIE, VARY};
use http::{HeaderMap, HeaderName, Method, StatusCode};

use super::control::{self, Directives};
use super::targeted;

/// What a route says about storing, beyond the RFC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Stands in for the response's own lifetime.
    pub ttl: Option<Duration>,
    pub store_set_cookie: bool,
    /// These fields are part of the key: a value of one is never answered with what another got.
    pub authorization_keyed: bool,
    pub cookies_keyed: bool,
}

/// The longest heuristic lifetime (RFC 9111 §4.2.2 asks for a limit where it is guessed).
const MAX_HEURISTIC: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a response is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 206, 304, or a status this cache does not understand where it must.
    Status,
    NoStore,
    Private,
    SetCookie,
    VaryAny,
    /// The request carried `Authorization` or `Cookie`, and the response does not say it is for everybody.
    Credentials,
}

/// What the request's head says about storing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    pub authorization: bool,
    pub cookie: bool,
    pub no_store: bool,
}

/// The directives that hold for a shared cache, and whether they come from the targeted field: then
/// `Expires` does not count either (RFC 9213 §2.2).
pub struct Control {
    pub directives: Directives,
    targeted: bool,
}

impl Control {
    pub fn of(headers: &HeaderMap) -> Self {
        match targeted::directives(headers) {
            Some(directives) => Self { directives, targeted: true },
            None => Self { directives: Directives::of(headers).unwrap_or_default(), targeted: false },
        }
    }

    fn for_everybody(&self) -> bool {
        let Directives { public, must_revalidate, s_maxage, .. } = self.directives;
        public || must_revalidate || s_maxage.is_some()
    }
}

/// Whether the answer to a GET may be stored (RFC 9111 §3), and so answer others as well.
pub fn storable(
    asker: Asker,
    status: StatusCode,
    headers: &HeaderMap,
    control: &Control,
    rules: &Rules,
) -> Result<(), Refusal> {
    let directives = &control.directives;
    if matches!(status.as_u16(), 206 | 304) || directives.must_understand && !understood(status) {
        return Err(Refusal::Status);
    }
    // A cache that understands the status heeds `must-understand` instead (RFC 9111 §5.2.2.3).
    if asker.no_store || directives.no_store && !directives.must_understand {
        return Err(Refusal::NoStore);
    }
    if directives.private {
        return Err(Refusal::Private);
    }
    let varies_by =
        |name: &[u8]| control::all_members(headers, VARY).any(|member| member.eq_ignore_ascii_case(name));
    // What the gateway writes for each request tells every two apart, as the asterisk does.
    if [b"*".as_slice(), b"x-forwarded-for", b"x-request-id"].iter().any(|name| varies_by(name)) {
        return Err(Refusal::VaryAny);
    }
    if headers.contains_key(SET_COOKIE) && !rules.store_set_cookie {
        return Err(Refusal::SetCookie);
    }
    if asker.authorization && !rules.authorization_keyed && !control.for_everybody() {
        return Err(Refusal::Credentials);
    }
    // The RFC is silent on cookies; what was asked for with one is stored only where it is said to be
    // for everybody, or for those with the same one.
    if asker.cookie && !rules.cookies_keyed && !control.for_everybody() && !varies_by(b"cookie") {
        return Err(Refusal::Credentials);
    }
    Ok(())
}

/// How long and under which conditions a stored response may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// From generation on (RFC 9111 §4.2.1).
    pub lifetime: Duration,
    /// Age on arrival (RFC 9111 §4.2.3).
    pub initial_age: Duration,
    /// The lifetime is the response's or the route's word; otherwise it is guessed, or nothing is known.
    pub given: bool,
    /// Without such a word it may be kept all the same (RFC 9111 §3, the last condition).
    pub guessable: bool,
    /// `no-cache`.
    pub always_validate: bool,
    /// Not even at the client's wish (RFC 9111 §4.2.4).
    pub never_stale: bool,
    /// After the lifetime's end, while a fresh one is fetched (RFC 5861 §3).
    pub while_revalidate: Duration,
    /// After the lifetime's end, when the upstream fails (RFC 5861 §4).
    pub if_error: Duration,
    /// Said to be usable by requests with credentials.
    pub for_everybody: bool,
}

impl Terms {
    /// `received`: when the head came; `delay`: how long after the request.
    pub fn of(
        status: StatusCode,
        headers: &HeaderMap,
        control: &Control,
        rules: &Rules,
        received: SystemTime,
        delay: Duration,
    ) -> Self {
        let directives = &control.directives;
        let seconds = |delta: Option<u32>| Duration::from_secs(u64::from(delta.unwrap_or(0)));
        let date = date(headers, DATE).unwrap_or(received);
        let ttl = rules.ttl.filter(|_| takes_a_ttl(status));
        let given = ttl.or_else(|| given(control, headers, date));
        let guessed = || guessed(status, headers, control, date);
        let lifetime = given.or_else(guessed);
        let revalidate = directives.must_revalidate || directives.proxy_revalidate || directives.no_cache;
        let grace = |delta| if revalidate { Duration::ZERO } else { seconds(delta) };
        let age = age(headers).saturating_add(delay);
        Self {
            lifetime: lifetime.unwrap_or_default(),
            // The date of what the route gives a lifetime does not count: by a slow clock it would be stale at once.
            initial_age: match ttl {
                Some(_) => age,
                None => age.max(received.duration_since(date).unwrap_or_default()),
            },
            given: given.is_some(),
            guessable: heuristically_cacheable(status, directives),
            always_validate: directives.no_cache,
            never_stale: revalidate || directives.s_maxage.is_some(),
            while_revalidate: grace(directives.stale_while_revalidate),
            if_error: grace(directives.stale_if_error),
            for_everybody: control.for_everybody(),
        }
    }

    /// Whether those who asked at the same time may have it: it is fresh or may be used stale, or nothing
    /// speaks against it and it is as old as it takes to arrive.
    pub fn serves_waiters(&self) -> bool {
        let unstated = !self.given && self.guessable;
        let usable = self.lifetime.saturating_add(self.while_revalidate);
        !self.always_validate && (unstated || self.initial_age < usable)
    }

    /// Whether anything can come of keeping it.
    pub fn worth_keeping(&self, headers: &HeaderMap) -> bool {
        let validator = headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED);
        let usable = self.lifetime.saturating_add(self.while_revalidate.max(self.if_error));
        let useful = validator || self.initial_age < usable && !self.always_validate;
        useful && (self.given || self.guessable)
    }

    /// Whether a response of this `age` may answer a request that fails upstream.
    pub fn serves_on_error(&self, age: Duration, request: &Wish) -> bool {
        if self.never_stale && self.if_error.is_zero() {
            return false;
        }
        let grace = self.if_error.max(request.stale_if_error);
        age < self.lifetime.saturating_add(grace)
    }
}

/// What a request's head asks of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub validate: bool,
    pub no_store: bool,
    pub only_if_cached: bool,
    pub max_age: Option<Duration>,
    pub min_fresh: Duration,
    pub max_stale: Duration,
    pub stale_if_error: Duration,
}

impl Wish {
    pub fn of(headers: &HeaderMap) -> Self {
        let Some(directives) = Directives::of(headers) else {
            // RFC 9111 §5.4.
            let no_cache = |member: &[u8]| member.eq_ignore_ascii_case(b"no-cache");
            return Self { validate: control::all_members(headers, PRAGMA).any(no_cache), ..Self::default() };
        };
        let seconds = |delta: u32| Duration::from_secs(u64::from(delta));
        let or_zero = |delta: Option<u32>| seconds(delta.unwrap_or(0));
        Self {
            validate: directives.no_cache,
            no_store: directives.no_store,
            only_if_cached: directives.only_if_cached,
            max_age: directives.max_age.map(seconds),
            min_fresh: or_zero(directives.min_fresh),
            max_stale: or_zero(directives.max_stale),
            stale_if_error: or_zero(directives.stale_if_error),
        }
    }
}

/// What a stored response is good for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Fresh,
    /// Past its lifetime, and the client takes it all the same.
    Stale,
    /// Past its lifetime, and may be used while a fresh one is fetched.
    WhileRevalidate,
    /// Only after the upstream has said so.
    Validate,
}

/// `age`: now (RFC 9111 §4.2).
pub fn usable(terms: &Terms, age: Duration, wish: &Wish) -> Use {
    if terms.always_validate || wish.validate || wish.max_age.is_some_and(|limit| age > limit) {
        return Use::Validate;
    }
    if age.saturating_add(wish.min_fresh) < terms.lifetime {
        return Use::Fresh;
    }
    if !wish.min_fresh.is_zero() {
        return Use::Validate;
    }
    if !terms.never_stale && age < terms.lifetime.saturating_add(wish.max_stale) {
        return Use::Stale;
    }
    if age < terms.lifetime.saturating_add(terms.while_revalidate) {
        return Use::WhileRevalidate;
    }
    Use::Validate
}

/// The `Age` of a response received now: of a list the first member counts, what is no number does
/// not (RFC 9111 §5.1).
pub fn age(headers: &HeaderMap) -> Duration {
    let first = control::all_members(headers, AGE).next().and_then(control::seconds);
    Duration::from_secs(u64::from(first.unwrap_or(0)))
}

/// The lifetime that the response states (RFC 9111 §4.2.1).
fn given(control: &Control, headers: &HeaderMap, date: SystemTime) -> Option<Duration> {
    let directives = &control.directives;
    if let Some(seconds) = directives.s_maxage.or(directives.max_age) {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    if control.targeted || !headers.contains_key(EXPIRES) {
        return None;
    }
    // What is no date, "0" above all, is in the past (RFC 9111 §5.3).
    let expires = self::date(headers, EXPIRES).unwrap_or(date);
    Some(expires.duration_since(date).unwrap_or_default())
}

/// Whether a route's `ttl` holds for it: it does not for errors that one client's request may have met alone, which
/// everybody would get for as long.
fn takes_a_ttl(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection() || matches!(status.as_u16(), 404 | 410)
}

/// A tenth of the time since the last change (RFC 9111 §4.2.2).
fn guessed(status: StatusCode, headers: &HeaderMap, control: &Control, date: SystemTime) -> Option<Duration> {
    let since = date.duration_since(self::date(headers, LAST_MODIFIED)?).ok()?;
    heuristically_cacheable(status, &control.directives).then(|| (since / 10).min(MAX_HEURISTIC))
}

/// RFC 9110 §15.1, and whatever is marked `public` (RFC 9111 §4.2.2).
fn heuristically_cacheable(status: StatusCode, directives: &Directives) -> bool {
    let listed = matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501);
    listed || directives.public
}

/// The final statuses of RFC 9110 §15 and their registered kin, whose caching rules are known here.
fn understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=205 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 429 | 431 | 451 | 500..=505 | 511)
}

/// The field's date, in whatever case its words are (RFC 9111 §4.2).
pub(super) fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    let text = headers.get(name)?.to_str().ok()?;
    let parse = |text: &str| httpdate::parse_http_date(text).ok();
    parse(text).or_else(|| parse(&in_the_usual_case(text)))
}

fn in_the_usual_case(date: &str) -> String {
    let mut follows_a_letter = false;
    let words: String = date
        .chars()
        .map(|letter| match std::mem::replace(&mut follows_a_letter, letter.is_ascii_alphabetic()) {
            true => letter.to_ascii_lowercase(),
            false => letter.to_ascii_uppercase(),
        })
        .collect();
    words.replace("Gmt", "GMT")
}

/// Fields that no shared cache keeps (RFC 9111 §3.1), those of hop-by-hop meaning aside, which the
/// proxy has taken away already.
pub fn strip(headers: &mut HeaderMap, control: &Control) {
    const OF_PROXIES: [&str; 3] = ["proxy-authenticate", "proxy-authentication-info", "proxy-authorization"];
    OF_PROXIES.iter().for_each(|name| {
        headers.remove(*name);
    });
    for name in &control.directives.fields {
        headers.remove(name);
    }
}

/// Brings a stored response's fields up to date with those of a 304 (RFC 9111 §3.2, §4.3.4). One
/// validator was sent, so a 304 means that one whatever it carries itself.
pub fn freshen(stored: &mut HeaderMap, update: &HeaderMap) {
    const OF_THE_BODY: [&str; 6] =
        ["content-encoding", "content-length", "content-md5", "content-range", "etag", "transfer-encoding"];
    let kept = |name: &HeaderName| OF_THE_BODY.contains(&name.as_str());
    // An age belongs to the message it came with.
    stored.remove(AGE);
    for name in update.keys().filter(|name| !kept(name)) {
        stored.remove(name);
        for value in update.get_all(name) {
            stored.append(name.clone(), value.clone());
        }
    }
}

/// Whether `head`, which came without a body, is of the representation that is stored (RFC 9111 §4.3.5): nothing that
/// it says of it is missing or different there.
pub fn is_same(stored: &HeaderMap, head: &HeaderMap) -> bool {
    let says_so = |name| head.get(name).is_none_or(|value| stored.get(name) == Some(value));
    [&ETAG, &LAST_MODIFIED, &CONTENT_LENGTH].into_iter().all(says_so)
}

/// Whether a response to `method` invalidates what is stored for its target (RFC 9111 §4.4).
pub fn invalidates(method: &Method, status: StatusCode) -> bool {
    !method.is_safe() && (status.is_success() || status.is_redirection())
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
