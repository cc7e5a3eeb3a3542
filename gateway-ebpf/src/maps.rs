//! The maps: each with what it holds and who writes it, and the few operations the judgement needs.
//!
//! They are BTF maps, so that `bpftool map dump` shows their fields by name.

#![allow(unsafe_code)]

use core::intrinsics::{AtomicOrdering, atomic_cxchg};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::btf_map;
use gateway_common::limit::Budget;
use gateway_common::maps::{MAX_LISTENERS, MAX_NETWORKS, MAX_SOURCES};
use gateway_common::policy::{Bucket, Holder, Listener, Policy, Rule, SLOTS, Source};
use gateway_common::{Address, Count, Family, Verdict, counters};

/// 0 → the slot in force. Userspace flips it once a reload.
#[btf_map(name = "gw_selector")]
static SELECTOR: Array<u32, 1> = Array::new();

/// Slot → budget, mask and flags. Userspace writes the slot that is not in force.
#[btf_map(name = "gw_policy")]
static POLICY: Array<Policy, SLOTS> = Array::new();

/// Slot, address and port → the listener's place in the configuration. Userspace, as `POLICY`.
#[btf_map(name = "gw_listeners")]
static LISTENERS: HashMap<Listener, u32, MAX_LISTENERS> = HashMap::new();

/// Slot, family and network → exempt. Userspace, as `POLICY`.
#[btf_map(name = "gw_allow")]
static ALLOW: LpmTrie<Source, Rule, MAX_NETWORKS> = LpmTrie::new();

/// Slot, family and network → denied. Userspace, as `POLICY`.
#[btf_map(name = "gw_deny")]
static DENY: LpmTrie<Source, Rule, MAX_NETWORKS> = LpmTrie::new();

/// Source and epoch → when its bucket is full again. The kernel half alone writes it; forgetting a source that
/// has been quiet forgets nothing, since an absent bucket is a full one.
#[btf_map(name = "gw_bucket")]
static BUCKET: LruHashMap<Holder, Bucket, MAX_SOURCES> = LruHashMap::new();

/// Verdict × family → packets and bytes, each CPU its own. The kernel half writes, userspace sums.
#[btf_map(name = "gw_verdicts")]
static COUNTERS: PerCpuArray<Count, { counters::CELLS }> = PerCpuArray::new();

const TCP: u16 = 6;
/// A compare-exchange lost this often means as many other connections of the same source just then.
const TRIES: usize = 4;

/// The slot in force and its policy.
#[inline(always)]
pub fn policy() -> Option<(u32, &'static Policy)> {
    let slot = *SELECTOR.get(0)?;
    let policy = POLICY.get(slot)?;
    (policy.generation != 0).then_some((slot, policy))
}

#[inline(always)]
pub fn is_listener(slot: u32, address: Address, port: u16) -> bool {
    LISTENERS.get_ptr(Listener { slot, address, port, protocol: TCP }).is_some()
}

#[inline(always)]
pub fn allows(source: Source) -> bool {
    ALLOW.get(&Key::new(Source::BITS, source)).is_some()
}

#[inline(always)]
pub fn denies(source: Source) -> bool {
    DENY.get(&Key::new(Source::BITS, source)).is_some()
}

/// Takes one connection from a source's bucket; `false` when it holds none.
#[inline(always)]
pub fn take(budget: &Budget, source: Holder) -> bool {
    // SAFETY: a helper without arguments. Its 4 ms grain is far below any sensible burst.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if let Some(bucket) = BUCKET.get_ptr_mut(source) {
        return take_from(budget, bucket, now);
    }
    let Some(full_at_ns) = budget.take(Budget::full(now), now) else { return false };
    if BUCKET.insert(source, Bucket { full_at_ns }, BPF_NOEXIST.into()).is_ok() {
        return true;
    }
    // Another CPU was first, or the map has no room to spare: then the failure is ours and it passes.
    BUCKET.get_ptr_mut(source).is_none_or(|bucket| take_from(budget, bucket, now))
}

/// Charges a bucket that other CPUs may be charging too. Who loses every try is refused, so that two
/// CPUs never grant the same connection twice.
#[inline(always)]
fn take_from(budget: &Budget, bucket: *mut Bucket, now: u64) -> bool {
    let word = bucket.cast::<u64>();
    // SAFETY: a look-up just returned the pointer, so it is aligned and stays mapped while the program
    // runs; if the entry is reused meanwhile, another source pays, and the exchange below still is one.
    let mut seen = unsafe { word.read_volatile() };
    for _ in 0..TRIES {
        let Some(next) = budget.take(seen, now) else { return false };
        // SAFETY: as above. The intrinsic, because the target offers no `AtomicU64`.
        let (found, taken) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, seen, next)
        };
        if taken {
            return true;
        }
        seen = found;
    }
    false
}

/// Counts one packet.
#[inline(always)]
pub fn count(verdict: Verdict, family: Family, bytes: u64) {
    if let Some(count) = COUNTERS.get_ptr_mut(counters::cell(verdict, family)) {
        // SAFETY: a look-up just returned the pointer, and this CPU's cell has no other writer: both
        // hooks run with preemption by another packet excluded.
        unsafe {
            (*count).packets = (*count).packets.wrapping_add(1);
            (*count).bytes = (*count).bytes.wrapping_add(bytes);
        }
    }
}
