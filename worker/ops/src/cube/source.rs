//! CUDA C++ of every kernel, without a GPU, a driver or a toolkit, for the shapes of
//! TinyLlama-1.1B.

mod kernels;

use std::sync::Arc;

use cubecl::{
    ir::{
        ContiguousElements, DeviceIdentity, DeviceProperties, HardwareProperties, MmaProperties,
        TargetProperties, features::Plane,
    },
    prelude::*,
    server::Handle,
};
use cubecl_common::{
    device::{DeviceId, ServiceId},
    profile::TimingMethod,
};
use cubecl_core::{Compiler as _, cmma::MatrixLayout, define_kernel};
use cubecl_cpp::{
    cuda::{arch::CudaArchitecture, mma},
    register_supported_types,
    shared::{CompilationOptions, CppCompiler, CppSupportedFeatures, register_mma_features},
    target::Cuda,
};
use cubecl_environment::stream::StreamId;

/// A kernel in CUDA C++.
#[derive(Debug, Clone)]
pub struct Source {
    /// Name of the kernel and of its variant.
    pub name: String,
    /// Source text for a CUDA compiler.
    pub text: String,
    /// Shared memory in bytes to request at launch, which the text does not contain.
    pub shared_bytes: usize,
}

/// Device service of buffers that no kernel uses.
struct NoDevice;

/// Device of compute capability `arch` (80 for 8.0) as kernels see it.
struct Target {
    properties: Arc<DeviceProperties>,
    target: Arc<TargetProperties>,
    options: CompilationOptions,
    sources: Vec<Source>,
}

/// Returns every kernel for compute capability `arch`: 80, 89, 90, ...
pub fn cuda(arch: u32) -> Vec<Source> {
    let mut target = Target::new(arch);
    target.products();
    target.rows();
    target.attention();
    target.others();
    target.sources
}

fn buffer() -> BufferArg {
    let service = ServiceId::of::<NoDevice>(DeviceId::new(0, 0));
    // SAFETY: no kernel accesses it.
    unsafe {
        BufferArg::from_raw_parts(Handle::new(service, StreamId { value: 0 }, 1 << 30), 1 << 28)
    }
}

impl Target {
    /// Describes the device like cubecl-cuda.
    fn new(arch: u32) -> Self {
        let hardware = HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            max_shared_memory_size: 99 << 10,
            max_cube_count: (i32::MAX as u32, 65_535, 65_535),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(132),
            num_tensor_cores: Some(4),
            min_tensor_cores_dim: Some(8),
            num_cpu_cores: None,
            last_level_cache_size: None,
            max_vector_size: VectorSize::MAX,
            cube_mma_reserved_shared_memory: 0,
        };
        let identity = DeviceIdentity {
            name: "none".into(),
            fingerprint: format!("ptx_sm{arch}"),
            physical: None,
        };
        let memory = cubecl::ir::MemoryDeviceProperties::new(1 << 34, 512);
        let mut properties = DeviceProperties::new(
            Default::default(),
            memory,
            hardware,
            TimingMethod::Device,
            identity,
        );
        register_supported_types(&mut properties);
        for feature in [Plane::Ops, Plane::Sync, Plane::NonUniformControlFlow] {
            properties.features.plane.insert(feature);
        }
        let architecture = CudaArchitecture { version: arch, tensor_cores: true };
        let tiles = cubecl_cpp::cuda::supported_mma_combinations(&architecture);
        register_mma_features(tiles, &mut properties);
        let mma = MmaProperties {
            register_size_bits: 32,
            const_plane_size: 32,
            register_layout_a: MatrixLayout::RowMajor,
            register_layout_b: MatrixLayout::ColMajor,
            register_layout_acc: MatrixLayout::RowMajor,
            register_duplication_a: 1,
            register_duplication_b: 1,
            register_duplication_acc: 1,
            contiguous_elements: ContiguousElements::new(mma::manual::contiguous_elements_cuda),
        };
        let supports_features = CppSupportedFeatures {
            dp4a: true,
            fast_math: true,
            grid_constants: true,
            ..CppSupportedFeatures::default()
        };
        Self {
            properties: Arc::new(properties),
            target: Arc::new(TargetProperties { mma }),
            options: CompilationOptions {
                warp_size: 32,
                supports_features,
                ..CompilationOptions::default()
            },
            sources: Vec::new(),
        }
    }

    fn add(&mut self, name: impl Into<String>, kernel: &impl cubecl_core::CubeKernel) {
        let mut definition = define_kernel(kernel).expect("kernels are well-formed");
        // Same mode as at launch.
        definition.settings.execution_mode = ExecutionMode::Unchecked;
        let compiled = CppCompiler::<Cuda>::default().compile(definition, &self.options);
        let compiled = compiled.expect("kernels compile to CUDA");
        self.sources.push(Source {
            name: name.into(),
            text: compiled.to_string(),
            shared_bytes: compiled.shared_memory_size,
        });
    }
}
