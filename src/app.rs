//! What every request and every job may reach: built from [`crate::config::Config`], nothing global.
