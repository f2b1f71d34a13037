//! Asking models.
