//! What this host can do for the kernel half, point by point, and what to do where it cannot.
//!
//! `gateway doctor` prints it. It attaches to nothing and changes nothing; what only an attempt could tell
//! (whether a driver takes XDP) it does not say.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::statfs;
use rustix::system::uname;
use rustix::time::{ClockId, clock_getres};
use serde::Serialize;

use super::interface::{Interface, tcx};
use super::object;
use super::pins::BPF_FS;
use super::sys;
use crate::config::Kernel;

/// One point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub point: String,
    pub found: String,
    pub state: State,
    /// What to do, where something is to be done.
    pub advice: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Good,
    /// It works without, or not as well.
    Limited,
    /// The kernel half does not run.
    Missing,
}

/// The least kernel, and what later ones bring.
const LEAST: Release = (5, 15);
const FRAGMENTS: Release = (5, 18);
const FREE_DESCRIPTORS: Release = (5, 19);
const TCX: Release = (6, 6);
/// What many drivers take of a packet in one piece.
const ONE_PIECE_BYTES: u32 = 3_498;

type Release = (u32, u32);

/// Every point for the interfaces and settings of `config`.
pub fn examine(config: &Kernel) -> Vec<Finding> {
    let name = uname().release().to_string_lossy().into_owned();
    let release = release(&name);
    let mut findings = vec![object_is_there(), kernel(&name, release), bpf(), capabilities()];
    findings.extend([frags(release), tc(release), cookies(), syncookies(), privileges(release), clock()]);
    findings.extend(Some(config.cookies).filter(|sends| *sends).and_then(|_| conntrack()));
    findings.push(pins(config.persist.as_deref()));
    if config.interfaces.is_empty() {
        let advice = "name one with kernel.interfaces or --iface: the kernel half attaches to no other";
        findings.push(limited("interfaces", "none is named", advice));
    }
    for name in &config.interfaces {
        interface(name, release, &mut findings);
    }
    findings
}

fn object_is_there() -> Finding {
    match object::is_built_in() {
        true => good("object", "in this binary"),
        false => {
            missing("object", "not in this binary", "`cargo xtask build-ebpf`, then build the gateway again")
        }
    }
}

fn kernel(name: &str, release: Release) -> Finding {
    if release >= LEAST { good("kernel", name) } else { missing("kernel", name, "Linux 5.15 is the least") }
}

fn bpf() -> Finding {
    match sys::probe() {
        Ok(()) => good("bpf(2)", "answers"),
        Err(error) => {
            let advice = "a kernel with CONFIG_BPF_SYSCALL, and a sandbox that allows bpf(2)";
            missing("bpf(2)", &error.to_string(), advice)
        }
    }
}

fn capabilities() -> Finding {
    let lacking = object::lacking();
    if lacking.is_empty() {
        return good("capabilities", "all that loading takes");
    }
    let advice = "run the gateway as root, or `setcap cap_bpf,cap_net_admin,cap_perfmon+ep` on the binary";
    missing("capabilities", &format!("this process lacks {}", lacking.join(", ")), advice)
}

fn frags(release: Release) -> Finding {
    if release >= FRAGMENTS {
        return good("jumbo frames", "XDP takes packets in several pieces");
    }
    let advice = format!("an MTU up to {ONE_PIECE_BYTES} on these interfaces, or Linux 5.18");
    limited("jumbo frames", "XDP takes packets in one piece only", &advice)
}

fn tc(release: Release) -> Finding {
    if release >= TCX {
        return good("TCX", "there, for kernel.mode \"tc\"");
    }
    limited("TCX", "not there", "Linux 6.6 for kernel.mode \"tc\", where somebody else holds the XDP hook")
}

fn cookies() -> Finding {
    if object::has_cookies() {
        return good("SYN cookies in XDP", "the kernel can make and check them");
    }
    let advice = "Linux 6.0 with CONFIG_SYN_COOKIES; a flood from forged sources meets the stack until then";
    limited("SYN cookies in XDP", "not available to this process", advice)
}

fn syncookies() -> Finding {
    let (point, value) = ("net.ipv4.tcp_syncookies", setting("net/ipv4/tcp_syncookies"));
    match value.as_deref() {
        Some("0") => limited(point, "0: the stack takes no cookie", "sysctl net.ipv4.tcp_syncookies=1"),
        Some("2") => {
            let advice = "1, so that connections keep window scaling and SACK while there is no flood";
            limited(point, "2: every connection begins with a cookie", advice)
        }
        Some(value) => good(point, value),
        None => limited(point, "cannot be read", "is /proc mounted?"),
    }
}

/// `None`: nothing follows connections here.
fn conntrack() -> Option<Finding> {
    let point = "net.netfilter.nf_conntrack_tcp_loose";
    let value = setting("net/netfilter/nf_conntrack_tcp_loose")?;
    Some(if value == "0" {
        let advice = "1, or kernel.cookies false, where a firewall of this host drops what is INVALID: it would drop \
                      whoever answers a SYN cookie";
        limited(point, "0: a connection whose first packets XDP has taken is INVALID", advice)
    } else {
        good(point, &value)
    })
}

fn privileges(release: Release) -> Finding {
    let value = setting("kernel/unprivileged_bpf_disabled").unwrap_or_else(|| "0".to_owned());
    let point = "after the start";
    if release >= FREE_DESCRIPTORS || value == "0" {
        return good(point, "the gateway keeps no capability");
    }
    limited(point, "the gateway keeps CAP_BPF", "Linux 5.19 asks for none once maps and programs are open")
}

