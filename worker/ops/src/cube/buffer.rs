//! Tensors as kernels see them: flat buffers, one after the other.

use burn::tensor::{DType, Shape};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

/// A tensor whose elements lie one after the other, copied only if they did not.
#[derive(Clone)]
pub(super) struct Buffer(pub(super) CubeTensor);

impl Buffer {
    pub(super) fn new(tensor: CubeTensor) -> Self {
        Self(into_contiguous(tensor))
    }

    /// One that may be written: `tensor` itself while this is its only handle, a copy otherwise.
    pub(super) fn to_write(tensor: CubeTensor) -> Self {
        let tensor = into_contiguous(tensor);
        Self(if tensor.can_mut() { tensor } else { tensor.copy() })
    }

    /// A new one on the device of `like`, whose contents are not set.
    pub(super) fn empty<const D: usize>(
        like: &CubeTensor,
        shape: [usize; D],
        dtype: DType,
    ) -> Self {
        let shape = Shape::from(shape);
        // An empty allocation is none.
        let bytes = (shape.num_elements() * dtype.size()).max(1);
        let (client, device) = (like.client.clone(), like.device.clone());
        let handle = client.empty(bytes);
        Self(CubeTensor::new_contiguous(client, device, shape, handle, dtype))
    }

    /// Elements `start..start + count` as a list, in the same memory.
    pub(super) fn part(&self, start: usize, count: usize) -> Self {
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

    /// What launches a kernel, which is counted.
    pub(super) fn launcher(&self) -> &Client {
        crate::launches::count();
        &self.0.client
    }

    /// To be read or written by a kernel, an element at a time.
    pub(super) fn arg(&self) -> BufferArg {
        self.0.clone().into_buffer_arg()
    }

    /// Units that run side by side.
    pub(super) fn plane(&self) -> u32 {
        self.client().properties().hardware.plane_size_max
    }
}
