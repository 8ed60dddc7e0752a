//! Devices of the operations: those that were built in, their availability, and the choice between
//! them.

mod copies;
#[cfg(feature = "cuda")]
mod cuda;
pub mod sensors;

use std::{fmt, str::FromStr};

pub use copies::Copies;

/// An open, working device.
#[derive(Debug, Clone)]
pub struct Device {
    /// Device on which tensors are allocated.
    pub tensors: burn::tensor::Device,
    /// Device class, for instance `cpu` or `cuda-sm90`. Devices of one class run the same compiled
    /// code and return the same bits.
    pub class: String,
    /// Name that the device reports.
    pub name: String,
    /// PCI address of an NVIDIA GPU, for instance `0000:07:00.0`.
    pub pci: Option<String>,
}

/// Device that an operator selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceChoice {
    /// The first that works of CUDA, wgpu on a real GPU, and the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA GPU with this number.
    Cuda(u16),
    /// The GPU that Vulkan, Metal or DirectX selects, even a software implementation.
    Wgpu,
}

/// Reason for which a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program was built without it.
    #[error(
        "--device {choice}: this program was built without it; build with `--features {feature}`, \
         or for NVIDIA GPUs use the image stoker-worker-cuda"
    )]
    NotBuilt {
        /// Requested device.
        choice: DeviceChoice,
        /// Feature to build with.
        feature: &'static str,
    },
    /// A library is missing.
    #[error("--device {choice}: {library} is not found ({reason}); {remedy}")]
    NoLibrary {
        /// Requested device.
        choice: DeviceChoice,
        /// The library.
        library: &'static str,
        /// Error of the loader.
        reason: String,
        /// What the operator can do.
        remedy: &'static str,
    },
    /// The driver fails.
    #[error(
        "--device {choice}: the NVIDIA driver does not start: {call} returns error {code}; \
         check nvidia-smi"
    )]
    Driver {
        /// Requested device.
        choice: DeviceChoice,
        /// The call that failed.
        call: &'static str,
        /// Error code, a `CUresult`.
        code: i32,
    },
    /// There are fewer GPUs.
    #[error("--device {choice}: {}", available_gpus(*.count))]
    NoSuchGpu {
        /// Requested device.
        choice: DeviceChoice,
        /// Number of GPUs.
        count: u16,
    },
    /// Kernels cannot be compiled.
    #[error(
        "--device {choice}: {header} is not in {folder}; kernels are compiled on first use, \
         which needs the headers of CUDA's runtime: install them, or set CUDA_PATH to the folder \
         that holds `include`"
    )]
    NoHeaders {
        /// Requested device.
        choice: DeviceChoice,
        /// The file.
        header: &'static str,
        /// Expected location.
        folder: String,
    },
    /// There is no driver of a graphics API.
    #[error("--device {choice}: no GPU is available through Vulkan, Metal or DirectX")]
    NoAdapter {
        /// Requested device.
        choice: DeviceChoice,
    },
    /// The device is present but computes nothing or wrong results.
    #[error("--device {choice}: the first computation fails: {reason}")]
    Broken {
        /// Requested device.
        choice: DeviceChoice,
        /// Description of the error.
        reason: String,
    },
}

fn available_gpus(count: u16) -> String {
    match count {
        0 => "the driver sees no GPU".into(),
        1 => "there is one GPU, number 0".into(),
        count => format!("there are {count} GPUs, numbers 0 to {}", count - 1),
    }
}

impl Device {
    /// Returns the CPU, which is always available.
    pub fn cpu() -> Self {
        let name = crate::cpu::isa::Isa::best().name().to_owned();
        Self { tensors: burn::tensor::Device::flex(), class: "cpu".into(), name, pci: None }
    }

    /// Opens a device. With [`DeviceChoice::Auto`], devices that do not work are skipped, and
    /// `report` is called with the reasons.
    pub fn open(
        choice: DeviceChoice,
        mut report: impl FnMut(&DeviceError),
    ) -> Result<Self, DeviceError> {
        match choice {
            DeviceChoice::Cpu => Ok(Self::cpu()),
            DeviceChoice::Cuda(number) => cuda_device(choice, number),
            DeviceChoice::Wgpu => wgpu_device(choice, true),
            DeviceChoice::Auto => {
                let gpus = [
                    (
                        cfg!(feature = "cuda"),
                        cuda_device as fn(DeviceChoice, u16) -> _,
                        DeviceChoice::Cuda(0),
                    ),
                    (
                        cfg!(feature = "wgpu"),
                        |choice, _| wgpu_device(choice, false),
                        DeviceChoice::Wgpu,
                    ),
                ];
                for (built, open, choice) in gpus {
                    if built {
                        match open(choice, 0) {
                            Ok(device) => return Ok(device),
                            Err(error) => report(&error),
                        }
                    }
                }
                Ok(Self::cpu())
            }
        }
    }

    /// Measures the memory bandwidth in bytes per second: reads by all threads on the CPU, reads
    /// and writes by a copy on a GPU.
    pub fn memory_bandwidth(&self) -> Result<f64, String> {
        if self.is_cpu() {
            Ok(crate::cpu::read_bandwidth())
        } else {
            Copies::new(&self.tensors).bandwidth()
        }
    }

