// Every storage that a streaming product takes, by the name that the launch code puts together: PLAIN(name) for 16-bit
// weights, CODES(name) where activations are codes too, WIDE_SCALES(name) where groups have f32 scales, PACKED(name) for
// the others. To be included once, after all four are defined.

using plain_bf16 = PlainRows<bf16>;
using plain_f16 = PlainRows<f16>;
using int8_bf16 = ByteRows<bf16, Int8Code, void>;
using int8_f16 = ByteRows<f16, Int8Code, void>;
using int8_groups_bf16 = ByteRows<bf16, Int8Code, f32>;
using int8_groups_f16 = ByteRows<f16, Int8Code, f32>;
using e4m3_bf16 = ByteRows<bf16, E4m3Code, void>;
using e4m3_f16 = ByteRows<f16, E4m3Code, void>;
using e4m3_groups_bf16 = ByteRows<bf16, E4m3Code, f32>;
using e4m3_groups_f16 = ByteRows<f16, E4m3Code, f32>;
using int4_bf16 = NibbleTiles<bf16, bf16, false>;
using int4_f16 = NibbleTiles<f16, f16, false>;
using int4_f32_bf16 = NibbleTiles<bf16, f32, false>;
using int4_f32_f16 = NibbleTiles<f16, f32, false>;
using int4_zeros_bf16 = NibbleTiles<bf16, bf16, true>;
using int4_zeros_f16 = NibbleTiles<f16, f16, true>;
using int4_zeros_f32_bf16 = NibbleTiles<bf16, f32, true>;
using int4_zeros_f32_f16 = NibbleTiles<f16, f32, true>;
using w8a8 = CodeRows;

PLAIN(plain_bf16)
PLAIN(plain_f16)
PACKED(int8_bf16)
PACKED(int8_f16)
WIDE_SCALES(int8_groups_bf16)
WIDE_SCALES(int8_groups_f16)
PACKED(e4m3_bf16)
PACKED(e4m3_f16)
WIDE_SCALES(e4m3_groups_bf16)
WIDE_SCALES(e4m3_groups_f16)
PACKED(int4_bf16)
PACKED(int4_f16)
WIDE_SCALES(int4_f32_bf16)
WIDE_SCALES(int4_f32_f16)
PACKED(int4_zeros_bf16)
PACKED(int4_zeros_f16)
WIDE_SCALES(int4_zeros_f32_bf16)
WIDE_SCALES(int4_zeros_f32_f16)
CODES(w8a8)
