//! Nanoseconds that a cluster costs a request that goes well: `cargo run --release -p gateway-tests --bin upstream-ns`.
//!
//! The choice of an endpoint, its breaker's leave, the accounts of its load, the verdict: everything that a single
//! backend without breaker and score would not need. No socket is touched.

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway::config;
use gateway::metrics::Registry;
use gateway::snapshot::Snapshot;
use gateway::timer::{Tick, Wheel};
use gateway::upstream::cluster::Asked;
use gateway::upstream::dice::Dice;
use gateway::upstream::resolve::Names;
use gateway::upstream::{Cluster, Pool};

const ROUNDS: u32 = 10_000_000;
const BALANCERS: [&str; 3] = ["least_requests", "round_robin", "hash"];

struct Rig {
    snapshot: Snapshot,
    pools: Vec<Rc<Pool<String>>>,
    dice: Dice,
    now: Tick,
}

impl Rig {
    fn new(endpoints: usize, balancer: &str) -> Self {
        let urls: Vec<_> = (0..endpoints).map(|at| format!("\"http://127.0.0.1:{}\"", 1_000 + at)).collect();
        let backend = match &urls[..] {
            [one] => one.clone(),
            several => {
                format!(r#"{{ "endpoints": [{}], "balancer": "{balancer}" }}"#, several.join(", "))
            }
        };
        let text =
            format!(r#"{{ "routes": [{{ "path": "/", "backend": {backend} }}], "circuit_breaker": {{}} }}"#);
        let config = config::parse(&text, "upstream-ns").expect("a configuration of ours");
        let registry = Registry::new(2);
        let snapshot = Snapshot::build(config, &Names::default(), None, &registry);
        let (upstreams, second) = (&snapshot.config.upstreams, Duration::from_secs(1));
        let pool =
            |endpoint: &Arc<_>| Pool::new(Arc::clone(endpoint), 0, Default::default(), upstreams, second);
        let pools = snapshot.endpoints.iter().map(pool).collect();
        Self { pools, snapshot, dice: Dice::seeded(1), now: Wheel::new(Instant::now()).now() }
    }

    fn cluster(&self) -> &Cluster {
        &self.snapshot.clusters[0]
    }

    /// What a request costs, from the choice to the end of its response.
    fn request(&self, key: u64, turns: &mut Vec<i64>) {
        let asked = Asked { key, tried: &[], expendable: true, lost_after: Duration::from_secs(30) };
        let pool = |member: usize| &self.pools[self.cluster().members[member].index];
        let chosen = self.cluster().choose(&asked, |member| pool(member).load(), turns, &self.dice);
        let (member, ticket) = chosen.unwrap_or_else(|refused| panic!("all are well: {refused:?}"));
        let mut lease = pool(member).enter(ticket);
        lease.judge(black_box(200), false);
        lease.release(self.now);
    }
}

fn main() {
    println!("| endpoints | balancer | ns per request |\n|--:|---|--:|");
    for endpoints in [1, 3, 64] {
        for balancer in BALANCERS.into_iter().filter(|balancer| endpoints > 1 || *balancer == BALANCERS[0]) {
            let (rig, mut turns) = (Rig::new(endpoints, balancer), Vec::new());
            let started = Instant::now();
            for round in 0..ROUNDS {
                rig.request(u64::from(round).wrapping_mul(0x9e37_79b9_7f4a_7c15), &mut turns);
            }
            let ns = started.elapsed().as_nanos() as f64 / f64::from(ROUNDS);
            println!("| {endpoints} | {balancer} | {ns:.1} |");
        }
    }
}
