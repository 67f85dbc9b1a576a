//! Compiles `src/steer.bpf.c` for the kernel's virtual machine. Needs clang and the kernel's uapi headers, nothing
//! else: no libbpf, no vmlinux.h of this machine, so the object loads on any kernel that has the features.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const SOURCES: &[&str] = &["src/steer.bpf.c", "src/packet.h", "src/steer.h", "src/bpf.h"];

const NEEDS: &str = "adit's kernel programs need clang and the kernel headers. On Debian and Ubuntu: \
                     apt-get install clang linux-libc-dev. Another clang: set ADIT_CLANG.";

fn main() {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rerun-if-env-changed=ADIT_CLANG");

    let crate_directory = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("steer.bpf.o");
    let clang = env::var_os("ADIT_CLANG").unwrap_or_else(|| "clang".into());
    let target = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb",
        _ => "bpfel",
    };

    let mut command = Command::new(&clang);
    command
        .current_dir(&crate_directory)
        .args(["-target", target, "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
    // Debug information is needed for the BTF of the maps; the path of this machine is not.
    command.arg("-fdebug-compilation-dir=.");
    if let Some(headers) = multiarch_headers() {
        command.arg("-idirafter").arg(headers);
    }
    command.args(["-c", SOURCES[0], "-o"]).arg(&object);
    match command.output() {
        Err(error) => panic!("{}: {error}. {NEEDS}", clang.to_string_lossy()),
        Ok(output) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr);
            let hint =
                if said.contains("file not found") || said.contains("unknown target") { NEEDS } else { "" };
            panic!("{command:?} failed. {hint}\n{said}")
        }
        Ok(_) => {}
    }
    let length = fs::metadata(&object).map(|file| file.len()).unwrap_or_default();
    assert!(length > 0, "clang wrote no object");
}

/// Debian keeps `asm/types.h` under the architecture's own directory, which `-target bpf` does not search.
fn multiarch_headers() -> Option<PathBuf> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").ok()?;
    let triple = match architecture.as_str() {
        "x86" => "i386-linux-gnu".to_string(),
        "arm" => "arm-linux-gnueabihf".to_string(),
        "powerpc64" => "powerpc64le-linux-gnu".to_string(),
        other => format!("{other}-linux-gnu"),
    };
    let directory = Path::new("/usr/include").join(triple);
    directory.is_dir().then_some(directory)
}
