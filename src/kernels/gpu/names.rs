//! The names that launch functions put together at run time.

/// Every name that a launch function can come up with, sorted. Tests hold the compiled kernels against it, so that no
/// kernel is dead and no launch fails for want of one.
pub fn names() -> Vec<String> {
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
