//! What outlives the process under `kernel.persist`: links, pinned by interface and hook, and maps, pinned
//! in a folder whose name says which contract of the two halves they follow.
//!
//! `Datapath::start` opens them. A map is used again only if it is of the very shape that this build's
//! object defines; a link is moved to the new program in one step. The folder is locked while a gateway
//! holds it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya_obj::{EbpfSectionKind, Object};
use rustix::fs::{FlockOperation, flock, statfs};

use super::attach::Hook;
use super::error::{Error, chain};

/// Of the sources of gateway-common: they say what the bytes in the maps mean.
pub const CONTRACT: &str = env!("GATEWAY_CONTRACT");
/// `BPF_FS_MAGIC`
pub const BPF_FS: u64 = 0xcafe_4a11;

/// The pinned things of one folder.
pub struct Pins {
    folder: PathBuf,
    maps: PathBuf,
    shapes: BTreeMap<String, Shape>,
    /// This start has made the maps; they go again if it fails before a link uses them.
    fresh: bool,
    lock: File,
}

/// What must be equal for a map to be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

/// A link that an earlier gateway has left.
pub struct Left {
    pub interface: String,
    pub hook: Hook,
    pub path: PathBuf,
}

impl Pins {
    /// Opens `folder`, which is made if it is not there, for a gateway with this object.
    /// `held`: the lock of the gateway that hands the folder over.
    pub fn open(folder: &Path, object: &[u8], held: Option<OwnedFd>) -> Result<Self, Error> {
        let failed = |source| Error::Persist { folder: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let is_bpf = statfs(folder).map_err(|error| failed(error.into()))?.f_type.cast_unsigned() == BPF_FS;
        if !is_bpf {
            return Err(Error::NoBpfFs(folder.to_owned()));
        }
        let lock = lock(folder, held).map_err(failed)?.ok_or_else(|| Error::Held(folder.to_owned()))?;
        let shapes = shapes(object)?;
        let maps = folder.join(name(&shapes));
        let fresh = !maps.exists();
        fs::create_dir_all(&maps).map_err(failed)?;
        let pins = Self { folder: folder.to_owned(), maps, shapes, fresh, lock };
        for (name, shape) in &pins.shapes {
            pins.check(name, *shape)?;
        }
        Ok(pins)
    }

    /// Lets go of all that is pinned in `folder`: programs that nobody else holds detach, maps are freed.
    pub fn release(folder: &Path) -> Result<(), Error> {
        let failed = |source| Error::Persist { folder: folder.to_owned(), source };
        if !folder.exists() {
            return Ok(());
        }
        let _lock = lock(folder, None).map_err(failed)?.ok_or_else(|| Error::Held(folder.to_owned()))?;
        fs::remove_dir_all(folder).map_err(failed)
    }

    /// The lock, for a successor.
    pub fn lock(&self) -> io::Result<OwnedFd> {
        Ok(self.lock.try_clone()?.into())
    }

    /// Whether nothing was pinned for this contract of the two halves.
    pub fn are_fresh(&self) -> bool {
        self.fresh
    }

    /// Where each map of the object is pinned, or is to be.
    pub fn maps(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.shapes.keys().map(|name| (name.as_str(), self.maps.join(name)))
    }

    pub fn link(&self, interface: &str, hook: Hook) -> PathBuf {
        self.inside().join(format!("{}-{interface}", hook.word()))
    }

    /// Every link that is pinned.
    pub fn left(&self) -> Result<Vec<Left>, Error> {
        let read = |entry: io::Result<fs::DirEntry>| {
            let path = entry?.path();
            let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let link = Hook::ALL.into_iter().find_map(|hook| {
                let interface = file.strip_prefix(hook.word())?.strip_prefix('-')?.to_owned();
                Some((interface, hook))
            });
            Ok(link.map(|(interface, hook)| Left { interface, hook, path }))
        };
        let links = fs::read_dir(self.inside()).and_then(|entries| entries.map(read).collect());
        let links: Vec<Option<Left>> = links.map_err(|source| self.failed(source))?;
        Ok(links.into_iter().flatten().collect())
    }

    /// The folders of maps that follow another contract: those of the build before.
    pub fn other_maps(&self) -> Result<Vec<PathBuf>, Error> {
        let mut folders = self.folders()?;
        folders.retain(|path| path.file_name() != self.maps.file_name());
        Ok(folders)
    }

    /// Forgets links other than these, then the maps that no link leads to.
    pub fn clear(&self, links: &[PathBuf]) -> Result<(), Error> {
        for left in self.left()?.iter().filter(|left| !links.contains(&left.path)) {
            fs::remove_file(&left.path).map_err(|source| self.failed(source))?;
        }
        for path in self.other_maps()? {
            fs::remove_dir_all(&path).map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    /// Takes back the maps that this start has made. Those of a link that it has moved stay with the link.
    pub fn abandon(&self) {
        if self.fresh {
            // What stays is taken up by the next start; an empty folder goes.
            let maps = self.inside().join(self.maps.file_name().unwrap_or_default());
            let _ = fs::remove_dir_all(maps).and_then(|()| fs::remove_dir(&self.folder));
        }
    }

    /// Lets `uid` pin and unpin here.
    pub fn give_to(&self, uid: u32, gid: u32) -> Result<(), Error> {
        let mut all = self.folders()?;
        all.push(self.inside());
        let give = |path: &PathBuf| std::os::unix::fs::chown(path, Some(uid), Some(gid));
        all.iter().try_for_each(give).map_err(|source| self.failed(source))
    }

    /// The folder, for whoever has opened it and may no longer reach it by its path.
    fn inside(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.lock.as_raw_fd()).into()
    }

    fn folders(&self) -> Result<Vec<PathBuf>, Error> {
        let entries = fs::read_dir(self.inside()).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let paths = entries.map_err(|source| self.failed(source))?.into_iter().map(|entry| entry.path());
        Ok(paths.filter(|path| path.is_dir()).collect())
    }

    fn check(&self, name: &str, wanted: Shape) -> Result<(), Error> {
        let path = self.maps.join(name);
        if !path.exists() {
            return Ok(());
        }
        let info = MapInfo::from_pin(&path).map_err(|error| self.failed(io::Error::other(chain(&error))))?;
        let found = Shape {
            kind: info.map_type().map_or(u32::MAX, |kind| kind as u32),
            key_bytes: info.key_size(),
            value_bytes: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        };
        if found == wanted { Ok(()) } else { Err(Error::Shape { path, found: format!("{found:?}") }) }
    }

    pub fn failed(&self, source: io::Error) -> Error {
        Error::Persist { folder: self.folder.clone(), source }
    }
}

/// `None`: another process holds it.
fn lock(folder: &Path, held: Option<OwnedFd>) -> io::Result<Option<File>> {
    let file = File::open(folder)?;
    let place = |file: &File| file.metadata().map(|at| (at.dev(), at.ino()));
    // A lock belongs to the opened file, however many hold its descriptor.
    if let Some(held) = held.map(File::from)
        && place(&held)? == place(&file)?
    {
        return Ok(Some(held));
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What the object defines, the compiler's own maps aside: they hold constants.
fn shapes(object: &[u8]) -> Result<BTreeMap<String, Shape>, Error> {
    let parsed = Object::parse(object)
        .map_err(|error| Error::Refused { program: "gateway-ebpf", reason: chain(&error) })?;
    let ours = parsed.maps.into_iter().filter(|(_, map)| map.section_kind() == EbpfSectionKind::BtfMaps);
    let shape = |map: aya_obj::Map| Shape {
        kind: map.map_type(),
        key_bytes: map.key_size(),
        value_bytes: map.value_size(),
        entries: map.max_entries(),
        flags: map.map_flags(),
    };
    Ok(ours.map(|(name, map)| (name, shape(map))).collect())
}

/// The folder's name: FNV-1a of the contract and of the maps' shapes.
fn name(shapes: &BTreeMap<String, Shape>) -> String {
    let text = format!("{CONTRACT} {shapes:?}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("maps-{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_shape_is_another_folder() {
        let shape = Shape { kind: 1, key_bytes: 4, value_bytes: 8, entries: 10, flags: 0 };
        let of = |shape| name(&BTreeMap::from([("gw_a".to_owned(), shape)]));
        let others = [
            Shape { kind: 2, ..shape },
            Shape { key_bytes: 8, ..shape },
            Shape { value_bytes: 4, ..shape },
            Shape { entries: 1_000, ..shape },
            Shape { flags: 1, ..shape },
        ];
        assert_eq!(of(shape), of(shape));
        for other in others {
            assert_ne!(of(shape), of(other), "{other:?}");
        }
        assert_ne!(of(shape), name(&BTreeMap::from([("gw_b".to_owned(), shape)])));
    }
}
