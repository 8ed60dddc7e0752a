//! Checks of what CUDA needs at run time: a driver, a GPU, the kernel compiler and its headers. A
//! missing part would otherwise abort an unobserved thread.

use std::{env, ffi::c_int, path::PathBuf};

use libloading::Library;

use super::{DeviceChoice, DeviceError};

/// Names of the compiler's library: that of its development package, then versions, newest first.
const NVRTC: [&str; 4] = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11"];
/// Header that kernels include.
const HEADER: &str = "cuda_runtime.h";
/// Locations of CUDA if CUDA_PATH is not set.
const USUAL: [&str; 2] = ["/usr/local/cuda", "/opt/cuda"];

/// Whether GPU `number` can be used.
pub(super) fn check(choice: DeviceChoice, number: u16) -> Result<(), DeviceError> {
    let count = gpus(choice)?;
    if number >= count {
        return Err(DeviceError::NoSuchGpu { choice, count });
    }
    compiler(choice)?;
    headers(choice)
}

/// Returns the number of GPUs that the driver reports.
fn gpus(choice: DeviceChoice) -> Result<u16, DeviceError> {
    let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    let missing = |error: libloading::Error| DeviceError::NoLibrary {
        choice,
        library: name,
        reason: error.to_string(),
        remedy: "install NVIDIA's driver, or give the container a GPU",
    };
    // SAFETY: the driver's initialisers have no preconditions.
    let driver = unsafe { Library::new(name) }.map_err(missing)?;
    // SAFETY: `CUresult cuInit(unsigned int)`
    let init = unsafe { driver.get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit\0") };
    // SAFETY: flags must be zero.
    let code = unsafe { init.map_err(missing)?(0) };
    /// `CUDA_ERROR_NO_DEVICE`
    const NO_DEVICE: c_int = 100;
    match code {
        0 => {}
        NO_DEVICE => return Ok(0),
        code => return Err(DeviceError::Driver { choice, call: "cuInit", code }),
    }
    // SAFETY: `CUresult cuDeviceGetCount(int *)`
    let count =
        unsafe { driver.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount\0") };
    let mut found = 0;
    // SAFETY: the driver is initialised, and the pointer is to an int.
    match unsafe { count.map_err(missing)?(&raw mut found) } {
        0 => Ok(u16::try_from(found).unwrap_or(0)),
        code => Err(DeviceError::Driver { choice, call: "cuDeviceGetCount", code }),
    }
}

fn compiler(choice: DeviceChoice) -> Result<(), DeviceError> {
    let mut reason = String::new();
    for name in NVRTC {
        // SAFETY: the compiler's initialisers have no preconditions.
        match unsafe { Library::new(name) } {
            Ok(_) => return Ok(()),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(DeviceError::NoLibrary {
        choice,
        library: "NVRTC (libnvrtc.so, .so.13, .so.12)",
        reason,
        remedy: "install CUDA's run-time compiler, or add its folder to LD_LIBRARY_PATH",
    })
}

fn headers(choice: DeviceChoice) -> Result<(), DeviceError> {
    let root = env::var_os("CUDA_PATH")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| USUAL.iter().map(PathBuf::from).find(|folder| folder.exists()));
    let folder = root.unwrap_or_else(|| USUAL[0].into()).join("include");
    if folder.join(HEADER).is_file() {
        return Ok(());
    }
    let folder = folder.display().to_string();
    Err(DeviceError::NoHeaders { choice, header: HEADER, folder })
}
