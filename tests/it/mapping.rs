//! The mapping contract on the real engine: JSON in, rows out, with expectations written by hand.

mod columns;
mod harness;
mod lines;
mod lists;
mod own_types;
mod statements;
mod times;
mod values;
