//! Wrong documents about the store of rate limits and the rules in it, and what the gateway says about each.

mod faults;

const FAULTS: &[faults::Fault] = &[
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "rate_limits": [{"name": "a", "limit": 5, "per": "day", "scope": "cluster"}, {"name": "b", "limit": 5, "per": "day", "lease": 2, "on_failure": "allow"}]}]}"#,
        &[
            r#"1:115: routes[0].rate_limits[0].scope: needs a store to count in: add "store" to `rate_limit`"#,
            r#"1:176: routes[0].rate_limits[1].lease: belongs to rules of the cluster: add "scope": "cluster" or remove it"#,
            r#"1:193: routes[0].rate_limits[1].on_failure: belongs to rules of the cluster: add "scope": "cluster" or remove it"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": {"store": "redis://a", "gateways": 3, "rules": [{"name": "a", "limit": 5, "per": "day", "scope": "global", "on_failure": "deny"}, {"name": "b", "limit": 5, "per": "day", "scope": "cluster", "lease": 2}, {"name": "c", "limit": 5, "per": "day", "burst": 1, "scope": "cluster", "lease": 5, "on_failure": "deny"}]}}"#,
        &[
            r#"1:163: rate_limit.rules[0].scope: unknown scope "global": did you mean "local"?"#,
            r#"1:187: rate_limit.rules[0].on_failure: unknown choice "deny": known are local, allow, refuse"#,
            r#"1:265: rate_limit.rules[1].lease: 3 gateways may hold more than the limit of 5: write less"#,
            r#"1:350: rate_limit.rules[2].lease: a burst needs every request to be asked for: remove one of the two"#,
            r#"1:367: rate_limit.rules[2].on_failure: unknown choice "deny": known are local, allow, refuse"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": {"store": ["rediss://a", "http://a", "a:6379", "redis://:secret@a", "redis://a/x", "redis://a:0", "redis://[::1", "redis://a", "redis://a/0", 1], "store_wait": "11s", "store_password_file": ""}}"#,
        &[
            r#"1:77: rate_limit.store[0]: "rediss://a" asks for TLS to the store, which is not supported: write "redis://host:port""#,
            r#"1:91: rate_limit.store[1]: "http://a" has a scheme that is not supported: write "redis://host:port""#,
            r#"1:103: rate_limit.store[2]: "a:6379" is no URL: write "redis://host:port""#,
            r#"1:113: rate_limit.store[3]: the URL has a password: put it into a file and name that as `store_password_file`"#,
            r#"1:134: rate_limit.store[4]: "redis://a/x" names no database: it ends in a number such as /0, or in nothing"#,
            r#"1:149: rate_limit.store[5]: "redis://a:0" has no valid port: a port is a number from 1 to 65535"#,
            r#"1:164: rate_limit.store[6]: "redis://[::1" has no valid host: a name of letters, digits, dots and hyphens, or an IP address"#,
            r#"1:193: rate_limit.store[8]: stands in this list already: remove it"#,
            r#"1:208: rate_limit.store[9]: must be a URL such as "redis://10.0.0.5:6379", is the number 1"#,
            r#"1:226: rate_limit.store_wait: is longer than 10s, and requests wait for it: write less"#,
            r#"1:256: rate_limit.store_password_file: "" is no path of a file"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": {"store": [], "gateways": 0}}"#,
        &[
            r#"1:76: rate_limit.store: is empty: leave the key out where there is no store"#,
            r#"1:92: rate_limit.gateways: must be a whole number from 1 to 10000, is the number 0"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": {"gateways": 2, "store_wait": "5ms"}}"#,
        &[
            r#"1:79: rate_limit.gateways: belongs to `store`, which is not there: add it or remove this"#,
            r#"1:96: rate_limit.store_wait: belongs to `store`, which is not there: add it or remove this"#,
        ],
    ),
    // A fault elsewhere in the rule makes its other keys no strangers.
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": {"store": "redis://a", "rules": [{"name": "a", "per": "day", "scope": "cluster", "lease": 9}]}}"#,
        &[r#"1:99: rate_limit.rules[0]: `limit` is missing: add "limit": 1000"#],
    ),
];

#[test]
fn every_fault_has_its_message() {
    faults::check(FAULTS);
}
