//! Memory that every step reads: aligned to cache lines and in huge pages.

use bytemuck::{Pod, Zeroable};

/// A cache line, which is also the size of the widest register.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Line(pub [u8; LINE]);

/// Size of a cache line in bytes.
pub const LINE: usize = 64;

/// Memory allocated in cache lines, as bytes.
pub struct Lines(pub Vec<Line>);

impl AsRef<[u8]> for Lines {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Allocates `lines` zeroed cache lines, in huge pages if the system has them.
///
/// A step reads gigabytes, and every boundary of a 4 KiB page delays the reader.
pub fn lines(lines: usize) -> Vec<Line> {
    let mut memory: Vec<Line> = Vec::with_capacity(lines);
    // Before the first access: memory that the system has provided in small pages stays in them.
    prefer_huge_pages(memory.spare_capacity_mut());
    memory.resize(lines, Line([0; LINE]));
    memory
}

/// Allocates `count` zeros, in huge pages if the system has them. Unwritten pages take no memory.
pub fn zeros<T: Zeroable + Clone>(count: usize) -> Vec<T> {
    let mut memory = bytemuck::zeroed_vec(count);
    // The system provides a large zeroed vector as fresh memory that was not accessed yet.
    prefer_huge_pages(&mut memory);
    memory
}

#[cfg(target_os = "linux")]
fn prefer_huge_pages<T>(memory: &mut [T]) {
    const PAGE: usize = 4096;
    let all = memory.as_mut_ptr_range();
    let (start, end) =
        ((all.start as usize).next_multiple_of(PAGE), all.end as usize / PAGE * PAGE);
    if start < end {
        // SAFETY: these whole pages belong to `memory`, and the advice changes neither contents nor
        // access. Where it is refused there are no huge pages, and nothing else changes.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages<T>(_: &mut [T]) {}
