//! Puts the eBPF object where `datapath` embeds it from. It does not build it: that takes another
//! compiler and is `cargo xtask build-ebpf`. Without an object, or with one that is older than its sources, the
//! gateway builds all the same, and cargo says what to do. Also names the contract of the two halves, by which
//! pinned maps are told apart.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What the object is made of.
const SOURCES: [&str; 4] =
    ["gateway-ebpf/src", "gateway-ebpf/Cargo.toml", "gateway-ebpf/Cargo.lock", "gateway-common"];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies inside the workspace");
    let folder = root.join("gateway-ebpf/target/bpfel-unknown-none");
    let release = folder.join("release/gateway-ebpf");
    let logging = folder.join("debug/gateway-ebpf");
    println!("cargo::rerun-if-changed=build.rs");
    for object in [&release, &logging] {
        println!("cargo::rerun-if-changed={}", watched(object).display());
    }
    // The variant that logs is for development; a release never carries it.
    let debug = env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    let object = if debug && logging.is_file() { logging } else { release };
    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("gateway-ebpf");
    if let Ok(built) = fs::metadata(&object).and_then(|object| object.modified()) {
        if let Some(newer) = SOURCES.iter().find(|source| newest(&root.join(source)) > Some(built)) {
            println!(
                "cargo::warning=the embedded eBPF object is older than {newer}, and may not fit the gateway:"
            );
            println!("cargo::warning=run `cargo xtask build-ebpf`, then build the gateway again");
        }
        fs::copy(&object, &embedded).expect("the object can be copied");
    } else {
        println!("cargo::warning=no eBPF object: the gateway will run without its kernel half until");
        println!("cargo::warning=`cargo xtask build-ebpf` has made one and the gateway is built again");
        fs::write(&embedded, []).expect("the empty object can be written");
    }
    println!("cargo::rustc-env=GATEWAY_CONTRACT={:016x}", contract(&root.join("gateway-common/src")));
}

/// The latest change of a file, or of any below a folder. Cargo runs this script again when there is a later one.
fn newest(path: &Path) -> Option<SystemTime> {
    println!("cargo::rerun-if-changed={}", path.display());
    let mut folders = vec![path.to_owned()];
    let mut latest = None;
    while let Some(path) = folders.pop() {
        latest = latest.max(fs::metadata(&path).and_then(|found| found.modified()).ok());
        folders.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    latest
}

/// FNV-1a of the sources that say what the maps hold: with another contract, pinned maps are not reused.
fn contract(folder: &Path) -> u64 {
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = fs::read_dir(folder).expect("the workspace has a gateway-common");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be listed").path()).collect();
    files.sort();
    let bytes = files.iter().flat_map(|file| fs::read(file).expect("sources can be read"));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The object, or the nearest folder above it that exists: cargo reruns a script for ever when a path
/// that it watches is missing.
fn watched(object: &Path) -> &Path {
    object.ancestors().find(|path| path.exists()).unwrap_or(object)
}
