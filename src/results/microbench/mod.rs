//! What the kernel microbenchmark measured, and what is made of it: one record per cell (an op at a shape, a number of
//! tokens and a variant), the document of a whole run, its table, its CSV, and a page with a chart per shape.
//!
//! In reading order: [`record`] is what is kept of a cell, samples and all; [`document`] is made of records; [`table`],
//! [`export`] and `page` are made of the document.

mod crossover;
pub mod document;
pub mod export;
mod page;
pub mod record;
pub mod table;

#[cfg(test)]
mod fixture;

pub use document::Microbench;
pub use record::Record;
