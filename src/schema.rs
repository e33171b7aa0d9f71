//! The tables and views that `migrate` makes.
