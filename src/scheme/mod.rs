//! What a weight is made of: element types, quantisation schemes, and the one canonical packed form that every
//! checkpoint format becomes and every quantiser produces. Knows nothing of files, models or devices.

mod dtype;
mod inputs;
mod kv;
mod packed;
mod variant;

pub use dtype::{DType, Elem};
pub use inputs::{InputNumber, InputRounding, InputScale};
pub use kv::KvFormat;
pub use packed::{BLOCK, CodeFormat, LevelForm, Levels, PackedForm, PackedWeight, Scales};
pub use variant::{Activations, Method, QuantScheme, Variant, WeightScheme};
