//! Lists of integers that travel to a device together.

use burn::tensor::{Device, Int, Tensor};

use super::ints;

/// Integers between the starts of two lists, at least: GPUs bind buffers at multiples of so many.
#[cfg(feature = "cube")]
const ALIGN: usize = 128;

/// Some lists, in one buffer where the device has a memory of its own: one upload for all, and the same buffer for
/// other contents later.
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
            let together = together(lists);
            let count = together.len();
            let buffer = ints(together, [count], device);
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

    /// List `index`.
    pub fn get(&self, index: usize) -> Tensor<1, Int> {
        self.lists[index].clone()
    }

    /// Puts `lists`, each as long as the one before, in the place of those uploaded. Whoever holds one of these, like a
    /// graph, sees the new one.
    pub fn overwrite(&mut self, lists: &[&[i32]]) {
        let lengths = self.lists.iter().map(|list| list.dims()[0]);
        assert!(lengths.eq(lists.iter().map(|list| list.len())), "lists keep their lengths");
        #[cfg(feature = "cube")]
        if let Some(buffer) = &self.buffer {
            return super::in_place::overwrite(buffer, together(lists));
        }
        if let Some(first) = self.lists.first() {
            *self = Self::upload(lists, &first.device());
        }
    }
}

/// The lists one after the other, each from a boundary on.
#[cfg(feature = "cube")]
fn together(lists: &[&[i32]]) -> Vec<i32> {
    let mut together = Vec::new();
    for list in lists {
        together.extend_from_slice(list);
        together.resize(together.len().next_multiple_of(ALIGN), 0);
    }
    together
}
