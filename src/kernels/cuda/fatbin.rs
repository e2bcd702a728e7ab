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

    /// Launch functions put names together at run time; this is what they can come up with.
    fn names() -> Vec<String> {
        let mut names = Vec::new();
        for act in ["f32", "f16", "bf16"] {
            for op in [
                "rms_norm",
                "silu_mul",
                "argmax",
                "log_prob",
                "rope_append",
                "attention",
                "fill_uniform",
                "fill_constant",
                "quantize_act",
                "quantize_int8",
                "quantize_int4",
                "add_bias",
                "linear_w8a8_few",
                "linear_w8a8_many",
            ] {
                names.push(format!("{op}_{act}"));
            }
            names.extend(["f32", "f16", "bf16"].map(|table| format!("gather_{table}_{act}")));
        }
        for types in ["f32_f32", "f16_f16", "f16_f32", "bf16_bf16", "bf16_f32"] {
            for weight in ["f32", "f16", "bf16", "int8", "int4"] {
                names.push(format!("linear_few_{weight}_{types}"));
                names.push(format!("linear_many_{weight}_{types}"));
            }
        }
        names.sort();
        names
    }

    #[test]
    fn every_kernel_is_launched_and_every_launch_has_its_kernel() {
        let mut compiled: Vec<_> = FATBINS.iter().flat_map(|f| f.kernels).copied().collect();
        compiled.sort_unstable();
        assert_eq!(compiled, names());
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
