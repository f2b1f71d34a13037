-- The last attempt that kept something the next one goes on from (a checkpoint, a teacher's answers): its loss is
-- no strike against the job.
ALTER TABLE customization_jobs ADD COLUMN progress_attempt BIGINT;

-- 1 while a downloaded model is being checked, which is what may kill a process: an attempt that is lost then counts
-- for more than one that was lost while it downloaded.
ALTER TABLE model_imports ADD COLUMN checking BIGINT NOT NULL DEFAULT 0;
