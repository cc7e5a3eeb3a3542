//! The maps: each with what it holds and who writes it, and the few operations the judgement needs.
//!
//! They are BTF maps, so that `bpftool map dump` shows their fields by name.

#![allow(unsafe_code)]

use core::arch::asm;
use core::intrinsics::{AtomicOrdering, atomic_cxchg};

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::btf_map;
use gateway_common::limit::Budget;
use gateway_common::maps::{
    MAX_KNOWN, MAX_LISTENERS, MAX_NETWORKS, MAX_PENALTIES, MAX_SOURCES, NEW_SOURCES, SEEDS,
};
use gateway_common::policy::{
    Blocks, Bucket, FOREVER, HAS_ALLOW, HAS_DENY, Holder, Listener, Policy, Port, Rule, SLOTS, Source,
    TRUSTED,
};
use gateway_common::pressure::{self, Shedding, Word};
use gateway_common::standing::{Class, Known, Mark, Penalty};
use gateway_common::{Address, Count, Family, Verdict, counters};

use crate::packet::Segment;

/// 0 → the slot in force. Userspace flips it once a reload.
#[btf_map(name = "gw_selector")]
static SELECTOR: Array<u32, 1> = Array::new();

/// Slot → budgets, masks and flags. Userspace writes the slot that is not in force.
#[btf_map(name = "gw_policy")]
static POLICY: Array<Policy, SLOTS> = Array::new();

/// Slot and port → what listens there. Userspace, as `POLICY`.
#[btf_map(name = "gw_ports")]
static PORTS: Array<Port, { SLOTS * Port::COUNT }> = Array::new();

/// Slot, address and port → the listener's place in the configuration. Userspace, as `POLICY`.
#[btf_map(name = "gw_listeners")]
static LISTENERS: HashMap<Listener, u32, MAX_LISTENERS> = HashMap::new();

/// Slot → of each block of IPv4 addresses, the lists with a network in it. Userspace, as `POLICY`.
#[btf_map(name = "gw_blocks")]
static BLOCKS: Array<Blocks, SLOTS> = Array::new();

/// Slot, family and network → exempt. Userspace, as `POLICY`; the kernel half counts hits.
#[btf_map(name = "gw_allow")]
static ALLOW: LpmTrie<Source, Rule, MAX_NETWORKS> = LpmTrie::new();

/// Slot, family and network → denied. Userspace, as `POLICY`; the kernel half counts hits.
#[btf_map(name = "gw_deny")]
static DENY: LpmTrie<Source, Rule, MAX_NETWORKS> = LpmTrie::new();

/// Source → why, since when and until when it is slowed or blocked. Userspace; the kernel half counts hits.
/// Not LRU: a penalty is not forgotten because others came.
#[btf_map(name = "gw_penalty")]
static PENALTY: HashMap<Address, Penalty, MAX_PENALTIES> = HashMap::new();

/// A bit for each mark of a source that has a penalty; sources without one are not looked up. Userspace, before the
/// penalty and after it.
#[btf_map(name = "gw_marks")]
static MARKS: Array<u64, { Mark::WORDS }> = Array::new();

/// Source → how well it is known. Userspace, once a second at most. Forgetting one costs it rank only.
#[btf_map(name = "gw_known")]
static KNOWN: LruHashMap<Address, Known, MAX_KNOWN> = LruHashMap::new();

/// Source, kind and epoch → when its bucket is full again. The kernel half, and userspace for sources it
/// knows; forgetting one that has been quiet forgets nothing, since an absent bucket is a full one.
#[btf_map(name = "gw_bucket")]
static BUCKET: LruHashMap<Holder, Bucket, MAX_SOURCES> = LruHashMap::new();

/// 0 → the bucket of all new sources; then, by listener, when a request was last let through as a seed. The
/// kernel half, each CPU its own.
#[btf_map(name = "gw_flood")]
static FLOOD: PerCpuArray<u64, { SEEDS as usize + 1 }> = PerCpuArray::new();

/// What there is to look at, and how userspace fares; each word with an end. Userspace, its heartbeat.
#[btf_map(name = "gw_state")]
static STATE: Array<u64, { pressure::WORDS }> = Array::new();

/// 0 → the time, where `WITH_CLOCK` says so: in tests.
#[btf_map(name = "gw_clock")]
static CLOCK: Array<u64, 1> = Array::new();

