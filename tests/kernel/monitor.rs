//! What is only watched: a gateway that monitors changes nothing of its host.

use gateway_tests::Upstream;
use serde_json::json;

use crate::flood::{Answering, Forger, kernel};
use crate::process::{QUIET, config, start};

/// SYN cookies take a setting of the host's, which is there for all its services. Where they are only counted it stays,
/// and what would get one passes as it does before they are armed.
#[test]
fn cookies_that_are_only_counted_are_not_armed() {
    for monitor in [json!(true), json!(["cookie_sent"])] {
        let answering = Answering::new();
        let network = &answering.network;
        let upstream = network.gateway.run(Upstream::ok);
        let watched = kernel(json!({ "new_sources_per_second": 1, "monitor": monitor }));
        let gateway = start(network, config(&upstream, watched), |_| {});
        let before = answering.syncookies();
        assert_ne!(before, "2");
        let mut forger = Forger::new(network, gateway.address);
        let mut flood = |least: u64| {
            let begin = std::time::Instant::now();
            while answering.counted(&gateway, "flooded") < least {
                (0..100).for_each(|_| forger.send_from_nowhere());
                assert!(begin.elapsed() < gateway_tests::PATIENCE, "the flood passes uncounted");
            }
        };
        flood(1_000);
        // The thread that would arm them has looked at the counters before it tells the kernel half of somebody new.
        assert!(answering.is_served(QUIET, gateway.address));
        network.gateway.run(|| {
            gateway.wait_for_metrics("it is known", |metrics| {
                metrics.get("gateway_kernel_entries", &[("map", "gw_known")]) == Some(1.0)
            });
        });
        flood(2_000);
        assert_eq!(
            (answering.counted(&gateway, "cookie_sent"), answering.syncookies()),
            (0, before),
            "{monitor}"
        );
    }
}
