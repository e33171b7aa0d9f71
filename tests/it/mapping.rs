//! The mapping contract on the real engine: JSON in, rows out, with expectations written by hand.

mod columns;
mod custom_types;
mod harness;
mod lines;
mod lists;
mod statements;
mod times;
mod values;
