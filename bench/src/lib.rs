//! The calculations of the benchmarks, separate from the program that measures, so that they can be
//! tested.

pub mod gate;
pub mod machine;
