//! The `candlepower` program.
fn main() {}
