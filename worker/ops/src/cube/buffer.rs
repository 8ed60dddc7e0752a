//! Tensors as flat buffers for kernels.

use burn::tensor::{DType, Shape};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

/// A tensor with contiguous elements, copied only if they are not.
#[derive(Clone)]
pub(super) struct Buffer(pub(super) CubeTensor);

impl Buffer {
    pub(super) fn new(tensor: CubeTensor) -> Self {
        Self(into_contiguous(tensor))
    }

    /// Returns a buffer that may be written: `tensor` itself if this is its only handle, a copy
    /// otherwise.
    pub(super) fn to_write(tensor: CubeTensor) -> Self {
        let tensor = into_contiguous(tensor);
        Self(if tensor.can_mut() { tensor } else { tensor.copy() })
    }

    /// Allocates an uninitialised buffer on the device of `like`.
    pub(super) fn empty<const D: usize>(
        like: &CubeTensor,
        shape: [usize; D],
        dtype: DType,
    ) -> Self {
        let shape = Shape::from(shape);
        // An empty allocation is not possible.
        let bytes = (shape.num_elements() * dtype.size()).max(1);
        let (client, device) = (like.client.clone(), like.device.clone());
        let handle = client.empty(bytes);
        Self(CubeTensor::new_contiguous(client, device, shape, handle, dtype))
    }

    /// Returns elements `start..start + count` as a list in the same memory.
    pub(super) fn view(&self, start: usize, count: usize) -> Self {
        let size = self.0.dtype.size();
        let after = self.len() - start - count;
        let handle = self.0.handle.clone();
        let handle = handle.offset_start((start * size) as u64).offset_end((after * size) as u64);
        let (client, device) = (self.0.client.clone(), self.0.device.clone());
        Self(CubeTensor::new_contiguous(client, device, [count].into(), handle, self.0.dtype))
    }

    pub(super) fn dim(&self, i: usize) -> usize {
        self.0.meta.shape()[i]
    }

    pub(super) fn len(&self) -> usize {
        self.0.meta.shape().num_elements()
    }

    pub(super) fn client(&self) -> &Client {
        &self.0.client
    }

    /// Returns the client for a kernel launch, and counts the launch.
    pub(super) fn launcher(&self) -> &Client {
        crate::launches::count();
        &self.0.client
    }

    /// Returns the kernel argument for access by single elements.
    pub(super) fn arg(&self) -> BufferArg {
        self.0.clone().into_buffer_arg()
    }

    /// Number of units of a plane.
    pub(super) fn plane(&self) -> u32 {
        self.client().properties().hardware.plane_size_max
    }
}
