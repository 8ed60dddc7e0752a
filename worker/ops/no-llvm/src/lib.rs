//! A stand-in for `cubecl-llvm` 0.11.3, put in its place by `[patch.crates-io]` in the workspace's manifest.
//!
//! cubecl-cuda depends on it unconditionally, and its build script downloads LLVM. We compile kernels through
//! CUDA C++ and NVRTC (`cubecl/cuda-cpp`), so nothing of it ever runs: what is here has the names and shapes that
//! cubecl-cuda spells. It can go as soon as cubecl-cuda makes the dependency optional.

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

        /// A version that the LLVM backend would write. There is none.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// None: NVRTC writes its own.
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

/// What targets share.
pub mod shared {
    /// What of a device the LLVM backend cannot use.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// A target.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Nothing to take away: the backend is not there.
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
    /// For what it compiles.
    pub target: LlvmTarget,
}

/// Its options.
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

/// What it makes for NVIDIA's GPUs. There is none.
#[derive(Debug, Clone)]
pub struct NvptxModule {
    /// Assembly.
    pub ptx: Vec<c_char>,
    /// Where it begins.
    pub entrypoint: String,
    /// LLVM's own form.
    pub ir: String,
    /// In bytes.
    pub shared_memory_size: usize,
    /// What it reads and writes.
    pub io: Vec<BufferIOAttr>,
}

/// What it makes. There is none.
#[derive(Debug, Clone)]
pub enum PlironArtifact {
    /// For NVIDIA's GPUs.
    NvptxCode(NvptxModule),
    /// For others.
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
