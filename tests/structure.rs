//! The arrows between modules point one way, and files stay small.
