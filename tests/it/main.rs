//! Tests on the real engine.

mod mapping;