/// Verdict × family → packets and bytes, each CPU its own. The kernel half writes, userspace sums.
#[btf_map(name = "gw_verdicts")]
static COUNTERS: PerCpuArray<Count, { counters::CELLS }> = PerCpuArray::new();

/// Whether this kernel has the helpers for cookies. The verifier leaves out what a constant rules out, so
/// kernels without them load the rest.
#[unsafe(no_mangle)]
static WITH_COOKIES: Global<u8> = Global::new(0);

/// Whether time is what `CLOCK` says.
#[unsafe(no_mangle)]
static WITH_CLOCK: Global<u8> = Global::new(0);

const TCP: u16 = 6;
/// A full bucket's first charge is exchanged for, and whoever loses that finds a charged one; losing this often means as
/// many refills just then.
const TRIES: usize = 4;
/// One seed a second, listener and CPU keeps the stack taking cookies.
const SEED_EVERY_NS: u64 = 1_000_000_000;

/// What the allow list says of a source.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Exempt {
    Not,
    Trusted,
    Allowed,
}

/// What became of a charge.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    Granted,
    Refused,
    /// Too many others charged the same bucket just then.
    Contended,
    /// It has no bucket, and more sources without one came than there may.
    New,
}

/// A source's penalty in force.
#[derive(Clone, Copy)]
pub struct InForce(*mut Penalty);

impl InForce {
    #[inline(always)]
    pub fn level(self) -> u32 {
        // SAFETY: a look-up just returned the pointer, and the entry stays mapped while the program runs.
        unsafe { (*self.0).level }
    }

    /// Counts a packet that it cost the source.
    #[inline(always)]
    pub fn hit(self) {
        // SAFETY: as in `level`; the place of an aligned word of the entry.
        unsafe { add(&raw mut (*self.0).hits) }
    }
}

/// Monotonic nanoseconds. Their 4 ms grain is far below any sensible burst.
#[inline(always)]
pub fn now() -> u64 {
    if WITH_CLOCK.load() == 0 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    } else {
        CLOCK.get(0).copied().unwrap_or_default()
    }
}

/// Whether an end is still to come. The clock is not read for those that always or never are.
#[inline(always)]
fn is_to_come(end_ns: u64) -> bool {
    end_ns == FOREVER || (end_ns != 0 && now() < end_ns)
}

/// The slot in force and its policy.
#[inline(always)]
pub fn policy() -> Option<(u32, &'static Policy)> {
    let slot = *SELECTOR.get(0)?;
    let policy = POLICY.get(slot)?;
    (policy.generation != 0).then_some((slot, policy))
}

#[inline(always)]
pub fn attention() -> u64 {
    state(pressure::ATTENTION)
}

#[inline(always)]
fn with_cookies() -> bool {
    WITH_COOKIES.load() != 0
}

/// Whether cookies may be sent.
#[inline(always)]
pub fn may_answer(now: u64) -> bool {
    with_cookies() && Word::read(state(pressure::ARMED), now).is_some()
}

/// Whether what answers a cookie is looked for.
#[inline(always)]
pub fn takes_answers(now: u64) -> bool {
    with_cookies() && Word::read(state(pressure::TAKING), now).is_some()
}

/// Whether cookies are sent once they are due.
#[inline(always)]
pub fn can_arm(now: u64) -> bool {
    with_cookies() && Word::read(state(pressure::CAN_ARM), now).is_some()
}

/// Whether the source's class is shed just now, and the source with it.
#[inline(always)]
pub fn sheds(key: &[u64; 2], source: &Address, now: u64) -> bool {
    let words = Class::ALL.map(|class| state(pressure::SHED + class as u32));
    let Some(shedding) = Shedding::read(words, now) else { return false };
    let place = shedding.place(key, source);
    shedding.sheds_in_some_class(place) && shedding.sheds(class(source, now), place)
}

#[inline(always)]
fn state(place: u32) -> u64 {
    match STATE.get_ptr(place) {
        // SAFETY: a look-up just returned the pointer to an aligned word, which userspace may write.
        Some(word) => unsafe { word.read_volatile() },
        None => 0,
    }
}

/// What listens at a port of the slot.
#[inline(always)]
pub fn port(slot: u32, port: u16) -> Option<Port> {
    let found = *PORTS.get(Port::place(slot, port))?;
    (!found.is_closed()).then_some(found)
}

