//! The emulator in `kernels/host/` through its C interface: what CUDA promises holds in it, and what CUDA leaves undefined
//! is noticed. `tests/fixtures/emulator/` holds the kernels.

#[path = "emulator/blocks.rs"]
mod blocks;
#[path = "emulator/mod.rs"]
mod build;
#[path = "emulator/copies.rs"]
mod copies;
#[path = "emulator/library.rs"]
mod library;
#[path = "emulator/matrices.rs"]
mod matrices;
#[path = "emulator/numbers.rs"]
mod numbers;
#[path = "emulator/products.rs"]
mod products;
#[path = "emulator/threads.rs"]
mod threads;
#[path = "emulator/wrappers.rs"]
mod wrappers;
