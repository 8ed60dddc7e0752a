//! Stub of `cubecl-llvm` 0.11.3, substituted by `[patch.crates-io]` in the workspace's manifest.
//!
//! cubecl-cuda depends on the crate unconditionally, and its build script downloads LLVM. Kernels
//! are compiled through CUDA C++ and NVRTC (`cubecl/cuda-cpp`), so this code never runs. It has the
//! names and shapes that cubecl-cuda refers to. It can be removed once cubecl-cuda makes the
//! dependency optional.
#![forbid(unsafe_code)]

use std::{ffi::c_char, fmt};

use cubecl_core::prelude::KernelDefinition;
use cubecl_server::{
    compiler::{CompilationError, Compiler},
    kernel::BufferIOAttr,
};

/// NVIDIA's target.
pub mod nvptx {
    /// Versions of its assembly language.
    pub mod ptx_version {
        use std::fmt;

        /// Version that the LLVM backend would emit; there is none.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// Returns `None`: NVRTC emits its own version.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// Items shared by the targets.
pub mod shared {
    /// Device features that the LLVM backend does not support.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// A target.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Removes nothing, since there is no backend.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
    }
}

/// A target of the LLVM backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// The CPU.
    #[default]
    Cpu,
    /// NVIDIA's GPUs.
    Nvptx,
}

/// The LLVM backend.
#[derive(Debug, Clone, Default)]
pub struct PlironCompiler {
    /// Target that it compiles for.
    pub target: LlvmTarget,
}

/// Options of the compiler.
#[derive(Debug, Clone, Default)]
pub struct PlironOptions {
    /// Unused.
    pub arch: Option<()>,
    /// Unused.
    pub sm_arch: Option<cubecl_core::ir::nvidia::SmArch>,
    /// Unused.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Unused.
    pub grid_constants: bool,
    /// Unused.
    pub cpu_buffer_alignment: Option<u32>,
}

/// Output for NVIDIA's GPUs; there is none.
#[derive(Debug, Clone)]
pub struct NvptxModule {
    /// Assembly.
    pub ptx: Vec<c_char>,
    /// Name of the entry point.
    pub entrypoint: String,
    /// LLVM IR.
    pub ir: String,
    /// Size in bytes.
    pub shared_memory_size: usize,
    /// Access mode of each buffer.
    pub io: Vec<BufferIOAttr>,
}

/// Output of the compiler; there is none.
#[derive(Debug, Clone)]
pub enum PlironArtifact {
    /// Output for NVIDIA's GPUs.
    NvptxCode(NvptxModule),
    /// Other targets.
    None,
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn buffer_io(_: &Self::Representation) -> Option<Vec<BufferIOAttr>> {
        None
    }

    fn compile(
        &mut self,
        _: KernelDefinition,
        _: &Self::CompilationOptions,
    ) -> Result<Self::Representation, CompilationError> {
        unreachable!("kernels are compiled by NVRTC: the feature cubecl/cuda-cpp is on")
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
