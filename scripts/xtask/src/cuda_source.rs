//! The CUDA C++ of every kernel, for `scripts/check-cuda`.

use std::{fs, path::PathBuf};

use clap::Args;

use crate::error::Error;

/// Write the CUDA C++ of every kernel into a folder, one file each; needs no GPU
#[derive(Debug, Args)]
pub(crate) struct CudaSourceArgs {
    /// Folder for the files, created if it is missing
    #[arg(default_value = "target/cuda-source")]
    folder: PathBuf,

    /// Compute capability: 80, 89, 90, ...
    #[arg(long, default_value_t = 90)]
    arch: u32,
}

/// Runs the command.
pub(crate) fn run(args: &CudaSourceArgs) -> Result<(), Error> {
    fs::create_dir_all(&args.folder).map_err(Error::of(&args.folder))?;
    for source in stoker_ops::cube::source::cuda(args.arch) {
        let text = format!("// shared memory: {} bytes\n{}", source.shared_bytes, source.text);
        let file = args.folder.join(source.name).with_extension("cu");
        fs::write(&file, text).map_err(Error::of(file))?;
    }
    Ok(())
}
