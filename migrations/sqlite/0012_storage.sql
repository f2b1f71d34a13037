-- Removing what an ended job left in object storage: when it is tried next, how often it was done (a worker that lost the
-- job may write late, so it is done again), and how often it failed since.
ALTER TABLE customization_jobs ADD COLUMN scratch_due BIGINT NOT NULL DEFAULT 0;
ALTER TABLE customization_jobs ADD COLUMN scratch_rounds BIGINT NOT NULL DEFAULT 0;
ALTER TABLE customization_jobs ADD COLUMN scratch_failures BIGINT NOT NULL DEFAULT 0;

CREATE INDEX customization_jobs_scratch_due ON customization_jobs (scratch_due)
    WHERE scratch = 1 AND end_time IS NOT NULL;
