//! Generated xAPI data with its own reckoning.
