//! Splitting a row-major matrix among threads by columns, which slices alone cannot express.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// Elements that are worth waking a thread for.
const WORTHWHILE: usize = 32 << 10;

/// How many tasks of `each` elements one thread takes at least, so that small ops stay on theirs.
pub(crate) fn least(each: usize) -> usize {
    WORTHWHILE.div_ceil(each.max(1))
}

/// Runs `work` on a thread of the pool, where starting parallel work costs nothing; from any other thread each parallel
/// op would have to wake the pool and be woken by it.
pub(crate) fn on_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// The columns of a row-major matrix that one thread may write.
pub(crate) struct Columns<'a, T> {
    start: *mut T,
    rows: usize,
    stride: usize,
    range: Range<usize>,
    matrix: PhantomData<&'a mut [T]>,
}

impl<T> Columns<'_, T> {
    /// The columns, in the numbering of the whole matrix.
    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// This thread's part of `row`.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: the part lies inside the matrix that `for_column_tiles` borrowed for writing (row < rows,
        // range.end <= stride), and no other `Columns` covers these columns.
        unsafe {
            let first = self.start.add(row * self.stride + self.range.start);
            std::slice::from_raw_parts_mut(first, self.range.len())
        }
    }
}

/// A pointer that may cross threads.
struct Shared<T>(*mut T);

// SAFETY: threads only reach disjoint parts through it, and `T: Send` there.
unsafe impl<T: Send> Sync for Shared<T> {}

/// Calls `work` in parallel for tiles of `tile` columns of `matrix` (`[rows, stride]`, row-major), each of which reads
/// about `each` elements.
///
/// # Panics
/// If the matrix is not whole rows or `tile` is 0.
pub(crate) fn for_column_tiles<T: Send>(
    matrix: &mut [T],
    stride: usize,
    tile: usize,
    each: usize,
    work: impl Fn(Columns<'_, T>) + Sync,
) {
    assert!(tile > 0 && stride > 0 && matrix.len().is_multiple_of(stride));
    let rows = matrix.len() / stride;
    let shared = Shared(matrix.as_mut_ptr());
    let shared = &shared;
    (0..stride.div_ceil(tile))
        .into_par_iter()
        .with_min_len(least(each))
        .for_each(|i| {
            let range = i * tile..((i + 1) * tile).min(stride);
            work(Columns {
                start: shared.0,
                rows,
                stride,
                range,
                matrix: PhantomData,
            });
        });
}
