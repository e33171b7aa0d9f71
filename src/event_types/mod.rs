//! Declared event types.
