//! Wrong documents about upstreams and what the gateway says about each, to the letter and the column.

mod faults;

use gateway::config;

const FAULTS: &[faults::Fault] = &[
    (
        r#"{"routes": [{"path": "/", "backend": 7}]}"#,
        &[
            r#"1:38: routes[0].backend: must be a URL such as "http://127.0.0.1:3001", or an object, is the number 7"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": {}}]}"#,
        &[r#"1:38: routes[0].backend: `endpoints` is missing: add "endpoints": [ "http://127.0.0.1:3001" ]"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": {"endpoints": []}}]}"#,
        &["1:52: routes[0].backend.endpoints: is empty: name at least one URL"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": {"endpoints": "http://a"}}]}"#,
        &[r#"1:52: routes[0].backend.endpoints: must be a list of URLs, is the string "http://a""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": {"endpoints": ["http://a", 7, {"url": "http://a:80/"}, {"weight": 0}]}}]}"#,
        &[
            r#"1:65: routes[0].backend.endpoints[1]: must be a URL such as "http://127.0.0.1:3001", or an object with `url` and `weight`, is the number 7"#,
            "1:68: routes[0].backend.endpoints[2]: stands in this list already: give it a weight instead",
            r#"1:93: routes[0].backend.endpoints[3]: `url` is missing: add "url": "http://127.0.0.1:3001""#,
            "1:104: routes[0].backend.endpoints[3].weight: must be a whole number from 1 to 100, is the number 0",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": {"endpoints": ["http://a"], "balancer": "least_request", "hash_key": "client"}}]}"#,
        &[
            r#"1:78: routes[0].backend.balancer: unknown balancer "least_request": did you mean "least_requests"?"#,
            r#"1:107: routes[0].backend.hash_key: is for the balancer "hash": add "balancer": "hash", or leave it out"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": {"endpoints": ["http://a"], "balancer": "random"}}]}"#,
        &[
            r#"1:78: routes[0].backend.balancer: unknown balancer "random": known are least_requests, round_robin, hash"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": {"endpoints": ["http://a"], "balancer": "hash", "hash_key": "cliant"}}]}"#,
        &[r#"1:98: routes[0].backend.hash_key: unknown key "cliant": did you mean "client"?"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": {"endpoints": ["http://a"], "balancer": "hash", "hash_key": "user"}}]}"#,
        &[
            r#"1:98: routes[0].backend.hash_key: unknown key "user": known are client, path, header:NAME, cookie:NAME, query:NAME"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": {"endpoints": ["http://a"], "balancer": "hash", "hash_key": "cookie:a b"}}]}"#,
        &[
            r#"1:98: routes[0].backend.hash_key: "a b" cannot be a name in a request: write it as it stands there, percent-encoded"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "health_check": "yes"}]}"#,
        &[r#"1:66: routes[0].health_check: must be true, false or an object, is the string "yes""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "health_check": {"path": "up", "interval": "1s", "statuses": [200, 200, 99]}}]}"#,
        &[
            r#"1:75: routes[0].health_check.path: "up" does not begin with a slash: write "/up""#,
            "1:117: routes[0].health_check.statuses[1]: stands in this list already: remove it",
            "1:122: routes[0].health_check.statuses[2]: must be a whole number from 200 to 599, is the number 99",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "health_check": {"path": "/a b", "timeout": "20s"}}]}"#,
        &[
            r#"1:75: routes[0].health_check.path: "/a b" has ' ' in it, which must be percent-encoded"#,
            "1:94: routes[0].health_check.timeout: a check must be over before the next: make `timeout` at most `interval`",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "retry": {"attempts": 11, "statuses": 503, "tries": 1}}]}"#,
        &[
            "1:72: routes[0].retry.attempts: must be a whole number from 0 to 10, is the number 11",
            "1:88: routes[0].retry.statuses: must be a list such as [502, 503], is the number 503",
            r#"1:93: routes[0].retry: unknown key "tries": known here are attempts, per_try_timeout, statuses, max_body_bytes"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "circuit_breaker": {"max_timeout_seconds": 30, "window_seconds": "500ms", "slow_call_seconds": 0.1}}"#,
        &[
            "1:95: circuit_breaker.max_timeout_seconds: is less than `timeout_seconds`: write at least as much",
            r#"1:117: circuit_breaker.window_seconds: is too short to judge by: write at least "1s""#,
            r#"1:147: circuit_breaker.slow_call_seconds: is less than can be told apart: write at least "200ms""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "upstream": {"max_connections": 0, "keepalive": "500ms", "panic_threshold": 1, "retry_percent": 101}}"#,
        &[
            "1:84: upstream.max_connections: must be a whole number from 1 to 1000000, is the number 0",
            r#"1:100: upstream.keepalive: is less than the system can do: write at least "1s""#,
            "1:128: upstream.panic_threshold: must be a number between 0 and 1, neither of them, is the number 1",
            "1:148: upstream.retry_percent: must be a whole number from 0 to 100, is the number 101",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "upstream": {"resolver": []}}"#,
        &[r#"1:77: upstream.resolver: is empty: name a server, or leave it out to ask those of the host"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "upstream": {"resolver": "10.0.0.2"}}"#,
        &[
            r#"1:77: upstream.resolver: must be a list such as ["10.0.0.2", "10.0.0.3:5353"], is the string "10.0.0.2""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "upstream": {"resolver": [53]}}"#,
        &[
            r#"1:78: upstream.resolver[0]: must be an IP address such as "10.0.0.2" or "10.0.0.3:5353", is the number 53"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "upstream": {"resolver": ["dns.test"]}}"#,
        &[
            r#"1:78: upstream.resolver[0]: "dns.test" is no address of a name server: write one like "10.0.0.2", "10.0.0.2:5353" or "[fd00::2]:5353""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "upstream": {"resolver": ["10.0.0.2:0"]}}"#,
        &[
            r#"1:78: upstream.resolver[0]: "10.0.0.2:0" is no address of a name server: write one like "10.0.0.2", "10.0.0.2:5353" or "[fd00::2]:5353""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "upstream": {"resolver": ["::1", "[::1]:53"]}}"#,
        &[r#"1:85: upstream.resolver[1]: stands in this list already: remove it"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "upstream": {"resolver": ["::1", "::2", "::3", "::4", "::5", "::6", "::7", "::8", "::9"]}}"#,
        &[r#"1:77: upstream.resolver: has 9 servers, and 8 is the most: leave some out"#],
    ),
];

#[test]
fn every_fault_has_its_message() {
    faults::check(FAULTS);
}

#[test]
fn more_endpoints_than_one_backend_takes() {
    let endpoints: Vec<_> = (0..257).map(|port| format!("\"http://a:{}\"", 1000 + port)).collect();
    let document =
        format!(r#"{{"routes": [{{"path": "/", "backend": {{"endpoints": [{}]}}}}]}}"#, endpoints.join(", "));
    let error = config::parse(&document, "f.json").expect_err("too many").to_string();
    let expected = "f.json:1:52: routes[0].backend.endpoints: has 257 endpoints, and 256 is the most: put them behind one name";
    assert_eq!(error, expected);
}