/// The place of the listener that a segment is for.
#[inline(always)]
pub fn listener(slot: u32, policy: &Policy, segment: &Segment) -> Option<u32> {
    let Segment { family, destination: address, destination_port: port, port: found, .. } = *segment;
    if family == Family::Ipv4 && found.is_at_the_hosts() {
        let [_, _, _, host] = address.words();
        return policy.ipv4_hosts.iter().any(|own| *own == host).then_some(found.listener());
    }
    let place = LISTENERS.get_ptr(Listener { slot, address, port, protocol: TCP })?;
    // SAFETY: a look-up just returned the pointer; this slot has no writer while it is in force.
    Some(unsafe { *place })
}

/// The lists that may hold a source: `HAS_ALLOW` and `HAS_DENY`.
#[inline(always)]
pub fn lists(slot: u32, policy: &Policy, segment: &Segment) -> u32 {
    let lists = policy.flags & (HAS_ALLOW | HAS_DENY);
    if lists == 0 || segment.family != Family::Ipv4 {
        return lists;
    }
    let [_, _, _, address] = segment.source.words();
    BLOCKS.get(slot).map_or(lists, |blocks| blocks.lists(address))
}

#[inline(always)]
pub fn exempts(source: Source) -> Exempt {
    let Some(rule) = ALLOW.get(&Key::new(source.host_bits(), source)) else { return Exempt::Not };
    hit(rule);
    if is_to_come(rule.until_ns) {
        Exempt::Allowed
    } else if rule.flags & TRUSTED != 0 {
        Exempt::Trusted
    } else {
        Exempt::Not
    }
}

#[inline(always)]
pub fn denies(source: Source) -> bool {
    let Some(rule) = DENY.get(&Key::new(source.host_bits(), source)) else { return false };
    let denied = is_to_come(rule.until_ns);
    if denied || is_to_come(rule.watched_until_ns) {
        hit(rule);
    }
    denied
}

#[inline(always)]
fn hit(rule: &Rule) {
    // SAFETY: the place of an aligned word of a map's value, which nobody else but this changes.
    unsafe { add((&raw const rule.hits).cast_mut()) }
}

/// Counts one; of two CPUs that do so at once one may be lost, which is worth the 20 ns that an atomic addition
/// takes. What must be exact is in `COUNTERS`.
///
/// # Safety
/// `word` is an aligned word of a map's value.
#[inline(always)]
unsafe fn add(word: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe { word.write_volatile(word.read_volatile().wrapping_add(1)) };
}

/// The penalty in force against a source.
#[inline(always)]
pub fn penalty(source: Address, now: u64) -> Option<InForce> {
    let mark = Mark::of(&source);
    // SAFETY: a look-up just returned the pointer to an aligned word, which userspace may write.
    let marks = unsafe { MARKS.get_ptr(mark.word())?.read_volatile() };
    if marks & mark.bit() == 0 {
        return None;
    }
    let penalty = PENALTY.get_ptr_mut(source)?;
    // SAFETY: a look-up just returned the pointer, and the entry stays mapped while the program runs.
    let until = unsafe { (*penalty).until_ns };
    (now < until).then_some(InForce(penalty))
}

/// How well a source is known.
#[inline(always)]
pub fn class(source: &Address, now: u64) -> Class {
    let Some(known) = KNOWN.get_ptr(*source) else { return Class::Unknown };
    // SAFETY: as in `penalty`.
    let known = unsafe { *known };
    if now >= known.until_ns {
        Class::Unknown
    } else if known.class == Class::Proven as u32 {
        Class::Proven
    } else {
        Class::Known
    }
}

/// Takes one from the holder's bucket. One without a bucket is first charged to that of all new sources, unless
/// it is no claim (`None`): there are as many of those as can answer.
///
/// A function of its own in the object too, for the verifier's sake.
#[inline(never)]
pub fn charge(budget: &Budget, new_sources: Option<&Budget>, holder: &Holder, now: u64) -> Charge {
    if let Some(bucket) = BUCKET.get_ptr_mut(holder) {
        return take_from(budget, bucket, now);
    }
    if new_sources.is_some_and(|new_sources| !admits_new(new_sources, now)) {
        return Charge::New;
    }
    let Some(full_at_ns) = budget.take(Budget::full(now), now) else { return Charge::Refused };
    let bucket = Bucket { full_at_ns, refused: 0, refused_at_ns: 0 };
    if BUCKET.insert(holder, bucket, BPF_NOEXIST.into()).is_ok() {
        return Charge::Granted;
    }
    // Another CPU was first, or the map has no room to spare: then the failure is ours and it passes.
    match BUCKET.get_ptr_mut(holder) {
        Some(bucket) => take_from(budget, bucket, now),
        None => Charge::Granted,
    }
}

