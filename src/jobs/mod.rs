//! What a job is: its states, the queue's rules (claim, renew, finish), the sweep of lost leases. No HTTP, no tensors.
