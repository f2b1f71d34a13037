//! With the feature `cuda`, compiles every `src/kernels/*.cu` to PTX with nvcc (`NVCC`, else from PATH), for the
//! card that `CUDA_COMPUTE_CAP` names and every later one. Without the feature there is nothing to do.

#![expect(clippy::expect_used, clippy::panic, reason = "a build script says what is wrong by failing")]
#![expect(clippy::disallowed_methods, reason = "cargo speaks to a build script through the environment")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["NVCC", "CUDA_COMPUTE_CAP"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let nvcc = std::env::var("NVCC").unwrap_or_else(|_| "nvcc".into());
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".into());
    let into = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let folder = Path::new("src/kernels");
    println!("cargo:rerun-if-changed={}", folder.join("cuda/kernel.cuh").display());
    for entry in std::fs::read_dir(folder).expect("src/kernels is there") {
        let source = entry.expect("src/kernels can be read").path();
        let (Some(stem), Some("cu")) = (source.file_stem(), source.extension().and_then(|part| part.to_str())) else {
            continue;
        };
        println!("cargo:rerun-if-changed={}", source.display());
        let ptx = into.join(stem).with_extension("ptx");
        let status = Command::new(&nvcc)
            .arg(format!("-gencode=arch=compute_{capability},code=compute_{capability}"))
            .args(["--ptx", "-O3", "-std=c++17", "-o"])
            .args([&ptx, &source])
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(_) => panic!("nvcc refused {}: see above", source.display()),
            Err(cause) => panic!("the feature cuda needs NVIDIA's nvcc ({nvcc}): {cause}. Set NVCC to its path."),
        }
    }
}
