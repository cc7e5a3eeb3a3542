//! Wrong documents and what the gateway says about each, to the letter and the column.

mod faults;

/// Those of the store of rate limits are in `store_faults`.
const FAULTS: &[faults::Fault] = &[
    (r"", &[r#"1:1: the file is empty: it needs at least { "routes": [ ... ] }"#]),
    (r"{", &[r"1:1: not valid JSON: EOF while parsing an object: something that was opened is never closed"]),
    (
        r"{}",
        &[
            r#"1:1: `routes` is missing: add "routes": [ { "path": "/", "backend": "http://127.0.0.1:3001" } ]"#,
        ],
    ),
    (r"[]", &[r"1:1: must be an object, is a list"]),
    (
        r#"{"routes": []}"#,
        &[r"1:12: routes: is empty: a gateway without routes answers 404 to everything, add one"],
    ),
    (
        r#"{"routes": [], "include": []}"#,
        &[r"1:12: routes: is empty: a gateway without routes answers 404 to everything, add one"],
    ),
    (r#"{"routes": {}}"#, &[r"1:12: routes: must be a list of routes, is an object"]),
    (
        r#"{"routes": [1, "x"]}"#,
        &[
            r"1:13: routes[0]: must be an object, is the number 1",
            r#"1:16: routes[1]: must be an object, is the string "x""#,
        ],
    ),
    (r#"{"routes": null}"#, &[r"1:12: routes: must be a list of routes, is null"]),
    (
        r#"{
  "routes": [
    {"path": "/" "backend": "http://a"}
  ]
}"#,
        &[r"3:18: not valid JSON: expected `,` or `}`"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"},]}"#,
        &[r"1:50: not valid JSON: expected value: remove the comma before it"],
    ),
    (
        r#"{
  // the proxy
  "listen_addr": ":80"
}"#,
        &[r"2:3: not valid JSON: key must be a string: JSON has no comments, remove it"],
    ),
    (
        r"{'routes': []}",
        &[r"1:2: not valid JSON: key must be a string: strings and keys stand in double quotes"],
    ),
    (r#"{"ü": 'x'}"#, &[r"1:7: not valid JSON: expected value: strings and keys stand in double quotes"]),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}]"#,
        &[r"1:49: not valid JSON: EOF while parsing an object: something that was opened is never closed"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}]} }"#,
        &[r"1:52: not valid JSON: trailing characters"],
    ),
    (
        r#"{"routes": [{"path": "/a
b", "backend": "http://a"}]}"#,
        &[r"1:24: not valid JSON: control character (\u0000-\u001F) found while parsing a string"],
    ),
    (
        r#"{"routes": [{"path": "/\ud800", "backend": "http://a"}]}"#,
        &[r"1:22: routes[0].path: is no valid string: a \u escape stands for half a character"],
    ),
    (
        r#"{"listen_addr": ":1", "rutes": [], "routes": [{"path": "/", "backend": "http://a"}]}"#,
        &[r#"1:23: unknown key "rutes": did you mean `routes`?"#],
    ),
    (
        r#"{"lisen_addr": ":1", "routes": [{"path": "/", "backend": "http://a"}]}"#,
        &[r#"1:2: unknown key "lisen_addr": did you mean `listen_addr`?"#],
    ),
    (
        r#"{"xyzzy": 1, "routes": [{"path": "/", "backend": "http://a"}]}"#,
        &[
            r#"1:2: unknown key "xyzzy": known here are include, listen_addr, metrics_addr, workers, trusted_proxies, proxy_protocol, rate_limit, cache, routes, client_ipv6_prefix, kernel, user, timeouts, head, connections, overload, circuit_breaker, upstream, trace_context, access_log, control"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "timeouts": {"conect": 1}}"#,
        &[r#"1:65: timeouts: unknown key "conect": did you mean `connect`?"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"connection_burst": 1}}"#,
        &[r#"1:63: kernel: unknown key "connection_burst": did you mean `connections_per_second`?"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "timeout": 3}]}"#,
        &[r#"1:50: routes[0]: unknown key "timeout": did you mean `timeout_seconds`?"#],
    ),
    (r#"{"routes": [{"backend": "http://a"}]}"#, &[r#"1:13: routes[0]: `path` is missing: add "path": "/""#]),
    (
        r#"{"routes": [{"pfad": "/", "backend": "http://a"}]}"#,
        &[
            r#"1:13: routes[0]: `path` is missing: add "path": "/""#,
            r#"1:14: routes[0]: unknown key "pfad": known here are path, host, backend, methods, timeout_seconds, preserve_host, rate_limit_per_minute, burst_size, rate_limits, priority, max_concurrent, max_concurrent_per_client, enable_cache, coalesce, cache, health_check, retry"#,
        ],
    ),
    (
        r#"{"routes": [{}]}"#,
        &[
            r#"1:13: routes[0]: `path` is missing: add "path": "/""#,
            r#"1:13: routes[0]: `backend` is missing: add "backend": "http://127.0.0.1:3001""#,
        ],
    ),
    (
        r#"{"listen_addr": ":1",
 "routes": [{"path": "/", "backend": "http://a"}],
 "listen_addr": ":2"}"#,
        &[r"3:2: listen_addr: this key already stands at line 1, column 2: remove one of the two"],
    ),
    (
        r#"{"routes": [{"path": "/", "path": "/b", "backend": "http://a"}]}"#,
        &[r"1:27: routes[0].path: this key already stands at line 1, column 14: remove one of the two"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "listen_addr": 8080}"#,
        &[r#"1:67: listen_addr: must be an address such as ":8080", is the number 8080"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "listen_addr": "8080"}"#,
        &[r#"1:67: listen_addr: "8080" has no colon before the port: write ":8080""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "listen_addr": "::1:8080"}"#,
        &[r#"1:67: listen_addr: "::1:8080" needs brackets around the IPv6 address: write "[::1]:8080""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "listen_addr": "::1"}"#,
        &[r#"1:67: listen_addr: "::1" is an IPv6 address without port: write "[::1]:8080""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "listen_addr": "example.com:80"}"#,
        &[
            r#"1:67: listen_addr: "example.com:80" names no address of this host: write an IP address, "localhost" or nothing before the colon"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "listen_addr": "127.0.0.1"}"#,
        &[r#"1:67: listen_addr: "127.0.0.1" has no port: write ":8080" or "127.0.0.1:8080""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "listen_addr": ":99999"}"#,
        &[r#"1:67: listen_addr: ":99999" has no valid port: a port is a number from 0 to 65535"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "listen_addr": ":9090"}"#,
        &[r"1:67: listen_addr: proxy (:9090) and metrics (:9090) share a port: give each its own"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "listen_addr": ":8081", "metrics_addr": "127.0.0.1:8081"}"#,
        &[r"1:92: metrics_addr: proxy (:8081) and metrics (127.0.0.1:8081) share a port: give each its own"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "workers": 0}"#,
        &[r"1:63: workers: must be a whole number from 1 to 1024, is the number 0"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "workers": "4"}"#,
        &[r#"1:63: workers: must be a whole number from 1 to 1024, is the string "4""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "workers": 1.5}"#,
        &[r"1:63: workers: must be a whole number from 1 to 1024, is the number 1.5"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "workers": null}"#,
        &[r"1:63: workers: must be a whole number from 1 to 1024, is null"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "trusted_proxies": "10.0.0.0/8"}"#,
        &[r#"1:71: trusted_proxies: must be a list such as ["10.0.0.0/8"], is the string "10.0.0.0/8""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "trusted_proxies": ["10.0.0.0/8", "10.0.0.0/33", "nginx"]}"#,
        &[
            r#"1:86: trusted_proxies[1]: "10.0.0.0/33" is no address or CIDR: write one such as "10.0.0.0/8", "192.0.2.7" or "2001:db8::/32""#,
            r#"1:101: trusted_proxies[2]: "nginx" is no address or CIDR: write one such as "10.0.0.0/8", "192.0.2.7" or "2001:db8::/32""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "trusted_proxies": ["10.0.0.1/8"]}"#,
        &[
            r#"1:72: trusted_proxies[0]: "10.0.0.1/8" has bits set behind its prefix length: write "10.0.0.0/8" for all of it or "10.0.0.1" for one address"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "proxy_protocol": true}"#,
        &[r"1:70: proxy_protocol: nobody may send it: add your load balancer's network to `trusted_proxies`"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "proxy_protocol": "v2", "client_ipv6_prefix": 0}"#,
        &[
            r#"1:70: proxy_protocol: must be true or false, is the string "v2""#,
            r"1:98: client_ipv6_prefix: must be a whole number from 1 to 128, is the number 0",
        ],
    ),
    (
        r#"{"routes": [{"path": "api", "backend": "http://a"}]}"#,
        &[r#"1:22: routes[0].path: "api" does not begin with a slash: write "/api""#],
    ),
    (
        r#"{"routes": [{"path": "/api/*", "backend": "http://a"}]}"#,
        &[
            r#"1:22: routes[0].path: "/api/*" has a wildcard, but a path covers what is below it anyway: write "/api""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/a?b", "backend": "http://a"}]}"#,
        &[r#"1:22: routes[0].path: "/a?b" has a query or fragment: routes match the path alone"#],
    ),
    (
        r#"{"routes": [{"path": "/über", "backend": "http://a"}]}"#,
        &[
            r#"1:22: routes[0].path: "/über" has a character that must be percent-encoded: write %C3%BC for 'ü'"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "host": "*.a", "backend": "http://a"}]}"#,
        &[
            r#"1:35: routes[0].host: "*.a" is a wildcard, which is not supported: name one host, or leave `host` out to match every one"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "host": "a:80", "backend": "http://a"}]}"#,
        &[r#"1:35: routes[0].host: "a:80" has a port: write "a", which matches on every port"#],
    ),
    (
        r#"{"routes": [{"path": "/", "host": "a b", "backend": "http://a"}]}"#,
        &[
            r#"1:35: routes[0].host: "a b" is no host name: write letters, digits, dots and hyphens, as in "api.example.com""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "https://a"}]}"#,
        &[
            r#"1:38: routes[0].backend: "https://a" asks for TLS to the backend, which is not supported: write "http://host:port""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "localhost:3001"}]}"#,
        &[r#"1:38: routes[0].backend: "localhost:3001" is no URL: write "http://host:port""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "ftp://a"}]}"#,
        &[
            r#"1:38: routes[0].backend: "ftp://a" has a scheme that is not supported: write "http://host:port""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a:3001/v1"}]}"#,
        &[
            r#"1:38: routes[0].backend: "http://a:3001/v1" has a path, which is not supported (requests keep their own): write "http://a:3001""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a?b"}]}"#,
        &[
            r#"1:38: routes[0].backend: "http://a?b" has a query or fragment, which is not supported: write "http://a""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://u:secret@a"}]}"#,
        &[
            r#"1:38: routes[0].backend: the URL has a user name or password, which is not supported: write "http://host:port""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://::1"}]}"#,
        &[
            r#"1:38: routes[0].backend: "http://::1" needs brackets around the IPv6 address: write "http://[::1]:80""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a:0"}]}"#,
        &[r#"1:38: routes[0].backend: "http://a:0" has no valid port: a port is a number from 1 to 65535"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://256.0.0.1"}]}"#,
        &[
            r#"1:38: routes[0].backend: "http://256.0.0.1" has no valid host: a name of letters, digits, dots and hyphens, or an IP address"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "methods": []}]}"#,
        &[r"1:61: routes[0].methods: is empty: leave the key out to allow every method"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "methods": "GET"}]}"#,
        &[r#"1:61: routes[0].methods: must be a list such as ["GET"], is the string "GET""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "methods": ["GET", "get", "GET", "G T"]}]}"#,
        &[
            r#"1:69: routes[0].methods[1]: "get" matches no request, for methods are case-sensitive: write "GET""#,
            r"1:76: routes[0].methods[2]: stands in this list already: remove it",
            r#"1:83: routes[0].methods[3]: "G T" is no method: write a name such as "GET""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "timeout_seconds": 0}]}"#,
        &[r"1:69: routes[0].timeout_seconds: must be a time from 1ms to 24h, is the number 0"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "timeout_seconds": "30"}]}"#,
        &[
            r#"1:69: routes[0].timeout_seconds: "30" is no time: write a whole number and ms, s, m or h, as in "30s""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "timeout_seconds": "25h"}]}"#,
        &[r#"1:69: routes[0].timeout_seconds: "25h" is out of range: a time is from 1ms to 24h"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "timeout_seconds": true}]}"#,
        &[
            r#"1:69: routes[0].timeout_seconds: must be a time such as 30 (seconds), "30s" or "500ms", is true"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "preserve_host": "yes"}]}"#,
        &[r#"1:67: routes[0].preserve_host: must be true or false, is the string "yes""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "rate_limit_per_minute": 0, "burst_size": -1}]}"#,
        &[
            r"1:75: routes[0].rate_limit_per_minute: must be a whole number from 1 to 4294967295, is the number 0",
            r"1:92: routes[0].burst_size: must be a whole number from 1 to 4294967295, is the number -1",
        ],
    ),
    (
        r#"{"routes": [
  {"path": "/api", "backend": "http://a"},
  {"path": "/api/", "backend": "http://b"}
]}"#,
        &[r"3:12: routes[1].path: the same path is routed at line 2, column 12: remove one of the two"],
    ),
    (
        r#"{"routes": [
  {"path": "/", "host": "a", "backend": "http://a"},
  {"path": "/", "host": "A", "backend": "http://b"}
]}"#,
        &[
            r"3:12: routes[1].path: the same path of the same host is routed at line 2, column 12: remove one of the two",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "head": {"max_bytes": 4096, "max_headers": 0}}"#,
        &[
            r"1:74: head.max_bytes: must be a whole number from 8192 to 1048576, is the number 4096",
            r"1:95: head.max_headers: must be a whole number from 1 to 1000, is the number 0",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "head": []}"#,
        &[r"1:60: head: must be an object, is a list"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": true}"#,
        &[r"1:66: rate_limit: must be an object, is true"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": {"num_shards": 12}}"#,
        &[r"1:81: rate_limit.num_shards: must be a power of two, is 12: write 8 or 16"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": {"num_shards": 0}}"#,
        &[r"1:81: rate_limit.num_shards: must be a whole number from 1 to 65536, is the number 0"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "circuit_breaker": {"health_decay": 1}}"#,
        &[
            r"1:88: circuit_breaker.health_decay: must be a number between 0 and 1, neither of them, is the number 1",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "circuit_breaker": {"failure_threshold": 4294967296}}"#,
        &[
            r"1:93: circuit_breaker.failure_threshold: must be a whole number from 1 to 4294967295, is the number 4294967296",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"interfaces": ["eth0", "eth0", "a/b"]}}"#,
        &[
            r"1:86: kernel.interfaces[1]: stands in this list already: remove it",
            r#"1:94: kernel.interfaces[2]: "a/b" is no interface name: `ip link` lists them"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "user": "a b"}"#,
        &[r#"1:60: user: "a b" is no user: write "name", "name:group" or "UID:GID""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"persist": true}}"#,
        &[r#"1:74: kernel.persist: must be a folder such as "/sys/fs/bpf/gateway", is true"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "user": 1000}"#,
        &[r#"1:60: user: must be a name such as "www-data", is the number 1000"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "priority": "hihg"}], "overload": {"queue": -1, "exempt_paths": ["healthz"]}, "connections": {"max": 0}}"#,
        &[
            r#"1:62: routes[0].priority: unknown priority "hihg": did you mean "high"?"#,
            r"1:94: overload.queue: must be a whole number from 0 to 100000, is the number -1",
            r#"1:115: overload.exempt_paths[0]: "healthz" does not begin with a slash: write "/healthz""#,
            r"1:151: connections.max: must be a whole number from 1 to 10000000, is the number 0",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"mode": "drive"}}"#,
        &[r#"1:71: kernel.mode: unknown mode "drive": did you mean "driver"?"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"mode": "xdp"}}"#,
        &[r#"1:71: kernel.mode: unknown mode "xdp": known are auto, driver, generic, tc"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"ipv6_prefix": 129, "burst": 0, "connections_per_second": 1000001}}"#,
        &[
            r"1:78: kernel.ipv6_prefix: must be a whole number from 1 to 128, is the number 129",
            r"1:92: kernel.burst: must be a whole number from 1 to 1000000, is the number 0",
            r"1:121: kernel.connections_per_second: must be a whole number from 1 to 1000000, is the number 1000001",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"allow": ["10.0.0.0/8", 10], "deny": ["::1/0"]}}"#,
        &[
            r#"1:87: kernel.allow[1]: must be a CIDR such as "10.0.0.0/8", is the number 10"#,
            r#"1:101: kernel.deny[0]: "::1/0" has bits set behind its prefix length: write "::/0" for all of it or "::1" for one address"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "rate_limits": [{}]}]}"#,
        &[
            r#"1:66: routes[0].rate_limits[0]: `name` is missing: add "name": "daily""#,
            r#"1:66: routes[0].rate_limits[0]: `limit` is missing: add "limit": 1000"#,
            r#"1:66: routes[0].rate_limits[0]: `per` is missing: add "per": "minute""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "rate_limits": [{"name": "a b", "limit": 0, "per": "hours"}, 1]}]}"#,
        &[
            r#"1:75: routes[0].rate_limits[0].name: "a b" is no rule's name: write up to 40 letters, digits, "-", "_" or ".""#,
            r"1:91: routes[0].rate_limits[0].limit: must be a whole number from 1 to 4294967295, is the number 0",
            r#"1:101: routes[0].rate_limits[0].per: unknown period "hours": did you mean "hour"?"#,
            r"1:111: routes[0].rate_limits[1]: must be an object, is the number 1",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "rate_limits": [{"name": "default", "limit": 5, "per": "week", "burst": 6}]}]}"#,
        &[
            r#"1:75: routes[0].rate_limits[0].name: "default" is what the gateway calls rate_limit_per_minute: choose another name"#,
            r#"1:105: routes[0].rate_limits[0].per: unknown period "week": known are second, minute, hour, day"#,
            r"1:122: routes[0].rate_limits[0].burst: is more than the limit of 5: write less, or the same rate over a longer period",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": {"rules": [{"name": "a-burst", "limit": 5, "per": "day", "key": []}, {"name": "b", "limit": 5, "per": "day", "key": "clint"}, {"name": "c", "limit": 5, "per": "day", "key": ["route", "header: x", "cookie", 7]}]}}"#,
        &[
            r#"1:86: rate_limit.rules[0].name: "a-burst" is what the gateway calls a rule's burst: choose another name"#,
            r"1:130: rate_limit.rules[0].key: is empty: leave it out to count by client",
            r#"1:182: rate_limit.rules[1].key: unknown key "clint": did you mean "client"?"#,
            r#"1:249: rate_limit.rules[2].key[1]: names no header: write one such as "header:X-Tenant""#,
            r#"1:262: rate_limit.rules[2].key[2]: unknown key "cookie": known are client, route, api_key, header:NAME, query:NAME"#,
            r#"1:272: rate_limit.rules[2].key[3]: must be a key such as "client" or "header:X-Tenant", is the number 7"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": {"rules": [{"name": "a", "limit": 5, "per": "day"}, {"name": "a", "limit": 5, "per": "day", "key": ["client", "client"]}]}}"#,
        &[
            r"1:127: rate_limit.rules[1].name: another rule of this list has this name: give each its own",
            r"1:176: rate_limit.rules[1].key[1]: stands in this list already: remove it",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": {"rules": [1,1,1,1,1,1,1,1,1], "max_keys": 10, "fields": "allways"}}"#,
        &[
            r"1:76: rate_limit.rules: has 9 rules, and 8 is the most: each costs every request",
            r"1:109: rate_limit.max_keys: must be a whole number from 1000 to 100000000, is the number 10",
            r#"1:123: rate_limit.fields: unknown choice "allways": did you mean "always"?"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "rate_limits": [{"name": "a", "limit": 5, "per": "day"}]}], "rate_limit": {"rules": [{"name": "a", "limit": 5, "per": "day"}]}}"#,
        &[
            r"1:75: routes[0].rate_limits[0].name: a rule of `rate_limit.rules` has this name: give each its own",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "rate_limit": {"num_shards": 4096, "max_keys": 1000}}"#,
        &[r"1:99: rate_limit.max_keys: is less than one for each shard: write at least 4096"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "burst_size": 5}]}"#,
        &[
            r"1:64: routes[0].burst_size: belongs to a rate, and the route has none: add rate_limit_per_minute to it",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "rate_limits": [{"name": "concurrency", "limit": 5, "per": "day"}]}]}"#,
        &[
            r#"1:75: routes[0].rate_limits[0].name: "concurrency" is what the gateway calls a limit of requests at once: choose another name"#,
        ],
    ),
    (
        r#"{"listen_addr": 1,
 "wrokers": 2,
 "routes": [{"path": "a"}]}"#,
        &[
            r#"1:17: listen_addr: must be an address such as ":8080", is the number 1"#,
            r#"2:2: unknown key "wrokers": did you mean `workers`?"#,
            r#"3:13: routes[0]: `backend` is missing: add "backend": "http://127.0.0.1:3001""#,
            r#"3:22: routes[0].path: "a" does not begin with a slash: write "/a""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a",}]}"#,
        &[r"1:49: not valid JSON: key must be a string: remove the comma before it"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "odd\nkey": 1, "odd\nkey": 2}"#,
        &[
            r#"1:52: unknown key "odd\nkey": known here are include, listen_addr, metrics_addr, workers, trusted_proxies, proxy_protocol, rate_limit, cache, routes, client_ipv6_prefix, kernel, user, timeouts, head, connections, overload, circuit_breaker, upstream, trace_context, access_log, control"#,
            r"1:67: odd\nkey: this key already stands at line 1, column 52: remove one of the two",
        ],
    ),
    (
        r#"{"routes": [{"path": "/a\\b", "backend": "http://a"}, {"path": "/%zz", "backend": "http://a"}]}"#,
        &[
            r#"1:22: routes[0].path: "/a\\b" cannot be used: the path holds a backslash; write %5C if one is meant"#,
            r#"1:64: routes[1].path: "/%zz" cannot be used: the path holds '%' without two hexadecimal digits behind it"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "cache": {"shards": 12, "max_bytes": 5}}"#,
        &[
            "1:72: cache.shards: must be a power of two, is 12: write 8 or 16",
            "1:89: cache.max_bytes: must be a whole number from 1048576 to 17592186044416, is the number 5",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "cache": {"max_bytes": 1048576, "max_entry_bytes": 1048576}}"#,
        &[
            "1:103: cache.max_entry_bytes: 1048576 is more than a shard holds, which is 65536: lower it, or raise `max_bytes`, or take fewer `shards`",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "cache": {"max_entry_bytes": 99999999}}]}"#,
        &[
            "1:79: routes[0].cache.max_entry_bytes: 99999999 is more than a shard of the cache holds, which is 16777216: lower it, or raise `cache.max_bytes`, or take fewer `cache.shards`",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a", "coalesce": 1, "cache": {"ttl": "60", "key_headers": ["a b"], "key_cookies": ["a", "a"], "bypass": ["x-preview"], "no_store": ["query:a=b"], "key_query": {"keep": "a"}}}]}"#,
        &[
            "1:62: routes[0].coalesce: must be true or false, is the number 1",
            r#"1:82: routes[0].cache.ttl: "60" is no time: write a whole number and ms, s, m or h, as in "30s""#,
            r#"1:104: routes[0].cache.key_headers[0]: "a b" is no name of a header field: letters, digits and hyphens make one"#,
            "1:133: routes[0].cache.key_cookies[1]: stands in this list already: remove it",
            r#"1:150: routes[0].cache.bypass[0]: "x-preview" is no condition: write "header:NAME", "cookie:NAME" or "query:NAME""#,
            r#"1:177: routes[0].cache.no_store[0]: "a=b" cannot be a name in a request: write it as it stands there, percent-encoded"#,
            r#"1:213: routes[0].cache.key_query.keep: must be a list of strings, is the string "a""#,
        ],
    ),
];

#[test]
fn every_fault_has_its_message() {
    faults::check(FAULTS);
}
