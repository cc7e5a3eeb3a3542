//! The start: where the configuration is found, and one clear line for everything that prevents it.

use std::fs;
use std::net::TcpListener;

use gateway_tests::gateway::{command, complete, route_to};
use gateway_tests::{Exit, Gateway, Upstream, upstream};
use serde_json::json;
use tempfile::TempDir;

const INVALID: Option<i32> = Some(1);
const UNREADABLE: Option<i32> = Some(2);
const CANNOT_START: Option<i32> = Some(3);

/// One line, with each of `parts`.
#[track_caller]
fn check(exit: &Exit, code: Option<i32>, parts: &[&str]) {
    assert_eq!(exit.code, code, "{exit:?}");
    let [line] = &exit.lines[..] else { panic!("not one line: {exit:#?}") };
    for part in parts {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
}

#[test]
fn an_invalid_file_is_one_line_and_exit_1() {
    let route = r#"{ "path": "/a", "backend": "http://127.0.0.1:1" }"#;
    for (text, parts) in [
        ("{ \"routes\": [".to_owned(), &["gateway.json:1:", "not valid JSON"][..]),
        (String::new(), &["gateway.json:1:1", "empty"]),
        (
            format!("{{\n \"routs\": [{route}],\n \"routes\": [{route}] }}"),
            &["gateway.json:2:2", "routs", "routes"],
        ),
        (
            format!("{{ \"routes\": [\n{route},\n{route} ] }}"),
            &["gateway.json:3:", "routes[1].path", "line 2"],
        ),
        (format!("{{ \"routes\": [{route}],\n \"workers\": \"many\" }}"), &["gateway.json:2:", "workers"]),
        (
            r#"{ "routes": [{ "path": "/", "backend": "ftp://x" }] }"#.to_owned(),
            &["gateway.json:1:", "routes[0].backend"],
        ),
    ] {
        check(&Gateway::refuse(&text), INVALID, parts);
    }
}

#[test]
fn every_fault_of_a_file_is_named_at_once() {
    let exit = Gateway::refuse(r#"{ "routes": [{ "path": "x", "backend": "y" }], "workers": 0 }"#);
    assert_eq!((exit.code, exit.lines.len()), (INVALID, 3), "{exit:?}");
}

#[test]
fn an_unreadable_file_is_one_line_and_exit_2() {
    let directory = TempDir::new().unwrap();
    let mut missing = command(directory.path());
    missing.args(["--config", "missing.json"]);
    check(&Gateway::exit_of(&mut missing), UNREADABLE, &["missing.json", "--config"]);
    let mut folder = command(directory.path());
    folder.args(["--config", "."]);
    check(&Gateway::exit_of(&mut folder), UNREADABLE, &["folder"]);
    let mut none = command(directory.path());
    check(&Gateway::exit_of(&mut none), UNREADABLE, &["config/gateway.json", "--config"]);
}

#[test]
fn wrong_arguments_are_exit_2() {
    let directory = TempDir::new().unwrap();
    for arguments in [&["--confg", "x"][..], &["rum"], &["run", "extra"]] {
        let exit = Gateway::exit_of(command(directory.path()).args(arguments));
        assert_eq!(exit.code, UNREADABLE, "{exit:?}");
        assert!(
            exit.lines
                .iter()
                .any(|line| line.contains(arguments[arguments.len() - 1]) || line.contains(arguments[0])),
            "{exit:?}"
        );
    }
}

#[test]
fn a_taken_port_is_one_line_and_exit_3() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for key in ["listen_addr", "metrics_addr"] {
        let mut config = route_to("http://127.0.0.1:1");
        config[key] = json!(address);
        check(&Gateway::refuse(&complete(config)), CANNOT_START, &[&address, "taken"]);
    }
    // Another gateway's port is taken as well, for all its SO_REUSEPORT.
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let address = gateway.address.to_string();
    let mut config = route_to("http://127.0.0.1:1");
    config["listen_addr"] = json!(address);
    check(&Gateway::refuse(&complete(config)), CANNOT_START, &[&address, "taken"]);
}

#[test]
fn an_address_of_another_host_is_one_line_and_exit_3() {
    let mut config = route_to("http://127.0.0.1:1");
    config["listen_addr"] = json!("192.0.2.1:0");
    check(&Gateway::refuse(&complete(config)), CANNOT_START, &["192.0.2.1:0", "no such address"]);
}

#[test]
fn without_arguments_it_takes_the_file_of_the_folder() {
    let upstream = Upstream::ok();
    let directory = TempDir::new().unwrap();
    let folder = directory.path().join("config");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("gateway.json");
    fs::write(&file, complete(route_to(&upstream.url()))).unwrap();
    let gateway = Gateway::run_default(directory, file);
    assert_eq!(gateway.get("/").status(), 200);
}

#[test]
fn it_starts_without_its_backend() {
    let address = upstream::nowhere();
    let gateway = Gateway::start(route_to(&format!("http://{address}")));
    assert_eq!(gateway.get("/").status(), 502);
    assert_eq!(gateway.admin("/readyz").status(), 200);
}

#[test]
fn a_colon_and_a_port_is_every_address() {
    let upstream = Upstream::ok();
    let mut config = route_to(&upstream.url());
    config["listen_addr"] = json!(":0");
    config["metrics_addr"] = json!(":0");
    let gateway = Gateway::start(config);
    for ip in ["127.0.0.1", "127.0.0.2"] {
        let address = std::net::SocketAddr::new(ip.parse().unwrap(), gateway.address.port());
        assert_eq!(gateway_tests::Client::connect(address).get("/").status(), 200, "{ip}");
        // An IPv4 client of an IPv6 socket is told upstream as the IPv4 client it is.
        assert_eq!(upstream.last().field("x-forwarded-for"), Some("127.0.0.1"));
    }
}

#[test]
fn an_ipv6_client_is_told_upstream_as_one() {
    let upstream = Upstream::ok();
    for listen in [":0", "[::]:0", "[::1]:0"] {
        let mut config = route_to(&upstream.url());
        config["listen_addr"] = json!(listen);
        let gateway = Gateway::start(config);
        let address = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, gateway.address.port()));
        assert_eq!(gateway_tests::Client::connect(address).get("/").status(), 200, "{listen}");
        assert_eq!(upstream.last().field("x-forwarded-for"), Some("::1"), "{listen}");
    }
}

/// Descriptors suffice for the listeners, not for the workers behind them.
#[test]
fn a_worker_that_cannot_start_is_one_line_and_exit_3() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("gateway.json");
    let mut config = route_to("http://127.0.0.1:1");
    config["workers"] = json!(32);
    fs::write(&file, complete(config)).unwrap();
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -n 56 && exec \"$0\" --config \"$1\""]);
    limited.arg(gateway_tests::binary::gateway()).arg(&file);
    limited.stderr(std::process::Stdio::piped());
    check(&Gateway::exit_of(&mut limited), CANNOT_START, &["worker", "Too many open files"]);
}
