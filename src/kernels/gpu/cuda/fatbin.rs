//! The compiled kernels that this program carries.

/// What `kernels/build.rs` made of one `.cu` file: code for every architecture, and the kernels in it.
pub(super) struct Fatbin {
    /// The file's stem.
    pub(super) stem: &'static str,
    /// The fatbin.
    pub(super) code: &'static [u8],
    /// Names of its kernels.
    pub(super) kernels: &'static [&'static str],
}

/// One for every `.cu` file.
pub(super) static FATBINS: &[Fatbin] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Compute capabilities that the code runs on, for messages.
pub(super) const RUNS_ON: &str = "8.x (A100 and relatives) and 9.0 (H100, H200)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_launched_and_every_launch_has_its_kernel() {
        let mut compiled: Vec<_> = FATBINS.iter().flat_map(|f| f.kernels).copied().collect();
        compiled.sort_unstable();
        assert_eq!(compiled, crate::kernels::gpu::names());
    }

    #[test]
    fn every_fatbin_has_the_magic_number_of_one() {
        for fatbin in FATBINS {
            assert!(
                fatbin.code.starts_with(&0xba55_ed50_u32.to_le_bytes()),
                "{}",
                fatbin.stem
            );
        }
    }
}
