//! Reads what the process has used up: memory, by its cgroups and its own account, and file descriptors.
//!
//! The guard asks it ten times a second. What it always reads stays open, for to open one of the kernel's files costs more
//! than what it says. What cannot be read counts as unused.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

pub struct Meter {
    /// In pages: all there is, what is resident, and more.
    own: Option<Told>,
    /// The process's cgroup and those around it, innermost first.
    cgroups: Vec<Cgroup>,
    host_bytes: u64,
}

/// A file of the kernel's, which says something new each time.
struct Told {
    file: File,
    text: RefCell<Vec<u8>>,
}

/// One cgroup.
struct Cgroup {
    limit: Told,
    /// Of the few that have one.
    usage: PathBuf,
    stat: PathBuf,
    /// The row of `stat` with what the kernel takes back before it kills: pages of files that nobody has used lately.
    reclaimable: &'static str,
}

/// What the versions call the same files, and a row of the last one.
type Version = [&'static str; 4];
const VERSION_1: Version =
    ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"];
const VERSION_2: Version = ["memory.max", "memory.current", "memory.stat", "inactive_file"];

impl Meter {
    pub fn of_this_process() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let host_bytes = row(&read("/proc/meminfo"), "MemTotal:").unwrap_or(u64::MAX / 1024) * 1024;
        let cgroups = cgroups(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
        Self { own: Told::open(Path::new("/proc/self/statm")), cgroups, host_bytes }
    }

    /// The share of memory in use, of the tightest limit. `most`: what the process may take by configuration.
    pub fn memory(&self, most: Option<u64>) -> f64 {
        let own = self.resident_bytes() as f64 / most.unwrap_or(self.host_bytes) as f64;
        self.cgroups.iter().filter_map(Cgroup::share).fold(own, f64::max)
    }

    fn resident_bytes(&self) -> u64 {
        let pages = self.own.as_ref().and_then(|own| own.read(|text| text.split(' ').nth(1)?.parse().ok()));
        pages.unwrap_or(0) * rustix::param::page_size() as u64
    }

    /// The share of file descriptors in use.
    pub fn descriptors(&self) -> f64 {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        open_descriptors() as f64 / limit as f64
    }
}

/// Since Linux 6.2 the folder's size is the number; before, its entries are counted.
fn open_descriptors() -> u64 {
    let size = fs::metadata("/proc/self/fd").map_or(0, |folder| folder.size());
    if size > 0 { size } else { fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64) }
}

impl Told {
    fn open(path: &Path) -> Option<Self> {
        /// More than any of them says.
        const ROOM_BYTES: usize = 256;
        Some(Self { file: File::open(path).ok()?, text: RefCell::new(vec![0; ROOM_BYTES]) })
    }

    /// What `of` makes of what it says now.
    fn read<T>(&self, of: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let mut text = self.text.borrow_mut();
        let length = self.file.read_at(&mut text, 0).ok()?;
        of(std::str::from_utf8(&text[..length]).ok()?)
    }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

impl Cgroup {
    fn open(folder: &Path, [limit, usage, stat, reclaimable]: Version) -> Option<Self> {
        let [limit, usage, stat] = [limit, usage, stat].map(|name| folder.join(name));
        Some(Self { limit: Told::open(&limit)?, usage, stat, reclaimable })
    }

    /// What is used and cannot be taken back, of the limit; `None`: there is none.
    fn share(&self) -> Option<f64> {
        // "max", or of version 1 nearly 2^63.
        let limit = self.limit.read(number).filter(|&limit| limit < 1 << 62)?;
        let usage = number(&fs::read_to_string(&self.usage).ok()?)?;
        let reclaimable = row(&fs::read_to_string(&self.stat).unwrap_or_default(), self.reclaimable);
        Some(usage.saturating_sub(reclaimable.unwrap_or_default()) as f64 / limit.max(1) as f64)
    }
}

/// The number behind `name` at the beginning of a row.
fn row(text: &str, name: &str) -> Option<u64> {
    let mut rows = text.lines().map(str::split_whitespace);
    rows.find_map(|mut words| if words.next() == Some(name) { words.next()?.parse().ok() } else { None })
}

/// The memory cgroup of a process and those around it.
fn cgroups(of_process: &str, mounts: &str) -> Vec<Cgroup> {
    let opened = places(of_process, mounts).into_iter().map(|(folders, version)| {
        folders.iter().filter_map(|folder| Cgroup::open(folder, version)).collect::<Vec<_>>()
    });
    opened.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
}

/// Where they may be, by `/proc/self/cgroup` and `/proc/self/mountinfo`: a host may have both versions, and the
/// memory controller in one of them.
fn places(of_process: &str, mounts: &str) -> Vec<(Vec<PathBuf>, Version)> {
    // number:controllers:path; version 2 has no controllers.
    let lines = of_process.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let places = lines.filter_map(|(controllers, path)| {
        let (kind, version) = match controllers {
            "" => ("cgroup2", VERSION_2),
            _ if controllers.split(',').any(|controller| controller == "memory") => ("cgroup", VERSION_1),
            _ => return None,
        };
        let (root, point) = mount(mounts, kind)?;
        // Within a container the mount may show a part of the tree only.
        let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(path));
        let innermost = Path::new(point).join(below.strip_prefix("/").unwrap_or(below));
        let folders = innermost.ancestors().take_while(|folder| folder.starts_with(point));
        Some((folders.map(Path::to_owned).collect(), version))
    });
    places.collect()
}

/// Root and place of the mount of a cgroup hierarchy with the memory controller.
fn mount<'a>(mounts: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    mounts.lines().find_map(|line| {
        let (place, about) = line.split_once(" - ")?;
        let mut about = about.split(' ');
        let (of_kind, options) = (about.next()? == kind, about.nth(1)?);
        let memory = kind == "cgroup2" || options.split(',').any(|option| option == "memory");
        let mut place = place.split(' ').skip(3);
        (of_kind && memory).then_some((place.next()?, place.next()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_found_from_the_process_outwards() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            folders("0::/system.slice/gateway.service\n", mounts),
            ["/sys/fs/cgroup/system.slice/gateway.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup"]
        );
        let mounts = "40 30 0:35 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
                      41 30 0:36 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n";
        assert_eq!(
            folders("3:cpu:/docker/abc\n4:memory:/docker/abc/inner\n", mounts),
            ["/sys/fs/cgroup/memory/inner", "/sys/fs/cgroup/memory"]
        );
        assert!(folders("0::/\n", "").is_empty());
    }

    /// The folders, whether or not they are there.
    fn folders(of_process: &str, mounts: &str) -> Vec<String> {
        let folders = places(of_process, mounts).into_iter().flat_map(|(folders, _)| folders);
        folders.map(|folder| folder.display().to_string()).collect()
    }

    #[test]
    fn what_this_process_uses_is_some_of_what_there_is() {
        let meter = Meter::of_this_process();
        let (memory, descriptors) = (meter.memory(None), meter.descriptors());
        assert!(memory > 0.0 && memory < 1.0, "{memory}");
        assert!(descriptors > 0.0 && descriptors < 1.0, "{descriptors}");
        let resident = meter.resident_bytes();
        assert!(meter.memory(Some(resident / 2)) > 1.5, "{resident}");
        let before = open_descriptors();
        let _held: Vec<_> = (0..10).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        assert!(open_descriptors() >= before + 10);
    }
}