fn clock() -> Finding {
    let grain = clock_getres(ClockId::MonotonicCoarse);
    let ms = grain.tv_nsec / 1_000_000;
    let found = format!("{ms} ms, at {} Hz", 1_000 / ms.max(1));
    if ms <= 10 {
        return good("grain of the clock", &found);
    }
    limited("grain of the clock", &found, "a kernel of 100 Hz or more: bursts are measured by it")
}

fn pins(persist: Option<&Path>) -> Finding {
    let (folder, wanted) = match persist {
        Some(folder) => (folder, true),
        None => (Path::new("/sys/fs/bpf"), false),
    };
    // The folder itself is made by the gateway.
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(folder);
    let is_bpf = statfs(there).is_ok_and(|found| found.f_type.cast_unsigned() == BPF_FS);
    let advice = "`mount -t bpf bpf /sys/fs/bpf`";
    match (is_bpf, wanted) {
        (true, _) => good("BPF file system", &format!("at {}", there.display())),
        (false, true) => missing("BPF file system", &format!("{} is not on one", folder.display()), advice),
        (false, false) => {
            let advice = format!("{advice}, for kernel.persist");
            limited("BPF file system", &format!("not at {}", folder.display()), &advice)
        }
    }
}

fn interface(name: &str, release: Release, findings: &mut Vec<Finding>) {
    let point = |what: &str| format!("{name}: {what}");
    let interface = match Interface::look(name) {
        Ok(interface) => interface,
        Err(error) => {
            findings.push(missing(name, &error.to_string(), "`ip link` lists the interfaces of this host"));
            return;
        }
    };
    let driver =
        interface.kind.clone().or_else(|| driver(name)).unwrap_or_else(|| "unknown driver".to_owned());
    let up = if interface.is_up { "up" } else { "down" };
    findings.push(if interface.is_ethernet {
        good(name, &format!("{driver}, {up}"))
    } else {
        let advice = "its packets bear no Ethernet header: protect the interface below it";
        limited(name, &format!("{driver}, {up}"), advice)
    });
    let mtu = interface.mtu.to_string();
    findings.push(if interface.mtu > ONE_PIECE_BYTES && release < FRAGMENTS {
        limited(&point("MTU"), &mtu, &format!("at most {ONE_PIECE_BYTES} for XDP on this kernel"))
    } else {
        good(&point("MTU"), &mtu)
    });
    findings.push(match &interface.xdp {
        None => good(&point("XDP hook"), "free"),
        Some(holder) if holder.is_gateway() => {
            let mode = if holder.is_generic { "generic" } else { "driver" };
            good(&point("XDP hook"), &format!("a gateway's, in {mode} mode, {holder}"))
        }
        Some(holder) => {
            let advice = format!("`bpftool net list dev {name}`; detach it, or kernel.mode \"tc\"");
            limited(&point("XDP hook"), &format!("somebody else's, {holder}"), &advice)
        }
    });
    let behind = tcx(name);
    if !behind.is_empty() {
        let names: Vec<String> = behind.iter().map(ToString::to_string).collect();
        findings.push(good(&point("TCX ingress"), &names.join(", ")));
    }
    let filters = ["all", name].map(|place| setting(&format!("net/ipv4/conf/{place}/rp_filter")));
    let filter = filters.iter().flatten().filter_map(|value| value.parse::<u8>().ok()).max().unwrap_or(0);
    let found = match filter {
        0 => "0: forged sources reach the stack",
        1 => "1: the stack drops sources that it would not answer this way",
        _ => "2: the stack drops sources that it could not answer at all",
    };
    findings.push(good(&point("rp_filter"), found));
}

/// Of hardware; sysfs may be another namespace's, and then says nothing.
fn driver(name: &str) -> Option<String> {
    let link = fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// A value under /proc/sys, of this thread's network namespace.
fn setting(path: &str) -> Option<String> {
    let read = || -> io::Result<String> { fs::read_to_string(Path::new("/proc/sys").join(path)) };
    read().ok().map(|value| value.trim().to_owned())
}

/// `6.1.0-18-amd64` is 6.1.
fn release(name: &str) -> Release {
    let mut numbers = name.split(['.', '-']).map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn good(point: &str, found: &str) -> Finding {
    Finding { point: point.to_owned(), found: found.to_owned(), state: State::Good, advice: None }
}

fn limited(point: &str, found: &str, advice: &str) -> Finding {
    Finding { state: State::Limited, advice: Some(advice.to_owned()), ..good(point, found) }
}

fn missing(point: &str, found: &str, advice: &str) -> Finding {
    Finding { state: State::Missing, ..limited(point, found, advice) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (name, found) in [
            ("6.18.44-fc-v669", (6, 18)),
            ("5.15.0-91-generic", (5, 15)),
            ("6.1", (6, 1)),
            ("6-rc1", (6, 0)),
            ("unheard of", (0, 0)),
        ] {
            assert_eq!(release(name), found, "{name}");
        }
    }

    #[test]
    fn older_kernels_lack_what_came_later() {
        for (release, states) in [
            ((5, 10), [State::Missing, State::Limited, State::Limited]),
            ((5, 15), [State::Good, State::Limited, State::Limited]),
            ((6, 1), [State::Good, State::Good, State::Limited]),
            ((6, 6), [State::Good; 3]),
        ] {
            let found = [kernel("", release), frags(release), tc(release)];
            assert_eq!(found.map(|finding| finding.state), states, "{release:?}");
        }
    }
}
