//! Models through the public API: checkpoints of every source and generation, and files made to do harm.

#[path = "models/common.rs"]
mod common;
#[path = "models/gguf.rs"]
mod gguf;
#[path = "models/gguf_writer.rs"]
mod gguf_writer;
#[path = "models/gptq_rules.rs"]
mod gptq_rules;
#[path = "models/hostile.rs"]
mod hostile;
#[path = "models/mutated.rs"]
mod mutated;
#[path = "models/safetensors.rs"]
mod safetensors;
#[path = "models/sources.rs"]
mod sources;
#[path = "models/stored.rs"]
mod stored;
#[path = "models/stored_bytes.rs"]
mod stored_bytes;
#[path = "models/stored_faults.rs"]
mod stored_faults;
#[path = "models/tokenizer_files.rs"]
mod tokenizer_files;
#[path = "models/unused.rs"]
mod unused;
#[path = "models/vocab.rs"]
mod vocab;
