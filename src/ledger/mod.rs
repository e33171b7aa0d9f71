//! Which objects are loaded, claimed by a batch, or free.

pub mod protocol;

#[cfg(test)]
mod model;
