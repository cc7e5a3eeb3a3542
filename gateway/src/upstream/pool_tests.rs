//! What a pool's connections are, and what becomes of one that is given back.

use super::*;
use crate::timer::Wheel;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::pin::Pin;
use std::time::Instant;

/// An empty body that holds something of its client's.
struct Held(#[allow(dead_code)] Rc<()>);

impl Body for Held {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

fn pool<B>(addresses: Vec<SocketAddr>, upstream: &str) -> Rc<Pool<B>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let text = format!(
        r#"{{ "routes": [ {{ "path": "/", "backend": "http://a" }} ], "upstream": {{ {upstream} }} }}"#
    );
    let config = crate::config::parse(&text, "x").unwrap();
    let backend = config.routes[0].cluster.members[0].backend.clone();
    let registry = metrics::Registry::new(1);
    let endpoint = Endpoint::new(backend, addresses, "a".to_owned(), &config, &registry, false);
    Pool::new(Arc::new(endpoint), 0, Default::default(), &config.upstreams, Duration::from_secs(1))
}

#[test]
fn connections_find_out_about_peers_that_are_gone() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let addresses = vec![nobody, listener.local_addr().unwrap()];
    let pool = pool::<Held>(addresses, r#""keepalive": "7s", "user_timeout": "9s""#);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let socket = runtime.block_on(pool.open()).unwrap();
    let options = SockRef::from(&socket);
    assert!(options.keepalive().unwrap() && options.tcp_nodelay().unwrap());
    let seconds = Duration::from_secs;
    assert_eq!(options.tcp_keepalive_time().unwrap(), seconds(7));
    assert_eq!(options.tcp_keepalive_interval().unwrap(), seconds(7));
    assert_eq!(options.tcp_user_timeout().unwrap(), Some(seconds(9)));
    assert_eq!(pool.preferred.get(), 1, "the address that served is tried first from now on");
}

#[test]
fn only_a_lack_of_descriptors_is_the_gateways_own() {
    for (code, own) in [
        (libc::EMFILE, true),
        (libc::ENFILE, true),
        (libc::ECONNREFUSED, false),
        (libc::ETIMEDOUT, false),
        (libc::ENETUNREACH, false),
        (libc::EADDRNOTAVAIL, false),
    ] {
        let error = io::Error::from_raw_os_error(code);
        assert_eq!(lacks_descriptors(&error), own, "{error}");
    }
    assert!(!lacks_descriptors(&io::ErrorKind::UnexpectedEof.into()));
}

#[test]
fn an_idle_connection_keeps_nothing_of_its_last_client() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let upstream = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 64];
        assert!(stream.read(&mut head).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        stream
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let second = Duration::from_secs(1);
        let pool = pool(vec![([127, 0, 0, 1], port).into()], "");
        let now = Wheel::new(Instant::now()).now();
        let client = Rc::new(());
        let mut lease = pool.enter(Ticket::plain(0));
        lease.connect(now).await.unwrap();
        let request = Outgoing::new(b"GET / HTTP/1.1\r\n\r\n".to_vec(), Held(client.clone()), false, false);
        lease.begin(request);
        std::future::poll_fn(|cx| lease.poll_head(cx, &mut |_| {})).await.unwrap();
        assert_eq!(Rc::strong_count(&client), 2, "it may have to be sent again");
        lease.release(now);
        assert_eq!(Rc::strong_count(&client), 1);
        assert!(pool.enter(Ticket::plain(0)).reuse(now, second), "the connection itself is kept");
    });
    drop(upstream.join());
}
