//! Finds the gateway's binary, built once for a test run.
//!
//! Cargo names a binary's path to tests of its own package only; this package's tests find it beside
//! themselves in the target directory, after asking cargo to bring it up to date. Whoever has built the whole workspace
//! says so (`GATEWAY_IS_BUILT`): of one package alone the dependencies have other features, and all is built again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The binary of the profile that this test was built in.
pub fn gateway() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build)
}

fn build() -> PathBuf {
    // `<target>/<profile>/deps/<test>`
    let test = std::env::current_exe().expect("Linux names the running program");
    let profile = test.ancestors().nth(2).expect("cargo puts tests two folders deep");
    if std::env::var_os("GATEWAY_IS_BUILT").is_some() {
        return profile.join("gateway");
    }
    let target = profile.parent().expect("the profile's folder is inside the target's");
    let name = match profile.file_name().and_then(|name| name.to_str()).expect("profiles are named in ASCII")
    {
        "debug" => "dev",
        name => name,
    };
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "gateway", "--bin", "gateway", "--profile", name])
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs this test, so it can be run");
    assert!(status.success(), "the gateway does not build");
    profile.join("gateway")
}
