//! Bedrock's operations, one file each: its shapes, its handler, its tests.
