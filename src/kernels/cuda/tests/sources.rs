//! Every `.cu` file compiles for a device where there is a CUDA toolkit.

use std::path::Path;
use std::process::Command;

#[test]
#[expect(clippy::disallowed_methods, reason = "the compiler is a setting of this test alone")]
fn every_kernel_compiles_for_a_device() {
    let nvcc = std::env::var("NVCC").unwrap_or_else(|_| "nvcc".into());
    if !Command::new(&nvcc).arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no CUDA toolkit");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
    for source in std::fs::read_dir(sources).unwrap().map(|entry| entry.unwrap().path()) {
        if source.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        let ptx = folder.path().join(source.file_name().unwrap()).with_extension("ptx");
        let mut command = Command::new(&nvcc);
        command.args(["--ptx", "-O3", "-std=c++17", "-Werror=all-warnings"]).arg(&source).arg("-o").arg(&ptx);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
        let text = std::fs::read_to_string(&ptx).unwrap();
        let kernels = text.matches(".visible .entry").count();
        assert!(kernels > 0, "{} holds no kernel", source.display());
        eprintln!("{}: {kernels} kernels, {} bytes of PTX", source.display(), text.len());
    }
}
