//! What a job leaves behind: adapters in the open format, the training manifest, the loss chart.
