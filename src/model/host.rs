//! Typed slices of host memory that weights are read into, and the one conversion from stored to wanted precision.

use bytemuck::Pod;
use half::{bf16, f16};

use super::blob::Blob;
use crate::error::Result;
use crate::scheme::{DType, Elem};

/// Elements that are converted at a time when stored and wanted precision differ.
const CHUNK: usize = 64 << 10;

/// Where read weights go; the variant says in which precision they are wanted.
#[derive(Debug)]
pub enum HostSliceMut<'a> {
    /// binary32.
    F32(&'a mut [f32]),
    /// binary16.
    F16(&'a mut [f16]),
    /// bfloat16.
    BF16(&'a mut [bf16]),
}

impl HostSliceMut<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(s) => s.len(),
            Self::F16(s) => s.len(),
            Self::BF16(s) => s.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub const fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::BF16(_) => DType::BF16,
        }
    }

    /// Rounds `values` into the slice from element `at` on; they must fit.
    pub(super) fn put(&mut self, at: usize, values: &[f32]) {
        match self {
            Self::F32(s) => s[at..][..values.len()].copy_from_slice(values),
            Self::F16(s) => narrow(values, &mut s[at..][..values.len()]),
            Self::BF16(s) => narrow(values, &mut s[at..][..values.len()]),
        }
    }
}

fn narrow<S: Elem, T: Elem>(from: &[S], to: &mut [T]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = T::from_f32(from.to_f32());
    }
}

/// Fills `out` with elements of type `stored` that start at byte `offset`; widening is exact, narrowing rounds once.
pub(super) fn read_plain(
    blob: &Blob,
    offset: u64,
    stored: DType,
    out: HostSliceMut<'_>,
) -> Result<()> {
    match out {
        HostSliceMut::F32(out) => read_into(blob, offset, stored, out),
        HostSliceMut::F16(out) => read_into(blob, offset, stored, out),
        HostSliceMut::BF16(out) => read_into(blob, offset, stored, out),
    }
}

fn read_into<T: Elem + Pod>(blob: &Blob, offset: u64, stored: DType, out: &mut [T]) -> Result<()> {
    if stored == T::DTYPE {
        return blob.read_exact_at(offset, bytemuck::cast_slice_mut(out));
    }
    match stored {
        DType::F32 => convert::<f32, T>(blob, offset, out),
        DType::F16 => convert::<f16, T>(blob, offset, out),
        DType::BF16 => convert::<bf16, T>(blob, offset, out),
    }
}

fn convert<S: Elem + Pod, T: Elem>(blob: &Blob, mut offset: u64, out: &mut [T]) -> Result<()> {
    let mut buffer = vec![S::default(); CHUNK.min(out.len())];
    for part in out.chunks_mut(CHUNK) {
        let from = &mut buffer[..part.len()];
        blob.read_exact_at(offset, bytemuck::cast_slice_mut(from))?;
        narrow(from, part);
        offset += size_of_val(from) as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_three<T: Elem + Pod>(stored: DType, bytes: &'static [u8]) -> Vec<T> {
        let mut out = vec![T::default(); 3];
        let blob = Blob::embedded("three", bytes);
        read_into(&blob, 2, stored, &mut out).unwrap();
        out
    }

    #[test]
    fn every_pair_of_precisions_rounds_once() {
        // 1 + 2^-9 needs ten significant bits: exact in binary16, a tie in bfloat16 that goes to even.
        let bytes: &[u8] = &[9, 9, 0x02, 0x3c, 0x00, 0xc0, 0xff, 0x7b];
        assert_eq!(
            read_three::<f32>(DType::F16, bytes),
            [1.001_953_1, -2.0, 65504.0]
        );
        assert_eq!(read_three::<f16>(DType::F16, bytes)[0].to_bits(), 0x3c02);
        let narrowed = read_three::<bf16>(DType::F16, bytes).map_to_f32();
        assert_eq!(narrowed, [1.0, -2.0, 65536.0]);
        let bytes: &[u8] = &[9, 9, 0x80, 0x3f, 0x00, 0xc0, 0x80, 0x7f];
        assert_eq!(
            read_three::<f32>(DType::BF16, bytes),
            [1.0, -2.0, f32::INFINITY]
        );
    }

    trait MapToF32 {
        fn map_to_f32(self) -> Vec<f32>;
    }

    impl<T: Elem> MapToF32 for Vec<T> {
        fn map_to_f32(self) -> Vec<f32> {
            self.into_iter().map(Elem::to_f32).collect()
        }
    }

    #[test]
    fn reading_past_the_end_is_an_error() {
        let mut out = [0.0f32; 2];
        let blob = Blob::embedded("short", &[0; 7]);
        assert!(read_plain(&blob, 0, DType::F32, HostSliceMut::F32(&mut out)).is_err());
        assert!(read_plain(&blob, u64::MAX, DType::F16, HostSliceMut::F32(&mut out)).is_err());
    }
}
