//! The calculations of the benchmarks, apart from the program that measures, so that they have
//! tests.

pub mod gate;
pub mod machine;
