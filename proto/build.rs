//! Compiles the proto files with protox, so that `protoc` need not be installed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const FILES: [&str; 3] =
    ["stoker/v1/inference.proto", "stoker/v1/control.proto", "stoker/v1/admin.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=stoker");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // For server reflection.
    fs::write(out.join("stoker_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::SmallMessages")
        // Only the last event of a response has timings. Unboxed, every other event would reserve
        // their space.
        .boxed(".stoker.v1.Finished.timings")
        .compile_fds(descriptors)?;
    Ok(())
}
