//! Runs jobs: one slot per device, a lease behind each, four stages from data to a visible model.