    /// Whether it is the CPU.
    pub fn is_cpu(&self) -> bool {
        self.class == "cpu"
    }
}

#[cfg(feature = "cuda")]
fn cuda_device(choice: DeviceChoice, number: u16) -> Result<Device, DeviceError> {
    cuda::check(choice, number)?;
    let tensors = burn::tensor::Device::cuda(usize::from(number));
    open_working(choice, tensors, |code| format!("cuda-{}", code.trim_start_matches("ptx_")))
}

#[cfg(not(feature = "cuda"))]
fn cuda_device(choice: DeviceChoice, _: u16) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { choice, feature: "cuda" })
}

#[cfg(feature = "wgpu")]
fn wgpu_device(choice: DeviceChoice, allow_software: bool) -> Result<Device, DeviceError> {
    use burn::tensor::{Device as Tensors, DeviceKind, DeviceType};

    if Tensors::enumerate(DeviceType::Wgpu).into_vec().is_empty() {
        return Err(DeviceError::NoAdapter { choice });
    }
    let tensors = Tensors::wgpu(DeviceKind::DefaultDevice);
    if !allow_software && tensors.identity().is_none_or(|device| device.physical.is_none()) {
        return Err(DeviceError::NoAdapter { choice });
    }
    open_working(choice, tensors, |code| format!("wgpu-{}", code.trim_start_matches("spirv_")))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_device(choice: DeviceChoice, _: bool) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { choice, feature: "wgpu" })
}

/// Returns the device if it can compute a sum.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn open_working(
    choice: DeviceChoice,
    tensors: burn::tensor::Device,
    class: impl FnOnce(&str) -> String,
) -> Result<Device, DeviceError> {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use cubecl_environment::stream::{StreamPolicy, set_policy};

    // A single stream for all threads: those that load a model and those of each engine that shares
    // it. A graph captured on one stream cannot wait for another.
    set_policy(StreamPolicy::Single);
    let _access = crate::graph::shared_access();
    let broken = |reason| DeviceError::Broken { choice, reason };
    // The libraries panic if a device is present but unusable.
    let sum = catch_unwind(AssertUnwindSafe(|| {
        let two = burn::tensor::Tensor::<1>::ones([4], &tensors) * 2.0;
        let data = two.try_into_data().map_err(|error| error.to_string())?;
        Ok(data.iter::<f32>().sum::<f32>())
    }));
    match sum {
        Ok(Ok(8.0)) => {}
        Ok(Ok(sum)) => return Err(broken(format!("4 x 2 is {sum}"))),
        Ok(Err(reason)) => return Err(broken(reason)),
        Err(panic) => {
            let reason = panic.downcast_ref::<String>().cloned();
            return Err(broken(reason.unwrap_or_else(|| "a panic".into())));
        }
    }
    if !tensors.supports_dtype(burn::tensor::DType::F16) {
        return Err(broken("it has no half precision, in which keys and values are cached".into()));
    }
    crate::cube::self_test::tensor_cores(&tensors);
    let identity = tensors.identity();
    let Some(identity) = identity else {
        return Err(broken("it does not report its identity".into()));
    };
    let card = identity.physical.filter(|_| matches!(choice, DeviceChoice::Cuda(_)));
    let pci = card.and_then(|card| card.pci_address).map(|address| address.to_string());
    Ok(Device { tensors, class: class(&identity.fingerprint), name: identity.name, pci })
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Wgpu => f.write_str("wgpu"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |number: &str| number.parse().ok().map(Self::Cuda);
        let choice = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            "wgpu" => Some(Self::Wgpu),
            _ => text.strip_prefix("cuda:").and_then(number),
        };
        choice.ok_or_else(|| "is none of auto, cpu, cuda, cuda:N and wgpu".into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7", "wgpu"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:99999", "CPU"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_cpu_is_always_available() {
        assert!(Device::open(DeviceChoice::Cpu, |_| ()).unwrap().is_cpu());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_was_not_built_in_is_named() {
        let error = Device::open(DeviceChoice::Cuda(1), |_| ()).err().unwrap().to_string();
        assert!(error.contains("--device cuda:1") && error.contains("--features cuda"), "{error}");
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_works_or_reports_why_not() {
        for number in [0, 999] {
            if let Err(error) = Device::open(DeviceChoice::Cuda(number), |_| ()) {
                let text = error.to_string();
                assert!(text.starts_with(&format!("--device cuda:{number}: ")), "{text}");
            } else {
                assert_eq!(number, 0, "no machine has a thousand GPUs");
            }
        }
    }

    #[test]
    fn auto_finds_a_device_and_reports_those_skipped() {
        let mut skipped = 0;
        let device = Device::open(DeviceChoice::Auto, |_| skipped += 1).unwrap();
        let built = usize::from(cfg!(feature = "cuda")) + usize::from(cfg!(feature = "wgpu"));
        assert!(if device.is_cpu() { skipped == built } else { skipped < built });
    }
}
