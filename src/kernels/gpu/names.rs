//! The names that launch functions put together at run time.

use super::attention::suffix;
use crate::kernels::stream::ReadPlan;
use crate::scheme::KvFormat;

/// Every name that a launch function can come up with, sorted. Tests hold the compiled kernels against it, so that no
/// kernel is dead and no launch fails for want of one.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = [
        "add_bias",
        "advance",
        "scale_codes",
        "linear_any_w8a8_few",
        "linear_any_w8a8_many",
        "permute_columns_1",
        "permute_columns_2",
        "permute_columns_4",
        "pair_rows_1",
        "pair_rows_4",
        "repack_int4",
        "repack_zeros",
        "repack_scales_f32_f32",
        "repack_scales_f16_f16",
        "repack_scales_f16_f32",
        "repack_scales_bf16_bf16",
        "repack_scales_bf16_f32",
    ]
    .map(str::to_owned)
    .into();
    for act in ["f32", "f16", "bf16"] {
        for op in [
            "rms_norm",
            "silu_mul",
            "rms_norm_quantize",
            "silu_mul_quantize",
            "argmax",
            "log_prob",
            "fill_uniform",
            "fill_constant",
            "quantize_act",
            "quantize_int8",
            "quantize_int4",
            "round_input_int8",
            "round_input_e4m3",
        ] {
            names.push(format!("{op}_{act}"));
        }
        for kv in KvFormat::ALL.map(suffix) {
            names.extend(["rope_append", "attention"].map(|op| format!("{op}_{act}{kv}")));
        }
        names.extend(["f32", "f16", "bf16"].map(|table| format!("gather_{table}_{act}")));
    }
    for x in ["f32", "f16", "bf16"] {
        for weight in ["f32", "f16", "bf16", "int8", "e4m3", "int4"] {
            names.push(format!("linear_any_few_{weight}_{x}"));
            names.push(format!("linear_any_many_{weight}_{x}"));
        }
    }
    names.extend(super::flash::names());
    names.extend(super::linear::names());
    names.extend(super::step::names());
    names.extend(ReadPlan::ALL.map(ReadPlan::kernel));
    names.extend(["copy_words", "nothing", "nothing_overlapping"].map(str::to_owned));
    names.sort();
    names.dedup();
    names
}
