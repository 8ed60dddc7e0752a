//! Lists of integers that are uploaded to a device together.

use burn::tensor::{Device, Int, Tensor};

use super::ints;

/// Alignment of lists in integers: GPUs require aligned offsets of bound buffers.
#[cfg(feature = "cube")]
const ALIGN: usize = 128;

/// Lists of integers. On a device with its own memory they share one buffer: one upload for all,
/// and in-place updates.
#[derive(Debug, Clone)]
pub struct Lists {
    lists: Vec<Tensor<1, Int>>,
    #[cfg(feature = "cube")]
    buffer: Option<Tensor<1, Int>>,
}

impl Lists {
    /// Copies `lists` to `device`.
    pub fn upload(lists: &[&[i32]], device: &Device) -> Self {
        #[cfg(feature = "cube")]
        if *device != Device::flex() {
            let concatenated = concatenated(lists);
            let count = concatenated.len();
            let buffer = ints(concatenated, [count], device);
            let mut start = 0;
            let view = |list: &&[i32]| {
                let view = super::in_place::view(&buffer, start, list.len());
                start += list.len().next_multiple_of(ALIGN);
                view
            };
            return Self { lists: lists.iter().map(view).collect(), buffer: Some(buffer) };
        }
        Self {
            lists: lists.iter().map(|list| ints(list.to_vec(), [list.len()], device)).collect(),
            #[cfg(feature = "cube")]
            buffer: None,
        }
    }

    /// Returns list `index`.
    pub fn get(&self, index: usize) -> Tensor<1, Int> {
        self.lists[index].clone()
    }

    /// Replaces the contents by `lists` of the same lengths. Other handles, such as those of a
    /// graph, see the new contents.
    pub fn overwrite(&mut self, lists: &[&[i32]]) {
        let lengths = self.lists.iter().map(|list| list.dims()[0]);
        assert!(lengths.eq(lists.iter().map(|list| list.len())), "lists must keep their lengths");
        #[cfg(feature = "cube")]
        if let Some(buffer) = &self.buffer {
            return super::in_place::overwrite(buffer, concatenated(lists));
        }
        if let Some(first) = self.lists.first() {
            *self = Self::upload(lists, &first.device());
        }
    }
}

/// Concatenates the lists, each aligned.
#[cfg(feature = "cube")]
fn concatenated(lists: &[&[i32]]) -> Vec<i32> {
    let mut concatenated = Vec::new();
    for list in lists {
        concatenated.extend_from_slice(list);
        concatenated.resize(concatenated.len().next_multiple_of(ALIGN), 0);
    }
    concatenated
}
