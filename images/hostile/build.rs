//! Links the kernel as a freestanding static ELF.

use std::env;

fn main() {
    let dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for build scripts");
    let script = format!("{dir}/src/link.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-link-arg-bins=-T{script}");
    // The host's target links through `cc`; what follows `-Wl,` goes to the linker itself.
    for arg in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-zmax-page-size=0x1000",
        "-Wl,-znorelro",
    ] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
}
