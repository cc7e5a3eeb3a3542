//! What the process may do: all it was given until the ports are bound and the kernel half is attached,
//! nothing from then on.
//!
//! `server` calls it before any other thread exists: Linux keeps capabilities for each thread, and a
//! thread inherits those of its maker.

use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Group, Uid, User, initgroups, setgid, setgroups, setuid};
use rustix::io::Errno;
use rustix::system::uname;
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs,
};

use crate::config::Account;

/// Why the gateway cannot run as it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("user \"{0}\": this host knows no such user: create it (`useradd --system {0}`) or give UID:GID")]
    NoUser(String),
    #[error("user: this host knows no group \"{0}\": create it or give UID:GID")]
    NoGroup(String),
    #[error(
        "cannot become user \"{user}\": {source}; that needs CAP_SETUID and CAP_SETGID: start the gateway as \
         root, or as that user and without `user` in the configuration"
    )]
    Become { user: String, source: io::Error },
    #[error("cannot give up capabilities: {0}")]
    Drop(io::Error),
}

/// Whom to become, found in this host's list of users.
#[derive(Debug)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
    /// For the groups that the host's lists add; `None`: a number that has no entry there.
    name: Option<CString>,
}

impl Identity {
    pub fn find(account: &Account) -> Result<Self, Error> {
        let none = || Error::NoUser(account.user.clone());
        let number = account.user.parse().ok();
        let user = match number {
            Some(number) => User::from_uid(Uid::from_raw(number)),
            None => User::from_name(&account.user),
        };
        // A list that cannot be read knows nobody.
        let user = user.ok().flatten();
        let gid = match &account.group {
            Some(group) => group_id(group)?,
            None => user.as_ref().map(|user| user.gid).ok_or_else(none)?,
        };
        let uid = match (&user, number) {
            (Some(user), _) => user.uid,
            (None, Some(number)) => Uid::from_raw(number),
            (None, None) => return Err(none()),
        };
        let name = user.and_then(|user| CString::new(user.name).ok());
        Ok(Self { uid, gid, name })
    }

    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    pub fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    fn assume(&self) -> nix::Result<()> {
        match &self.name {
            Some(name) => initgroups(name, self.gid)?,
            None => setgroups(&[self.gid])?,
        }
        setgid(self.gid)?;
        setuid(self.uid)
    }

    fn is_current(&self) -> bool {
        let (uid, gid) = (Uid::current(), Gid::current());
        uid == self.uid && uid == Uid::effective() && gid == self.gid && gid == Gid::effective()
    }
}

/// Becomes `identity`, if one is given, and drops every capability for good: nothing that is executed
/// later gains any either. On an error the process must end.
pub fn give_up(account: Option<(&Account, &Identity)>) -> Result<(), Error> {
    debug_assert!(is_single_threaded(), "a thread would keep its capabilities");
    let failed = |error: Errno| Error::Drop(error.into());
    // First, since it takes a capability itself; without that one there is nothing to gain from the rest.
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // Above the last that this kernel has, or not allowed to.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let kept = kept(&uname().release().to_string_lossy());
    set_keep_capabilities(!kept.is_empty()).map_err(failed)?;
    if let Some((account, identity)) = account
        && !identity.is_current()
    {
        let become_it =
            |error: nix::Error| Error::Become { user: account.user.clone(), source: error.into() };
        identity.assume().map_err(become_it)?;
    }
    set_no_new_privs(true).map_err(failed)?;
    let held = rustix::thread::capabilities(None).map_err(failed)?.permitted & kept;
    let sets = CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed)
}

/// What the kernel half needs for as long as it runs. Before 5.19 that is CAP_BPF where
/// `kernel.unprivileged_bpf_disabled` is set: each call of bpf(2) asked for it, not only those that create.
fn kept(release: &str) -> CapabilitySet {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (5, 19) => CapabilitySet::BPF,
        _ => CapabilitySet::empty(),
    }
}

fn group_id(text: &str) -> Result<Gid, Error> {
    if let Ok(number) = text.parse() {
        return Ok(Gid::from_raw(number));
    }
    let group = Group::from_name(text).ok().flatten();
    group.map(|group| group.gid).ok_or_else(|| Error::NoGroup(text.to_owned()))
}

fn is_single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_kernels_leave_a_capability() {
        for (release, kept_set) in [
            ("5.15.0-91-generic", CapabilitySet::BPF),
            ("5.18.19", CapabilitySet::BPF),
            ("5.19.0", CapabilitySet::empty()),
            ("6.1.0-18-amd64", CapabilitySet::empty()),
            ("6.18.44", CapabilitySet::empty()),
            ("unheard of", CapabilitySet::empty()),
        ] {
            assert_eq!(kept(release), kept_set, "{release}");
        }
    }

    #[test]
    fn users_by_name_and_by_number() {
        let find = |user: &str, group: Option<&str>| {
            Identity::find(&Account { user: user.to_owned(), group: group.map(str::to_owned) })
        };
        let root = find("root", None).unwrap();
        assert_eq!((root.uid(), root.gid(), root.name.as_deref()), (0, 0, Some(c"root")));
        let same = find("0", None).unwrap();
        assert_eq!((same.uid(), same.name.as_deref()), (0, Some(c"root")));
        // The least that every Linux counts as nobody's.
        let number = find("4000000000", Some("4000000001")).unwrap();
        assert_eq!((number.uid(), number.gid(), number.name), (4_000_000_000, 4_000_000_001, None));
        assert!(matches!(find("4000000000", None), Err(Error::NoUser(_))));
        assert!(matches!(find("no-such-user", Some("root")), Err(Error::NoUser(_))));
        assert!(matches!(find("root", Some("no-such-group")), Err(Error::NoGroup(_))));
    }
}
