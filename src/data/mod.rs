//! From text to token batches: JSONL lines, records, chat templates, packed batches.
