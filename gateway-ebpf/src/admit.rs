//! The judgement of a connection request, in its order: not ours → allow → deny → budget → pass.
//!
//! Called once per request by `judge`. It knows neither packets nor hooks.

use gateway_common::policy::{HAS_ALLOW, HAS_DENY, Holder, Policy, Source};
use gateway_common::{Family, Verdict};

use crate::maps;
use crate::packet::Request;

/// Says what becomes of `request` under the policy of `slot`.
#[inline(always)]
pub fn admit(slot: u32, policy: &Policy, request: &Request) -> Verdict {
    if !maps::is_listener(slot, request.destination, request.destination_port) {
        return Verdict::NotOurs;
    }
    let source = Source::new(slot, request.family, request.source);
    if policy.has(HAS_ALLOW) && maps::allows(source) {
        return Verdict::Allowed;
    }
    if policy.has(HAS_DENY) && maps::denies(source) {
        return Verdict::Denied;
    }
    let address = match request.family {
        Family::Ipv6 => request.source.masked(&policy.ipv6_mask),
        Family::Ipv4 | Family::Other => request.source,
    };
    let holder = Holder { address, epoch: policy.epoch };
    if maps::take(&policy.budget, holder) { Verdict::Pass } else { Verdict::OverBudget }
}