/// Whether the holder was refused just now.
#[inline(always)]
pub fn is_overdrawn(holder: &Holder, now: u64) -> bool {
    // SAFETY: as in `penalty`.
    BUCKET.get_ptr(holder).is_some_and(|bucket| unsafe { *bucket }.is_overdrawn(now))
}

/// Gives the holder a full bucket unless it has one.
#[inline(always)]
pub fn remember(holder: Holder, now: u64) {
    let full = Bucket { full_at_ns: now, refused: 0, refused_at_ns: 0 };
    // Where there is one, or no room, nothing is lost.
    let _ = BUCKET.insert(holder, full, BPF_NOEXIST.into());
}

/// Charges a bucket that other CPUs may be charging too. A charged one is added to, which nobody loses; what turns
/// out to be too much is given back, so that two CPUs never grant the same connection twice.
#[inline(always)]
fn take_from(budget: &Budget, bucket: *mut Bucket, now: u64) -> Charge {
    // SAFETY: a look-up just returned the pointer, so it is aligned and stays mapped while the program
    // runs; if the entry is reused meanwhile, another source pays, and the changes below still are one each.
    let (word, mut seen) = unsafe {
        let word = &raw mut (*bucket).full_at_ns;
        (word, word.read_volatile())
    };
    for _ in 0..TRIES {
        let Some(next) = budget.take(seen, now) else { return refuse(bucket, now) };
        if Budget::is_charged(seen, now) {
            let cost = next.wrapping_sub(seen);
            // SAFETY: as above.
            let before = unsafe { fetch_add(word, cost) };
            if budget.take(before, now).is_some() {
                return Charge::Granted;
            }
            // SAFETY: as above.
            unsafe { fetch_add(word, cost.wrapping_neg()) };
            return refuse(bucket, now);
        }
        // SAFETY: as above. The intrinsic, because the target offers no `AtomicU64`.
        let (found, taken) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, seen, next)
        };
        if taken {
            return Charge::Granted;
        }
        seen = found;
    }
    Charge::Contended
}

/// Adds, and tells what was there before.
///
/// # Safety
/// `word` is an aligned word of a map's value.
#[inline(always)]
unsafe fn fetch_add(word: *mut u64, by: u64) -> u64 {
    let before: u64;
    // SAFETY: the caller's promise. By hand, since the compiler knows of no sum with an answer for this target; the
    // kernel has it for as long as the exchange (Linux 5.12).
    unsafe { asm!("{0} = atomic_fetch_add((u64 *)({1} + 0), {0})", inout(reg) by => before, in(reg) word) };
    before
}

#[inline(always)]
fn refuse(bucket: *mut Bucket, now: u64) -> Charge {
    // SAFETY: as in `take_from`; a count, and a time that any of its writers may have written last.
    unsafe {
        add(&raw mut (*bucket).refused);
        (&raw mut (*bucket).refused_at_ns).write_volatile(now);
    }
    Charge::Refused
}

/// Whether this CPU has room for another source without a bucket.
#[inline(always)]
fn admits_new(budget: &Budget, now: u64) -> bool {
    let Some(word) = FLOOD.get_ptr_mut(NEW_SOURCES) else { return true };
    // SAFETY: a look-up just returned the pointer, and this CPU's word has no other writer.
    unsafe {
        match budget.take(*word, now) {
            Some(next) => {
                *word = next;
                true
            }
            None => false,
        }
    }
}

/// Whether the stack of this listener needs to see a request, on this CPU.
#[inline(always)]
pub fn is_seed_due(listener: u32, now: u64) -> bool {
    let Some(last) = FLOOD.get_ptr_mut(1 + listener % SEEDS) else { return false };
    // SAFETY: as in `admits_new`.
    unsafe {
        let due = *last == 0 || now.wrapping_sub(*last) >= SEED_EVERY_NS;
        if due {
            *last = now;
        }
        due
    }
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
