//! Models as files: SafeTensors folders, GGUF files and the bundled model, read tensor by tensor.
//!
//! Whatever the container, the rest of the engine sees one layout: Hugging Face tensor names,
//! row-major `[out, in]` matrices and rotary halves that are split, not interleaved. Files are not
//! trusted: every count, offset and shape is checked against the size of the file before memory is
//! allocated for it. Features that would change the mathematics and are not implemented are refused
//! by name.

mod config;
mod decode;
mod dequantize;
mod dtype;
mod error;
mod folder;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
pub mod gguf;
mod json;
mod layout;
mod model;
mod names;
mod read_at;
mod safetensors;
mod shards;
mod source;
mod tensor;
mod tokenizer_config;

pub use config::{Family, Llama3Scaling, ModelConfig, RopeScaling};
pub use dtype::Dtype;
pub use error::WeightsError;
pub use folder::{DiskFolder, EmbeddedFolder, Folder};
pub use layout::tensor_shapes;
pub(crate) use layout::{EMBEDDING, HEAD};
pub use model::{ModelFiles, TemplateFileError};
pub use read_at::{FileReader, ReadAt};
pub use source::Source;
pub use tensor::{RawTensor, ReadTimes, TensorInfo};
