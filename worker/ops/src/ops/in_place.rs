//! Views of a GPU's buffer and writes into it, without a new buffer.

use burn::{
    backend::{Backend, Dispatch, backend_extension, tensor::IntTensor},
    tensor::{Int, Tensor},
};

/// Operations that burn's tensors, which are values, do not offer.
#[backend_extension(Cube)]
pub trait InPlace: Backend {
    /// Returns elements `start..start + count` of `buffer`, in the same memory.
    fn view(buffer: IntTensor<Self>, start: usize, count: usize) -> IntTensor<Self>;

    /// Copies `values` into `buffer`, even if it has other handles.
    fn overwrite(buffer: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self>;
}

pub(super) fn view(buffer: &Tensor<1, Int>, start: usize, count: usize) -> Tensor<1, Int> {
    let buffer = buffer.clone().into_dispatch();
    Tensor::from_dispatch(<Dispatch as InPlace>::view(buffer, start, count))
}

pub(super) fn overwrite(buffer: &Tensor<1, Int>, values: Vec<i32>) {
    <Dispatch as InPlace>::overwrite(buffer.clone().into_dispatch(), values);
}
