//! Writes the CUDA C++ of every kernel into a folder, one file each: `cuda_source FOLDER [ARCH]`.
//! See scripts/check-cuda.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    let mut args = env::args().skip(1);
    let folder = PathBuf::from(args.next().unwrap_or_else(|| "target/cuda-source".into()));
    let arch = args.next().and_then(|arch| arch.parse().ok()).unwrap_or(90);
    fs::create_dir_all(&folder)?;
    for source in stoker_ops::cube::source::cuda(arch) {
        let text = format!("// shared memory: {} bytes\n{}", source.shared_bytes, source.text);
        fs::write(folder.join(source.name).with_extension("cu"), text)?;
    }
    Ok(())
}
