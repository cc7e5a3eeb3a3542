//! The README's quick start, typed as a new user would, in a network namespace of its own: there the
//! demo's fixed ports are nobody else's, and `lo` is no other's interface.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gateway_tests::binary;
use gateway_tests::kernel::netns::Namespace;
use rustix::process::{Pid, Signal, kill_process};

/// A command that ends with the test, by the signal a user's Ctrl-C sends.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        let command = command.current_dir(root()).stdout(Stdio::piped());
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Reads what it prints up to a line that holds `text`.
    fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        let mut lines = BufReader::new(self.0.stdout.as_mut().expect("piped"));
        while !seen.lines().last().is_some_and(|line| line.contains(text)) {
            assert_ne!(lines.read_line(&mut seen).expect("it prints text"), 0, "no {text:?} in:\n{seen}");
        }
        seen
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let _ = self.0.wait();
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is around this package")
}

/// What `curl localhost:PORT/PATH` would show, status line included.
fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("localhost", port))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn the_demo_answers_what_it_tells_to_paste() {
    Namespace::new().run(|| {
        let mut demo = Running::start(Command::new(env!("CARGO")).args(["xtask", "run", "--yes"]));
        let printed = demo.until("Ctrl-C");
        for line in ["curl localhost:8080/api/users", "curl localhost:9090/metrics", "bpftool map dump name "]
        {
            assert!(printed.contains(line), "{line} in:\n{printed}");
        }
        let users = get(8080, "/api/users").unwrap();
        assert!(users.starts_with("HTTP/1.1 200 ") && users.contains("\r\nvia: "), "{users}");
        let metrics = get(9090, "/metrics").unwrap();
        let counted = "gateway_requests_total{route=\"/api/users\",status=\"200\",outcome=\"ok\"} 1";
        assert!(metrics.contains(counted) && metrics.contains("gateway_kernel_attached 1"), "{metrics}");
    });
}

/// A file server answers 404 to every path of the seed configuration: it is passed through, and the
/// backend stays in use for as long as anybody looks.
#[test]
fn the_seed_configuration_over_a_file_server_for_a_minute() {
    Namespace::new().run(|| {
        let mut files = Running::start(
            Command::new("python3").args(["-u", "-m", "http.server", "3001"]).stderr(Stdio::null()),
        );
        files.until("Serving HTTP");
        let mut command = Command::new(binary::gateway());
        let _gateway = Running::start(command.args(["--config", "config/gateway.json", "--no-kernel"]));
        let started = Instant::now();
        let asked = std::iter::repeat_with(|| get(9090, "/readyz"));
        let ready = asked.take_while(|_| started.elapsed() < Duration::from_secs(10)).find_map(Result::ok);
        assert!(ready.is_some_and(|ready| ready.starts_with("HTTP/1.1 200 ")));
        // The seed's limit: ten at once, a hundred a minute.
        let (mut passed, mut refused, mut last) = (0, 0, started);
        while started.elapsed() < Duration::from_secs(60) {
            let answer = get(8080, "/api/users").unwrap();
            if answer.starts_with("HTTP/1.1 404 ") {
                (passed, last) = (passed + 1, Instant::now());
            } else {
                assert!(answer.starts_with("HTTP/1.1 429 ") && passed >= 10, "after {passed}: {answer}");
                refused += 1;
            }
        }
        assert!((90..=110).contains(&passed) && refused > 0, "{passed} passed, {refused} refused");
        assert!(last.elapsed() < Duration::from_secs(20), "nothing passed in the last {:?}", last.elapsed());
    });
}
