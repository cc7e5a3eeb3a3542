//! Wrong documents about the admin API and what the gateway says about each, to the letter and the column.

mod faults;

const FAULTS: &[faults::Fault] = &[
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "control": {"socket": "", "state_file": "/a/"}}"#,
        &[
            r#"1:74: control.socket: "" is no path of a file"#,
            r#"1:92: control.state_file: "/a/" is no path of a file"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "control": {"socket": "/a", "state_file": "/b", "admin_addr": ":9091"}}"#,
        &[
            r#"1:114: control.admin_addr: other hosts reach it there: add `token_file`, or write an address such as "127.0.0.1:9091""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "control": {"socket": "/a", "state_file": "/b", "token_file": "/c"}}"#,
        &[r#"1:114: control.token_file: belongs to `admin_addr`, which is not there: add it or remove this"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "control": {"socket": "/a", "state_file": "/b", "admin_addr": "[::1]:9090", "token_file": "/c"}}"#,
        &[r#"1:63: control: admin_addr ([::1]:9090) and metrics (:9090) share a port: give each its own"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "control": {}}"#,
        &[
            r#"1:63: control: `socket` is missing: add "socket": "/run/gateway/control.sock""#,
            r#"1:63: control: `state_file` is missing: add "state_file": "/var/lib/gateway/state.json""#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "control": {"state_file": "/a", "socket": "/a-name-of-more-bytes-than-the-address-of-a-unix-socket-has-room-for/so-that-nobody-could-ever-bind-it/.sock"}}"#,
        &[
            r#"1:94: control.socket: "/a-name-of-more-bytes-than-the-address-of-a-unix-socket-has-room-for/so-that-nob"... is longer than 107 bytes, which is all that a Unix socket's path may have"#,
        ],
    ),
];

#[test]
fn every_fault_has_its_message() {
    faults::check(FAULTS);
}
