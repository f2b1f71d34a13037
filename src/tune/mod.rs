//! The tuning methods, one file each: what they train and how they enter the decoder.
